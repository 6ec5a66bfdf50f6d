"""Say where and why a training diverged, from a replay of its steps (replay.py)."""

import contextlib
import dataclasses
import re
from collections.abc import Callable

import numpy as np

from gpuzoo.catalogue.recipes import list_recipes, load_recipe
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.engine import model_objects
from gpuzoo.engine.nonfinite import Look, Origin
from gpuzoo.engine.program import Program
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.training import failures
from gpuzoo.training.replay import Clock, Replay, float32_looks, float32_text, replayed
from gpuzoo.workers import one_line

_GREW = 10.0
"""Growth of a weight above 1, or of the loss, that no healthy training shows."""
_HUGE = 1e6
"""Inputs of an operation that weights before an update cannot explain."""
_EXTREME = 1000.0
"""Times the median example at which an example's values are extreme."""
# Operations that are not finite outside of a domain, or at its border.
_DOMAIN = re.compile(
    r"log|sqrt|div|reciprocal|pow|inv|acos|asin|atanh|xdivy|lgamma", re.IGNORECASE
)


def diagnose(
    program: Program,
    error: Diverged,
    rows: list[dict],
    stop: Callable[[], bool] = lambda: False,
) -> dict:
    """Replay what led to an error, and find its cause.

    Args:
        program: that has diverged; its variables are changed.
        rows: of metrics.jsonl so far.
        stop: returns whether the user wants the diagnosis to end.

    Returns:
        `text`, for the error message; `lines` with details; `step` (1: the first),
        `phase`, `layer`, `operation`, `cause` (data, precision, learning rate, model)
        and `remedy`; None where they are not known, and `failed`, why not, or None.
    """
    clock = Clock(stop)
    found = dict.fromkeys((
        "step", "phase", "layer", "layer_type", "operation", "place", "cause", "remedy",
        "float32", "failed",
    ))  # fmt: skip
    found["lines"] = []
    try:
        _diagnose(program, error, rows, clock, found)
    except Exception as problem:  # it must not hide the error
        why = failures.out_of_memory(problem) or one_line(problem)
        found["failed"] = " ".join(why.split())[:300]
    if "text" not in found:
        found["text"] = (
            f"its cause was not found ({found['failed']}); try a smaller "
            "--learning-rate, or --precision float32"
        )
    found["seconds"] = round(clock.seconds(), 2)
    return found


def _diagnose(program: Program, error: Diverged, rows, clock: Clock, found) -> None:
    program.check_whole("its steps are not replayed")
    replay = replayed(program, error, clock)
    found["step"] = replay.step + (replay.split == "train")
    if replay.origin:
        found |= _where(program, replay.origin)
    looks, why = float32_looks(program, replay, clock)
    found["float32"] = why or float32_text(looks, replay.step)
    facts = _facts(program, replay, rows)
    cause = _cause(program, replay, looks, facts)
    found |= {"cause": cause, "remedy": _remedy(program, cause, replay, facts)}
    found["lines"] = _lines(program, replay, facts, found["float32"])
    found["text"] = _text(replay, found, facts)


# --- the cause ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Facts:
    losses: list[float]
    """Finite losses: of the run's first rows, and of the last steps."""
    weight: str
    """That has grown most since the beginning, with its largest values."""
    largest: tuple[float, float]
    examples: tuple[int, ...]
    """Places of examples for which the operation is not finite, if not for all."""
    extreme: tuple[int, float, float] | None
    """An example with extreme values: place, its largest value, the median."""

    @property
    def weights_grew(self) -> bool:
        before, now = self.largest
        return now > _GREW * max(before, 1.0)

    @property
    def loss_grew(self) -> bool:
        if len(self.losses) < 2:
            return False
        return abs(self.losses[-1]) > _GREW * max(abs(self.losses[0]), 1.0)


