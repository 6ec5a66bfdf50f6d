"""Everything that a step depends on, as a list of variables with unique names."""

import hashlib

import keras
import numpy as np

from gpuzoo.errors import GpuzooError


class State:
    """The variables of a run: the model's, the optimizer's, the random layers'.

    Names are unique and in a fixed order, the same for every run of a recipe.
    """

    def __init__(self, model: keras.Model, optimizer, generators, backend):
        self.backend = backend
        self.weights = _named(model.weights)
        others = [v for v in optimizer.variables if v is not None]
        self.optimizer = _named(others, "optimizer")
        self.random = _named([generator for generator, _ in generators], "random")
        self.others = {**self.optimizer, **self.random}
        self.all = {**self.weights, **self.others}

    def read(self, part: dict[str, keras.Variable]) -> dict[str, np.ndarray]:
        """Copies of the values, on the host."""
        values = self.backend.read(list(part.values()))
        return dict(zip(part, values, strict=True))

    def write(self, values: dict[str, np.ndarray]) -> None:
        """Assign values that `read` gave, all of them.

        Raises:
            GpuzooError: a name, shape or type is not that of this run's variables.
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


def digest(array: np.ndarray) -> str:
    """A short digest of type, shape and bytes: 16 hexadecimal digits."""
    head = f"{array.dtype} {array.shape}\n".encode()
    body = np.ascontiguousarray(array).view(np.uint8).reshape(-1) if array.size else b""
    return hashlib.sha256(head + bytes(body)).hexdigest()[:16]


def digest_all(values: dict[str, np.ndarray]) -> str:
    """One short digest of many named arrays."""
    lines = "".join(f"{name} {digest(values[name])}\n" for name in sorted(values))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _named(variables: list[keras.Variable], prefix: str = "") -> dict:
    named: dict[str, keras.Variable] = {}
    for variable in variables:
        name = "/".join(part for part in (prefix, variable.path) if part)
        if name in named:
            name = f"{name}#{len(named)}"
        named[name] = variable
    return named
