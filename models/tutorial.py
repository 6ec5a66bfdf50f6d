"""Small convolutional networks as used in tutorials."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image


@register(
    task="classify",
    reference="the convolutional network of many first tutorials; dropout: Srivastava "
    "et al., JMLR 15 (2014) 1929",
    parameters=461_834,
)
def tutorial_cnn(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 1),
    num_classes: int = 10,
    filters: int = 32,
    dense: int = 64,
    dropout: float = 0.5,
) -> keras.Model:
    """One convolution, one pooling, one dense layer with dropout, dense logits.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 4 up. The map is
    flattened at half the size of the image, so the dense layer holds almost all of the
    weights and grows with the image: for large images use `fully_convolutional`.
    Differences from the tutorials: they end in a softmax, which here is in the loss.
    """
    check_image(input_shape, least=4, model="tutorial_cnn")
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(filters, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(dense, activation="relu", name="dense")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="tutorial_cnn")


@register(
    task="classify",
    reference="Springenberg, Dosovitskiy, Brox and Riedmiller, arXiv 1412.6806, for "
    "the end without dense layers; Lin, Chen and Yan, arXiv 1312.4400, for the average",
    parameters=29_002,
)
def fully_convolutional(
    *,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 10,
    filters: tuple[int, int, int] = (32, 64, 128),
) -> keras.Model:
    """Convolutions and pooling only: global average pooling of a map for each class.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 8 up, and the
    number of weights depends on neither: weights trained at one size fit every other.

    Two 3x3 convolutions and one 1x1 convolution, each with ReLU and pooling by two; a
    last 1x1 convolution makes one map for each class. Differences from the papers: it
    is neither as deep, nor does it have dropout; the first uses convolutions with
    stride 2 instead of pooling.
    """
    check_image(input_shape, least=8, model="fully_convolutional")
    x = inputs = keras.Input(input_shape, name="image")
    for i, (width, size) in enumerate(zip(filters, (3, 3, 1), strict=True), start=1):
        x = keras.layers.Conv2D(width, size, padding="same", name=f"conv_{i}")(x)
        # Before the ReLU, which is the same function at a quarter of the cost.
        x = keras.layers.MaxPooling2D(name=f"pool_{i}")(x)
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    # The maps and the logits stay in float32: the loss needs the accuracy.
    x = keras.layers.Conv2D(num_classes, 1, dtype="float32", name="class_maps")(x)
    outputs = keras.layers.GlobalAveragePooling2D(dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="fully_convolutional")
