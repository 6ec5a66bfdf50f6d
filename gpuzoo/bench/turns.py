"""Processes that train a turn when they are told to, and how their speeds compare."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import scipy.stats

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.runtime.options import Options


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
    words = [sys.executable, "-m", "gpuzoo.bench.worker"]
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
