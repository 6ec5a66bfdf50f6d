"""XLA's choice of GPU kernels, tuned once and pinned in a file.

XLA chooses among kernels by timing them, which may end differently every time; told to
be deterministic it takes the first that works, which may be slow. A file of choices has
priority over both: tuned once, in a process of its own, then loaded by every run.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, write_atomically
from gpuzoo.recipe import Recipe
from gpuzoo.runtime import Options
from gpuzoo.start import check_autotune

_DUMP_FLAG = "--xla_gpu_dump_autotune_results_to="


def tune(recipe: Recipe, options: Options, note) -> None:
    """Make the file, if it is asked for and not there, by two steps of the recipe.

    Raises:
        GpuzooError: there is no GPU, or XLA had nothing to tune.
    """
    if not options.autotune or expand(options.autotune).exists():
        return
    check_autotune(options)
    note(f"Tuning XLA's GPU kernels once, into {options.autotune}.")
    goal = expand(options.autotune).resolve()
    asked = dataclasses.replace(options, device="gpu", level="fast", autotune="")
    if asked.xla == "auto":
        asked = dataclasses.replace(asked, xla="on")
    with tempfile.TemporaryDirectory() as folder:
        choices = pathlib.Path(folder) / f"choices{goal.suffix}"
        spec = {
            "recipe": recipe.as_record(),
            "options": dataclasses.asdict(asked),
            "out": f"{folder}/run",
        }
        flags = os.environ.get("XLA_FLAGS", "")
        done = subprocess.run(
            [sys.executable, "-m", "gpuzoo.autotune"],
            input=json.dumps(spec), capture_output=True, text=True, check=False,
            env={**os.environ, "XLA_FLAGS": f"{flags} {_DUMP_FLAG}{choices}".strip()},
        )  # fmt: skip
        if done.returncode:
            reason = done.stderr.strip().rpartition("\n")[2]
            raise GpuzooError(f"autotune: {reason or 'the tuning run was killed'}")
        if not choices.exists():
            raise GpuzooError("autotune: XLA tuned nothing; leave --autotune out")
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(goal, choices.read_bytes())
        except OSError as error:
            raise GpuzooError(f"autotune file {goal}: {error.strerror}") from None


def main() -> None:
    """The tuning run, in a process of its own."""
    from gpuzoo.training import train

    spec = json.load(sys.stdin)
    try:
        train(
            Recipe(**spec["recipe"]),
            options=Options(**spec["options"]),
            out=spec["out"],
            fast_dev_run=True,
            quiet=True,
        )
    except GpuzooError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
