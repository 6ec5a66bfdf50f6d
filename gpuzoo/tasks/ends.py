"""How a model begins and ends: images without a channel axis, a last activation.

A task computes its loss from logits. A model that ends in a softmax or a sigmoid is
computed without that activation, so that the loss is exact; the model itself, its
layers and its weights stay as they are.
"""

import collections
import contextlib
import dataclasses
import functools
import math

import keras
import numpy as np

layers, activations = keras.layers, keras.activations

# Layers and operations that only move numbers to other places.
_MOVES = (layers.Reshape, layers.Flatten, layers.Permute, layers.Identity)
_MOVES_BY_NAME = {
    "Reshape", "Squeeze", "ExpandDims", "Transpose", "Moveaxis", "Swapaxes", "Ravel",
    "Identity", "Cast",
}  # fmt: skip
# They leave out or repeat numbers: nothing to an activation of each number by itself.
_PICKS = (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, layers.RepeatVector)
_PICKS_BY_NAME = {"GetItem", "Flip", "Repeat", "Tile", "Take"}
# These of several probabilities are probabilities.
_MERGES = (layers.Average, layers.Add, layers.Multiply, layers.Maximum, layers.Minimum)
_MERGES_BY_NAME = {"Add", "Multiply", "Maximum", "Minimum", "Stack", "Concatenate"}
_ARITHMETIC = {"add", "subtract", "multiply", "divide", "truedivide", "power", "logit"}
SQUASHING = ("softmax", "sigmoid", "sparsemax", "hard_sigmoid", "sparse_sigmoid")


@dataclasses.dataclass(frozen=True)
class End:
    """What squashes the output of a model."""

    kind: str = ""
    """One of SQUASHING; empty if nothing does."""
    operation: object = None
    """The layer or operation that does it; without a kind: a layer of somebody else's,
    of which only its numbers tell what it does."""
    called: object = None
    """The same, or the wrapper around it that is called."""
    tensor: object = None
    """What it puts out."""
    after: tuple = ()
    """The operations that come after it, the last one first."""
    scaled: "End | None" = None
    """Without a kind: the squashing that arithmetic with numbers comes after."""

    @property
    def axis(self) -> int:
        axis = getattr(_function(self.operation), "axis", -1)
        return axis if isinstance(axis, int) else -1

    def only_moved(self, *, picked: bool = False) -> bool:
        """Whether what comes after it only moves numbers, or leaves some out."""
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
        """Whether its activation can be left out without changing anything else."""
        regular = getattr(self.operation, "activity_regularizer", None)
        once = _uses(network)[id(self.called)] == 1 and regular is None
        return once and _is_keras(self.operation)

    def told(self, network) -> str:
        """Why that activation cannot be left out, as the rest of a sentence."""
        if self.after and not self.only_moved(picked=True):
            names = ", ".join(one.name for one in reversed(self.after))
            return f" that is followed by {names}"
        if not _is_keras(self.operation):
            return f" in {self.operation.name!r}, a layer of your own"
        if getattr(self.operation, "activity_regularizer", None):
            return " with an activity_regularizer"
        if not self.used_once(network):
            return f" in {self.operation.name!r}, which is used more than once"
        return ""

    @contextlib.contextmanager
    def left_out(self):
        """Meanwhile the operation does everything but squash."""
        operation, own = self.operation, vars(self.operation)
        name = "activation" if hasattr(operation, "activation") else "call"
        missing = object()
        before = own.get(name, missing)
        # Not setattr: Keras would track, or lock, what is given to a layer.
        put = functools.partial(object.__setattr__, operation, name)
        put(activations.linear if name == "activation" else _same)
        try:
            yield
        finally:
            own.pop(name) if before is missing else put(before)


class Network:
    """A model as a task calls it: with a channel axis, and for its logits."""

    def __init__(self, model: keras.Model, shape: tuple[int, ...], output=None):
        """`shape`: of an example, as the data have it."""
        self.model, self.shape = model, tuple(shape)
        self.taken = taken_form(model, shape)
        self.end = find(output_of(model) if output is None else output, model)

    def __call__(self, examples, training: bool = False):
        """What the model puts out, before a squashing at its end."""
        if self.taken is not None and self.taken != self.shape:
            rows = keras.ops.shape(examples)[0]
            examples = keras.ops.reshape(examples, (rows, *self.taken))
        with self.left_out():
            return self.model(examples, training=training)

    def left_out(self):
        """Meanwhile the model is computed without its last activation."""
        return self.end.left_out() if self.end.kind else contextlib.nullcontext()


def taken_form(model: keras.Model, shape: tuple[int, ...]) -> tuple | None:
    """The shape in which a model of one input takes examples of a shape: the same,
    without a channel axis of one, or flat; None if it takes neither."""
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
    """What a model puts out: a tensor of Keras's, or such in a dict or a list, even if
    it is one alone."""
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    return model._outputs_struct


