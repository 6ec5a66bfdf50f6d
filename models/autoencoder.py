"""Convolutional autoencoders."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import cropped, doubled

# Feature maps with sides of at least this are halved by another block.
_STOP_AT = 8


@register(
    task="autoencode",
    reference="Hinton and Salakhutdinov, Science 313 (2006) 504; the convolutions "
    "after Masci, Meier, Ciresan and Schmidhuber, ICANN 2011",
    parameters=417_348,
)
def autoencoder(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    latents: int = 16,
    filters: tuple[int, ...] = (16, 32),
    dense: int = 128,
) -> keras.Model:
    """A convolutional autoencoder with a small code.

    Input (batch, height, width, channels), values in [0, 1]; output of the same shape,
    the logits of the reconstruction in float32: their sigmoid is the image. Any height
    and width from 8 up: blocks like the last one are added until the map is smaller
    than 8 pixels a side. The code, (batch, latents), is the output of the layer `code`;
    the layer `decoder` is a model that maps it to the logits.

    Differences from the papers: all layers are trained at once, from random weights,
    where both papers pretrain layer by layer, the first with restricted Boltzmann
    machines; ReLU instead of the logistic function and the scaled tanh; convolutions,
    which the first does not have, with stride 2 where the second uses max-pooling; the
    decoder has its own weights, where the second flips those of the encoder; two dense
    layers between the maps and the code; the last layer is a sub-pixel convolution.
    """
    inputs = keras.Input(_checked(input_shape, latents, filters), name="image")
    x, maps = _encode(inputs, filters, dense)
    code = keras.layers.Dense(latents, dtype="float32", name="code")(x)
    decoder = _decoder(maps, input_shape, latents, dense)
    return keras.Model(inputs, decoder(code), name="autoencoder")


@register(
    task="autoencode",
    reference="Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114",
    parameters=830_300,
)
def vae(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    latents: int = 20,
    filters: tuple[int, ...] = (16, 32),
    dense: int = 256,
) -> keras.Model:
    """A convolutional variational autoencoder, which can generate images.

    Input (batch, height, width, channels), values in [0, 1]; output a dict of float32:

    - `reconstruction`, of the input's shape: logits, whose sigmoid is the image;
    - `mean` and `log_variance`, (batch, latents): of the normal distribution of the
      code of each image, log_variance in nats.

    During training the code is sampled from that distribution, otherwise it is the
    mean. The layer `decoder` is a model from codes, (batch, latents), to logits: with
    standard normal codes it generates new images. Sizes as for `autoencoder`.

    Differences from the paper: convolutions around the dense layers, of which the
    paper has one in the encoder and one in the decoder; ReLU instead of tanh; outside
    of training nothing is sampled.

    In Keras's `fit` the layer `divergence` adds the Kullback-Leibler divergence of the
    code from the standard normal distribution, in nats per image, to the loss compiled
    for `reconstruction`, which must be in nats per image, too: `cross_entropy` of
    gpuzoo/tasks/autoencode.py.
    """
    inputs = keras.Input(_checked(input_shape, latents, filters), name="image")
    x, maps = _encode(inputs, filters, dense)
    # The code stays in float32 in every precision: the divergence needs the accuracy.
    mean = keras.layers.Dense(latents, dtype="float32", name="mean")(x)
    log_variance = keras.layers.Dense(latents, dtype="float32", name="log_variance")(x)
    # Both layers are Keras's own, so that a saved model loads without gpuzoo. The
    # divergence of each latent is never negative, so an L1 penalty of 0.5 on its
    # doubled value, averaged over the batch, adds it to the loss.
    divergence = keras.layers.ActivityRegularization(
        l1=0.5, dtype="float32", name="divergence"
    )(keras.ops.square(mean) + keras.ops.exp(log_variance) - 1 - log_variance)
    # Noise on zeros: standard normal values in training, zeros otherwise. The zeros are
    # computed from the divergence, so that it stays in the graph, without its gradient.
    noise = keras.layers.GaussianNoise(1.0, dtype="float32", name="noise")(
        keras.ops.zeros_like(divergence)
    )
    code = mean + keras.ops.exp(0.5 * log_variance) * noise
    decoder = _decoder(maps, input_shape, latents, dense)
    outputs = {
        "reconstruction": decoder(code),
        "mean": mean,
        "log_variance": log_variance,
    }
    return keras.Model(inputs, outputs, name="vae")


def _encode(x, filters: tuple[int, ...], dense: int):
    """Apply convolutions with stride 2, then a dense layer.

    Returns (batch, dense), and the shape (height, width, filters) of every map.
    """
    maps = []
    while len(maps) < len(filters) or min(x.shape[1:3]) >= _STOP_AT:
        number, width = len(maps) + 1, filters[min(len(maps), len(filters) - 1)]
        x = keras.layers.Conv2D(
            width, 3, 2, "same", activation="relu", name=f"conv_{number}"
        )(x)
        maps.append(x.shape[1:])
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.layers.Dense(dense, activation="relu", name="dense")(x), maps


def _decoder(maps, input_shape, latents: int, dense: int) -> keras.Model:
    """Return the decoder: (batch, latents) to (batch, *input_shape)."""
    code = keras.Input((latents,), name="code")
    x = keras.layers.Dense(dense, activation="relu", name="decoder_dense_1")(code)
    height, width, channels = maps[-1]
    x = keras.layers.Dense(
        height * width * channels, activation="relu", name="decoder_dense_2"
    )(x)
    x = keras.layers.Reshape((height, width, channels), name="reshape")(x)
    for number, (height, width, channels) in enumerate(maps[-2::-1], start=1):
        x = keras.layers.Conv2DTranspose(
            channels, 3, 2, "same", activation="relu", name=f"decoder_conv_{number}"
        )(x)
        x = cropped(x, height, width, name=f"crop_{number}")
    height, width, channels = input_shape
    x = doubled(x, channels)
    return keras.Model(code, cropped(x, height, width, name="crop"), name="decoder")


def _checked(input_shape, latents: int, filters) -> tuple[int, int, int]:
    if latents < 1 or not filters:
        raise ValueError(
            f"latents and filters must be at least one: {latents}, {filters}"
        )
    if min(input_shape[:2]) < 8 or input_shape[2] < 1:
        raise ValueError(
            "input_shape of an autoencoder must be (height, width, channels) with "
            f"sides of at least 8 pixels: {input_shape}; resize the images"
        )
    return input_shape
