"""Networks for the rows of tables."""

import keras
import numpy as np

from gpuzoo import register


@register(
    task="table",
    reference="Gorishniy, Rubachev and Babenko, arXiv 2203.05556 (MLP-PLE)",
    parameters=79_689,
)
def mlp_table(
    *,
    input_shape: tuple[int, ...] = (6,),
    numbers: int = 2,
    vocabulary: tuple[int, ...] = (5, 4),
    num_outputs: int = 1,
    units: tuple[int, ...] = (256, 256),
    bins: int = 16,
    embedding: int = 8,
    dropout: float = 0.1,
) -> keras.Model:
    """A multilayer perceptron on encoded columns.

    Input (batch, columns), float32, as gpuzoo/data/preparation.py describes it: places
    of `numbers` numbers in [0, 1], further numbers, and indices of categories, one for
    each entry of `vocabulary`, which are the numbers of its categories; output (batch,
    num_outputs) in float32, logits or a number. The place of a number is encoded
    piecewise linearly in `bins` bins, a category as a vector of `embedding` weights.

    Differences from the paper: the bins are equal parts of the quantile scale that the
    data are prepared by; numbers that are missing have a flag; categories are embedded,
    as in arXiv 2106.11959.
    """
    inputs = keras.Input(input_shape, name="table")
    x = _encoded(inputs, numbers, vocabulary, bins, embedding)
    for i, width in enumerate(units, start=1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense_{i}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
    # In float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_outputs, dtype="float32", name="outputs")(x)
    return keras.Model(inputs, outputs, name="mlp_table")


@register(
    task="table",
    reference="Lim, Arik, Loeff and Pfister, arXiv 1912.09363 (gated residual network)",
    parameters=307_657,
)
def gated_table(
    *,
    input_shape: tuple[int, ...] = (6,),
    numbers: int = 2,
    vocabulary: tuple[int, ...] = (5, 4),
    num_outputs: int = 1,
    width: int = 192,
    blocks: int = 2,
    bins: int = 16,
    embedding: int = 8,
    dropout: float = 0.1,
) -> keras.Model:
    """A residual network of gated blocks on encoded columns.

    Input (batch, columns), output (batch, num_outputs) and encoding as of `mlp_table`.
    Each block is a gated residual network
    of the Temporal Fusion Transformer: x + GLU(W1 ELU(W2 x)), normalized.

    Differences from the paper: the columns are joined to one vector before the blocks,
    without a selection of variables, and there is no context.
    """
    inputs = keras.Input(input_shape, name="table")
    x = _encoded(inputs, numbers, vocabulary, bins, embedding)
    x = keras.layers.Dense(width, name="stem")(x)
    for i in range(1, blocks + 1):
        x = _gated(x, width, dropout, name=f"block_{i}")
    outputs = keras.layers.Dense(num_outputs, dtype="float32", name="outputs")(x)
    return keras.Model(inputs, outputs, name="gated_table")


def _gated(x, width: int, dropout: float, *, name: str):
    layers = keras.layers
    inner = layers.Dense(width, activation="elu", name=f"{name}_elu")(x)
    inner = layers.Dense(width, name=f"{name}_linear")(inner)
    if dropout:
        inner = layers.Dropout(dropout, name=f"{name}_dropout")(inner)
    gate = layers.Dense(width, activation="sigmoid", name=f"{name}_gate")(inner)
    value = layers.Dense(width, name=f"{name}_value")(inner)
    inner = layers.Multiply(name=f"{name}_product")([gate, value])
    x = layers.Add(name=f"{name}_sum")([x, inner])
    return layers.LayerNormalization(name=f"{name}_norm")(x)


def _encoded(
    inputs, numbers: int, vocabulary: tuple[int, ...], bins: int, embedding: int
):
    """Return rows (batch, columns) as (batch, features), in the compute dtype."""
    layers, width = keras.layers, inputs.shape[1]
    plain = width - len(vocabulary)
    if not 0 <= numbers <= plain:
        raise ValueError(
            f"input_shape of {width} numbers has no room for {numbers} places and "
            f"{len(vocabulary)} categories"
        )
    parts = []
    if plain:
        parts.append(inputs[:, :plain])
    if numbers:
        places = keras.ops.expand_dims(inputs[:, :numbers], -1)
        parts.append(
            layers.Flatten(dtype="float32", name="bins")(
                keras.ops.clip(places * bins - np.arange(bins, dtype="float32"), 0, 1)
            )
        )
    if vocabulary:
        indices = keras.ops.cast(inputs[:, plain:], "int32")
        table = layers.Embedding(
            sum(vocabulary), embedding, embeddings_initializer="glorot_uniform",
            name="embedding",
        )(indices)  # fmt: skip
        parts.append(layers.Flatten(name="categories")(table))
    return layers.Concatenate(name="features")(parts) if parts[1:] else parts[0]
