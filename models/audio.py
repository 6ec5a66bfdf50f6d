"""Audio classification."""

from typing import Literal

import keras

from gpuzoo import register
from gpuzoo.models.recurrent import through_time

_RATE = 16_000  # samples per second (gpuzoo/data/audio.py)
_WINDOW, _STRIDE = 512, 128  # samples: 32 and 8 ms
_BINS = 64


@register(
    task="classify_audio",
    reference="log-mel spectrograms into plain convolutions, as Hershey et al., arXiv "
    "1609.09430, at the size of a small network",
    parameters=205_480,
)
def audio_cnn(
    *,
    input_shape: tuple[int] = (4_000,),
    num_classes: int = 8,
    filters: tuple[int, ...] = (32, 48, 96),
    dropout: float = 0.0,
) -> keras.Model:
    """A log-mel spectrogram, then blocks of convolution, pool and ReLU.

    Input (batch, samples) at 16 kHz, values in [-1, 1]; output (batch, num_classes),
    logits in float32. Any length from 0.1 s up: the map is averaged over time at the
    end. The spectrogram has 64 mel bins from 40 Hz up, windows of 32 ms and a hop of
    8 ms. It is computed in float32 in every precision and normalized to mean 0 and
    standard deviation 1 per sound, so that the volume hardly matters.
    Differences from the reference: everything is smaller, and nothing is pretrained.
    """
    _check(input_shape, "audio_cnn")
    if not filters or len(filters) > 4 or min(filters) < 1:
        raise ValueError(
            f"filters of audio_cnn must be 1 to 4 numbers of at least 1: {filters}"
        )
    inputs = keras.Input(input_shape, name="audio", dtype="float32")
    x = _spectrogram(inputs)
    for block, width in enumerate(filters, 1):
        x = keras.layers.Conv2D(
            width, 3, padding="same", use_bias=False, name=f"conv_{block}"
        )(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{block}")(x)
        x = keras.layers.MaxPooling2D(name=f"pool_{block}")(x)
        x = keras.layers.ReLU(name=f"relu_{block}")(x)
    x = keras.layers.Conv2D(2 * width, (x.shape[1], 1), name="frequencies")(x)
    x = keras.layers.ReLU(name="relu_frequencies")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="audio_cnn")


@register(
    task="classify_audio",
    reference="Graves, Mohamed and Hinton, arXiv 1303.5778; gated units: Cho et al., "
    "arXiv 1406.1078",
    parameters=71_754,
)
def audio_rnn(
    *,
    input_shape: tuple[int] = (11_200,),
    num_classes: int = 10,
    filters: int = 64,
    units: int = 64,
    layers: int = 1,
    dropout: float = 0.0,
    implementation: Literal["auto", "cudnn", "scan", "unrolled"] = "auto",
) -> keras.Model:
    """A log-mel spectrogram, a convolution over time, and bidirectional GRUs.

    Input (batch, samples) at 16 kHz, values in [-1, 1]; output (batch, num_classes),
    logits in float32. Any length from 0.1 s up: the outputs of the last GRU are
    averaged over time. The spectrogram is that of `audio_cnn`; the convolution sees
    five of its columns at a time (64 ms) and halves their number. Each of the `layers`
    has `units` units in each direction. `implementation`: see `lstm`.
    Differences from the reference: it labels every time step and uses LSTM; here a
    sound has one label, and a convolution shortens the sequence.
    """
    _check(input_shape, "audio_rnn")
    if min(filters, units, layers) < 1:
        raise ValueError(
            "filters, units and layers of audio_rnn must be at least 1: "
            f"{filters}, {units}, {layers}"
        )
    ways = through_time("gru", implementation)
    inputs = keras.Input(input_shape, name="audio", dtype="float32")
    x = keras.ops.squeeze(_spectrogram(inputs), -1)
    x = keras.layers.Permute((2, 1), dtype="float32", name="columns")(x)
    x = keras.layers.Conv1D(
        filters, 5, strides=2, padding="same", activation="relu", name="conv"
    )(x)
    for number in range(1, layers + 1):
        gru = keras.layers.GRU(
            units, return_sequences=True, **ways, name=f"gru_{number}"
        )
        x = keras.layers.Bidirectional(gru, name=f"both_{number}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{number}")(x)
    x = keras.layers.GlobalAveragePooling1D(name="average")(x)
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="audio_rnn")


def _check(input_shape: tuple[int, ...], model: str) -> None:
    if len(input_shape) != 1 or input_shape[0] < _RATE // 10:
        raise ValueError(
            f"input_shape of {model} must be (samples,), at least {_RATE // 10}: "
            f"{input_shape}; pad shorter sounds with --audio-seconds 0.1"
        )


def _spectrogram(inputs):
    """Return log-mel spectrograms, (batch, bins, time, 1), float32."""
    x = keras.layers.MelSpectrogram(
        fft_length=_WINDOW, sequence_stride=_STRIDE, sampling_rate=_RATE,
        num_mel_bins=_BINS, min_freq=40.0, max_freq=_RATE / 2,
        # Keras's decibels depend on the loudest sound of the batch.
        power_to_db=False, dtype="float32", name="mel",
    )(inputs)  # fmt: skip
    x = keras.ops.expand_dims(keras.ops.log(x + 1e-6), -1)
    return keras.layers.LayerNormalization(
        axis=(1, 2), center=False, scale=False, dtype="float32", name="level"
    )(x)
