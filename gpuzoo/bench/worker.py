"""Worker process of the bench, which trains for one turn on each request.

It answers with its measurements and the first turn, then with one more turn each.
"""

import dataclasses
import sys
import time

import numpy as np

from gpuzoo import workers
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.engine import timing
from gpuzoo.runtime.options import Options
from gpuzoo.training.session import open_session


def _train(request: dict):
    recipe, options = Recipe(**request["recipe"]), Options(**request["options"])
    begun = time.perf_counter()
    session = open_session(recipe, options, lambda t: print(t, file=sys.stderr))
    from gpuzoo.training import build

    program = build.compiled(session)
    ready = time.perf_counter() - begun
    if request["goal"] is not None:
        yield _reach(program, request["goal"])
    else:
        yield from _turns(program, ready, request)


def _turns(program, ready_seconds: float, request: dict):
    """Yield the measurements and the first turn, then one more turn each."""
    seconds = request["seconds"]
    turn = max(1, round(seconds / _seconds_of_a_step(program, 2)))
    found = {
        "runtime": program.session.runtime.as_record(),
        "data": program.session.dataset.as_record(),
        "first_step_seconds": ready_seconds,
        # Of training alone: measured before `_limits`, which would add to it.
        "memory_bytes": timing.peak_memory_bytes(),
        "device_bytes": program.backend.peak_device_bytes(),
    }
    if request["limits"]:
        found |= _limits(program)
    steps, before = 0, program.clock.seconds["train"]
    for first, last, _ in program.train_parts(_over_and_over(program, turn)):
        steps += last - first
        spent = program.clock.seconds["train"] - before
        if spent < 0.7 * seconds:  # an epoch may be over before a turn is
            continue
        yield {"steps": steps, "seconds": spent, **found}
        steps, before, found = 0, program.clock.seconds["train"], {}


def _over_and_over(program, most: int):
    """Yield segments of at most so many steps, of one training after another."""
    from gpuzoo.engine.plan import segments

    recipe = program.session.recipe.override(
        log_every=most, digest_every=most, checkpoint_every=0
    )
    plan = dataclasses.replace(program.plan, kept=())
    while True:
        yield from segments(plan, recipe, 0, most=program.most_steps)


def _seconds_of_a_step(program, steps: int) -> float:
    steps = min(steps, program.plan.steps_per_epoch, program.most_steps or steps)
    before = program.clock.seconds.get("train", 0.0)
    program.train(0, steps)
    return (program.clock.seconds["train"] - before) / steps


def _limits(program) -> dict:
    """Return the cost of a step, the peak of the device and the host's overhead."""
    from gpuzoo.bench import roofline
    from gpuzoo.engine.program import Program
    from gpuzoo.training.build import session_of

    session = program.session
    recipe, dataset = _nothing()
    nothing = Program(session_of(recipe, session.runtime, dataset))
    return {
        "cost": roofline.cost(program.model, session.recipe.batch_size, program.cost()),
        "peak": roofline.measure(program.backend),
        "overhead_seconds": _seconds_of_a_step(nothing, 500),
    }


def _nothing() -> tuple:
    """Return a recipe and data whose steps compute almost nothing but overhead."""
    from gpuzoo.data.validate import make_dataset

    images, labels = np.zeros((500, 2, 2, 1), np.uint8), np.arange(500) % 2
    images[labels == 1] = 255
    arrays: dict = {"image": images, "label": labels}
    recipe = Recipe(
        name="nothing", model="mlp", model_options=("units=()",), batch_size=1,
        optimizer="sgd",
    )  # fmt: skip
    return recipe, make_dataset("nothing", "", {"train": arrays, "test": arrays})


def _reach(program, goal: float) -> dict:
    """Train until an evaluation after an epoch reaches the goal."""
    from gpuzoo.engine.plan import segments

    recipe, plan, headline = (
        program.session.recipe,
        program.plan,
        program.task.headline.name,
    )
    found = {"reached": False, "seconds": 0.0, "figure": None}
    parts = segments(plan, recipe, 0, most=program.most_steps)
    for _, last, _ in program.train_parts(parts):
        if last % plan.steps_per_epoch:
            continue
        _, metrics = program.evaluate()
        # Frechet distances exist only for images that the classifier can read.
        name = headline if headline in metrics else "loss"
        sign = 1 if name in ("accuracy", "map50") else -1
        found.update(
            name=name, figure=metrics[name], epoch=last // plan.steps_per_epoch,
            seconds=program.clock.seconds["train"],
        )  # fmt: skip
        if sign * metrics[name] >= sign * goal:
            return {**found, "reached": True}
    return found


if __name__ == "__main__":
    workers.serve(_train)
