"""Find the first operation of a step whose result is not finite."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator

import keras
import numpy as np

from gpuzoo.engine.backends import operations
from gpuzoo.engine.backends.operations import Tensor
from gpuzoo.engine.program import Program
from gpuzoo.keras_layers import layers_inside

_LAYER = re.compile(r"layer-(\d+)")
_LOSS = re.compile(r"loss-of-update-(\d+)")
_PART = re.compile(r" \(part (\d+)\)$")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The operation whose result is not finite although its inputs are."""

    tensor: Tensor
    inputs: tuple[Tensor, ...]
    phase: str
    """forward, gradient, update (of the weights) or evaluation."""
    layer: str
    """Path of the layer, such as encoder/dense_1; empty: outside all layers."""
    layer_type: str
    end: str
    """The first result that it spoils: loss, gradient of dense/kernel, ..."""
    rows: tuple[int, ...] = ()
    """Of the batch, for which it is not finite, if its first axis is that of examples
    and, with accumulate, the part of the batch is known."""

    @property
    def largest_input(self) -> float:
        return max((one.largest for one in self.inputs if not one.bad), default=0.0)


@dataclasses.dataclass(frozen=True)
class Look:
    """What one step gave."""

    results: dict[str, float]
    """The metrics of the step."""
    norm: float
    """Of the gradients of all updates, of each the mean over the parts of the batch,
    without the scale of the loss."""
    origin: Origin | None
    """None: everything that the step computes from is finite."""


