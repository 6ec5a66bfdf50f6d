"""Re-run a recorded run in this process, for verify and diff."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from gpuzoo.data.dataset import ORDER
from gpuzoo.errors import Diverged
from gpuzoo.training.session import Recorded

if TYPE_CHECKING:
    from gpuzoo.engine import loop


@dataclasses.dataclass(frozen=True)
class Done:
    """The outcome of re-running the first steps."""

    digests: list[dict]
    """The rows of digests.jsonl."""
    metrics: list[dict]
    """The rows of metrics.jsonl."""
    result: "loop.Result | None"
    diverged: Diverged | None


def first_steps(recorded: Recorded, until: int) -> Done:
    """Re-run the first `until` steps. If the loss diverges, the digests end before that
    step."""
    from gpuzoo.engine import loop

    digests, metrics = [], []

    def watch(event: str, row: dict) -> None:
        if event == "digest":
            digests.append(row)
        elif event in ORDER:
            metrics.append({"split": event, **row})

    try:
        result = loop.run(_program(recorded), watch=watch, until=until)
    except Diverged as error:
        return Done(digests, metrics, None, error)
    return Done(digests, metrics, result, None)


def take_apart(recorded: Recorded, step: int) -> list[tuple[str, np.ndarray]]:
    """Train up to a step and take it apart (repro/capture.py).

    Raises:
        Diverged: before that step.
    """
    from gpuzoo.engine import loop
    from gpuzoo.repro import capture

    program = _program(recorded)
    if step - 1 > program.first:
        loop.run(program, until=step - 1)
    return capture.take_apart(program, step - 1)


def _program(recorded: Recorded):
    from gpuzoo.engine.backends import compile_cache
    from gpuzoo.training import build

    compile_cache.forget()  # recompile, which detects a compiler that varies
    return build.compiled(recorded.session)
