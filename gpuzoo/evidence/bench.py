"""`gpuzoo bench`: how fast a recipe is in every mode that this machine has.

Each mode is a process of its own. Those that are compared are alive at once and take
turns of about a second, back and forth, because the speed of a shared machine drifts
within the quarter of a minute that a process takes.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from typing import Literal

import numpy as np
import scipy.stats

from gpuzoo.errors import GpuzooError
from gpuzoo.evidence import record
from gpuzoo.files import expand, write_atomically
from gpuzoo.machine import environment
from gpuzoo.recipe import Recipe
from gpuzoo.runtime import BACKENDS, Options, Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is timed, and for how long."""

    backends: tuple[Literal["tensorflow", "jax"], ...] = ()
    """Only on these; default: all that are installed."""
    precisions: tuple[Precision, ...] = ("float32", "mixed_bfloat16", "mixed_float16")
    """Only in these."""
    xla: tuple[Literal["on", "off"], ...] = ("off", "on")
    """TensorFlow without XLA, with it, or both; JAX always compiles with it."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""
    threads: int = 0
    """CPU threads; 0: one per available core."""
    rounds: int = 10
    """Turns that each mode is given."""
    seconds: float = 1.0
    """About how long a turn takes."""
    goal: float | None = None
    """Also train, as the recipe says, until an evaluation is as good as this: the
    seconds of training that it takes."""
    seeds: int = 3
    """How often that is done."""
    out: str = "bench"
    """Folder for the record and the plot."""

    def check(self) -> None:
        """Raises GpuzooError for a number that makes no sense."""
        for name, least in (("rounds", 2), ("seeds", 1)):
            if getattr(self, name) < least:
                raise GpuzooError(
                    f"{name} must be at least {least}: {getattr(self, name)}"
                )
        if not 0.01 <= self.seconds <= 600:
            raise GpuzooError(f"seconds must be in 0.01..600: {self.seconds}")
        for backend in self.backends:
            if importlib.util.find_spec(backend) is None:
                raise GpuzooError(
                    f"{backend} is not installed; run: pip install {backend}"
                )


def modes(settings: Settings) -> list[Options]:
    """Every mode but those without determinism."""
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    return [
        Options(
            backend=backend, precision=precision, xla=xla, device=settings.device,
            threads=settings.threads,
        )
        for backend in settings.backends or installed
        for precision in settings.precisions
        for xla in (settings.xla if backend == "tensorflow" else ("on",))
    ]  # fmt: skip


class Worker:
    """A process that trains a turn whenever it is told to, as turns.py does.

    Args:
        words: the command.
        asked: what it is told first, one JSON line.
        batch: examples of a step.
        variables: changes of its environment.
    """

    def __init__(
        self,
        words: list[str],
        asked: dict,
        batch: int,
        variables: dict[str, str] | None = None,
    ):
        self.speeds: list[float] = []
        self.error: str | None = None
        self.batch = batch
        self.process = subprocess.Popen(
            words, text=True, env={**os.environ, **(variables or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.told = self._say(json.dumps(asked))

    def turn(self) -> None:
        """One turn; nothing if the mode has failed."""
        if self.error:
            return
        told = self._say("go")
        if not self.error:
            self.told |= told
            self.speeds.append(told["steps"] * self.batch / told["seconds"])

    def _say(self, line: str) -> dict:
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        told = json.loads(answer) if answer else {"error": self._how_it_died()}
        self.error = told.get("error")
        return told

    def _how_it_died(self) -> str:
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the process {how}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()


def trainer(
    recipe: Recipe,
    options: Options,
    seconds: float = 1.0,
    *,
    goal: float | None = None,
    limits: bool = False,
    variables: dict[str, str] | None = None,
) -> Worker:
    """A worker that trains a recipe; it takes no more of a GPU's memory than it needs,
    since several are alive at once.

    Args:
        seconds: about how long a turn takes.
        goal: train until an evaluation is as good as this, instead of turns.
        limits: also tell what a step takes and what the device can do at most, which
            compiles programs that are none of the training's.
        variables: changes of its environment.
    """
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(variables or {})}
    asked = {
        "recipe": recipe.as_record(), "options": dataclasses.asdict(options),
        "seconds": seconds, "goal": goal, "limits": limits,
    }  # fmt: skip
    words = [sys.executable, "-m", "gpuzoo.evidence.turns"]
    return Worker(words, asked, recipe.batch_size, variables)


def take_turns(workers: list[Worker], rounds: int) -> None:
    """There and back again, so that a drift of the machine meets all alike."""
    for number in range(rounds):
        for worker in workers[:: -1 if number % 2 else 1]:
            worker.turn()


def spread(values: list[float]) -> dict:
    """The median and its interval (95 %, bootstrap), and of how many."""
    middle, low, high = [float(np.median(values))] * 3
    if len(set(values)) > 1:
        low, high = scipy.stats.bootstrap(
            [values], np.median, method="percentile", rng=0
        ).confidence_interval
    return {"median": middle, "low": float(low), "high": float(high), "n": len(values)}


def ratios(one: list[float], other: list[float]) -> dict:
    """Of the turns of one round each, which met the machine at about one speed."""
    return spread([a / b for a, b in zip(one, other, strict=True)])


def bench(recipe: Recipe, settings: Settings, note=lambda text: None) -> dict:
    """Time a recipe; returns the record.

    Raises:
        GpuzooError: not one mode could be timed.
    """
    settings.check()
    usual = Options(device=settings.device, threads=settings.threads)
    rows, wanted = [], modes(settings)
    note(f"Timing {recipe.name} in {len(wanted)} modes, with and without determinism.")
    with trainer(recipe, usual, settings.seconds, limits=True) as reference:
        if reference.error:
            raise GpuzooError(reference.error)
        data = reference.told["data"]
        if recipe.fallback and data["name"] == recipe.fallback:
            note(f"{recipe.data} is not to be had here: timing on {data['name']}.")
        for options in wanted:
            first = len(reference.speeds)
            loose = dataclasses.replace(options, level="fast")
            with (
                trainer(recipe, options, settings.seconds, limits=True) as firm,
                trainer(recipe, loose, settings.seconds) as free,
            ):
                take_turns([reference, firm, free], settings.rounds)
                beside = None if reference.error else reference.speeds[first:]
                rows.append(_row(options, firm, free, beside))
            note(_in_a_line(rows[-1]))
        if reference.error:
            note(f"the default: failed, {reference.error}; nothing is compared with it")
        told, speeds = reference.told, reference.speeds
    if all(row["error"] for row in rows):
        raise GpuzooError(f"no mode could be timed: {rows[0]['error']}")
    return {
        "what": f"recipe {recipe.name}: speed in every mode",
        "date": time.strftime("%Y-%m-%d"),
        "recipe": recipe.as_record(),
        "environment": environment(),
        "code_sha256": record.code_sha256(recipe.as_record()),
        "runtime": told["runtime"],
        "data": told["data"],
        "rounds": settings.rounds,
        "overhead_seconds": told["overhead_seconds"],
        "peak": told["peak"],
        "error": reference.error,
        "examples_per_second": spread(speeds) if speeds else None,
        "modes": rows,
        "goal": None
        if settings.goal is None
        else _reach(recipe, settings, usual, note),
        "conclusion": conclude(rows),
    }


def _row(
    options: Options, firm: Worker, free: Worker, beside: list[float] | None
) -> dict:
    xla = options.backend == "tensorflow" and options.xla == "on"
    precision = options.precision.removeprefix("mixed_")
    name = f"{options.backend} {precision}" + ", XLA" * xla
    row = {"mode": name, "error": firm.error, "error_without": free.error}
    if firm.error:
        return row
    told = firm.told
    speed = spread(firm.speeds)
    asked, peak = told["cost"], told["peak"]
    return row | {
        "examples_per_second": speed,
        "step_seconds": firm.batch / speed["median"],
        "times_the_default": ratios(firm.speeds, beside) if beside else None,
        "price_of_determinism": None
        if free.error
        else ratios(free.speeds, firm.speeds),
        "first_step_seconds": told["first_step_seconds"],
        "overhead_seconds": told["overhead_seconds"],
        "memory_bytes": told["memory_bytes"],
        "device_bytes": told["device_bytes"],
        "cost_of_an_example": asked,
        "peak": peak,
        "part_of_peak": {
            what: asked[what] and asked[what] * speed["median"] / peak[what]
            for what in peak
        },
    }


def conclude(rows: list[dict]) -> dict:
    """The fastest mode, and what repeatability costs there."""
    timed = [row for row in rows if not row["error"]]
    # Against the default, which met the machine at the same speed, if it lived.
    compared = all(row["times_the_default"] for row in timed)
    by = "times_the_default" if compared else "examples_per_second"
    best = max(timed, key=lambda row: row[by]["median"])
    return {
        "fastest": best["mode"],
        "examples_per_second": best["examples_per_second"]["median"],
        "times_the_default": best["times_the_default"],
        "price_of_determinism": best["price_of_determinism"],
    }


def _reach(recipe: Recipe, settings: Settings, usual: Options, note) -> dict:
    runs = []
    for seed in range(settings.seeds):
        begun = time.perf_counter()
        asked = recipe.override(seed=seed)
        with trainer(asked, usual, goal=settings.goal) as worker:
            if worker.error:
                raise GpuzooError(worker.error)
            whole = time.perf_counter() - begun
            runs.append({"seed": seed, **worker.told, "process_seconds": whole})
        found = runs[-1]
        verb = "reached" if found["reached"] else "NOT reached, ended at"
        note(
            f"seed {seed}: {verb} {found['name']} {found['figure']:.4f} in "
            f"{found['seconds']:.2f} s of training, {whole:.1f} s of the process"
        )
    reached = all(run["reached"] for run in runs)
    return {
        "goal": settings.goal,
        "reached": reached,
        "seconds": spread([run["seconds"] for run in runs]) if reached else None,
        "runs": runs,
    }


def _in_a_line(row: dict) -> str:
    if row["error"]:
        return f"{row['mode']}: failed, {row['error']}"
    line = f"{row['mode']}: {row['examples_per_second']['median']:,.0f} a second"
    if row["error_without"]:
        line += f"; without determinism it failed, {row['error_without']}"
    return line


def save(found: dict, folder: str) -> str:
    """Write the record and its plot, named by recipe, device and versions; its path."""
    from gpuzoo.evidence import plots

    runtime, versions = found["runtime"], found["environment"]["versions"]
    words = [found["recipe"]["name"], runtime["device_name"]]
    words += [
        f"{name}{versions[name]}" for name in ("keras", *BACKENDS) if name in versions
    ]
    slug = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
    path = expand(folder) / f"{slug}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
        with plots.plain():
            plots.speeds(found).savefig(path.with_suffix(".png"), dpi=110)
    except OSError as error:
        raise GpuzooError(f"bench folder {folder}: {error.strerror or error}") from None
    return str(path)
