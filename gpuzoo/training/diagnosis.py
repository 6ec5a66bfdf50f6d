"""Say where and why a training diverged: its last steps are replayed and looked at.

The steps after the last good state are done again, one by one, until a variable or a
result is not finite. That step is done once more with a look at every operation
(gpuzoo/engine/nonfinite.py), in the run's precision and in float32.
"""

import collections
import contextlib
import dataclasses
import re
import time
from collections.abc import Callable

import numpy as np

from gpuzoo.catalogue.recipes import list_recipes, load_recipe
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.data.dataset import Arrays
from gpuzoo.engine import model_objects
from gpuzoo.engine.nonfinite import Look, Observer, Origin
from gpuzoo.engine.plan import segments
from gpuzoo.engine.program import Program
from gpuzoo.engine.state import variables_of
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.runtime.keras_state import in_float32
from gpuzoo.training import build, failures
from gpuzoo.workers import one_line

SECONDS = 120.0
"""No part of a diagnosis begins later than this."""
_ONE_BY_ONE = 8  # of the last steps, at first
_BEFORE = 3  # steps looked at before the one that went wrong
_ON = 8  # steps in float32 after it
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


class _GaveUp(GpuzooError):
    """The replay cannot go on; the message says why."""


@dataclasses.dataclass
class _Replay:
    """What the replay in the run's precision has found."""

    step: int
    """Steps done before the one that went wrong."""
    before: Arrays
    """All variables then."""
    after: Arrays
    """All variables after it; of a GAN some may have changed and be finite."""
    losses: list[float]
    norms: list[float]
    """Of the gradients of the same steps."""
    origin: Origin | None


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
    clock = _Clock(stop)
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


class _Clock:
    def __init__(self, stop: Callable[[], bool]):
        self._begun, self._stop = time.perf_counter(), stop

    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    def check(self) -> None:
        if self._stop():
            raise _GaveUp("interrupted")
        if self.seconds() > SECONDS:
            raise _GaveUp(f"the replay took longer than {SECONDS:g} s")


def _diagnose(program: Program, error: Diverged, rows, clock: _Clock, found) -> None:
    replay = _replayed(program, error, clock)
    found["step"] = replay.step + 1
    if replay.origin:
        found |= _where(program, replay.origin)
    looks, why = _float32_looks(program, replay, clock)
    found["float32"] = why or _float32_text(looks, replay.step)
    facts = _facts(program, replay, rows)
    cause = _cause(program, replay, looks, facts)
    found |= {"cause": cause, "remedy": _remedy(program, cause, replay, facts)}
    found["lines"] = _lines(program, replay, facts, found["float32"])
    found["text"] = _text(replay, found, facts)


# --- the replay -----------------------------------------------------------------------


def _replayed(program: Program, error: Diverged, clock: _Clock) -> _Replay:
    """Find the step that went wrong, and look at it."""
    plan, state = program.plan, program.state
    if error.step == error.at:
        # The weights are finite: gradients are skipped, or the evaluation is not.
        step, values = error.step, error.state
        if any(values[name] < 1 for name in state.scales):
            step = min(step, plan.steps - 1)
            # So small a scale would make gradients zero.
            values = values | {n: np.ones_like(values[n]) for n in state.scales}
        return _looked_at(program, [(step, values)], clock)
    first = max(error.step, error.at - _ONE_BY_ONE)
    passed = _steps(program, error, first, clock)
    if passed is None:  # it began earlier
        passed = _steps(program, error, error.step, clock)
    if passed is None:
        raise _GaveUp(
            f"replayed from step {error.step}, everything is finite up to step "
            f"{error.at}: the run is not repeatable"
        )
    return _looked_at(program, passed, clock)


def _steps(program: Program, error: Diverged, first: int, clock: _Clock):
    """Replay up to step `first`, then one by one until something is not finite; return
    (step, variables before it) of the last steps, None if that is not seen."""
    state = program.state
    state.write(error.state)
    recipe, most = program.session.recipe, program.most_steps
    for start, end in segments(program.plan, recipe, error.step, first, most):
        if start >= first:
            break
        clock.check()
        program.train(start, end)
    before = state.read(state.all)
    known = _bad(before) - _bad(error.state)
    if known:
        return None
    kept = collections.deque(maxlen=_BEFORE + 1)
    for step in range(first, error.at):
        clock.check()
        kept.append((step, before))
        results = program.train(step, step + 1)
        after = state.read(state.all)
        if _bad(results) or _bad(after) - _bad(before):
            return list(kept)
        before = after
    return None


def _bad(arrays: Arrays) -> set[str]:
    """Return the names of arrays that are not finite."""
    return {name for name, array in arrays.items() if not np.isfinite(array).all()}


def _looked_at(program: Program, passed: list, clock: _Clock) -> _Replay:
    """Do the last steps once more with a look at every operation."""
    step, before = passed[-1]
    clock.check()
    whole = step == program.plan.steps
    observer = Observer(program, evaluation=whole)
    if whole:
        return _Replay(
            step, before, before, [], [], _evaluated(program, observer, clock)
        )
    program.state.write(passed[0][1])
    looks: list[Look] = []
    for number, _ in passed:
        clock.check()
        looks.append(observer.look(number))
    losses = [one.results.get("loss", np.nan) for one in looks]
    norms, after = [one.norm for one in looks], program.state.read(program.state.all)
    return _Replay(step, before, after, losses, norms, looks[-1].origin)