def _facts(program: Program, replay: Replay, rows: list[dict]) -> _Facts:
    weight, largest = _growth(program, replay)
    losses = [row["loss"] for row in rows if row.get("split") == "train"][:1]
    losses += [loss for loss in replay.losses if np.isfinite(loss)]
    examples, extreme = (), None
    if replay.split == "train":
        (indices,) = program.plan.feed(replay.step, replay.step + 1)["indices"]
        bad = replay.origin.rows if replay.origin else ()
        together = len(indices) // program.session.recipe.accumulate
        if 0 < len(bad) <= max(1, together // 8):
            examples = tuple(int(indices[row]) for row in bad)
        extreme = _extreme(program, indices)
    return _Facts(losses, weight, largest, examples, extreme)


def _growth(program: Program, replay: Replay) -> tuple[str, tuple[float, float]]:
    """Return the trained weight that has grown most since the beginning, and its
    largest absolute value then and now."""
    session, state = program.session, program.state
    model_objects.begin(program.model, session.recipe, session.dataset, session.given)
    initial = state.read(state.weights)
    trained = {id(v) for group in program.task.groups(program.model) for v in group}
    found = {}
    for name, variable in state.weights.items():
        if id(variable) in trained and replay.before[name].size:
            values = initial, replay.before, replay.after
            first, *now = (_largest_finite(each[name]) for each in values)
            found[name] = first, max(now)
    if not found:
        return "", (0.0, 0.0)
    name = max(found, key=lambda name: found[name][1] / max(found[name][0], 1.0))
    return name, found[name]


def _largest_finite(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)].astype(np.float64)
    return float(np.max(np.abs(finite), initial=0))


def _extreme(program: Program, indices: np.ndarray):
    """Return the example of a batch whose values are not finite, or extreme."""
    dataset = program.session.dataset
    for name in program.task.fields:
        rows = dataset.train[name][indices]
        if rows.dtype.kind != "f":
            continue
        largest = np.abs(rows.reshape(len(rows), -1)).max(axis=1).astype(np.float64)
        worst, median = int(np.argmax(largest)), float(np.median(largest))
        if not np.isfinite(largest).all():
            worst = int(np.flatnonzero(~np.isfinite(largest))[0])
        elif largest[worst] <= _EXTREME * max(median, 1.0):
            continue
        return int(indices[worst]), float(largest[worst]), median
    return None


def _cause(program: Program, replay: Replay, looks: list[Look], facts) -> str | None:
    origin = replay.origin
    if origin is None:
        return None
    grew = facts.weights_grew or facts.loss_grew or _within_a_step(origin)
    if facts.extreme and not facts.weights_grew:
        return "data"
    if looks and not looks[-1].origin and not grew:
        return "precision"
    if grew or origin.phase == "update":
        return "learning rate"
    if _small(origin.tensor.dtype) and not _DOMAIN.search(origin.tensor.operation):
        # The layer computes in 16 bits whatever the precision of the run.
        return "precision"
    if facts.examples and len(program.task.optimizers) == 1:
        return "data"
    if replay.step == 0 or _DOMAIN.search(origin.tensor.operation) or not looks:
        return "model"
    return "precision" if not looks[0].origin else "model"


def _within_a_step(origin: Origin) -> bool:
    """Return whether an earlier update of the same step, as of a critic, has made the
    values extreme: the weights before and after the step do not show it."""
    return "(update " in origin.end and origin.largest_input > _HUGE


