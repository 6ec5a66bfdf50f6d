"""A function of a batch of examples, compiled, for all rows of arrays."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from gpuzoo.data.dataset import Arrays
from gpuzoo.engine.backends.determinism import no_draws
from gpuzoo.engine.batches import Examples, first, in_parts
from gpuzoo.runtime.options import Runtime

# Pixels per batch: 1,000 MNIST images, 15 photographs of 224x224.
_PIXELS = 784_000
_FAST = 64  # examples per batch of --fast-dev-run


def batch_size(shape: tuple[int, ...], count: int, expansion: int, fast=False) -> int:
    """Return the examples of a batch.

    Args:
        shape: of an example.
        count: of all examples.
        expansion: see `Task.expansion`.
        fast: for `--fast-dev-run`.
    """
    pixels = math.prod(shape[:3] if len(shape) == 4 else shape[:2])  # 4: of a film
    batch = max(1, _PIXELS // (pixels * expansion))
    return min(batch, _FAST if fast else count, count)


class Evaluation:
    """A function, traced and compiled once for batches of one size.

    The results of an example can depend in their last bits on the size of the batch,
    so the last batch is padded, with the first example.

    Args:
        function: a batch, name -> tensor (batch, ...), and `index`, the places of its
            examples -> name -> tensor (batch, ...). It draws nothing at random.
        arrays: name -> array; the first axis is that of the examples.
        batch: examples of a batch.
        variables: everything that the function reads.
        streamed: send the rows with each call; else the arrays are kept on the device.
    """

    def __init__(
        self, function: Callable, arrays: Arrays, batch: int, backend,
        runtime: Runtime, variables: list, *, streamed: bool,
    ):  # fmt: skip
        self.batch, self.backend = batch, backend
        self.examples = Examples(arrays, backend, streamed)
        self.function, self.runtime = function, runtime
        indices = _padded(len(next(iter(arrays.values()))), batch)
        indices = indices[: self.examples.at_once(batch, len(indices))]
        example = self.examples.send({"indices": indices})
        self._steps = backend.compile_steps(self.step, example, variables)
        self._steps(first(example))

    def __call__(self, count: int, arrays: Arrays | None = None) -> Arrays:
        """Return the results of the first `count` examples, one row each.

        Args:
            arrays: other examples of the same shapes, only if streamed.
        """
        examples = self.examples
        if arrays is not None:
            if examples.resident:
                raise ValueError("only streamed examples can be replaced")
            examples = Examples(arrays, self.backend, streamed=True)
        feed = {"indices": _padded(count, self.batch)}
        outputs = in_parts(self._steps, examples, feed)
        return {
            name: array.reshape(-1, *array.shape[2:])[:count]
            for name, array in outputs.items()
        }

    def feeds(self, count: int) -> Iterator[Arrays]:
        """Yield the feed of each batch of the first `count` examples."""
        for indices in _padded(count, self.batch):
            yield self.examples.send({"indices": indices[None]})

    def step(self, feed: dict) -> dict:
        """Do one batch, to be traced: one entry of a feed -> results."""
        with no_draws(self.runtime):
            return self.function({**self.examples.take(feed), "index": feed["indices"]})


def _padded(count: int, batch: int) -> np.ndarray:
    """Return the indices 0..count-1, (batches, batch); the rest are 0."""
    indices = np.zeros(math.ceil(count / batch) * batch, np.int32)
    indices[:count] = np.arange(count)
    return indices.reshape(-1, batch)
