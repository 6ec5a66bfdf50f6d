"""Object detection without anchors."""

import keras

from gpuzoo import register

_STRIDE = 4  # pixels of the image per cell of the map


@register(
    task="detect",
    reference="Zhou, Wang and Krähenbühl, arXiv 1904.07850 (objects as points)",
    parameters=103_358,
)
def detector(
    *,
    input_shape: tuple[int, int, int] = (64, 64, 1),
    num_classes: int = 10,
    filters: tuple[int, int, int] = (16, 32, 48),
    depth: int = 5,
) -> keras.Model:
    """An anchor-free detector (CenterNet): scores each cell as the center of an object.

    Input (batch, height, width, channels), values in [0, 1], height and width
    multiples of 4; output (batch, height / 4, width / 4, num_classes + 4), float32: for
    each class the logit that the cell is the center of an object, then height and width
    of the object in units of 16 pixels, and the vertical and horizontal offset of the
    center in the cell, in cells.

    Two convolutions with stride 2, then `depth` with stride 1, each with batch
    normalization. Differences from the paper: a small plain network instead of a
    pretrained one with upsampling, and one branch for all outputs.
    """
    height, width, channels = input_shape
    if min(height, width, channels) < 1 or height % _STRIDE or width % _STRIDE:
        raise ValueError(
            "input_shape of detector must be (height, width, channels) with sides that "
            f"are multiples of {_STRIDE}: {input_shape}"
        )
    if len(filters) != 3 or min(*filters, depth) < 1:
        raise ValueError(
            "filters of detector must be three numbers, and depth one, of at least 1: "
            f"{filters}, {depth}"
        )

    def block(x, width: int, stride: int, name: str):
        x = layers.Conv2D(
            width, 3, stride, padding="same", use_bias=False, name=f"conv_{name}"
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{name}")(x)
        return layers.ReLU(name=f"relu_{name}")(x)

    layers = keras.layers
    inputs = keras.Input(input_shape, name="image")
    x = block(inputs, filters[0], 2, "half")
    x = block(x, filters[1], 2, "quarter")
    for number in range(1, depth + 1):
        x = block(x, filters[2], 1, str(number))
    # In float32 in every precision: the loss needs the accuracy. Initially no cell is
    # predicted to be a center.
    rare = keras.initializers.Constant(-2.2)
    middle = layers.Conv2D(
        num_classes, 1, bias_initializer=rare, dtype="float32", name="middle"
    )(x)
    box = layers.Conv2D(4, 1, dtype="float32", name="box")(x)
    outputs = layers.Concatenate(dtype="float32", name="cells")([middle, box])
    return keras.Model(inputs, outputs, name="detector")
