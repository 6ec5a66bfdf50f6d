"""ConvMixer."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image


@register(
    task="classify",
    reference="Trockman and Kolter, arXiv 2201.09792",
    parameters=602_890,
)
def convmixer(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 256,
    depth: int = 8,
    kernel_size: int = 5,
    patch: int = 2,
) -> keras.Model:
    """ConvMixer: patches, then depthwise and 1x1 convolutions at one resolution.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 4 patches up; a
    border that does not fill a patch is ignored. For large images use a larger `patch`,
    such as 7 or 14 pixels: the cost grows with the number of patches.

    As in the paper; width and depth are those of its CIFAR-10 network, ConvMixer-256/8.
    Differences: initial weights scaled by fan-in, and batch normalization with
    momentum 0.9, both for short schedules.
    """
    if min(width, depth, kernel_size, patch) < 1:
        raise ValueError(
            "width, depth, kernel_size and patch of convmixer must be at least 1: "
            f"{width}, {depth}, {kernel_size}, {patch}"
        )
    check_image(input_shape, least=4 * patch, model="convmixer")
    inputs = keras.Input(input_shape, name="image")
    # The moving averages of a normalization start at one and need some eighty steps to
    # fall to the variance that Keras's default initial weights give here: these divide
    # by the fan-out, too, which is large for patches, and for a depthwise kernel by all
    # channels, of which an output sees only one.
    scaling = keras.initializers.VarianceScaling(scale=width)
    x = keras.layers.Conv2D(
        width, patch, strides=patch, kernel_initializer="he_normal", name="patches"
    )(inputs)
    x = _activate(x, name="patches")
    for i in range(1, depth + 1):
        y = keras.layers.DepthwiseConv2D(
            kernel_size, padding="same", depthwise_initializer=scaling.clone(),
            name=f"depthwise_{i}",
        )(x)  # fmt: skip
        y = _activate(y, name=f"depthwise_{i}")
        x = keras.layers.Add(name=f"add_{i}")([x, y])
        x = keras.layers.Conv2D(width, 1, name=f"pointwise_{i}")(x)
        x = _activate(x, name=f"pointwise_{i}")
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="convmixer")


def _activate(x, *, name: str):
    """GELU, then normalization: in this order, unlike residual networks."""
    x = keras.layers.Activation("gelu", name=f"{name}_gelu")(x)
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
    )(x)
