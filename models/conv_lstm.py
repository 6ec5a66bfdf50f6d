"""Video prediction."""

import keras

from gpuzoo import register


@register(
    task="video_prediction",
    reference="Shi et al., arXiv 1506.04214",
    parameters=62_352,
)
def conv_lstm(
    *,
    input_shape: tuple[int, int, int, int] = (8, 44, 44, 1),
    filters: tuple[int, ...] = (32,),
    patch: int = 4,
    kernel_size: int = 3,
) -> keras.Model:
    """A convolutional LSTM that predicts the next frame of a video.

    Input (batch, time, height, width, channels), values in [0, 1], of any length from
    1 up, height and width multiples of `patch`; output (batch, height, width,
    channels), logits in float32: their sigmoid is the next frame.

    As in the paper, each patch of a frame becomes one pixel with more channels, and
    there is one convolutional LSTM layer for each entry of `filters`.
    Differences: no encoder-forecaster for many frames; the output layer also sees
    the last frame; no peepholes.
    """
    time, height, width, channels = input_shape
    if min(time, channels, patch, *filters) < 1 or height % patch or width % patch:
        raise ValueError(
            "input_shape of conv_lstm must be (time, height, width, channels) with "
            f"sides that are multiples of patch, {patch}: {input_shape}"
        )
    layers = keras.layers
    inputs = keras.Input(input_shape, name="frames")
    rows, columns, depth = height // patch, width // patch, patch * patch * channels
    # (time, rows, patch, columns, patch, channels) -> (time, rows, columns, depth)
    x = layers.Reshape((time, rows, patch, columns, patch, channels), name="split")(
        inputs
    )
    x = layers.Permute((1, 2, 4, 3, 5, 6), name="gather")(x)
    x = frames = layers.Reshape((time, rows, columns, depth), name="patches")(x)
    for number, size in enumerate(filters, start=1):
        x = layers.ConvLSTM2D(
            size, kernel_size, padding="same", name=f"conv_lstm_{number}",
            return_sequences=number < len(filters),
        )(x)  # fmt: skip
    x = layers.Concatenate(name="with_the_last")([x, frames[:, -1]])
    # Logits stay in float32 in every precision: the loss sums over all pixels.
    f32 = "float32"
    x = layers.Conv2D(depth, 3, padding="same", dtype=f32, name="logits")(x)
    x = layers.Reshape(
        (rows, columns, patch, patch, channels), dtype=f32, name="unfold"
    )(x)
    x = layers.Permute((1, 3, 2, 4, 5), dtype=f32, name="interleave")(x)
    outputs = layers.Reshape(input_shape[1:], dtype=f32, name="join")(x)
    return keras.Model(inputs, outputs, name="conv_lstm")
