"""Pieces that several models share."""

import keras

from gpuzoo.runtime import in_force


def check_image(input_shape: tuple[int, ...], *, least: int, model: str) -> None:
    """Refuse what is not (height, width, channels) with sides of at least `least`."""
    if min(input_shape[:2]) < least or input_shape[2] < 1:
        raise ValueError(
            f"input_shape of {model} must be (height, width, channels) with sides of "
            f"at least {least} pixels: {input_shape}; resize the images or use mlp"
        )


def max_pool(x, size: int = 2, *, name: str | None = None):
    """Max-pooling with a window and stride of `size`; odd borders are dropped.

    XLA has no deterministic gradient for the native operation, and on a CPU without
    XLA every other form is several times slower, so the form follows the runtime.
    Both forms give the same bits, forward and backward, unless two values of a window
    are equal.
    """
    runtime = in_force()
    if runtime is None or not (runtime.xla and runtime.deterministic):
        return keras.layers.MaxPooling2D(size, name=name)(x)
    height, width = (side // size * size for side in x.shape[1:3])
    slices = [
        x[:, row:height:size, column:width:size, :]
        for row in range(size)
        for column in range(size)
    ]
    pooled = slices[0]
    for other in slices[1:]:
        pooled = keras.ops.maximum(pooled, other)
    return pooled
