"""A plain convolutional network."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image

# Feature maps with sides of at least this are halved by another block.
_STOP_AT = 8


@register(
    task="classify",
    reference="LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86 (1998) 2278; widths "
    "and the pooling before the ReLU after tuomaso/train_mnist_fast",
    parameters=108_874,
)
def cnn(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    filters: tuple[int, ...] = (16, 32),
    kernel_sizes: tuple[int, ...] = (5, 3),
    dense: int = 128,
    dropout: float = 0.0,
) -> keras.Model:
    """A small convolutional network: blocks of convolution, pool, ReLU, then dense.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 12 up: blocks
    like the last one are added until the map is smaller than 8 pixels a side, so that
    large images do not lead to an enormous dense layer. Pooling comes before the ReLU,
    which is the same function at a quarter of the cost.

    Differences from the references: the paper's network (see `lenet5`) has other
    widths, another dense layer, a scaled tanh and average pooling; train_mnist_fast has
    24 filters in its first convolution and 256 units in its dense layer; neither adds
    blocks or has dropout.
    """
    if len(filters) != len(kernel_sizes) or not filters:
        raise ValueError(
            "filters and kernel_sizes must have the same length, at least 1: "
            f"{filters}, {kernel_sizes}"
        )
    check_image(input_shape, least=12, model="cnn")
    inputs = keras.Input(input_shape, name="image")
    x, block = inputs, 0
    while block < len(filters) or min(x.shape[1:3]) >= _STOP_AT:
        i = min(block, len(filters) - 1)
        block += 1
        x = keras.layers.Conv2D(filters[i], kernel_sizes[i], name=f"conv_{block}")(x)
        x = keras.layers.MaxPooling2D(name=f"pool_{block}")(x)
        x = keras.layers.ReLU(name=f"relu_{block}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.Dense(dense, activation="relu", name="dense")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="cnn")
