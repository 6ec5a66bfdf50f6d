"""Measured peak FLOPS and memory bandwidth of a device, and the cost of a step."""

import math
import time

import keras
import numpy as np

from gpuzoo.keras_layers import layers_of
from gpuzoo.runtime.keras_state import graph_of, nodes_of_operation

# Side of the square matrices, and millions of numbers in the copy, by device.
_SIZES = {"cpu": (1024, 16), "gpu": (8192, 256)}
_SECONDS = 0.3
_TRIES = 5


def measure(backend) -> dict[str, float]:
    """Measure the peak, best of a few tries, with the runtime's backend and precision.

    Returns:
        `flops`, floating-point operations/s of a product of two square matrices in the
        compute dtype, and `bytes`, bytes/s read and written when 1 is added to a
        float32 array larger than any cache.
    """
    side, millions = _SIZES[backend.runtime.device]
    dtype = backend.runtime.compute_dtype
    draw = np.random.default_rng(0).standard_normal((2, side, side)) / math.sqrt(side)
    one, other = (keras.Variable(a, dtype=dtype, trainable=False) for a in draw)
    many = keras.Variable(
        np.zeros(millions * 10**6, np.float32), dtype="float32", trainable=False
    )

    def product(feed):
        one.assign(keras.ops.matmul(one.value, other.value))
        return feed

    def copy(feed):
        many.assign(many.value + 1)
        return feed

    return {
        "flops": 2 * side**3 * _rate(backend, product, [one, other]),
        "bytes": 8e6 * millions * _rate(backend, copy, [many]),
    }


def _rate(backend, body, variables: list[keras.Variable]) -> float:
    """Return how often per second the body is executed."""
    call = backend.compile_steps(body, _feed(64), variables)
    times, seconds = 1, 0.0
    while seconds < _SECONDS:
        times = math.ceil(times * min(10, 1.2 * _SECONDS / max(seconds, 1e-6)))
        seconds = _seconds(backend, call, times)
    tries = [seconds, *(_seconds(backend, call, times) for _ in range(_TRIES - 1))]
    return times / min(tries)


def _seconds(backend, call, times: int) -> float:
    backend.synchronise()
    start = time.perf_counter()
    call(_feed(times))
    backend.synchronise()
    return time.perf_counter() - start


def _feed(times: int) -> dict[str, np.ndarray]:
    return {"step": np.arange(times, dtype=np.int32)}


def cost(model: keras.Model, batch: int, counted: dict | None) -> dict:
    """Return the cost of training on one example.

    Args:
        model: used where XLA reports nothing, on TensorFlow.
        batch: examples per step.
        counted: the `cost` of a step (see `JaxBackend.compile_steps`), or None.

    Returns:
        `flops`, floating-point operations, and `bytes`, read and written, each None if
        unknown; `by`, the source: XLA or `layers`. XLA counts all reads and writes of
        fused operations, also those served by a cache.
    """
    if counted is None:
        return {"flops": operations(model), "bytes": None, "by": "layers"}
    costs = {name: counted[name] / batch for name in ("flops", "bytes")}
    return {**costs, "by": "XLA"}


def operations(model: keras.Model) -> int | None:
    """Count multiplications and additions of training on one example.

    Counts the products of dense layers and convolutions: the forward pass, the gradient
    of a trainable kernel, and the gradient of inputs that depend on trainable weights.
    None if the model has large weights in other layers, or several networks.
    """
    model = graph_of(model)
    if not isinstance(model, keras.Function):
        return None
    total, counted, learning = 0, 0, _learning(model)
    for layer in layers_of(model, include_self=False):
        kernel = getattr(layer, "kernel", None)
        if not isinstance(layer, keras.layers.Dense | _CONVOLUTIONS) or kernel is None:
            continue
        # A transposed convolution applies its kernel at every position of its input.
        transposed = isinstance(layer, _TRANSPOSED)
        places = (layer.input if transposed else layer.output).shape[1:-1]
        if None in places:
            return None
        below = any(id(one) in learning for one in _below(layer))
        times = 1 + kernel.trainable + below
        total += times * 2 * math.prod(kernel.shape) * math.prod(places)
        counted += math.prod(kernel.shape)
    whole = sum(math.prod(v.shape) for v in model.weights if len(v.shape) > 1)
    return total if counted >= 0.95 * whole and counted else None


def _learning(model: keras.Function) -> set[int]:
    """Return the ids of operations whose outputs depend on trainable weights."""
    found = set()
    for operation in model.operations:  # inputs first
        inner = graph_of(operation)
        if isinstance(inner, keras.Function):
            found |= _learning(inner)
        own = getattr(operation, "trainable_variables", ())
        if own or any(id(one) in found for one in _below(operation)):
            found.add(id(operation))
    return found


def _below(operation) -> list:
    """Return the operations that produce the inputs of an operation."""
    nodes = nodes_of_operation(operation)
    return [parent.operation for node in nodes for parent in node.parent_nodes]


_TRANSPOSED = keras.layers.Conv1DTranspose | keras.layers.Conv2DTranspose
_CONVOLUTIONS = (
    keras.layers.Conv1D
    | keras.layers.Conv2D
    | keras.layers.Conv3D
    | keras.layers.DepthwiseConv2D
    | _TRANSPOSED
)
