"""The U-Net, for segmentation."""

import keras

from gpuzoo import register


@register(
    task="segment",
    reference="Ronneberger, Fischer and Brox, arXiv 1505.04597 (U-Net)",
    parameters=1_945_691,
)
def unet(
    *,
    input_shape: tuple[int, int, int] = (64, 64, 3),
    num_classes: int = 11,
    filters: int = 16,
    depth: int = 4,
) -> keras.Model:
    """A U-Net: the class of every pixel, from its surroundings and its neighbours.

    Input (batch, height, width, channels), values in [0, 1]; output (batch, height,
    width, num_classes), logits, float32. Sides that are not multiples of 2**depth are
    padded with zeros inside, and the padding is cut off again.

    At each of `depth` levels two 3x3 convolutions, and a maximum over 2x2 pixels; below
    them two more; then upwards at each level a transposed convolution that doubles the
    sides, joined with the result of that level on the way down, and two convolutions.
    The first level has `filters` channels, each further one twice as many. Differences
    from the paper: padded convolutions with batch normalization, so that the output has
    the size of the input; fewer channels (there 64 at the first level).
    """
    if min(input_shape) < 1:
        raise ValueError(
            f"input_shape of unet must be (height, width, channels): {input_shape}"
        )
    if min(filters, depth) < 1 or depth > 8:
        raise ValueError(
            f"filters of unet must be at least 1, and depth in 1..8: {filters}, {depth}"
        )
    layers = keras.layers

    def convolved(x, width: int, name: str):
        for number in (1, 2):
            x = layers.Conv2D(
                width, 3, padding="same", use_bias=False, name=f"{name}_conv_{number}"
            )(x)
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm_{number}")(x)
            x = layers.ReLU(name=f"{name}_relu_{number}")(x)
        return x

    inputs = keras.Input(input_shape, name="image")
    missing = [-side % 2**depth for side in input_shape[:2]]
    around = tuple((each // 2, each - each // 2) for each in missing)
    x = layers.ZeroPadding2D(around, name="pad")(inputs) if any(missing) else inputs
    passed = []
    for level in range(depth):
        x = convolved(x, filters * 2**level, f"down_{level}")
        passed.append(x)
        x = layers.MaxPooling2D(2, name=f"half_{level}")(x)
    x = convolved(x, filters * 2**depth, "bottom")
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(
            filters * 2**level, 2, strides=2, name=f"double_{level}"
        )(x)
        x = layers.Concatenate(name=f"join_{level}")([passed[level], x])
        x = convolved(x, filters * 2**level, f"up_{level}")
    if any(missing):
        x = layers.Cropping2D(around, name="cut")(x)
    # In float32 in every precision: the loss needs the accuracy.
    logits = layers.Conv2D(num_classes, 1, dtype="float32", name="logits")
    return keras.Model(inputs, logits(x), name="unet")
