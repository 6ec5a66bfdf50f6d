"""Networks for short texts."""

from typing import Literal

import keras

from gpuzoo import register
from gpuzoo.models.recurrent import through_time


@register(
    task="classify_text",
    reference="Kim, arXiv 1408.5882",
    parameters=176_131,
)
def text_cnn(
    *,
    input_shape: tuple[int] = (32,),
    num_classes: int = 3,
    words: int = 1_000,
    width: int = 64,
    filters: int = 96,
    kernels: tuple[int, ...] = (2, 3, 5, 8),
    dropout: float = 0.3,
) -> keras.Model:
    """Convolutions over neighbouring words, the largest value of each over the text.

    Input (batch, length), int32, numbers of words below `words`, 0 after the last one;
    output (batch, num_classes), logits in float32. A word is a vector of `width`
    weights, and each of `kernels` has `filters` filters over so many words.

    Differences from the paper: the vectors are not pretrained, there is no bound on the
    norm of the weights, the default kernels span 2, 3, 5 and 8 words and not 3, 4 and
    5, and dropout is less.
    """
    if not kernels:
        raise ValueError("kernels of text_cnn must not be empty; the default has four")
    _check("text_cnn", input_shape, words, width, filters, *kernels)
    layers = keras.layers
    inputs, x, there = _embedded(input_shape, words, width)
    found = []
    for size in dict.fromkeys(kernels):
        y = layers.Conv1D(filters, size, padding="same", name=f"conv_{size}")(x)
        y = layers.ReLU(name=f"relu_{size}")(y)
        found.append(keras.ops.max(y * there, axis=1))
    x = layers.Concatenate(name="features")(found) if found[1:] else found[0]
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    outputs = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="text_cnn")


@register(
    task="classify_text",
    reference="Cho et al., arXiv 1406.1078; in both directions: Schuster and Paliwal, "
    "IEEE Trans. Signal Processing 45 (1997) 2673",
    parameters=114_307,
)
def text_gru(
    *,
    input_shape: tuple[int] = (32,),
    num_classes: int = 3,
    words: int = 1_000,
    width: int = 64,
    units: int = 64,
    dropout: float = 0.3,
    implementation: Literal["auto", "cudnn", "scan", "unrolled"] = "auto",
) -> keras.Model:
    """A GRU in both directions, the largest value of each unit over the text.

    Input (batch, length), int32, numbers of words below `words`, 0 after the last one;
    output (batch, num_classes), logits in float32. Each direction has `units` units.
    `implementation`: see `lstm`.

    Differences from the papers: the GRU is that of `gru`; the first one reads forwards
    only and translates. The backward direction begins with what stands after the last
    word, vectors of zeros.
    """
    _check("text_gru", input_shape, words, width, units)
    layers = keras.layers
    inputs, x, there = _embedded(input_shape, words, width)
    if dropout:
        x = layers.Dropout(dropout, name="dropout_words")(x)
    gru = layers.GRU(
        units, return_sequences=True, **through_time("text_gru", implementation),
        name="gru",
    )  # fmt: skip
    x = layers.Bidirectional(gru, name="both")(x)
    # -1, which no unit falls below, where there is no word.
    x = keras.ops.max(x * there + (there - 1), axis=1)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    outputs = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="text_gru")


def _embedded(input_shape, words: int, width: int) -> tuple:
    """Return the input, the vectors of the words (batch, length, width), zeros after
    the last one, and whether there is a word (batch, length, 1), 0 or 1."""
    inputs = keras.Input(input_shape, dtype="int32", name="text")
    x = keras.layers.Embedding(
        words,
        width,
        name="embedding",
        embeddings_initializer=keras.initializers.RandomNormal(stddev=0.3),
    )(inputs)
    there = keras.ops.expand_dims(keras.ops.not_equal(inputs, 0), -1)
    there = keras.ops.cast(there, x.dtype)
    return inputs, x * there, there


def _check(model: str, input_shape, *sizes: int) -> None:
    if len(input_shape) != 1 or not input_shape[0]:
        raise ValueError(f"input_shape of {model} must be (length,): {input_shape}")
    if min(sizes) < 1:
        raise ValueError(f"the sizes of {model} must be at least 1: {sizes}")
