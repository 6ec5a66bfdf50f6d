"""The input shape and the last activation of a model.

A task computes its loss from logits. A model that ends in a softmax or a sigmoid is
called without that activation, so that the loss is exact; the model itself, its layers
and its weights do not change.
"""

import collections
import contextlib
import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np

from gpuzoo.runtime.keras_state import graph_of, nodes_of, origin_of
from gpuzoo.tasks.subclassed import graph_of_call, is_subclassed

layers, activations = keras.layers, keras.activations

# Layers and operations that only rearrange values.
_MOVES = (layers.Reshape, layers.Flatten, layers.Permute, layers.Identity)
_MOVES_BY_NAME = {
    "Reshape", "Squeeze", "ExpandDims", "Transpose", "Moveaxis", "Swapaxes", "Ravel",
    "Identity", "Cast",
}  # fmt: skip
# These drop or repeat values, which does not affect an elementwise activation.
_PICKS = (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, layers.RepeatVector)
_PICKS_BY_NAME = {"GetItem", "Flip", "Repeat", "Tile", "Take"}
# Applied to probabilities these give probabilities.
_MERGES = (layers.Average, layers.Add, layers.Multiply, layers.Maximum, layers.Minimum)
_MERGES_BY_NAME = {"Add", "Multiply", "Maximum", "Minimum", "Stack", "Concatenate"}
_ARITHMETIC = {"add", "subtract", "multiply", "divide", "truedivide", "power", "logit"}
SQUASHING = ("softmax", "sigmoid", "sparsemax", "hard_sigmoid", "sparse_sigmoid")


@dataclasses.dataclass(frozen=True)
class End:
    """The squashing activation at the end of a model."""

    kind: str = ""
    """One of SQUASHING; empty if there is none."""
    operation: Any = None
    """Its layer or operation; without a kind: a custom layer, whose effect only its
    outputs show."""
    called: Any = None
    """The same, or its wrapper that is called."""
    tensor: Any = None
    """Its output."""
    after: tuple = ()
    """The operations after it, the last one first."""
    scaled: "End | None" = None
    """Without a kind: an activation that is followed by arithmetic."""
    inside: Any = None
    """The sub-classed model whose call applies the activation."""

    @property
    def axis(self) -> int:
        axis = getattr(_function(self.operation), "axis", -1)
        return axis if isinstance(axis, int) else -1

    def only_moved(self, *, picked: bool = False) -> bool:
        """Return whether later operations only rearrange values (`picked`: or drop)."""
        kinds = _MOVES + (_PICKS if picked else ())
        names = _MOVES_BY_NAME | (_PICKS_BY_NAME if picked else set())
        return all(
            isinstance(one, kinds)
            or (_is_operation(one) and type(one).__name__ in names)
            or _name(one) == "linear"
            and isinstance(one, layers.Activation)
            or (picked and _repeats(one))
            for one in self.after
        )

    def used_once(self, network) -> bool:
        """Return whether leaving out its activation changes nothing else."""
        regular = getattr(self.operation, "activity_regularizer", None)
        once = _uses(network)[id(self.called)] == 1 and regular is None
        return once and _is_keras(self.operation) and not self._is_function_of_call()

    def _is_function_of_call(self) -> bool:
        """Whether it is a function in a sub-classed model's call, not a layer, which
        alone can be skipped."""
        return self.inside is not None and not isinstance(self.operation, layers.Layer)

    def reason(self, network) -> str:
        """Say why the activation cannot be left out, as the rest of a sentence."""
        if self.after and not self.only_moved(picked=True):
            names = ", ".join(one.name for one in reversed(self.after))
            return f" that is followed by {names}"
        if self._is_function_of_call():
            return (
                f" that the call of {type(self.inside).__name__} computes by a "
                "function, not a layer"
            )
        if not _is_keras(self.operation):
            return f" in {self.operation.name!r}, a custom layer"
        if getattr(self.operation, "activity_regularizer", None):
            return " with an activity_regularizer"
        if not self.used_once(network):
            return f" in {self.operation.name!r}, which is used more than once"
        return ""

    @contextlib.contextmanager
    def left_out(self):
        """Skip the activation within the block."""
        operation, own = self.operation, vars(self.operation)
        name = "activation" if hasattr(operation, "activation") else "call"
        missing = object()
        before = own.get(name, missing)
        # Not setattr: Keras would track, or lock, attributes of a layer.
        put = functools.partial(object.__setattr__, operation, name)
        put(activations.linear if name == "activation" else _same)
        try:
            yield
        finally:
            own.pop(name) if before is missing else put(before)


