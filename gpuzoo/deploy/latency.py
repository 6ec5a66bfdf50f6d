"""Worker process: the latency of exported models, measured in turns.

In each turn every model predicts the same example some times, so that what else the
machine does at that time slows all of them alike. Imports NumPy and the runtime alone.
"""

import math
import time

import numpy as np

from gpuzoo import workers
from gpuzoo.deploy import runtimes

_TURNS, _SECONDS, _TURN = 200, 20.0, 1e-3


def measure(request: dict):
    """Yield `seconds`: for each model, those of one example in each turn.

    Args:
        request: `format`, `paths` of the models, `inputs` as in export.json.
    """
    rng = np.random.default_rng(0)
    example = {one["name"]: _example(one, rng) for one in request["inputs"]}
    opened = [
        runtimes.open_model(path, request["format"], 1) for path in request["paths"]
    ]
    calls = [runtimes.bound(model, example) for model in opened]
    counts = [_count(call) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    begun = time.perf_counter()
    while len(times[0]) < _TURNS and (
        time.perf_counter() - begun < _SECONDS or len(times[0]) < 10
    ):
        for call, count, its in zip(calls, counts, times, strict=True):
            call()  # its weights are in the processor's cache again
            its.append(_time(call, count))
    yield {"seconds": times}


def _example(described: dict, rng) -> np.ndarray:
    """Return one random example of an input."""
    shape, dtype = [1, *described["shape"][1:]], np.dtype(described["dtype"])
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if dtype == np.int32:  # places in a list, of which every list has the first two
        return rng.integers(0, 2, shape, dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def _time(call, count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begun) / count


def _count(call) -> int:
    """Return how many calls a turn has."""
    for _ in range(3):
        call()
    return max(1, math.ceil(_TURN / min(_time(call, 1) for _ in range(10))))


if __name__ == "__main__":
    workers.serve(measure)
