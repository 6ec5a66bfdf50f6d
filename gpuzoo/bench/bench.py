"""`gpuzoo bench`: training speed of a recipe in every mode of this machine.

Each mode runs in a separate process. Processes that are compared run at the same time
and take turns of about a second, back and forth, because the speed of a shared machine
drifts within the 15 seconds that a process takes.
"""

import dataclasses
import json
import os
import re
import time
from typing import Literal

from gpuzoo.bench.turns import Worker, ratios, spread, take_turns, trainer
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, read_inside, write_atomically
from gpuzoo.runs import code
from gpuzoo.runs.record import private
from gpuzoo.runtime.environment import environment, is_installed
from gpuzoo.runtime.options import BACKENDS, Options, Precision

_SOFTWARE = "gpuzoo bench"  # written into a plot, to recognize it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of a benchmark."""

    backends: tuple[Literal["tensorflow", "jax"], ...] = ()
    """Backends to measure; default: all that are installed."""
    precisions: tuple[Precision, ...] = ("float32", "mixed_bfloat16", "mixed_float16")
    """Dtype policies to measure."""
    xla: tuple[Literal["on", "off"], ...] = ("off", "on")
    """TensorFlow without XLA, with it, or both; JAX always uses it."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to measure on."""
    threads: int = 0
    """CPU threads; 0: one per available core."""
    rounds: int = 10
    """Turns per mode."""
    seconds: float = 1.0
    """Approximate length of a turn."""
    goal: float | None = None
    """Also measure the training time until an evaluation reaches this value."""
    seeds: int = 3
    """Number of runs for --goal, each with another seed."""
    out: str = "bench"
    """Folder for the record and the plot."""
    devices: tuple[int, ...] = ()
    """Instead of modes: what so many devices bring, e.g. 2 4 (JAX, the first of
    --precisions)."""

    def check(self) -> None:
        """Raise GpuzooError for a value out of range or a missing backend."""
        for name, least in (("rounds", 2), ("seeds", 1)):
            if getattr(self, name) < least:
                raise GpuzooError(
                    f"{name} must be at least {least}: {getattr(self, name)}"
                )
        if not 0.01 <= self.seconds <= 600:
            raise GpuzooError(f"seconds must be in 0.01..600: {self.seconds}")
        for backend in self.backends:
            if not is_installed(backend):
                raise GpuzooError(
                    f"{backend} is not installed; run: pip install {backend}"
                )


def modes(settings: Settings) -> list[Options]:
    """Return all deterministic modes."""
    installed = [name for name in BACKENDS if is_installed(name)]
    return [
        Options(
            backend=backend, precision=precision, xla=xla, device=settings.device,
            threads=settings.threads,
        )
        for backend in settings.backends or installed
        for precision in settings.precisions
        for xla in (settings.xla if backend == "tensorflow" else ("on",))
    ]  # fmt: skip


def bench(recipe: Recipe, settings: Settings, note=lambda text: None) -> dict:
    """Measure a recipe and return the record.

    Two processes of the default mode take turns with every other mode; the second is
    the control, which on a quiet machine has the speed of the first.

    Raises:
        GpuzooError: no mode could be measured.
    """
    settings.check()
    usual, wanted = (
        Options(device=settings.device, threads=settings.threads),
        modes(settings),
    )
    timed = _time(recipe, settings, usual, wanted, note)
    rows, ready, error = timed.rows, timed.ready, timed.error
    if error:
        by_name = {_name(options): options for options in wanted}
        usual = by_name[conclude(rows, None)["fastest"]]
    goal = None
    if settings.goal is not None:
        goal = _reach(recipe, settings, usual, note)
    return {
        "what": f"recipe {recipe.name}: speed in every mode",
        "date": time.strftime("%Y-%m-%d"),
        "recipe": recipe.as_record(),
        "environment": environment(),
        "code_sha256": code.code_sha256(recipe.model),
        "runtime": ready["runtime"],
        "data": ready["data"],
        "rounds": settings.rounds,
        "overhead_seconds": ready["overhead_seconds"],
        "peak": ready["peak"],
        "error": error,
        "examples_per_second": spread(timed.speeds) if timed.speeds else None,
        "control": timed.steady,
        "modes": rows,
        "goal": goal,
        "conclusion": conclude(rows, timed.steady),
    }