def output_shape_of(model: keras.Model):
    """The shape of that, or the shapes, in a dict or a list."""
    return keras.tree.map_structure(lambda one: one.shape, output_of(model))


def find(tensor, model: keras.Model) -> End:
    """What squashes a tensor that a model puts out."""
    return _find(tensor, ((model, None),), ())


def _find(tensor, outer: tuple, after: tuple) -> End:
    """`outer`: the models that the tensor is in, each with the node that calls it."""
    operation, number, place = tensor._keras_history
    node = operation._inbound_nodes[number]
    if isinstance(operation, keras.Function | keras.Sequential):
        inside = (*outer, (operation, node))
        return _find(operation.outputs[place], inside, after)
    inner = operation
    while isinstance(inner, layers.Wrapper):
        inner = inner.layer
    if (kind := _name(inner)) in SQUASHING:
        return End(kind, inner, operation, tensor, after)
    if not node.input_tensors:  # an Input: of the whole, or of a model inside
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
    """What is wrong with a tensor that is trained as logits: it is a softmax, or a
    sigmoid that stays between 0 and 1, with arithmetic behind it."""
    end = find(tensor, model).scaled
    if end is None or (
        end.kind not in ("softmax", "sparsemax") and not _bounded(model)
    ):
        return None
    return f"ends in a {end.kind}{end.told(model)}"


def _bounded(model: keras.Model) -> bool:
    """Whether all that a model puts out of wide noise lies between 0 and 1."""
    shape = [size or 32 for size in model.inputs[0].shape[1:]]
    noise = 10 * np.random.default_rng(0).standard_normal((16, *shape), np.float32)
    with contextlib.suppress(Exception):  # what fails here is told when it is trained
        for given in keras.tree.flatten(model(noise, training=False)):
            rows = keras.ops.convert_to_numpy(keras.ops.cast(given, "float32"))
            if (rows < 0).any() or (rows > 1).any():
                return False
        return True
    return False


def _computes(operation, node) -> bool:
    """Whether probabilities are none any more after it: a logarithm, or arithmetic with
    a number, or with something else."""
    named = _named(operation)
    if "log" in named or isinstance(operation, layers.Rescaling):
        return True
    if len(node.input_tensors) > 1:
        bare = _is_operation(operation) and type(operation).__name__ in _MERGES_BY_NAME
        return not bare and not isinstance(operation, _MERGES)
    return _is_operation(operation) and named in _ARITHMETIC


def gives_probabilities(model: keras.Model, shape: tuple[int, ...]) -> bool:
    """Whether the rows that a model puts out of noise are probabilities that add up to
    one; of models that end in what only its numbers tell."""
    noise = np.random.default_rng(0).random((4, *shape), np.float32)
    with contextlib.suppress(Exception):  # what fails here is told when it is trained
        given = Network(model, shape)(noise)
        rows = keras.ops.convert_to_numpy(keras.ops.cast(given, "float32"))
        return bool((rows >= 0).all() and np.abs(rows.sum(axis=1) - 1).max() < 0.01)
    return False


def _name(operation) -> str:
    """The activation that an operation ends in, as Keras calls it; empty if none."""
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
    """What computes the activation: a function, a layer or an operation."""
    if isinstance(operation, layers.Lambda):
        return operation.function
    if isinstance(operation, layers.RNN):  # its activation is inside of each step
        return None
    if isinstance(operation, layers.Softmax) or _is_operation(operation):
        return operation
    found = getattr(operation, "activation", None)
    return found if callable(found) else None


def _is_operation(one) -> bool:
    return isinstance(one, keras.Operation) and not isinstance(one, layers.Layer)


def _by_numbers(function) -> str:
    """The squashing that a function of somebody else's is, as `tf.nn.softmax` is."""
    numbers = np.linspace(-3, 3, 12, dtype=np.float32).reshape(2, 6) ** 3 / 4
    numbers = keras.ops.convert_to_tensor(numbers)
    try:
        given = np.asarray(keras.ops.convert_to_numpy(function(numbers)))
    except Exception:  # no activation, but a function of another shape or kind
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
    """How often a model computes each of its operations, those inside included."""
    uses = collections.Counter() if uses is None else uses
    graph = getattr(model, "_functional", None) or model
    for node in sum(graph._nodes_by_depth.values(), []):
        uses[id(node.operation)] += 1
        if isinstance(node.operation, keras.Function | keras.Sequential):
            _uses(node.operation, uses)
    return uses


def _same(inputs, *others, **named):
    """In place of an operation that squashes: the numbers as they come."""
    return inputs
