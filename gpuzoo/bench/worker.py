"""A training that goes on for a turn whenever it is told to: a process of the bench.

    python -m gpuzoo.bench.worker

It reads one JSON line, what to train and how, and answers with JSON lines: when it is
ready what it has found and its first turn, then, for each line `go`, one turn more.
"""

import contextlib
import json
import os
import sys
import time

import numpy as np

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.engine import timing
from gpuzoo.engine.backends import get
from gpuzoo.runtime import configure as runtimes
from gpuzoo.runtime.options import Options

_NEVER = 10**9
# More than there are turns for; the table of learning rates has an entry for each.
_TURNS, _STEPS = 1000, 2_000_000


class _Enough(Exception):
    """Ends a training on the spot, without its last evaluation."""


def main() -> None:
    tell = _own_stdout()
    try:
        asked = json.loads(sys.stdin.readline())
        recipe = Recipe(**asked["recipe"])
        options = Options(**asked["options"])
        runtime = runtimes.configure(options, seed=recipe.seed, quiet=True)
        from gpuzoo.data import sources

        dataset = sources.of_recipe(recipe, lambda text: print(text, file=sys.stderr))
        if asked["goal"] is not None:
            tell(**_reach(recipe, dataset, runtime, asked["goal"]))
        else:
            _take_turns(recipe, dataset, runtime, asked, tell)
    except Exception as error:  # the mode has failed, the others go on
        lines = [line for line in str(error).splitlines() if line.strip()]
        tell(error=" ".join(lines[:2])[:300] or type(error).__name__)


def _own_stdout():
    """What tells the bench a JSON line; everything else goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**row) -> None:
        print(json.dumps(row), file=answers, flush=True)

    return tell


def _take_turns(recipe, dataset, runtime, asked: dict, tell) -> None:

    step, before, cost = _first_steps(recipe, dataset, runtime)
    ready = {
        "runtime": runtime.as_record(),
        "data": dataset.as_record(),
        "first_step_seconds": before,
        # Of a training alone: what comes now would add to them.
        "memory_bytes": timing.peak_memory_bytes(),
        "device_bytes": get(runtime).peak_device_bytes(),
    }
    if asked["limits"]:
        ready |= _limits(recipe, dataset, runtime, cost())
    del cost  # which holds that training's arrays
    seconds, done = asked["seconds"], {"step": 0, "seconds": 0.0}

    def watch(event: str, row: dict) -> None:
        # A turn is as many calls as fill it; an epoch may be over sooner.
        if event == "progress" and row["seconds"] - done["seconds"] > 0.7 * seconds:
            tell(
                steps=row["step"] - done["step"],
                seconds=row["seconds"] - done["seconds"],
                **(ready if not done["step"] else {}),
            )
            done.update(row)
            if sys.stdin.readline() != "go\n":
                raise _Enough

    turn = max(1, round(seconds / step))
    examples = min(_TURNS * turn, _STEPS) * recipe.batch_size
    epochs = 1 + examples // dataset.count("train")
    _run(recipe.override(log_every=turn, epochs=epochs), dataset, runtime, watch)


def _limits(recipe, dataset, runtime, counted: dict | None) -> dict:
    """What a step takes, what the device can do, and what the host does for a step."""
    from gpuzoo.bench import roofline
    from gpuzoo.engine.loop import build_model

    model = build_model(recipe, dataset)
    return {
        "cost": roofline.cost(model, recipe.batch_size, counted),
        "peak": roofline.measure(get(runtime)),
        "overhead_seconds": _first_steps(*_nothing(), runtime, steps=500)[0],
    }


def _first_steps(recipe, dataset, runtime, steps: int = 2) -> tuple:
    """Seconds of a step, of the first few after it is compiled, and of all before; and
    what tells its cost."""
    begun, found = time.perf_counter(), {}

    def watch(event: str, row: dict) -> None:
        if event == "start":
            found["before"] = time.perf_counter() - begun
            found["cost"] = row["cost"]
        elif event == "progress":
            found["step"] = row["seconds"] / row["step"]
            raise _Enough

    _run(recipe.override(log_every=steps), dataset, runtime, watch)
    return found["step"], found["before"], found["cost"]


def _run(recipe, dataset, runtime, watch) -> None:
    from gpuzoo.engine import loop

    quiet = recipe.override(
        eval_every=_NEVER, digest_every=_NEVER, checkpoint_every=0, minimum_steps=0
    )
    with contextlib.suppress(_Enough):
        loop.run(quiet, dataset, runtime, watch=watch)


def _nothing() -> tuple:
    """A training whose steps compute next to nothing: what is left is the host's."""
    from gpuzoo.data.validate import make_dataset

    images, labels = np.zeros((500, 2, 2, 1), np.uint8), np.arange(500) % 2
    images[labels == 1] = 255
    arrays = {"image": images, "label": labels}
    recipe = Recipe(
        name="nothing", model="mlp", model_options=("units=()",), batch_size=1,
        optimizer="sgd",
    )  # fmt: skip
    return recipe, make_dataset("nothing", "", {"train": arrays, "test": arrays})


def _reach(recipe, dataset, runtime, goal: float) -> dict:
    """Train until an evaluation is as good as the goal."""
    from gpuzoo import tasks
    from gpuzoo.engine import loop

    headline = tasks.load(recipe.task).headline
    found = {"reached": False, "seconds": 0.0, "figure": None}

    def watch(event: str, row: dict) -> None:
        if event == "progress":
            found["seconds"] = row["seconds"]
        elif event == "test":
            # Frechet distances are told of images that the classifier can read.
            name = headline if headline in row else "loss"
            sign = 1 if name in ("accuracy", "map50") else -1
            found.update(name=name, figure=row[name], epoch=row["epoch"])
            if sign * row[name] >= sign * goal:
                found["reached"] = True
                raise _Enough

    with contextlib.suppress(_Enough):
        loop.run(recipe.override(eval_every=1), dataset, runtime, watch=watch)
    return found


if __name__ == "__main__":
    main()