class Observer:
    """A step of a program, or its evaluation of a split, compiled to look at every
    operation."""

    def __init__(self, program: Program, split: str = "train"):
        self.program, self.split = program, split
        self._layers = dict(enumerate(_inside(program.model, "")))
        parts = program.session.recipe.accumulate
        self._recorder = recorder = _Recorder(program.backend, parts)

        def body(feed):
            recorder.begin()
            if split != "train":
                results = program.evaluations[split].step(feed)
            else:
                results = program.step(feed, recorder)
            return {**results, **recorder.ends}

        self._variables = list(program.state.all.values())
        if split != "train":
            feed, sizes = next(program.evaluation_feeds(split)), ()
        else:
            batch = program.plan.batch
            feed, sizes = program.feed(0, 1), (batch, batch // parts)
        with self._marked():
            self._call = operations.observed(
                program.backend, body, feed, self._variables, sizes
            )

    def look(self, step: int) -> Look:
        """Do the step after `step` steps."""
        return self._look(self.program.feed(step, step + 1))

    def evaluate(self) -> Iterator[Look]:
        """Do the batches of the evaluation, one by one."""
        return map(self._look, self.program.evaluation_feeds(self.split))

    def _look(self, feed: dict) -> Look:
        program = self.program
        scale = _scale(program.task.optimizers)
        with self._marked():  # JAX traces at the first call
            results, tensors, ends = self._call(feed)
        norms = [
            v for n, v in results.items()
            if n.startswith("gradient of ") and not _PART.search(n)
        ]  # fmt: skip
        # A hypotenuse: squares would overflow.
        norm = float(np.hypot.reduce(np.asarray(norms, np.float64))) if norms else 0.0
        metrics = {n: float(v) for n, v in results.items() if np.ndim(v) == 0}
        metrics = {n: v for n, v in metrics.items() if n in program.step_metrics}
        return Look(metrics, norm / scale, self._origin(tensors, ends))

    def _origin(self, tensors: list[Tensor], ends: dict) -> Origin | None:
        for title, name in self._order(ends):
            if tensors[ends[name]].bad:
                return self._described(tensors, _first_bad(tensors, ends[name]), title)
        return None

    def _order(self, ends: dict) -> list[tuple[str, str | int]]:
        """Return (title, name) of what a step gives, in the order in which a value that
        is not finite spreads."""
        variables = list(self.program.state.all)
        recorded = [name for name in self._recorder.ends if name in ends]
        order = [(name, name) for name in recorded]
        order += [(n, n) for n in ends if isinstance(n, str) and n not in recorded]
        order += [(f"new value of {variables[n]}", n) for n in ends
                  if isinstance(n, int)]  # fmt: skip
        if self.program.state.scales:  # updates by such gradients are skipped
            order.sort(key=lambda pair: pair[0].startswith("gradient of "))
        return order

    def _described(self, tensors: list[Tensor], place: int, end: str) -> Origin:
        tensor = tensors[place]
        phase = "forward"
        if end.startswith("gradient of"):
            phase = "gradient"
        elif end.startswith("new value of"):
            phase = "update"
        if self.split != "train":
            phase = "evaluation"
        layer = self._layer_of(tensors, place, phase)
        path, kind = "", ""
        if layer is not None:
            path, one = self._layers[layer]
            kind = type(one).__name__
        inputs = tuple(tensors[one] for one in tensor.inputs)
        rows = self._rows_of(tensor, end)
        return Origin(tensor, inputs, phase, path, kind, end, rows)

    def _rows_of(self, tensor: Tensor, end: str) -> tuple[int, ...]:
        """Return the rows of the batch for which a tensor of it, or of a part of it, is
        not finite."""
        plan, parts = self.program.plan, self.program.session.recipe.accumulate
        if not tensor.rows or tensor.shape[0] == plan.batch:
            return tensor.rows
        found = _LOSS.search(tensor.scope) or _PART.search(end)
        if not found:
            return ()
        first = (int(found[1]) - 1) * (plan.batch // parts)
        return tuple(first + row for row in tensor.rows)

    def _layer_of(self, tensors, place: int, phase: str) -> int | None:
        """Return the number of the layer of an operation: of its scope, or of what it
        is the gradient of."""
        scope = tensors[place].scope
        if found := _LAYER.findall(scope):
            return int(found[-1])
        if phase != "gradient" or _LOSS.search(scope):
            return None
        # Functions with a gradient of their own lose the scope.
        for before in sorted(_ancestors(tensors, place), reverse=True):
            if found := _LAYER.findall(tensors[before].scope):
                return int(found[-1])
        return None

    @contextlib.contextmanager
    def _marked(self):
        """Trace every layer in a name scope with its number."""

        def mark(number: int, layer) -> None:
            real = layer.call

            @functools.wraps(real)  # wrappers of layers read the signature
            def call(*args, **kwargs):
                with operations.scope(f"layer-{number}"):
                    return real(*args, **kwargs)

            object.__setattr__(layer, "call", call)

        before = {n: vars(one).get("call") for n, (_, one) in self._layers.items()}
        try:
            for number, (_, layer) in self._layers.items():
                mark(number, layer)
            yield
        finally:
            for number, (_, layer) in self._layers.items():
                vars(layer).pop("call", None)
                if before[number] is not None:
                    object.__setattr__(layer, "call", before[number])


class _Recorder:
    """A backend that keeps the loss and the gradients of every update, or of every part
    of a batch and of the update by their mean."""

    def __init__(self, backend, parts: int):
        self._backend, self._in_parts = backend, parts > 1
        self.begin()

    def begin(self) -> None:
        self.ends: dict = {}
        self._calls = 0

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def value_and_grad(self, function, variables: list[keras.Variable]):
        self._calls += 1
        number = self._calls

        def within():
            with operations.scope(f"loss-of-update-{number}"):
                return function()

        found = self._backend.value_and_grad(within, variables)
        (loss, _), gradients = found
        which = f" (update {number})" if number > 1 else ""
        which = f" (part {number})" if self._in_parts else which
        self.ends[f"loss to minimise{which}"] = loss
        self._keep(gradients, variables, which)
        return found

    def apply(self, optimizer, gradients, variables: list[keras.Variable]) -> None:
        if self._in_parts:
            self._keep(gradients, variables, "")
        self._backend.apply(optimizer, gradients, variables)

    def _keep(self, gradients, variables, which: str) -> None:
        for variable, gradient in zip(variables, gradients, strict=True):
            if gradient is not None:
                norm = _norm(self._backend.dense(gradient))
                self.ends[f"gradient of {variable.path}{which}"] = norm


def _norm(gradient):
    """Return the norm of a gradient; not finite only if the gradient is not."""
    ops = keras.ops
    gradient = ops.cast(gradient, "float32")
    largest = ops.maximum(ops.max(ops.abs(gradient)), 1e-30)
    return largest * ops.sqrt(ops.sum(ops.square(gradient / largest)))


def _scale(optimizers: list) -> float:
    """Return the current scale of the loss."""
    scales = [
        float(keras.ops.convert_to_numpy(one.dynamic_scale))
        for one in optimizers
        if isinstance(one, keras.optimizers.LossScaleOptimizer)
    ]
    return max(scales, default=1.0) or 1.0


def _first_bad(tensors: list[Tensor], place: int) -> int:
    """Return the first tensor that is not finite, although all its inputs are, among
    those that make this one bad."""
    seen, open_ends, firsts = {place}, [place], []
    while open_ends:
        here = open_ends.pop()
        worse = [one for one in tensors[here].inputs if tensors[one].bad]
        if not worse:
            firsts.append(here)
        open_ends += [one for one in worse if one not in seen]
        seen.update(worse)
    return min(firsts)


def _ancestors(tensors: list[Tensor], place: int) -> set[int]:
    seen: set[int] = set()
    open_ends = [place]
    while open_ends:
        fresh = [one for one in tensors[open_ends.pop()].inputs if one not in seen]
        seen.update(fresh)
        open_ends += fresh
    return seen


def _inside(layer, prefix: str, seen: set | None = None):
    """Yield (path, layer) of all layers and operations of a model, those in layers
    too; each once."""
    seen = set() if seen is None else seen
    for one in layers_inside(layer):
        if id(one) in seen or isinstance(one, keras.layers.InputLayer):
            continue
        seen.add(id(one))
        path = prefix + one.name
        yield path, one
        yield from _inside(one, f"{path}/", seen)
