"""Capture one step: the outputs of every layer, every gradient, every variable.

The step is compiled as always, with these tensors as additional results.
"""

import contextlib
from collections.abc import Callable

import keras
import numpy as np

from gpuzoo.engine.program import Program


def take_apart(program: Program, step: int) -> list[tuple[str, np.ndarray]]:
    """Do the step after `step` steps and return (name, values) in computation order.

    Returns:
        Input of the step, weights before it, outputs of layers, loss, gradients from
        the last to the first weight, variables after it; 16-bit values as float32.
    """
    program.check_whole("a step cannot be taken apart (--replay)")
    state, backend = program.state, program.backend
    feed = program.feed(step, step + 1)
    parts = program.session.recipe.accumulate
    recorder = _Recorder(backend, program.model, "part" if parts > 1 else "update")

    def body(feed):
        results = program.step(feed, recorder)
        # A call returns its results sorted by name.
        return {
            f"{number:05d} {name}": tensor
            for number, (name, tensor) in enumerate(
                [*recorder.tensors, *((name, results[name]) for name in results)]
            )
        }

    before = state.read(state.all)
    call = backend.compile_steps(body, feed, list(state.all.values()))
    found = call(feed)
    program.pruning.after(step + 1)
    after = state.read(state.all)
    found = {name[6:]: found[name][0] for name in sorted(found)}
    gradients = [name for name in found if name.startswith("gradient of")]
    parts = [(f"{name} fed to the step", array[0]) for name, array in feed.items()]
    parts += [
        (f"{name} before the step", before[name]) for name in state.weights
    ]  # the optimizer's and the generators' are numbered, not named
    parts += [(n, a) for n, a in found.items() if n not in gradients]
    parts += [(name, found[name]) for name in reversed(gradients)]
    parts += [(f"{name} after the step", array) for name, array in after.items()]
    return [(name, _as_plain(array)) for name, array in parts]


class _Recorder:
    """A backend that keeps the outputs of layers and the gradients."""

    def __init__(self, backend, model: keras.Model, word: str):
        self._backend = backend
        self._model, self._word = model, word
        self.tensors: list[tuple[str, object]] = []
        self.calls = 0

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def value_and_grad(self, function: Callable, variables: list[keras.Variable]):
        names: list[str] = []

        def recorded():
            names.clear()
            tensors: list = []
            with _watched(self._model, names, tensors):
                loss, rest = function()
            return loss, (rest, tensors)

        (loss, (rest, tensors)), gradients = self._backend.value_and_grad(
            recorded, variables
        )
        # A step may have several updates, as of a GAN, or parts of its batch.
        self.calls += 1
        which = f"{self._word} {self.calls}: " if self.calls > 1 else ""
        names += [f"gradient of {variable.path}" for variable in variables]
        tensors += [one if one is None else self.dense(one) for one in gradients]
        self.tensors += [
            (which + name, tensor)
            for name, tensor in zip(names, tensors, strict=True)
            if tensor is not None
        ]
        return (loss, rest), gradients


@contextlib.contextmanager
def _watched(model: keras.Model, names: list[str], tensors: list):
    """Record the output of every layer of the model at each call."""

    def note(name: str, value) -> None:
        for tensor in keras.tree.flatten(value):
            times = sum(known.startswith(name) for known in names)
            names.append(name + (f" ({times + 1})" if times else ""))
            tensors.append(tensor)

    def watch(operation, path: str):
        real = operation.call

        def call(*args, **kwargs):
            if operation is model:
                note("input of the model", args[0])
                return real(*args, **kwargs)
            result = real(*args, **kwargs)
            note(f"output of {path}", result)
            return result

        object.__setattr__(operation, "call", call)

    watched = [(model, ""), *_operations(model, "")]
    try:
        for operation, path in watched:
            watch(operation, path)
        yield
    finally:
        for operation, _ in watched:
            operation.__dict__.pop("call", None)


def _operations(model: keras.Model, prefix: str):
    """Yield the layers and operations of a model and of nested models."""
    for operation in getattr(model, "operations", None) or model.layers:
        path = prefix + operation.name
        if isinstance(operation, keras.Model):
            yield from _operations(operation, path + "/")
        elif not isinstance(operation, keras.layers.InputLayer):
            yield operation, path


def _as_plain(array: np.ndarray) -> np.ndarray:
    """Return 16-bit floats as float32, which is exact."""
    array = np.asarray(array)
    small = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
    return np.ascontiguousarray(array.astype(np.float32) if small else array)
