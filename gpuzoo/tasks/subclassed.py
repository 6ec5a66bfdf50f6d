"""Subclassed models: as the layer of a functional one, and the graph of their call."""

import contextlib
import inspect
import re
import warnings
import weakref

import keras

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import fresh_names, origin_of

_graphs: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Subclassed model -> training -> the graph of its call, or None."""


def is_subclassed(model) -> bool:
    """Whether it is a user's keras.Model whose layers only its call connects. gpuzoo's
    own, as GANs, are trained by their tasks."""
    graph = keras.Function | keras.Sequential
    if not isinstance(model, keras.Model) or isinstance(model, graph):
        return False
    tops = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    return next(top for top in tops if top in ("keras", "gpuzoo")) == "keras"


def in_graph(
    model: keras.Model, shape: tuple[int, ...], called: str, dtype: str = "float32"
) -> keras.Model:
    """Return a functional model with a subclassed one as its only layer.

    Args:
        shape: of an example.
        called: the model, in messages.
        dtype: of an example; float32: Keras's own choice.

    Raises:
        GpuzooError: its call fails for examples of this shape.
    """
    inputs = keras.Input(shape, dtype=None if dtype == "float32" else dtype)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*unbuilt state", UserWarning)
            return keras.Model(inputs, model(inputs), name=model.name)
    except Exception as error:  # of the user's code
        # Of what Keras adds, and colours, the user's part.
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        text = text.rpartition("Error encountered:")[2].partition("Arguments rec")[0]
        line = " ".join(text.split())[:300]
        raise GpuzooError(
            f"{called} ({type(model).__name__}) fails when it is called with one input "
            f"of shape {(None, *shape)}: {type(error).__name__}: {line}"
        ) from error


def graph_of_call(
    model: keras.Model, tensor, training: bool = False
) -> keras.Model | None:
    """Return the layers and operations that the call of a subclassed model applies to
    a tensor, as a functional model that shares its layers; None if the call needs
    values, or functions of TensorFlow or JAX. A call without an argument `training`
    has one graph for both."""
    named = {"training": training}
    if "training" not in inspect.signature(model.call).parameters:
        named, training = {}, False
    graphs = _graphs.setdefault(model, {})
    if training not in graphs:
        graphs[training] = None
        inputs = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        # The code is the user's, and made for tensors: it may raise anything. Losses
        # that layers add for a symbolic tensor go nowhere.
        with contextlib.suppress(Exception):
            with fresh_names(), keras.StatelessScope(collect_losses=True):
                outputs = model.call(inputs, **named)
                with _names_apart(outputs):
                    graphs[training] = keras.Model(inputs, outputs)
    return graphs[training]


@contextlib.contextmanager
def _names_apart(outputs):
    """Give each operation that leads to some outputs a name of its own in the block: a
    functional model refuses two of one name, and a subclassed one may have them."""
    todo, nodes = keras.tree.flatten(outputs), {}
    while todo:
        operation, node, _ = origin_of(todo.pop())
        if node not in nodes:
            nodes[node] = operation
            todo += node.input_tensors
    names = {operation: operation.name for operation in nodes.values()}
    # Not setattr: Keras would lock attributes of a built layer.
    put = object.__setattr__
    try:
        for number, (operation, name) in enumerate(names.items()):
            if list(names.values()).count(name) > 1:
                put(operation, "name", f"{name}.{number}")
        yield
    finally:
        for operation, name in names.items():
            put(operation, "name", name)
