"""Networks that map images to vectors, to compare identities by."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image

_STOP_AT = 8


@register(
    task="embed",
    reference="Deng et al., arXiv 1801.07698, their end of a network, on a small one",
    parameters=224_672,
)
def embedder(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 1),
    filters: tuple[int, ...] = (32, 64, 128),
    dimensions: int = 64,
    dropout: float = 0.0,
) -> keras.Model:
    """Blocks of convolution, normalization, ReLU and pool, then a vector of length 1.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, dimensions), float32, of length 1: the scalar product of two of them is the
    cosine of their angle. Any height and width from 12 up: blocks like the last one are
    added until the map is smaller than 8 pixels a side. As in the reference, the map is
    normalized, and the vector again before it gets length 1.

    Differences from the reference: its network is a ResNet of 50 or 100 layers, its
    vectors have 512 numbers, and its convolutions have PReLU.
    """
    check_image(input_shape, least=12, model="embedder")
    if not filters or min(filters) < 1 or dimensions < 2:
        raise ValueError(
            "filters of embedder must be at least 1, and dimensions at least 2: "
            f"{filters}, {dimensions}"
        )
    layers = keras.layers
    inputs = keras.Input(input_shape, name="image")
    x, block = inputs, 0
    while block < len(filters) or min(x.shape[1:3]) >= _STOP_AT:
        width = filters[min(block, len(filters) - 1)]
        block += 1
        x = layers.Conv2D(
            width, 3, padding="same", use_bias=False, name=f"conv_{block}"
        )(x)
        x = layers.MaxPooling2D(name=f"pool_{block}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{block}")(x)
        x = layers.ReLU(name=f"relu_{block}")(x)
    x = layers.Flatten(name="flatten")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(dimensions, use_bias=False, name="dense")(x)
    # In float32 in every precision, so that the length is 1 and not 1.002.
    x = layers.BatchNormalization(momentum=0.9, dtype="float32", name="norm")(x)
    # Not UnitNormalization: its reciprocal root is another one on each processor.
    square = keras.ops.sum(keras.ops.square(x), axis=1, keepdims=True)
    outputs = x / keras.ops.sqrt(keras.ops.maximum(square, 1e-12))
    return keras.Model(inputs, outputs, name="embedder")
