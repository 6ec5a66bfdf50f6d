"""Classification of films."""

import keras

from gpuzoo import register


@register(
    task="classify_film",
    reference="Tran et al., arXiv 1412.0767, with strides in place of pooling",
    parameters=70_520,
)
def conv3d_small(
    *,
    input_shape: tuple[int, int, int, int] = (16, 24, 24, 1),
    num_classes: int = 8,
    filters: tuple[int, ...] = (16, 32, 64),
    dropout: float = 0.0,
) -> keras.Model:
    """Blocks of a convolution over time, height and width with strides of 2.

    Input (batch, frames, height, width, channels), values in [0, 1]; output (batch,
    num_classes), logits in float32. Any number of frames from 2 up, any size: the map
    of the last block is averaged over time and place.

    Each kernel sees 3 frames x 3 x 3 pixels. It is computed as a 2D convolution of the
    three frames, one after the other as channels: the same function as keras's Conv3D,
    whose gradient XLA computes without a library on CPUs, about thirty times as long
    (benchmarks/LOG.md).
    Differences from the reference: everything is smaller; strides, not max-pooling;
    batch normalization; an average, not dense layers.
    """
    if len(input_shape) != 4 or input_shape[0] < 2 or min(input_shape) < 1:
        raise ValueError(
            "input_shape of conv3d_small must be (frames, height, width, channels) "
            f"with at least 2 frames: {input_shape}"
        )
    if not filters or min(filters) < 1:
        raise ValueError(
            f"filters of conv3d_small must be numbers of at least 1: {filters}"
        )
    inputs = x = keras.Input(input_shape, name="film")
    for block, width in enumerate(filters, 1):
        x = _convolved(x, width, block)
    x = keras.layers.GlobalAveragePooling3D(name="average")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="conv3d_small")


def _convolved(x, filters: int, block: int):
    """Return the output of a block, (batch, frames, height, width, filters), with half
    the frames, height and width, rounded up."""
    frames, height, width, channels = x.shape[1:]
    after = -(-frames // 2)
    # As Keras pads for "same": the odd frame is at the end.
    added = 2 * after + 1 - frames
    pad = (added // 2, added - added // 2)
    x = keras.layers.ZeroPadding3D((pad, (0, 0), (0, 0)), name=f"ends_{block}")(x)
    each = [x[:, first : first + 2 * after - 1 : 2] for first in range(3)]
    x = keras.layers.Concatenate(name=f"three_{block}")(each)
    x = keras.ops.reshape(x, (-1, height, width, 3 * channels))
    x = keras.layers.Conv2D(
        filters, 3, strides=2, padding="same", use_bias=False, name=f"conv_{block}"
    )(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{block}")(x)
    x = keras.layers.ReLU(name=f"relu_{block}")(x)
    return keras.ops.reshape(x, (-1, after, *x.shape[1:]))
