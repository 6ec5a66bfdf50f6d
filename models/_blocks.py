"""Building blocks shared by several models."""

import keras


def check_image(input_shape: tuple[int, ...], *, least: int, model: str) -> None:
    """Check for (height, width, channels) with sides of `least` pixels or more."""
    if min(input_shape[:2]) < least or input_shape[2] < 1:
        raise ValueError(
            f"input_shape of {model} must be (height, width, channels) with sides of "
            f"at least {least} pixels: {input_shape}; resize the images"
        )


def doubled(x, channels: int):
    """Upsample with a sub-pixel convolution: (batch, 2 height, 2 width, channels).

    Equivalent to a transposed convolution, which takes three times as long on a CPU
    with few channels (Shi et al., arXiv 1609.05158). The logits stay in float32 in
    every precision: the loss sums over all pixels.
    """
    height, width = x.shape[1:3]
    layers, f32 = keras.layers, "float32"
    x = layers.Conv2D(4 * channels, 3, padding="same", dtype=f32, name="logits")(x)
    x = layers.Reshape((height, width, 2, 2, channels), dtype=f32, name="split")(x)
    x = layers.Permute((1, 3, 2, 4, 5), dtype=f32, name="interleave")(x)
    shape = (2 * height, 2 * width, channels)
    return layers.Reshape(shape, dtype=f32, name="join")(x)


def halved(x, filters: int, *, name: str):
    """A 4x4 convolution with stride 2 and zero padding, (batch, height, width,
    channels) to half of both sides, rounded up.

    It is computed over 2x2 blocks of pixels: with few channels, the gradient with
    respect to the pixels takes a fifth of the time on a CPU.
    """
    layers, channels = keras.layers, x.shape[3]
    rows, columns = (-(-side // 2) + 1 for side in x.shape[1:3])
    edges = ((1, 2 * rows - 1 - x.shape[1]), (1, 2 * columns - 1 - x.shape[2]))
    x = layers.ZeroPadding2D(edges, name=f"{name}_edges")(x)
    x = layers.Reshape((rows, 2, columns, 2, channels), name=f"{name}_split")(x)
    x = layers.Permute((1, 3, 2, 4, 5), name=f"{name}_gather")(x)
    x = layers.Reshape((rows, columns, 4 * channels), name=f"{name}_blocks")(x)
    return layers.Conv2D(filters, 2, name=name)(x)


def cropped(x, height: int, width: int, name: str):
    """Crop to the upper left part: an odd side was rounded up when it was halved."""
    rows, columns = x.shape[1] - height, x.shape[2] - width
    if not rows and not columns:
        return x
    edges = ((0, rows), (0, columns))
    return keras.layers.Cropping2D(edges, dtype=x.dtype, name=name)(x)


def forecast_of(x, inputs, *, horizon: int, targets: int, num_classes: int, size=None):
    """The end of a forecaster: features (batch, width) to (batch, horizon), for several
    targets (batch, horizon, targets), or to logits (batch, num_classes), float32.

    A dense layer predicts changes from the last values of the targets, the first
    channels of `inputs` (batch, time, channels), in units of `size` (batch, 1,
    targets).
    """
    layers, f32 = keras.layers, "float32"
    if num_classes:
        return layers.Dense(num_classes, dtype=f32, name="logits")(x)
    x = layers.Dense(horizon * targets, dtype=f32, name="change")(x)
    if targets == 1:
        last, size = inputs[:, -1, :1], size if size is None else size[:, 0]
    else:
        x = layers.Reshape((horizon, targets), dtype=f32, name="steps")(x)
        last = inputs[:, -1:, :targets]
    if size is not None:
        x = layers.Multiply(dtype=f32, name="scaled_back")([x, size])
    return layers.Add(dtype=f32, name="values")([x, last])


def check_forecaster(input_shape, *sizes: int, targets: int, model: str) -> None:
    """Check for (time, channels) with at least as many channels as targets, and for
    sizes of at least 1."""
    if len(input_shape) != 2 or min(*input_shape, targets, *sizes) < 1:
        raise ValueError(
            f"input_shape of {model} must be (time, channels), and its sizes at least "
            f"1: {input_shape}, {', '.join(map(str, sizes))}"
        )
    if targets > input_shape[1]:
        raise ValueError(
            f"targets of {model} are the first channels of its input: {targets} of "
            f"{input_shape[1]}"
        )


def input_gradient(function, tensor):
    """Return the gradient, itself differentiable, of a function that returns a scalar
    and an auxiliary value, and that value."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function, has_aux=True)(tensor)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value, told = function(tensor)
    return tape.gradient(value, tensor), told
