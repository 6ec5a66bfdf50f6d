"""Fully connected networks."""

import keras

from gpuzoo import register


@register(
    task="classify",
    reference="Rumelhart, Hinton and Williams, Nature 323 (1986) 533",
    parameters=269_322,
)
def mlp(
    *,
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    units: tuple[int, ...] = (256, 256),
    dropout: float = 0.0,
) -> keras.Model:
    """A multilayer perceptron: flatten, dense layers with ReLU, dense logits.

    Input (batch, *input_shape), numbers in [0, 1]; output (batch, num_classes), logits
    in float32. Any size. `dropout` is the fraction of each hidden layer that is
    dropped.

    What differs from the paper: ReLU in place of the logistic function; logits, for a
    softmax and cross-entropy, in place of logistic outputs and squared errors; no
    connections that skip a layer, which the paper allows; dropout is not in it.
    """
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Flatten(name="flatten")(inputs)
    for i, width in enumerate(units, start=1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense_{i}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
    # Logits stay in float32 in every precision: the loss needs the digits.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="mlp")
