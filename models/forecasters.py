"""Networks that forecast series, by convolutions and by attention over patches.

Both see how far the targets are from their last values, and their changes, but not
where they stand: a series that wanders off keeps its shape.
"""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_forecaster, forecast_of


@register(
    task="forecast",
    reference="Bai, Kolter and Koltun, arXiv 1803.01271",
    parameters=32_432,
)
def tcn(
    *,
    input_shape: tuple[int, int] = (64, 1),
    horizon: int = 16,
    targets: int = 1,
    num_classes: int = 0,
    filters: int = 32,
    kernel: int = 3,
    levels: int = 5,
    dropout: float = 0.0,
) -> keras.Model:
    """A temporal convolutional network.

    Input (batch, time, channels), standardized; output (batch, horizon), float32: the
    next values of the first channel, all at once, or of the first `targets` channels,
    (batch, horizon, targets); with `num_classes` logits (batch, num_classes). Any
    length and number of channels; `levels` residual blocks of two causal convolutions
    each, whose steps double, see 1 + 2 (`kernel` - 1) (2^`levels` - 1) rows back.

    Differences from the paper: layer instead of weight normalization, dropout of
    values instead of channels, and relative values as inputs and outputs.
    """
    check_forecaster(
        input_shape, horizon, filters, kernel, levels, targets=targets, model="tcn"
    )
    layers = keras.layers
    inputs = keras.Input(input_shape, name="series")
    x, size = _relative(inputs, targets)
    x = layers.Dense(filters, name="stem")(x)
    for i in range(levels):
        y = x
        for j in (1, 2):
            name = f"block_{i + 1}_{j}"
            y = layers.LayerNormalization(name=f"{name}_norm")(y)
            y = layers.ReLU(name=f"{name}_relu")(y)
            y = layers.Conv1D(
                filters, kernel, padding="causal", dilation_rate=2**i, name=name
            )(y)
            if dropout:
                y = layers.Dropout(dropout, name=f"{name}_dropout")(y)
        x = layers.Add(name=f"block_{i + 1}_sum")([x, y])
    x = layers.LayerNormalization(name="norm")(x[:, -1])
    outputs = forecast_of(
        x, inputs, horizon=horizon, targets=targets, num_classes=num_classes, size=size
    )
    return keras.Model(inputs, outputs, name="tcn")


@register(
    task="forecast",
    reference="Nie, Nguyen, Sinthong and Kalagnanam, arXiv 2211.14730 (PatchTST)",
    parameters=77_328,
)
def patch_transformer(
    *,
    input_shape: tuple[int, int] = (64, 1),
    horizon: int = 16,
    targets: int = 1,
    num_classes: int = 0,
    patch: int = 8,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
) -> keras.Model:
    """A transformer over patches of a series.

    Input (batch, time, channels), standardized; output as of `tcn`. The first rows that
    do not fill a patch of `patch` rows are left out, so any time from `patch` on will
    do.

    Differences from the paper: a patch has all channels, which the paper treats apart;
    patches do not overlap; layer instead of batch normalization, before each part
    instead of after it; and how values are made relative.
    """
    check_forecaster(
        input_shape, horizon, patch, width, depth, heads, targets=targets,
        model="patch_transformer",
    )  # fmt: skip
    time = input_shape[0]
    if patch > time or width % heads:
        raise ValueError(
            f"patch of patch_transformer must be at most the time {time}, and heads "
            f"divide width: {patch}, {heads}, {width}"
        )
    layers, count = keras.layers, time // patch
    inputs = keras.Input(input_shape, name="series")
    x, size = _relative(inputs, targets)
    x = x[:, time - count * patch :]
    x = layers.Reshape((count, patch * x.shape[2]), name="patches")(x)
    x = layers.EinsumDense(  # (batch, token, value) -> (batch, token, embedding)
        "btp,pe->bte", (count, width), bias_axes="te",
        bias_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="embedding",
    )(x)  # fmt: skip
    for i in range(1, depth + 1):
        x = _block(x, heads, dropout, name=f"block_{i}")
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Flatten(name="flat")(x)
    outputs = forecast_of(
        x, inputs, horizon=horizon, targets=targets, num_classes=num_classes, size=size
    )
    return keras.Model(inputs, outputs, name="patch_transformer")


def _relative(inputs, targets: int):
    """Return features (batch, time, channels + 3 targets), float32, and the size of a
    change (batch, 1, targets). The features are, of the targets, the first channels,
    how far they are from their last values, and their changes from row to row, both in
    units of their root mean square in the window, and the logarithms of these; and the
    other channels as they are. Where the targets stand is not among them: what was
    learned at one level of a series that wanders off says nothing at another."""
    ops = keras.ops
    own = inputs[:, :, :targets]
    away = own - inputs[:, -1:, :targets]
    changes = own[:, 1:] - own[:, :-1]
    size, step = (
        ops.sqrt(ops.mean(ops.square(one), axis=1, keepdims=True) + 1e-6)
        for one in (away, changes)
    )
    changes = ops.pad(changes, ((0, 0), (1, 0), (0, 0)))
    sizes = [ops.log(one) + ops.zeros_like(own) for one in (size, step)]
    return ops.concatenate(
        [away / size, changes / step, *sizes, inputs[:, :, targets:]], axis=2
    ), step


def _block(x, heads: int, dropout: float, *, name: str):
    """Attention, then two dense layers, each after normalization and beside a
    shortcut."""
    layers, width = keras.layers, x.shape[-1]
    y = layers.LayerNormalization(name=f"{name}_norm_1")(x)
    # With the scores returned, Keras computes plain products: see models/vit.py.
    y, _ = layers.MultiHeadAttention(
        heads, width // heads, use_bias=False, name=f"{name}_attention"
    )(y, y, return_attention_scores=True)
    if dropout:
        y = layers.Dropout(dropout, name=f"{name}_dropout_1")(y)
    x = layers.Add(name=f"{name}_add_1")([x, y])
    y = layers.LayerNormalization(name=f"{name}_norm_2")(x)
    y = layers.Dense(2 * width, activation="gelu", name=f"{name}_dense_1")(y)
    y = layers.Dense(width, name=f"{name}_dense_2")(y)
    if dropout:
        y = layers.Dropout(dropout, name=f"{name}_dropout_2")(y)
    return layers.Add(name=f"{name}_add_2")([x, y])