class Network:
    """A model called with the data's shape, and for its logits."""

    def __init__(self, model: keras.Model, shape: tuple[int, ...], output=None):
        """`shape`: of an example of the data."""
        self.model, self.shape = model, tuple(shape)
        self.taken = taken_form(model, shape)
        self.end = find(output_of(model) if output is None else output, model)

    def __call__(self, examples, training: bool = False):
        """Return the outputs of the model, before a squashing activation at its end."""
        if self.taken is not None and self.taken != self.shape:
            rows = keras.ops.shape(examples)[0]
            examples = keras.ops.reshape(examples, (rows, *self.taken))
        with self.left_out():
            return self.model(examples, training=training)

    def left_out(self):
        """Skip the last activation of the model within the block."""
        return self.end.left_out() if self.end.kind else contextlib.nullcontext()


def taken_form(model: keras.Model, shape: tuple[int, ...]) -> tuple | None:
    """Return the shape in which a model with one input takes examples of a shape: the
    same, without a channel axis of one, or flat; None if none fits."""
    taken, shape = tuple(model.inputs[0].shape[1:]), tuple(shape)
    forms = [shape]
    if len(shape) > 1 and shape[-1] == 1:
        forms.append(shape[:-1])
    forms.append((math.prod(shape),))
    for form in forms:
        pairs = zip(taken, form, strict=False)
        if len(form) == len(taken) and all(a in (None, b) for a, b in pairs):
            return form
    return None


def output_of(model: keras.Model):
    """Return the outputs of a model: a Keras tensor, or a dict or list of these, even
    of a single one."""
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    return model.output


def output_shape_of(model: keras.Model):
    """Return the shape of `output_of(model)`, or a dict or list of shapes."""
    return keras.tree.map_structure(lambda one: one.shape, output_of(model))


def find(tensor, model: keras.Model) -> End:
    """Return the squashing activation of an output tensor of a model."""
    return _find(tensor, ((model, None),), ())


def _find(tensor, outer: tuple, after: tuple) -> End:
    """`outer`: the models around the tensor, each with the node that calls it."""
    operation, node, place = origin_of(tensor)
    if isinstance(operation, keras.Function | keras.Sequential):
        inside = (*outer, (operation, node))
        return _find(operation.outputs[place], inside, after)
    if is_subclassed(operation):
        graph = graph_of_call(operation, node.input_tensors[0])
        if graph is not None and len(node.input_tensors) == 1:
            found = _find(graph.outputs[place], (*outer, (graph, node)), after)
            return dataclasses.replace(found, inside=operation)
    inner = operation
    while isinstance(inner, layers.Wrapper):
        inner = inner.layer
    if (kind := _name(inner)) in SQUASHING:
        return End(kind, inner, operation, tensor, after)
    if not node.input_tensors:  # an Input: of the whole, or of a nested model
        (model, call), outer = outer[-1], outer[:-1]
        if call is None:
            return End()
        same = [one is tensor for one in model.inputs]
        if not any(same):
            return End()
        return _find(call.input_tensors[same.index(True)], outer, after)
    if not _is_keras(operation) or isinstance(operation, layers.Lambda):
        return End("", operation, operation, tensor, after)
    if getattr(operation, "weights", None):
        return End()
    if _computes(operation, node):
        if len(node.input_tensors) > 1 or "log" in _named(operation):
            return End()
        inner = _find(node.input_tensors[0], outer, (*after, operation))
        return End(scaled=inner if inner.kind else inner.scaled)
    ends = [_find(one, outer, (*after, operation)) for one in node.input_tensors]
    kinds = {(end.kind, end.scaled is None) for end in ends}
    return ends[0] if len(kinds) == 1 else End()


def scaled(tensor, model: keras.Model) -> str | None:
    """Return what is wrong with a tensor used as logits, or None: it is a softmax, or a
    sigmoid within 0 and 1, followed by arithmetic."""
    end = find(tensor, model).scaled
    if end is None or (
        end.kind not in ("softmax", "sparsemax") and not _bounded(model)
    ):
        return None
    return f"ends in a {end.kind}{end.reason(model)}"


def skips_only(end: End, model: keras.Model) -> bool:
    """Return whether the outputs of a model for noise are its activation, applied to
    those without it: its call may use what it computes in other ways."""
    if end.inside is None:
        return True
    shape = [size or 32 for size in model.inputs[0].shape[1:]]
    noise = np.random.default_rng(0).standard_normal((4, *shape), np.float32)
    whole = model(noise, training=False)
    with end.left_out():
        bare = model(noise, training=False)
    own = {"axis": end.axis} if end.kind == "softmax" else {}
    sides = whole, activations.get(end.kind)(bare, **own)
    read = keras.ops.convert_to_numpy
    one, other = (read(keras.ops.cast(x, "float32")) for x in sides)
    return np.allclose(one, other, atol=0.01)


