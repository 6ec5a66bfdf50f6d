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

    Input (batch, *input_shape), values in [0, 1]; output (batch, num_classes), logits
    in float32. Any size. `dropout` is the dropout rate after each hidden layer.

    Differences from the paper: ReLU instead of the logistic function; logits for
    softmax and cross-entropy instead of logistic outputs and squared error; no skip
    connections, which the paper allows; dropout, which it lacks.
    """
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Flatten(name="flatten")(inputs)
    for i, width in enumerate(units, start=1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense_{i}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="mlp")
