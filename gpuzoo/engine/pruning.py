"""Magnitude pruning while training: Zhu and Gupta, arXiv 1710.01878.

After some steps, the same for every run of a plan, the weights of each kernel that are
closest to zero are set to zero, more and more of them. From then on a step leaves a
weight at zero that was zero before it, so that the state of a run needs no masks: a
checkpoint between two steps is complete without them.
"""

import contextlib

import keras
import numpy as np

from gpuzoo.data.dataset import Arrays
from gpuzoo.engine.optim import averages
from gpuzoo.errors import GpuzooError
from gpuzoo.weights import by_name

_TIMES = 64  # at most; each copies the kernels to the host and back


def steps_of(steps: int) -> tuple[int, ...]:
    """Return the numbers of steps after which kernels are pruned: evenly spaced over
    the first three quarters of a training of so many steps, the last at their end."""
    end = max(1, steps * 3 // 4)
    return tuple(sorted({end * part // _TIMES for part in range(1, _TIMES + 1)} - {0}))


def fraction(sparsity: float, step: int, end: int) -> float:
    """Return the fraction of zeros after a step; the schedule ends at step `end`."""
    return sparsity * (1 - (1 - step / end) ** 3)


def zeros_of(part: float, size: int) -> int:
    """Return how many of `size` weights are zero at a fraction: one is always left."""
    return min(round(part * size), size - 1)


def smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Return a mask of the `count` values closest to zero; of equal ones the first."""
    # float64 holds 16-bit floats, which NumPy cannot partition, and float32 exactly.
    sizes = np.abs(values.astype(np.float64).reshape(-1))
    if count == 0:
        return np.zeros(values.shape, bool)
    limit = np.partition(sizes, count - 1)[count - 1]
    mask = sizes < limit
    mask[np.flatnonzero(sizes == limit)[: count - mask.sum()]] = True
    return mask.reshape(values.shape)


class Pruning:
    """The pruning of one training; without `sparsity` it does and traces nothing.

    Args:
        steps: those after which it prunes (`steps_of`).

    Raises:
        GpuzooError: the model has no kernels.
    """

    def __init__(self, recipe, steps: tuple[int, ...], model, optimizers, backend):
        self.sparsity, self.steps, self.backend = recipe.sparsity, steps, backend
        self.kernels = kernels_of(model) if self.sparsity else {}
        if self.sparsity and not self.kernels:
            raise GpuzooError(
                f"sparsity {self.sparsity:g}: model {recipe.model_name!r} has no "
                "trainable kernels (of dense, convolutional, recurrent or attention "
                "layers); leave sparsity out"
            )
        pairs = [pair for one in optimizers for pair in averages(one)]
        self._averages = {id(weight): average for weight, average in pairs}
        self._variables = [v for k in self.kernels.values() for v in self._with(k)]

    def _with(self, kernel) -> list:
        """Return a kernel and its running average, if there is one."""
        average = self._averages.get(id(kernel))
        return [kernel] if average is None else [kernel, average]

    @contextlib.contextmanager
    def zeros_kept(self, step):
        """Trace a step in the block; values that were zero before it are zero again
        after it, from the first pruning on: some kernels are initialised with zeros."""
        before = [(v, keras.ops.not_equal(v, 0)) for v in self._variables]
        yield
        for variable, nonzero in before:
            kept = keras.ops.logical_or(nonzero, step < self.steps[0])
            value = keras.ops.convert_to_tensor(variable)
            zeros = keras.ops.zeros_like(value)
            variable.assign(keras.ops.where(kept, value, zeros))

    def after(self, step: int) -> None:
        """Prune all kernels, if it is time to after so many steps."""
        if not self.sparsity or step not in self.steps:
            return
        part = fraction(self.sparsity, step, self.steps[-1])
        for kernel in self.kernels.values():
            variables = self._with(kernel)
            values = self.backend.read(variables)
            zeros = smallest(values[0], zeros_of(part, values[0].size))
            for variable, value in zip(variables, values, strict=True):
                value[zeros] = 0
                variable.assign(value)

    def measure(self, weights: Arrays) -> dict | None:
        """Return the fraction of zeros in all kernels, `total`, and for each kernel
        [zeros, weights]; None without `sparsity`."""
        found = {
            name: [int(np.sum(weights[name] == 0)), weights[name].size]
            for name in self.kernels
        }
        if not found:
            return None
        zeros, weights_ = map(sum, zip(*found.values(), strict=True))
        return {"total": round(zeros / weights_, 6), "kernels": found}


def kernels_of(model: keras.Model) -> dict:
    """Return name -> variable of the kernels: trainable weights of two axes or more
    whose name ends in `kernel`, as Keras names those of dense, convolutional, recurrent
    and attention layers. Biases, normalization and embeddings are not pruned."""
    trained = {id(variable) for variable in model.trainable_variables}
    return {
        name: variable
        for name, variable in by_name(model.weights).items()
        if id(variable) in trained
        and variable.name.endswith("kernel")
        and len(variable.shape) > 1
    }
