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
    checkpoints: dict[int, str]
    """Step -> digest of each checkpoint that a run keeps (`state_sha256`)."""


def first_steps(recorded: Recorded, until: int) -> Done:
    """Re-run the first `until` steps. If the loss diverges, the digests end before that
    step."""
    from gpuzoo.engine import checkpoint, loop

    digests, metrics, kept = [], [], {}

    def watch(event: str, row: dict) -> None:
        if event == "digest":
            digests.append(row)
        elif event in ORDER:
            metrics.append({"split": event, **row})

    def keep(one: checkpoint.Checkpoint) -> None:
        kept[one.step] = checkpoint.state_sha256(one)

    try:
        result = loop.run(program(recorded), watch=watch, keep=keep, until=until)
    except Diverged as error:
        return Done(digests, metrics, None, error, kept)
    return Done(digests, metrics, result, None, kept)


def take_apart(recorded: Recorded, step: int) -> list[tuple[str, np.ndarray]]:
    """Train up to a step and take it apart (repro/capture.py).

    Raises:
        Diverged: before that step.
    """
    from gpuzoo.engine import loop
    from gpuzoo.repro import capture

    made = program(recorded)
    if step - 1 > made.first:
        loop.run(made, until=step - 1)
    return capture.take_apart(made, step - 1)


def program(recorded: Recorded):
    """Compile the steps of a run."""
    from gpuzoo.engine.backends import compile_cache
    from gpuzoo.training import build

    compile_cache.forget()  # recompile, which detects a compiler that varies
    return build.compiled(recorded.session)
