"""How steps come to their examples: rows of arrays that lie on the device, or, where
these do not fit, the rows themselves, sent along with each compiled call.

Either way a step sees the same numbers.
"""

import concurrent.futures
import math
from collections.abc import Callable, Iterator

import numpy as np

from gpuzoo.data.dataset import Arrays, Dataset

# Of the rows that are sent along with one call; the next ones wait beside them.
_CALL_BYTES = 64_000_000
# Pixels per evaluation step: 1,000 MNIST images, 15 photographs of 224x224.
_PIXELS = 784_000
_AT_ONCE = 64  # steps that a device does without being told anything in between
_FAST = 64  # examples of one, where two are done of everything
# Part of the memory that may be filled with examples.
_PART = 0.5


class Examples:
    """The examples of one split.

    Args:
        arrays: name -> array, the first axis that of the examples.
        backend: see engine/backends/tensorflow.py.
        streamed: whether rows are sent along.
    """

    def __init__(self, arrays: Arrays, backend, streamed: bool):
        self.arrays, self.backend = arrays, backend
        self.resident = {}
        if not streamed:
            self.resident = {name: backend.put(a) for name, a in arrays.items()}

    def send(self, feed: Arrays) -> Arrays:
        """A feed, with the rows that its indices name if they are not there yet."""
        if self.resident:
            return feed
        rows = {name: array[feed["indices"]] for name, array in self.arrays.items()}
        return feed | {f"row/{name}": array for name, array in rows.items()}

    def take(self, feed: dict) -> dict:
        """Inside of a step: its batch."""
        if self.resident:
            return self.backend.take(self.resident, feed["indices"])
        return {name: feed[f"row/{name}"] for name in self.arrays}

    def most(self, batch: int) -> int | None:
        """Steps of so many examples that one call may do; None: any number."""
        if self.resident:
            return None
        example = sum(array[:1].nbytes for array in self.arrays.values())
        return max(1, _CALL_BYTES // (batch * example))

    def at_once(self, batch: int, steps: int) -> int:
        """Steps of so many examples that the device is given at a time."""
        return min(_AT_ONCE, steps, self.most(batch) or steps)


def first(feed: Arrays) -> Arrays:
    """The first step of a feed."""
    return {name: array[:1] for name, array in feed.items()}


def streams(recipe, splits: dict[str, Arrays], fields, backend) -> bool:
    """Whether rows are sent along: as it is asked for, or because they do not fit."""
    if recipe.stream != "auto":
        return recipe.stream == "on"
    needed = sum(split[name].nbytes for split in splits.values() for name in fields)
    there = backend.memory_bytes()
    return there is not None and needed > _PART * there


def ahead(parts: Iterator, make: Callable) -> Iterator[tuple]:
    """Each part with a function that returns what is made of it: the next one is made
    while this one is used."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = [(part, pool.submit(make, *part)) for part in _first(parts)]
        while coming:
            part, made = coming.pop()
            coming = [(later, pool.submit(make, *later)) for later in _first(parts)]
            yield part, made.result


def _first(parts: Iterator) -> list:
    part = next(parts, None)
    return [] if part is None else [part]


def in_parts(call: Callable, examples: Examples, feed: Arrays) -> Arrays:
    """A feed of `whole` in as many calls as it takes."""
    count, batch = feed["indices"].shape
    most = examples.most(batch)
    starts = range(0, count, most or count)
    cuts = [{k: a[i : i + (most or count)] for k, a in feed.items()} for i in starts]
    told = [call(examples.send(cut)) for cut in cuts]
    if len(told) == 1:
        return told[0]
    return {name: np.concatenate([one[name] for one in told]) for name in told[0]}


def whole(dataset: Dataset, fast: bool, expansion: int) -> tuple[Arrays, int]:
    """Every test example once, in batches, and how many they are; the last batch is
    filled up with the first example, whose surplus results the caller cuts off."""
    count = dataset.count("test")
    pixels = math.prod(dataset.input_shape[:2]) * expansion
    batch = max(1, _PIXELS // pixels)
    batch = min(batch, _FAST if fast else count, count)
    if fast:
        count = min(count, 2 * batch)
    indices = np.zeros(math.ceil(count / batch) * batch, np.int32)
    indices[:count] = np.arange(count)
    return {"indices": indices.reshape(-1, batch)}, count
