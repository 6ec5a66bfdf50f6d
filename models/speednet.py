"""The whitened network of the CIFAR-10 speed runs."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image


@register(
    task="classify",
    reference="Jordan, arXiv 2404.00498 (airbench), after tysam-code/hlb-CIFAR10 and "
    "Page, How to train your ResNet (2018)",
    parameters=1_973_944,
)
def speednet(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    filters: tuple[int, ...] = (64, 256, 256),
    activation: str = "gelu",
    scale: float = 0.111,
) -> keras.Model:
    """A shallow network behind a fixed convolution that whitens patches of 2x2 pixels.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 12 up.

    The layer `whiten` is frozen: gpuzoo computes it from the training images, so
    that the first half of its outputs are uncorrelated and of equal variance, and
    the second half their negatives; outside of training it is random. Then one group of
    two convolutions for each entry of `filters`, with pooling before the first
    normalization; global max-pooling; logits times `scale`.

    Differences from the paper: images are not normalized; the bias of the whitening
    subtracts the mean of the patches and is frozen, where the paper trains it for three
    epochs; kernels are random, without the paper's partial identity; epsilon of the
    normalization is 1e-5, in the paper's code 1e-12. Alternating flip, optimizer and
    test-time augmentation are not part of the network.
    """
    check_image(input_shape, least=12, model="speednet")
    if not filters or min(filters) < 1:
        raise ValueError(f"filters of speednet must be at least 1: {filters}")
    layers = keras.layers
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(
        2 * 2 * 2 * input_shape[-1], 2, activation=activation, trainable=False,
        name="whiten",
    )(inputs)  # fmt: skip
    for group, width in enumerate(filters, start=1):
        for number in (1, 2):
            name = f"group_{group}_{number}"
            x = layers.Conv2D(
                width, 3, padding="same", use_bias=False, name=f"{name}_conv"
            )(x)
            if number == 1 and min(x.shape[1:3]) > 1:
                x = layers.MaxPooling2D(name=f"{name}_pool")(x)
            # As Page and Jordan: no scale, and averages of the last few batches.
            x = layers.BatchNormalization(
                momentum=0.6, epsilon=1e-5, scale=False, name=f"{name}_norm"
            )(x)
            x = layers.Activation(activation, name=f"{name}_{activation}")(x)
    x = layers.GlobalMaxPooling2D(name="global_maximum")(x)
    x = layers.Dense(num_classes, use_bias=False, dtype="float32", name="dense")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = layers.Rescaling(scale, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="speednet")