@dataclasses.dataclass
class _Timed:
    """The measurements of all modes."""

    rows: list[dict]
    """Of each mode, as in the record."""
    ready: dict
    """What the first process that could train said of itself."""
    error: str | None
    """Of the default mode."""
    speeds: list[float]
    """Of the default mode."""
    steady: dict | None
    """Ratio of the speeds of two processes of the default mode."""


def _time(
    recipe: Recipe, settings: Settings, usual: Options, wanted: list[Options], note
) -> _Timed:
    """Time every mode beside two processes of the default mode."""
    rows, ready, at = [], None, settings.seconds
    turns = 4 * settings.rounds * settings.seconds * len(wanted)
    note(
        f"Timing {recipe.name} in {len(wanted)} modes, with and without determinism: "
        f"{_long(turns)} of measurements, and {2 * len(wanted) + 2} process starts."
    )
    begun = time.perf_counter()
    with (
        trainer(recipe, usual, at, limits=True) as reference,
        trainer(recipe, usual, at) as control,
    ):
        if reference.error:
            note(f"the default: failed, {reference.error}; timing the other modes")
        else:
            ready = reference.told
            _say_data(recipe, ready["data"], note)
            started = time.perf_counter() - begun
            note(f"That takes about {_long(turns + started * len(wanted))}.")
        for options in wanted:
            first = len(reference.speeds), len(control.speeds)
            loose = dataclasses.replace(options, level="fast")
            with (
                trainer(recipe, options, at, limits=True) as firm,
                trainer(recipe, loose, at) as free,
            ):
                take_turns([reference, firm, free, control], settings.rounds)
                beside = None if reference.error else reference.speeds[first[0] :]
                again = None if control.error else control.speeds[first[1] :]
                rows.append(_row(options, firm, free, beside, again))
                if ready is None and not firm.error:
                    ready = firm.told
                    _say_data(recipe, ready["data"], note)
            note(_in_a_line(rows[-1]))
            alike = {o.precision for o, row in zip(wanted, rows, strict=False)
                     if row["error"] and row["error"] == reference.error}  # fmt: skip
            if len(alike) > 1:  # the same error in every mode
                raise GpuzooError(reference.error)
        if reference.error:
            note(f"the default: failed, {reference.error}; nothing is compared with it")
        elif control.error:
            note(f"the default in another process, the control: {control.error}")
        speeds = reference.speeds
        alive = speeds and not (reference.error or control.error)
        steady = ratios(control.speeds, speeds) if alive else None
    if ready is None or all(row["error"] for row in rows):
        raise GpuzooError(f"no mode could be timed: {rows[0]['error']}")
    return _Timed(rows, ready, reference.error, speeds, steady)


