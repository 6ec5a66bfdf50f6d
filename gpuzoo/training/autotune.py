"""XLA's choice of GPU kernels, tuned once and pinned in a file.

XLA chooses among kernels by timing them, with results that vary; in deterministic mode
it takes the first that works, which may be slow. A file of choices overrides both,
tuned once in a separate process, then loaded by every run. A run fails on kernels that
the file does not cover, so the tuning process builds exactly the programs of the run.
"""

import dataclasses
import os
import pathlib
import tempfile

from gpuzoo import workers
from gpuzoo.catalogue.architecture import Architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.engine.given import Given
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, write_atomically
from gpuzoo.runtime import configure as runtimes
from gpuzoo.runtime.options import Options
from gpuzoo.runtime.startup import check_autotune
from gpuzoo.training.session import make_session

_DUMP_FLAG = "--xla_gpu_dump_autotune_results_to="


def tune(
    recipe: Recipe, options: Options, described: Architecture | None, note
) -> None:
    """Create the autotune file, if requested and missing, by a step of the recipe;
    `described`: the architecture of a model object.

    Raises:
        GpuzooError: there is no GPU, or XLA had nothing to tune.
    """
    if not options.autotune or expand(options.autotune).exists():
        return
    check_autotune(options)
    note(f"Tuning XLA's GPU kernels once, into {options.autotune}.")
    goal = expand(options.autotune).resolve()
    # XLA tunes only without its deterministic mode.
    tuning = dataclasses.replace(options, device="gpu", level="fast", autotune="")
    if tuning.xla == "auto":
        tuning = dataclasses.replace(tuning, xla="on")
    with tempfile.TemporaryDirectory() as folder:
        choices = pathlib.Path(folder) / f"choices{goal.suffix}"
        spec = {
            "recipe": recipe.as_record(), "options": dataclasses.asdict(tuning),
            "architecture": described and described.text,
        }  # fmt: skip
        flags = os.environ.get("XLA_FLAGS", "")
        env = {**os.environ, "XLA_FLAGS": f"{flags} {_DUMP_FLAG}{choices}".strip()}
        answer = workers.ask("gpuzoo.training.autotune", spec, env)
        if "error" in answer:
            raise GpuzooError(f"autotune: {answer['error']}")
        if not choices.exists():
            raise GpuzooError("autotune: XLA tuned no kernel; remove --autotune")
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            # Another process, or the user, may have created it meanwhile.
            write_atomically(goal, choices.read_bytes(), replace=False)
        except OSError as error:
            raise GpuzooError(f"autotune file {goal}: {error.strerror}") from None


def _first_step(spec: dict):
    """Build the programs of a repeatable run; do one step and one evaluation."""
    from gpuzoo.training import build

    recipe, options = Recipe(**spec["recipe"]), Options(**spec["options"])
    runtime = runtimes.configure(options, seed=recipe.seed, quiet=True)
    # So that pooling takes the same form as in the run (engine/backends/pooling.py).
    runtime = dataclasses.replace(runtime, deterministic=True)
    runtimes._in_force = (options, runtime)
    text = spec["architecture"]
    given = Given(Architecture(text)) if text else None
    session = make_session(recipe, runtime, lambda line: None, given=given)
    program = build.compiled(session)
    program.train(0, 1)
    program.evaluate()
    yield {}


if __name__ == "__main__":
    workers.serve(_first_step)
