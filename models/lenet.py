"""LeNet."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image


@register(
    task="classify",
    reference="LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86 (1998) 2278",
    parameters=61_706,
)
def lenet5(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    dropout: float = 0.0,
) -> keras.Model:
    """LeNet-5: two convolutions with pooling, then three dense layers.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 12 up; the first
    dense layer grows with them.

    Layers and widths are the paper's: 6 and 16 filters of 5x5, then 120, 84 and the
    classes. Differences: the paper pads the images (28 to 32 pixels), here the first
    convolution does; ReLU instead of the scaled tanh; max-pooling, where the paper
    averages and trains a weight and a bias; the second convolution sees all maps, in
    the paper some of them; logits for a softmax instead of distances to drawn
    characters. `dropout`, before each of the last two layers, is not in the paper.
    """
    check_image(input_shape, least=12, model="lenet5")
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(6, 5, padding="same", activation="relu", name="conv_1")(
        inputs
    )
    x = keras.layers.MaxPooling2D(name="pool_1")(x)
    x = keras.layers.Conv2D(16, 5, activation="relu", name="conv_2")(x)
    x = keras.layers.MaxPooling2D(name="pool_2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for i, width in enumerate((120, 84), start=1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense_{i}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="lenet5")
