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
import operator
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
    """The subclassed model whose call applies the activation."""
    other: Any = None
    """The activation in its place while it is trained, if that is another one."""
    output: Any = None
    """The output of the model that ends in it."""

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
        once = once and self.other is None
        return once and _is_keras(self.operation) and not self._is_function_of_call()

    def _is_function_of_call(self) -> bool:
        """Whether it is a function in a subclassed model's call, not a layer, which
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
        if self.other is not None:
            return (
                f" in {self.operation.name!r}, and while it is trained in a "
                f"{self.other.kind} in {self.other.operation.name!r}"
            )
        if not _is_keras(self.operation):
            return f" in {self.operation.name!r}, a custom layer"
        if getattr(self.operation, "activity_regularizer", None):
            return " with an activity_regularizer"
        if not self.used_once(network):
            return f" in {self.operation.name!r}, which is used more than once"
        if not skips_only(self, network):
            name = type(self.inside).__name__
            return f" whose inputs the call of {name} uses in another way, too"
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
    return dataclasses.replace(_find(tensor, ((model, None),), ()), output=tensor)


def _find(tensor, outer: tuple, after: tuple) -> End:
    """`outer`: the models around the tensor, each with the node that calls it."""
    operation, node, place = origin_of(tensor)
    if isinstance(operation, keras.Function | keras.Sequential):
        inside = (*outer, (operation, node))
        return _find(operation.outputs[place], inside, after)
    if is_subclassed(operation):
        if found := _find_in_call(operation, node, place, outer, after):
            return found
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


def _find_in_call(operation, node, place: int, outer: tuple, after: tuple):
    """Return the end of a subclassed model, or None if its call cannot be traced."""
    ends = []
    for graph in _graphs_of_call(operation, node):
        if graph is None or len(node.input_tensors) > 1 or place >= len(graph.outputs):
            return None
        ends.append(_find(graph.outputs[place], (*outer, (graph, node)), after))
    # The same call may end in an activation only in training, or only out of it.
    found = max(
        ends, key=lambda e: (e.kind > "", e.scaled is not None, e.operation is not None)
    )
    others = [e for e in ends if e.kind and e.operation is not found.operation]
    return dataclasses.replace(
        found, inside=operation, other=others[0] if others else None
    )


def _graphs_of_call(operation, node) -> list:
    """Return the graphs of the call of a subclassed model, in training and not."""
    both = (graph_of_call(operation, node.input_tensors[0], t) for t in (False, True))
    return list(dict.fromkeys(both))


def scaled(tensor, model: keras.Model) -> str | None:
    """Return what is wrong with a tensor used as logits, or None: it is a softmax, or a
    sigmoid within 0 and 1, followed by arithmetic."""
    end = find(tensor, model).scaled
    if end is None or (
        end.kind not in ("softmax", "sparsemax") and not _bounded(tensor, model)
    ):
        return None
    return f"ends in a {end.kind}{end.reason(model)}"


def skips_only(end: End, model: keras.Model) -> bool:
    """Return whether the output of a model for noise is its activation, applied to
    that without it: its call may use what it computes in other ways. False if it
    cannot be called."""
    if end.inside is None:
        return True
    with contextlib.suppress(Exception):  # of the user's code
        # Random weights, as outputs are all alike while weights are 0.
        look = functools.partial(_for_noise, end.output, model, 1)
        redrawn = bool(np.isfinite(look(False, True)).all())
        for training in (False, True):
            whole = look(training, redrawn)
            with end.left_out():
                bare = look(training, redrawn)
            unused = np.array_equal(whole, bare) and not _in_unit_range(bare)
            if not unused and not _is_applied(end.kind, whole, bare):
                return False
        return True
    return False


def _is_applied(kind: str, whole: np.ndarray, bare: np.ndarray) -> bool:
    """Return whether some outputs are the softmax or sigmoid of others. Compared are
    their logarithms: of many classes all probabilities are small."""
    exact = whole.dtype in ("float32", "float64")
    whole, bare = (x.reshape(len(x), -1).astype("float64") for x in (whole, bare))
    if kind == "softmax":  # over all units: its caller refuses other ones
        logs = bare - np.logaddexp.reduce(bare, axis=1, keepdims=True)
    else:
        logs = -np.logaddexp(0, -bare)
    seen = logs > -8  # smaller ones have few digits in low precision
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(whole)[seen]
    return np.allclose(found, logs[seen], rtol=0, atol=2e-3 if exact else 0.1)


def in_unit_range(end: End, model: keras.Model) -> bool:
    """Return whether a custom layer or a subclassed model at the end puts out values
    between 0 and 1 only."""
    custom = end.kind == "" and end.operation is not None
    return custom and _bounded(end.output, model)


def _bounded(tensor, model: keras.Model) -> bool:
    """Return whether an output for wide noise lies between 0 and 1, in training or not,
    whatever the weights are: those of a layer may start at 0."""
    for training in (False, True):
        with contextlib.suppress(Exception):  # training reports what fails here
            if _in_unit_range(_for_noise(tensor, model, 10, training)):
                other = _for_noise(tensor, model, 10, training, redrawn=True)
                if _in_unit_range(other) or not np.isfinite(other).all():
                    return True
    return False


def _in_unit_range(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def lengths_of(model: keras.Model) -> np.ndarray:
    """Return the lengths of the vectors that a model puts out for noise, with random
    weights."""
    vectors = _for_noise(output_of(model), model, 1, False, redrawn=True)
    return np.linalg.norm(vectors.astype(np.float64), axis=1)


def _for_noise(tensor, model: keras.Model, scale: float, training, redrawn=False):
    """Return what an output of a model is for noise; `redrawn`: with random weights.
    The model is left as it was."""
    shape = [size or 32 for size in model.inputs[0].shape[1:]]
    rng = np.random.default_rng(0)
    noise = scale * rng.standard_normal((16, *shape), np.float32)
    if str(model.inputs[0].dtype).startswith("int"):
        noise = (noise > 0).astype(np.int32)  # words that every vocabulary has
    read = keras.ops.convert_to_numpy
    before = [(variable, np.array(read(variable))) for variable in model.variables]
    try:
        for weight in model.trainable_variables if redrawn else ():
            values = rng.standard_normal(weight.shape, np.float32)
            weight.assign(values / max(1, math.prod(weight.shape[:-1])) ** 0.5)
        outputs = keras.tree.flatten(model(noise, training=training))
    finally:
        for variable, values in before:
            variable.assign(values)
    every = [id(one) for one in keras.tree.flatten(output_of(model))]
    return np.array(read(outputs[every.index(id(tensor))]))


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


def gives_probabilities(end: End, model: keras.Model) -> bool:
    """Return whether the outputs for noise are probabilities that add up to 1, in
    training or not; for models that end in a custom layer."""
    for training in (False, True):
        with contextlib.suppress(Exception):  # training reports what fails here
            given = _for_noise(end.output, model, 1, training).astype("float32")
            if (given >= 0).all() and np.abs(given.sum(axis=-1) - 1).max() < 0.01:
                return True
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
            counts = [_uses(one) for one in _graphs_of_call(inner, node) if one]
            uses.update(functools.reduce(operator.or_, counts, collections.Counter()))
        if isinstance(inner, keras.Function | keras.Sequential):
            _uses(inner, uses)
    return uses


def _same(inputs, *others, **named):
    """Return the inputs, in place of a squashing operation."""
    return inputs