def _evaluated(program: Program, observer: Observer, clock: _Clock) -> Origin | None:
    with program.state.averaged():
        for look in observer.evaluate():
            if look.origin:
                return look.origin
            clock.check()
    return None


# --- in float32 -----------------------------------------------------------------------


def _float32_looks(program: Program, replay: _Replay, clock: _Clock):
    """Do the step, and some after it, in float32 from the same state; return what was
    seen, or nothing and why."""
    if program.session.runtime.precision == "float32":
        return [], "the run is in float32"
    if replay.step == program.plan.steps:
        return [], "only the evaluation is concerned"
    looks: list[Look] = []
    try:
        clock.check()
        other = _in_float32(program, replay.before)
        with in_float32():
            observer = Observer(other)
            last = min(replay.step + 1 + _ON, program.plan.steps)
            for step in range(replay.step, last):
                clock.check()
                looks.append(observer.look(step))
                if looks[-1].origin:
                    break
    except Exception as problem:
        if not looks:
            why = failures.out_of_memory(problem) or one_line(problem)
            return [], f"float32 was not tried: {why}"
    return looks, ""


def _in_float32(program: Program, values: Arrays) -> Program:
    """Return the program in float32, with the same values of the variables."""
    session = program.session
    described = session.given.architecture
    if described:
        described = described.with_policy(session.runtime.precision, "float32")
    with in_float32():
        model = build.build_model(session.recipe, session.dataset, described)
        runtime = dataclasses.replace(session.runtime, precision="float32")
        changed = dataclasses.replace(session, model=model, runtime=runtime)
        other = Program(changed, like=program)
    theirs = {id(v): name for name, v in program.state.all.items()}
    pairs = list(zip(program.model.weights, model.weights, strict=True))
    for one, two in zip(program.task.optimizers, other.task.optimizers, strict=True):
        inner = [variables_of(getattr(o, "inner_optimizer", o)) for o in (one, two)]
        pairs += zip(*inner, strict=True)
    for one, two in pairs:
        two.assign(values[theirs[id(one)]].astype(two.dtype))
    return other


def _float32_text(looks: list[Look], step: int) -> str:
    last = step + len(looks)
    if not looks[-1].origin:
        return f"finite up to step {last}"
    return f"not finite either, in step {last}"


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
    split: str = "training"

    @property
    def weights_grew(self) -> bool:
        before, now = self.largest
        return now > _GREW * max(before, 1.0)

    @property
    def loss_grew(self) -> bool:
        if len(self.losses) < 2:
            return False
        return abs(self.losses[-1]) > _GREW * max(abs(self.losses[0]), 1.0)


def _facts(program: Program, replay: _Replay, rows: list[dict]) -> _Facts:
    weight, largest = _growth(program, replay)
    losses = [row["loss"] for row in rows if row.get("split") == "train"][:1]
    losses += [loss for loss in replay.losses if np.isfinite(loss)]
    evaluated = replay.step == program.plan.steps
    examples, extreme = (), None
    if not evaluated:
        (indices,) = program.plan.feed(replay.step, replay.step + 1)["indices"]
        bad = replay.origin.tensor.rows if replay.origin else ()
        if 0 < len(bad) <= max(1, len(indices) // 8):
            examples = tuple(int(indices[row]) for row in bad)
        extreme = _extreme(program, indices)
    return _Facts(
        losses, weight, largest, examples, extreme, "test" if evaluated else "training"
    )


def _growth(program: Program, replay: _Replay) -> tuple[str, tuple[float, float]]:
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


def _cause(program: Program, replay: _Replay, looks: list[Look], facts) -> str | None:
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


def _text(replay: _Replay, found: dict, facts: _Facts) -> str:
    """Return the finding as the rest of the error message."""
    if replay.origin is None:
        return (
            f"replayed with a look at every operation, step {replay.step + 1} is "
            f"finite, so that its origin is not known; {found['remedy']}"
        )
    where = f"layer {found['layer']!r} ({found['layer_type']})" if found["layer"] else (
        {"update": "the optimizer"}.get(found["phase"], "the loss")
    )  # fmt: skip
    if found["phase"] == "gradient":
        where = f"the gradient of {where}"
    when = f"step {found['step']}" if facts.split == "training" else "the evaluation"
    kind = "NaN or infinite" if np.isnan(replay.origin.tensor.largest) else "infinite"
    place = f" at {found['place']}" if found["place"] else ""
    return (
        f"first non-finite value: in {when}, in {where}, operation "
        f"{found['operation']}{place} ({found['not_finite']:,} of {found['values']:,} "
        f"{found['dtype']} values {kind}); cause: {found['cause'] or 'not clear'}"
        f"{_because(replay, found, facts)}; {found['remedy']}"
    )


def _because(replay: _Replay, found: dict, facts: _Facts) -> str:
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


def _remedy(program: Program, cause: str | None, replay: _Replay, facts) -> str:
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


def _lines(program: Program, replay: _Replay, facts: _Facts, float32: str) -> list[str]:
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