def _long(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _say_data(recipe: Recipe, data: dict, note) -> None:
    if recipe.fallback_data and data["name"] == recipe.fallback_data:
        note(f"{recipe.data} is not available here: timing on {data['name']}.")


def _name(options: Options) -> str:
    xla = options.backend == "tensorflow" and options.xla == "on"
    precision = options.precision.removeprefix("mixed_")
    return f"{options.backend} {precision}" + ", XLA" * xla


def _row(
    options: Options,
    firm: Worker,
    free: Worker,
    beside: list[float] | None,
    again: list[float] | None,
) -> dict:
    """Return the results of a mode; `beside`, `again`: speeds of default, control."""
    row = {"mode": _name(options), "error": firm.error, "error_without": free.error}
    if firm.error:
        return row
    measured = firm.told
    speed = spread(firm.speeds)
    cost, peak = measured["cost"], measured["peak"]
    return row | {
        "examples_per_second": speed,
        "step_seconds": firm.batch / speed["median"],
        "times_the_default": ratios(firm.speeds, beside) if beside else None,
        "control": ratios(again, beside) if beside and again else None,
        "price_of_determinism": None
        if free.error
        else ratios(free.speeds, firm.speeds),
        "first_step_seconds": measured["first_step_seconds"],
        "overhead_seconds": measured["overhead_seconds"],
        "memory_bytes": measured["memory_bytes"],
        "device_bytes": measured["device_bytes"],
        "cost_of_an_example": cost,
        "peak": peak,
        "part_of_peak": {
            what: cost[what] and cost[what] * speed["median"] / peak[what]
            for what in peak
        },
    }


def conclude(rows: list[dict], control: dict | None) -> dict:
    """Return the fastest mode and what repeatability costs there.

    Args:
        rows: the modes, as `bench` returns them.
        control: ratio of the speeds of two processes of the default mode; None if one
            of them failed.

    Returns:
        `quiet` is False, and every other value None, if the control differs from 1, as
        other programs then affect the comparison of modes. It is None without a
        control.
    """
    timed = [row for row in rows if not row["error"]]
    # Relative to the default in the same rounds, if it did not fail.
    compared = all(row["times_the_default"] for row in timed)
    by = "times_the_default" if compared else "examples_per_second"
    best = max(timed, key=lambda row: row[by]["median"])
    found = {
        "fastest": best["mode"],
        "examples_per_second": best["examples_per_second"]["median"],
        "times_the_default": best["times_the_default"],
        "price_of_determinism": best["price_of_determinism"],
    }
    controls = [control, *(row["control"] for row in timed)]
    if any(ratio and _differs_from_1(ratio) for ratio in controls):
        return {"quiet": False, **dict.fromkeys(found)}
    return {"quiet": True if control else None, **found}


def _differs_from_1(ratio: dict) -> bool:
    """Whether a ratio differs from 1 significantly and by over 2 %, or is too noisy."""
    outside = not ratio["low"] <= 1 <= ratio["high"] and abs(ratio["median"] - 1) > 0.02
    return outside or ratio["high"] - ratio["low"] > 0.3


def _reach(recipe: Recipe, settings: Settings, usual: Options, note) -> dict:
    runs = []
    for seed in range(settings.seeds):
        begun = time.perf_counter()
        seeded = recipe.override(seed=seed)
        with trainer(seeded, usual, goal=settings.goal) as worker:
            if worker.error:
                note(f"seed {seed}: failed, {worker.error}")
                return {
                    "goal": settings.goal, "reached": False, "seconds": None,
                    "runs": runs, "error": worker.error,
                }  # fmt: skip
            whole = time.perf_counter() - begun
            runs.append({"seed": seed, **worker.told, "process_seconds": whole})
        found = runs[-1]
        verb = "reached" if found["reached"] else "NOT reached, ended at"
        note(
            f"seed {seed}: {verb} {found['name']} {found['figure']:.4f} in "
            f"{found['seconds']:.2f} s of training, {whole:.1f} s in total"
        )
    reached = all(run["reached"] for run in runs)
    return {
        "goal": settings.goal,
        "reached": reached,
        "seconds": spread([run["seconds"] for run in runs]) if reached else None,
        "runs": runs,
        "error": None,
    }


def _in_a_line(row: dict) -> str:
    if row["error"]:
        return f"{row['mode']}: failed, {row['error']}"
    line = f"{row['mode']}: {row['examples_per_second']['median']:,.0f} examples/s"
    if row["error_without"]:
        line += f"; without determinism it failed, {row['error_without']}"
    return line


def save(found: dict, folder: str) -> str:
    """Write the record and its plot, named by recipe, device and versions; return the
    path of the record."""
    from gpuzoo.report import plots

    found = private(found)
    runtime, versions = found["runtime"], found["environment"]["versions"]
    words = [found["recipe"]["name"], runtime["device_name"]]
    words += [
        f"{name}{versions[name]}" for name in ("keras", *BACKENDS) if name in versions
    ]
    slug = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
    top, number = expand(folder), 1
    try:
        top.mkdir(parents=True, exist_ok=True)
        name = slug
        while not _may_be_written(top, name):
            number += 1
            name = f"{slug}-{number}"
        path = top / f"{name}.json"
        write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
        with plots.plain():
            content = plots.png_bytes(plots.speeds(found), _SOFTWARE)
        write_atomically(path.with_suffix(".png"), content)
    except OSError as error:
        raise GpuzooError(f"bench folder {folder}: {error.strerror or error}") from None
    return str(path)


def _may_be_written(top, name: str) -> bool:
    """Whether a record and its plot are those of an earlier bench, or do not exist."""

    def is_free(file: str, is_ours) -> bool:
        if not os.path.lexists(top / file):
            return True
        try:
            return is_ours(read_inside(top, file))
        except (OSError, ValueError, RecursionError):
            return False

    def is_record(content: bytes) -> bool:
        found = json.loads(content)
        return isinstance(found, dict) and {"modes", "conclusion"} <= found.keys()

    return is_free(f"{name}.json", is_record) and is_free(
        f"{name}.png", lambda content: _SOFTWARE.encode() in content
    )
