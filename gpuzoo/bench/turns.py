"""Worker processes that train in turns, and statistics of their speeds."""

import dataclasses
import json
import os
import subprocess

import numpy as np
import scipy.stats

from gpuzoo import workers
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.runtime.options import Options


class Worker:
    """A process that trains for one turn on each request.

    Args:
        words: the command.
        request: the first message to it, one JSON line.
        batch: examples per step.
        variables: changes of its environment.
    """

    def __init__(
        self,
        words: list[str],
        request: dict,
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
        self.told = self._say(json.dumps(request))

    def turn(self) -> None:
        """Run one turn, unless the mode has failed."""
        if self.error:
            return
        answer = self._say("go")
        if not self.error:
            self.told |= answer
            self.speeds.append(answer["steps"] * self.batch / answer["seconds"])

    def _say(self, line: str) -> dict:
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = (
            json.loads(line)
            if line
            else {"error": workers.how_it_ended(self.process.wait())}
        )
        self.error = answer.get("error")
        return answer

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
    """Start a worker that trains a recipe; it does not preallocate GPU memory, since
    several run at once.

    Args:
        seconds: approximate length of a turn.
        goal: train until an evaluation reaches this value, instead of turns.
        limits: also report the cost of a step and the peak of the device, which
            compiles additional programs.
        variables: changes of its environment.
    """
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(variables or {})}
    request = {
        "recipe": recipe.as_record(), "options": dataclasses.asdict(options),
        "seconds": seconds, "goal": goal, "limits": limits,
    }  # fmt: skip
    words = workers.command("gpuzoo.bench.worker")
    return Worker(words, request, recipe.batch_size, variables)


def take_turns(workers: list[Worker], rounds: int) -> None:
    """Run the workers in alternating order, so that drift affects all equally."""
    for number in range(rounds):
        for worker in workers[:: -1 if number % 2 else 1]:
            worker.turn()


def spread(values: list[float]) -> dict:
    """Return the median, its 95 % bootstrap interval and the number of values."""
    middle, low, high = [float(np.median(values))] * 3
    if len(set(values)) > 1:
        low, high = scipy.stats.bootstrap(
            [values], np.median, method="percentile", rng=0
        ).confidence_interval
    return {"median": middle, "low": float(low), "high": float(high), "n": len(values)}


def ratios(one: list[float], other: list[float]) -> dict:
    """Return the `spread` of the speed ratios of turns in the same round."""
    return spread([a / b for a, b in zip(one, other, strict=True)])