def _small(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16")


# --- in words -------------------------------------------------------------------------


def _where(program: Program, origin: Origin) -> dict:
    tensor = origin.tensor
    return {
        "phase": origin.phase,
        "layer": origin.layer or None,
        "layer_type": origin.layer_type or None,
        "operation": tensor.operation,
        "place": _place(program, origin) or None,
        "dtype": tensor.dtype,
        "values": tensor.count,
        "not_finite": tensor.bad,
        "largest_input": origin.largest_input,
    }


def _place(program: Program, origin: Origin) -> str:
    """Return the line of the user's file in which the operation is."""
    file = file_of(program.session.recipe.model)
    if file is None:
        return ""
    with contextlib.suppress(Exception):  # a detail
        # TensorFlow's gradients were not called there, but their inputs were.
        for tensor in (origin.tensor, *reversed(origin.inputs)):
            for name, line in reversed(tensor.frames()):
                if name in (str(file), str(file.resolve())):
                    return f"{file.name}, line {line}"
    return ""


def _text(replay: Replay, found: dict, facts: _Facts) -> str:
    """Return the finding as the rest of the error message."""
    if replay.origin is None:
        what = "the evaluation" if replay.split != "train" else f"step {found['step']}"
        return (
            f"replayed with a look at every operation, {what} is finite, so that its "
            f"origin is not known; {found['remedy']}"
        )
    where = f"layer {found['layer']!r} ({found['layer_type']})" if found["layer"] else (
        {"update": "the optimizer"}.get(found["phase"], "the loss")
    )  # fmt: skip
    if found["phase"] == "gradient":
        where = f"the gradient of {where}"
    when = {
        "train": f"step {found['step']}", "val": "the evaluation of validation data",
        "test": "the evaluation of test data",
    }[replay.split]  # fmt: skip
    kind = "NaN or infinite" if np.isnan(replay.origin.tensor.largest) else "infinite"
    place = f" at {found['place']}" if found["place"] else ""
    return (
        f"first non-finite value: in {when}, in {where}, operation "
        f"{found['operation']}{place} ({found['not_finite']:,} of {found['values']:,} "
        f"{found['dtype']} values {kind}); cause: {found['cause'] or 'not clear'}"
        f"{_because(replay, found, facts)}; {found['remedy']}"
    )


def _because(replay: Replay, found: dict, facts: _Facts) -> str:
    origin = replay.origin
    cause, before, now = found["cause"], *facts.largest
    if cause == "learning rate":
        if facts.weights_grew:
            return f" (largest value of {facts.weight}: {before:.3g}, now {now:.3g})"
        if facts.loss_grew:
            return (
                f" (the loss went from {facts.losses[0]:.3g} to {facts.losses[-1]:.3g})"
            )
        if _within_a_step(origin):
            return (
                f" (after an earlier update of the same step, its inputs are up to "
                f"{origin.largest_input:.3g})"
            )
        return " (the update itself overflows)"
    if cause == "precision":
        largest = _largest_of(origin.tensor.dtype)
        text = f" (inputs up to {origin.largest_input:.4g}; {origin.tensor.dtype} ends "
        text += f"at {largest:.4g}"
        if not found["float32"].startswith("finite"):
            return f"{text})"
        return f"{text}; the same in float32 is {found['float32']})"
    if cause == "data" and facts.extreme:
        place, value, median = facts.extreme
        return (
            f" (training example {place} has values up to {value:.4g}, the median "
            f"example {median:.4g})"
        )
    if cause == "data":
        places = ", ".join(map(str, facts.examples[:5]))
        return f" (only for training example{'s' * (len(facts.examples) > 1)} {places})"
    if cause == "model" and _DOMAIN.search(origin.tensor.operation):
        return " (outside of its domain, as a logarithm, a root or a division of zero)"
    return ""


def _largest_of(dtype: str) -> float:
    return {"float16": 65504.0, "bfloat16": 3.39e38}.get(dtype, 3.403e38)


def _remedy(program: Program, cause: str | None, replay: Replay, facts) -> str:
    recipe, origin = program.session.recipe, replay.origin
    smaller = f"use --learning-rate {_smaller(recipe):g}"
    if cause == "learning rate":
        rises = recipe.warmup_fraction == 0
        return smaller + (" or --warmup-fraction 0.1" if rises else "")
    if cause == "precision":
        if origin and origin.layer:
            return (
                f"give layer {origin.layer!r} dtype='float32', or use --precision "
                "float32 (or mixed_bfloat16)"
            )
        return "use --precision float32"
    if cause == "data":
        return "correct or remove these examples, or let the model accept them"
    if cause == "model" and _DOMAIN.search(origin.tensor.operation):
        return (
            "keep the operation inside its domain, for example keras.ops.maximum(x, "
            "1e-6) before it"
        )
    if cause == "model":
        return "scale the inputs of the operation or its initial weights down"
    return f"{smaller}, or --precision float32"


def _smaller(recipe) -> float:
    """Return the learning rate of the recipe as shipped, or a tenth."""
    with contextlib.suppress(GpuzooError):
        if recipe.name in list_recipes():
            shipped = load_recipe(recipe.name).learning_rate
            if shipped < recipe.learning_rate:
                return shipped
    return recipe.learning_rate / 10


def _lines(program: Program, replay: Replay, facts: _Facts, float32: str) -> list[str]:
    """Return the last steps and the growth, for the screen."""
    if not replay.losses:
        return []
    losses = " ".join(f"{loss:.4g}" for loss in replay.losses)
    norms = " ".join(f"{norm:.4g}" for norm in replay.norms)
    first = replay.step + 2 - len(replay.losses)
    steps = f"Steps {first} to" if first <= replay.step else "Step"
    lines = [f"{steps} {replay.step + 1}: loss {losses}; gradient norm {norms}."]
    if facts.weight:
        before, now = facts.largest
        lines.append(
            f"Weight that grew most: {facts.weight}, largest value {before:.4g} at the "
            f"beginning, {now:.4g} at step {replay.step + 1}."
        )
    if program.session.runtime.precision != "float32":
        lines.append(f"The same in float32: {float32}.")
    return lines