def in_unit_range(end: End, model: keras.Model) -> bool:
    """Return whether a custom layer or a sub-classed model at the end puts out values
    between 0 and 1 only."""
    return end.kind == "" and end.operation is not None and _bounded(model)


def _bounded(model: keras.Model) -> bool:
    """Return whether the outputs for wide noise lie between 0 and 1."""
    shape = [size or 32 for size in model.inputs[0].shape[1:]]
    noise = 10 * np.random.default_rng(0).standard_normal((16, *shape), np.float32)
    with contextlib.suppress(Exception):  # training reports what fails here
        for given in keras.tree.flatten(model(noise, training=False)):
            rows = keras.ops.convert_to_numpy(keras.ops.cast(given, "float32"))
            if (rows < 0).any() or (rows > 1).any():
                return False
        return True
    return False


def _computes(operation, node) -> bool:
    """Return whether probabilities are not probabilities after it: a logarithm, or
    arithmetic."""
    named = _named(operation)
    if "log" in named or isinstance(operation, layers.Rescaling):
        return True
    if len(node.input_tensors) > 1:
        bare = _is_operation(operation) and type(operation).__name__ in _MERGES_BY_NAME
        return not bare and not isinstance(operation, _MERGES)
    return _is_operation(operation) and named in _ARITHMETIC


def gives_probabilities(model: keras.Model, shape: tuple[int, ...]) -> bool:
    """Return whether the outputs for noise are probabilities that add up to 1; for
    models that end in a custom layer."""
    noise = np.random.default_rng(0).random((4, *shape), np.float32)
    with contextlib.suppress(Exception):  # training reports what fails here
        given = Network(model, shape)(noise)
        rows = keras.ops.convert_to_numpy(keras.ops.cast(given, "float32"))
        return bool((rows >= 0).all() and np.abs(rows.sum(axis=1) - 1).max() < 0.01)
    return False


def _name(operation) -> str:
    """Return the Keras name of the activation of an operation; empty if none."""
    function = _function(operation)
    if function is None:
        return ""
    known = {activations.get(name): name for name in (*SQUASHING, "linear")}
    if isinstance(function, collections.abc.Hashable) and function in known:
        return known[function]
    name = type(function).__name__.lower()
    if _is_operation(function) or isinstance(function, layers.Layer):
        found = {one.replace("_", ""): one for one in SQUASHING}.get(name, "")
        return found if type(function).__module__.startswith("keras.") else ""
    return _by_numbers(function)


def _function(operation):
    """Return the function, layer or operation that computes the activation."""
    if isinstance(operation, layers.Lambda):
        return operation.function
    if isinstance(operation, layers.RNN):  # its activation is inside each step
        return None
    if isinstance(operation, layers.Softmax) or _is_operation(operation):
        return operation
    found = getattr(operation, "activation", None)
    return found if callable(found) else None


def _is_operation(one) -> bool:
    return isinstance(one, keras.Operation) and not isinstance(one, layers.Layer)


def _by_numbers(function) -> str:
    """Recognise a squashing activation by its values, as `tf.nn.softmax`."""
    numbers = np.linspace(-3, 3, 12, dtype=np.float32).reshape(2, 6) ** 3 / 4
    numbers = keras.ops.convert_to_tensor(numbers)
    try:
        given = np.asarray(keras.ops.convert_to_numpy(function(numbers)))
    except Exception:  # not an activation
        return ""
    for name in ("softmax", "sigmoid"):
        wanted = keras.ops.convert_to_numpy(activations.get(name)(numbers))
        if given.shape == wanted.shape and np.allclose(given, wanted, atol=1e-6):
            return name
    return ""


def _named(operation) -> str:
    function = getattr(operation, "activation", operation)
    return getattr(function, "__name__", type(function).__name__).lower()


def _is_keras(operation) -> bool:
    return type(operation).__module__.startswith("keras.")


def _repeats(operation) -> bool:
    kinds = (layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D)
    nearest = getattr(operation, "interpolation", "nearest") == "nearest"
    return isinstance(operation, kinds) and nearest


def _uses(model, uses: collections.Counter | None = None) -> collections.Counter:
    """Count how often a model calls each of its operations, nested ones included."""
    uses = collections.Counter() if uses is None else uses
    for node in nodes_of(graph_of(model)):
        uses[id(node.operation)] += 1
        inner = node.operation
        if is_subclassed(inner):
            inner = graph_of_call(inner, node.input_tensors[0])
        if isinstance(inner, keras.Function | keras.Sequential):
            _uses(inner, uses)
    return uses


def _same(inputs, *others, **named):
    """Return the inputs, in place of a squashing operation."""
    return inputs
