"""The variables that a step depends on, by unique names."""

import contextlib

import keras
import numpy as np

from gpuzoo.engine.optim import REDUCTION, averages
from gpuzoo.errors import GpuzooError
from gpuzoo.weights import by_name


class State:
    """The variables of a run: the model's, the optimizer's, the random layers', and
    those that a task trains beside the model.

    Names are unique and in a fixed order, the same for every run of a recipe.
    """

    def __init__(
        self, model: keras.Model, optimizers: list, generators, backend, heads=()
    ):
        self.backend = backend
        self.weights = by_name(model.weights)
        kept = [variable for one in optimizers for variable in variables_of(one)]
        self.others = {
            **_numbered("optimizer", kept),
            **_numbered("random", [generator for generator, _ in generators]),
            **_numbered("head", list(heads)),
        }
        self.all = {**self.weights, **self.others}
        self.scales = [n for n, v in self.others.items() if v.name == "dynamic_scale"]
        self._reductions = [v for v in self.others.values() if v.name == REDUCTION]
        self._averages = [pair for one in optimizers for pair in averages(one)]

    def reduce_learning_rate(self, factor: float) -> None:
        """Multiply the learning rates of all optimizers by a factor, from the next step
        on (schedule=reduce_on_plateau)."""
        before = self.backend.read(self._reductions)
        for variable, value in zip(self._reductions, before, strict=True):
            variable.assign(value * np.float32(factor))

    def read(self, part: dict[str, keras.Variable]) -> dict[str, np.ndarray]:
        """Return copies of the values, on the host."""
        values = self.backend.read(list(part.values()))
        return dict(zip(part, values, strict=True))

    @contextlib.contextmanager
    def averaged(self):
        """Replace the weights by their running averages, if any, within the block."""
        # Copied through the host: JAX donates the buffers of a step's arguments, so two
        # variables must not share one.
        values = self.backend.read([average for _, average in self._averages])
        with self._replaced([weight for weight, _ in self._averages], values):
            yield

    def holding(self, values: dict[str, np.ndarray]):
        """Replace the weights by other values, name -> array, within the block."""
        return self._replaced([self.weights[name] for name in values], values.values())

    @contextlib.contextmanager
    def _replaced(self, weights: list[keras.Variable], values):
        before = self.backend.read(weights)
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value)
        try:
            yield
        finally:
            for weight, value in zip(weights, before, strict=True):
                weight.assign(value)

    def write(self, values: dict[str, np.ndarray]) -> None:
        """Assign values as `read` returns them, all of them.

        Raises:
            GpuzooError: a name, shape or dtype differs from this run's variables.
        """
        known = {n: (tuple(v.shape), v.dtype) for n, v in self.all.items()}
        given = {n: (a.shape, str(a.dtype)) for n, a in values.items()}
        if known != given:
            odd = min(n for n in known.keys() | given if known.get(n) != given.get(n))
            raise GpuzooError(
                f"state {odd!r} is {given.get(odd)} where the run has {known.get(odd)}"
            )
        for name, value in values.items():
            self.all[name].assign(value)


def variables_of(optimizer) -> list[keras.Variable]:
    """Return all variables of an optimizer, those Keras does not list too (Nadam's)."""
    listed = [variable for variable in optimizer.variables if variable is not None]
    seen = {id(variable) for variable in listed}
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for one in vars(inner).values():
        if isinstance(one, keras.Variable) and id(one) not in seen:
            listed.append(one)
    return listed


def _numbered(prefix: str, variables: list[keras.Variable]) -> dict:
    """Number them by place: Keras numbers optimizers and generators per process."""
    return {f"{prefix}/{place}": v for place, v in enumerate(variables)}
