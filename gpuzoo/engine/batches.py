"""The examples of a step: gathered from arrays in device memory or, if these do not
fit, streamed: sent along with each compiled call.

Either way a step sees the same numbers.
"""

import concurrent.futures
from collections.abc import Callable, Iterator

import numpy as np

from gpuzoo.data.dataset import Arrays

# Streamed rows of one call; those of the next call take as much memory again.
_CALL_BYTES = 64_000_000
_AT_ONCE = 64  # steps per call of the device
# Fraction of the memory that examples may fill.
_PART = 0.5


class Examples:
    """The examples of one split.

    Args:
        arrays: name -> array; the first axis is that of the examples.
        backend: see engine/backends/tensorflow.py.
        streamed: whether rows are sent along with calls.
    """

    def __init__(self, arrays: Arrays, backend, streamed: bool):
        self.arrays, self.backend = arrays, backend
        self.resident = {}
        if not streamed:
            self.resident = {name: backend.put(a) for name, a in arrays.items()}

    def send(self, feed: Arrays, own: slice | None = None) -> Arrays:
        """Return a feed, with the rows of its indices if they are streamed.

        Args:
            own: those of a batch that this process computes, and reads; the rest are 0.
                None: all.
        """
        if self.resident:
            return feed
        chosen = feed["indices"]
        rows = {name: _rows(a, chosen, own) for name, a in self.arrays.items()}
        return feed | {f"row/{name}": array for name, array in rows.items()}

    def take(self, feed: dict) -> dict:
        """Return the batch of a step; called inside the step."""
        if self.resident:
            return self.backend.take(self.resident, feed["indices"])
        return {name: feed[f"row/{name}"] for name in self.arrays}

    def most(self, batch: int) -> int | None:
        """Return how many steps of so many examples a call may do; None: any number."""
        if self.resident:
            return None
        example = sum(a.nbytes // len(a) for a in self.arrays.values())
        return max(1, _CALL_BYTES // (batch * example))

    def at_once(self, batch: int, steps: int) -> int:
        """Return how many steps of so many examples the device gets at a time."""
        return min(_AT_ONCE, steps, self.most(batch) or steps)


def _rows(array, chosen: np.ndarray, own: slice | None) -> np.ndarray:
    """Return rows by their indices, (steps, batch)."""
    if own is None:
        return array[chosen]
    rows = np.zeros((*chosen.shape, *array.shape[1:]), array.dtype)
    rows[:, own] = array[chosen[:, own]]
    return rows


def first(feed: Arrays) -> Arrays:
    """Return the first step of a feed."""
    return {name: array[:1] for name, array in feed.items()}


def streams(recipe, splits: dict[str, Arrays], fields, backend) -> bool:
    """Return whether to stream: as requested, or because the arrays do not fit."""
    if recipe.stream != "auto":
        return recipe.stream != "off"
    needed = sum(split[name].nbytes for split in splits.values() for name in fields)
    memory = backend.memory_bytes()
    return memory is not None and needed > _PART * memory


def ahead(parts: Iterator, make: Callable) -> Iterator[tuple]:
    """Yield each part with a function that returns its `make()` result; the next one
    is made in a thread while this one is used."""
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
    """Call with a feed, in as many calls as needed; return the results."""
    count, batch = feed["indices"].shape
    most = examples.most(batch)
    starts = range(0, count, most or count)
    cuts = [{k: a[i : i + (most or count)] for k, a in feed.items()} for i in starts]
    found = [call(examples.send(cut)) for cut in cuts]
    if len(found) == 1:
        return found[0]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
