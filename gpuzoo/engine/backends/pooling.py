"""Max-pooling with a deterministic gradient under XLA, used while a step is traced.

In deterministic mode XLA refuses the gradient of TensorFlow's max-pooling. That of JAX
is a select-and-scatter, which XLA turns into a sort and a scatter on a GPU: slow to
compile and large in memory (benchmarks/LOG.md). Here a small window is compared value
by value, and a large one is split into two overlapping halves, recursively. That takes
comparisons and slices only, which XLA fuses, and their gradients have a fixed order.

The values are those of Keras, bit for bit, and so are the gradients up to the order of
the sum where windows overlap, unless values of a window are equal. Of equal values, on
TensorFlow the first in row order (adaptive: column order) gets the whole gradient, as
in Keras in one and two dimensions on a CPU; on JAX each of two values that are compared
gets half of it, where in Keras the first gets all.

Global max-pooling is a plain reduction, which is deterministic and not replaced.
"""

import contextlib
import functools
import itertools
import math

import keras
from keras.src import backend as keras_backend

from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime

# Windows of up to so many values are compared one after another, larger ones by halves.
_FEW = 4


def needed(runtime: Runtime) -> bool:
    """Return whether to replace max-pooling: under XLA in deterministic mode, and on a
    CPU always, where XLA's own gradient is slower."""
    return runtime.xla and (runtime.deterministic or runtime.device == "cpu")


@contextlib.contextmanager
def repeatable(runtime: Runtime):
    """Replace `keras.ops.max_pool` and `adaptive_max_pool`, which Keras's layers use,
    within the block if `needed`.

    Inputs without a fixed shape or a gradient are left to the backend.
    """
    if not needed(runtime):
        yield
        return
    module = keras_backend.nn
    with replaced(
        module,
        max_pool=functools.partial(_max_pool, module.max_pool),
        adaptive_max_pool=functools.partial(
            _adaptive_max_pool, module.adaptive_max_pool
        ),
    ):
        yield


def _max_pool(real, inputs, pool_size, strides=None, padding="valid", data_format=None):
    inputs = keras.ops.convert_to_tensor(inputs)
    axes = _spatial_axes(inputs, data_format)
    sizes = _each(pool_size, axes)
    steps = sizes if strides is None else _each(strides, axes)
    margins = [
        _margins(inputs.shape[axis], size, step, padding)
        for axis, size, step in zip(axes, sizes, steps, strict=True)
    ] if axes else []  # fmt: skip
    if not axes or None in margins:
        return real(inputs, pool_size, strides, padding, data_format)
    if any(map(any, margins)):
        edges = dict(zip(axes, margins, strict=True))
        edges = [edges.get(axis, (0, 0)) for axis in range(len(inputs.shape))]
        inputs = keras.ops.pad(inputs, edges, constant_values=-math.inf)
    windows = [*zip(axes, sizes, steps, strict=True)]
    if math.prod(sizes) <= _FEW:
        return functools.reduce(keras.ops.maximum, _places(inputs, windows))
    # The innermost axis first: so the first of equal values is first by rows.
    for axis, size, step in reversed(windows):
        inputs = _largest(inputs, axis, size, step)
    return inputs


def _adaptive_max_pool(real, inputs, output_size, data_format=None):
    inputs = keras.ops.convert_to_tensor(inputs)
    axes = _spatial_axes(inputs, data_format)
    counts = _each(output_size, axes)
    if not axes or any(c > inputs.shape[a] for a, c in zip(axes, counts, strict=True)):
        return real(inputs, output_size, data_format)
    for axis, count in zip(axes, counts, strict=True):  # in Keras's order
        side = inputs.shape[axis]
        if side % count == 0:
            inputs = _largest(inputs, axis, side // count, side // count)
            continue
        parts = []
        for i in range(count):
            first, last = i * side // count, -(-(i + 1) * side // count)
            window = _slice(inputs, axis, first, last)
            parts.append(_largest(window, axis, last - first, 1))
        inputs = keras.ops.concatenate(parts, axis=axis)
    return inputs


def _places(x, windows: list[tuple[int, int, int]]):
    """Yield the values at each place of a window, of all windows, row by row."""
    for starts in itertools.product(*(range(size) for _, size, _ in windows)):
        place = x
        for start, (axis, size, step) in zip(starts, windows, strict=True):
            reach = (x.shape[axis] - size) // step * step + 1
            place = _slice(place, axis, start, start + reach, step)
        yield place


def _largest(x, axis: int, size: int, step: int):
    """Return the largest value of each window along one axis; values after the last
    whole window are dropped."""
    count = (x.shape[axis] - size) // step + 1
    if size == step:  # windows do not overlap: compare neighbours in pairs
        sides = (-1, *x.shape[1:axis], count, size, *x.shape[axis + 1 :])
        x, axis = keras.ops.reshape(_slice(x, axis, 0, count * size), sides), axis + 1
        while (size := x.shape[axis]) > 1:
            pairs = (_slice(x, axis, i, size - 1 + i, 2) for i in (0, 1))
            parts = [keras.ops.maximum(*pairs)]
            parts += [_slice(x, axis, size - 1, size)] * (size % 2)
            x = keras.ops.concatenate(parts, axis) if size % 2 else parts[0]
        return keras.ops.squeeze(x, axis)
    reach, width = (count - 1) * step + 1, 1
    while 2 * width < size:  # x[i] is the largest of `width` values from the i-th on
        last = x.shape[axis] - width
        x = keras.ops.maximum(_slice(x, axis, 0, last), _slice(x, axis, width, None))
        width *= 2
    first = _slice(x, axis, 0, reach, step)
    if size == 1:
        return first
    start = size - width
    return keras.ops.maximum(first, _slice(x, axis, start, start + reach, step))


def _slice(x, axis: int, start: int, stop: int | None, step: int = 1):
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _margins(side: int, size: int, step: int, padding: str) -> tuple[int, int] | None:
    """Return the padding before and after; None if no window fits."""
    if padding.lower() == "valid":
        return (0, 0) if size <= side else None
    total = max((-(-side // step) - 1) * step + size - side, 0)
    return total // 2, total - total // 2


def _spatial_axes(inputs, data_format: str | None) -> list[int]:
    """Return the spatial axes; empty without a fixed shape or a float dtype."""
    last = keras_backend.standardize_data_format(data_format) == "channels_last"
    axes = list(range(1, len(inputs.shape) - 1))
    axes = axes if last else [axis + 1 for axis in axes]
    real = "float" in keras.backend.standardize_dtype(inputs.dtype)
    return axes if real and None not in [inputs.shape[a] for a in axes] else []


def _each(value, axes: list[int]) -> tuple[int, ...]:
    """Return one number per axis."""
    return (value,) * len(axes) if isinstance(value, int) else tuple(value)
