"""A recorded run done again in this process, for verify and diff."""

import dataclasses

import numpy as np

from gpuzoo.errors import Diverged
from gpuzoo.training.session import Recorded


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of doing the first steps again."""

    digests: list[dict]
    """The rows of digests.jsonl."""
    metrics: list[dict]
    """The rows of metrics.jsonl."""
    result: "loop.Result | None"  # noqa: F821 - the engine stays unloaded
    diverged: Diverged | None


def first_steps(recorded: Recorded, until: int) -> Done:
    """Do the first `until` steps again. Where it diverged the digests end before that
    step."""
    from gpuzoo.engine import loop

    rows, told = [], []

    def watch(event: str, row: dict) -> None:
        if event == "digest":
            rows.append(row)
        elif event in ("train", "test"):
            told.append({"split": event, **row})

    try:
        result = loop.run(_program(recorded), watch=watch, until=until)
    except Diverged as error:
        return Done(rows, told, None, error)
    return Done(rows, told, result, None)


def take_apart(recorded: Recorded, step: int) -> list[tuple[str, np.ndarray]]:
    """Train up to the step before and take this one apart (repro/capture.py).

    Raises:
        Diverged: before that step.
    """
    from gpuzoo.engine import loop
    from gpuzoo.repro import capture

    program = _program(recorded)
    if step > 1:
        loop.run(program, until=step - 1)
    return capture.take_apart(program, step - 1)


def _program(recorded: Recorded):
    from gpuzoo.engine.backends import compile_cache
    from gpuzoo.engine.program import Program

    compile_cache.forget()  # compiled anew, so that a compiler that varies is found
    return Program(recorded.session)
