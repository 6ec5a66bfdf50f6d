"""Image generation by diffusion."""

import math

import keras
import numpy as np

from gpuzoo import register
from gpuzoo.models._blocks import check_image, cropped, doubled


@keras.saving.register_keras_serializable("gpuzoo")
class Diffusion(keras.Model):
    """A denoising network, with its loss and its sampler.

    At time t in [0, 1] the noisy image is cos(t pi / 2) x + sin(t pi / 2) e, with the
    image x scaled to [-1, 1] and normal noise e. `denoiser`, a functional model of the
    noisy image and its time (batch, 1), predicts the velocity cos(t pi / 2) e -
    sin(t pi / 2) x, from which both x and e follow (Salimans and Ho, arXiv 2202.00512).

    `compile(optimizer)` and `fit(images)` train it; `draw(noise)` generates images.
    """

    def __init__(self, denoiser: keras.Model, name: str):
        super().__init__(name=name)
        self.denoiser = denoiser
        self.noise = keras.random.SeedGenerator(name="noise")
        self.built = True

    def get_config(self) -> dict:
        """Return the config, for `.keras` files and `keras.models.clone_model`."""
        denoiser = keras.saving.serialize_keras_object(self.denoiser)
        return {"name": self.name, "denoiser": denoiser}

    @classmethod
    def from_config(cls, config: dict) -> "Diffusion":
        denoiser = keras.saving.deserialize_keras_object(config["denoiser"])
        return cls(**{**config, "denoiser": denoiser})

    def call(self, images, training: bool = False):
        """Apply the denoiser to images without noise, at time 0."""
        times = keras.ops.zeros_like(images[:, :1, 0, 0])
        return self.denoiser({"image": images, "time": times}, training=training)

    def losses_of(self, images, times, training: bool = False, noise=None):
        """Return the mean squared error of the velocity, (batch,), for images in
        [0, 1] at times (batch, 1); `noise`, of their shape, is sampled if None."""
        if noise is None:
            shape = keras.ops.shape(images)
            noise = keras.random.normal(shape, dtype="float32", seed=self.noise)
        image, noisy = _parts(times)
        clean = 2 * images - 1
        given = {"image": image * clean + noisy * noise, "time": times}
        velocity = self._velocity(given, training)
        missed = velocity - (image * noise - noisy * clean)
        return keras.ops.mean(keras.ops.square(missed), axis=(1, 2, 3))

    def _velocity(self, given: dict, training: bool = False):
        """Predict in float32: a user's denoiser may return 16-bit values."""
        return keras.ops.cast(self.denoiser(given, training=training), "float32")

    def draw(self, noise, steps: int = 20):
        """Generate images in [0, 1] from standard normal noise (batch, height, width,
        channels), in equal steps of time, deterministically (DDIM: Song, Meng and
        Ermon, arXiv 2010.02502)."""

        noise = keras.ops.convert_to_tensor(noise)

        def step(index, mixed):
            time = 1 - keras.ops.cast(index, "float32") / steps
            times = keras.ops.ones_like(noise[:, :1, 0, 0]) * time
            image, noisy = _parts(times)
            velocity = self._velocity({"image": mixed, "time": times})
            clean = keras.ops.clip(image * mixed - noisy * velocity, -1, 1)
            left = (mixed - image * clean) / noisy  # the noise beside the clipped image
            image, noisy = _parts(times - 1 / steps)
            return image * clean + noisy * left

        drawn = keras.ops.fori_loop(0, steps, step, noise)
        return keras.ops.clip((drawn + 1) / 2, 0, 1)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        shape = (keras.ops.shape(x)[0], 1)
        times = keras.random.uniform(shape, dtype="float32", seed=self.noise)
        return keras.ops.mean(self.losses_of(x, times, training))


def _parts(times):
    """Return the factors of image and noise at times (batch, 1)."""
    angle = keras.ops.reshape(times, (-1, 1, 1, 1)) * (math.pi / 2)
    return keras.ops.cos(angle), keras.ops.sin(angle)


@register(
    task="diffusion",
    reference="Ho, Jain and Abbeel, arXiv 2006.11239; Nichol and Dhariwal, arXiv "
    "2102.09672; the network after Ronneberger et al., arXiv 1505.04597",
    parameters=440_996,
)
def diffusion(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    filters: tuple[int, ...] = (32, 64),
    blocks: int = 2,
) -> keras.Model:
    """A small diffusion model with a U-Net.

    Images (batch, height, width, channels) in [0, 1], any height and width from 8 up.
    Returns a `keras.Model` that contains the functional model `denoiser`, from a dict
    of `image` and `time` (batch, 1) to an image, both float32, and generates with it.

    Each entry of `filters` is one resolution: the first has half the sides of the
    image, the next half of that. Differences from the papers: the network works on
    patches of 2x2 pixels, at a quarter of the cost; at the lowest resolution it has
    `blocks` residual blocks in the encoder and in the decoder, with attention between
    them, at the others one; a block is normalized once; it predicts the velocity; time
    is continuous.
    """
    check_image(input_shape, least=8, model="diffusion")
    if blocks < 1 or not filters or min(filters) < 1:
        raise ValueError(
            f"blocks and filters of diffusion must be at least 1: {blocks}, {filters}"
        )
    layers = keras.layers
    height, width, channels = input_shape
    image = keras.Input(input_shape, name="image")
    time = keras.Input((1,), name="time")
    code = _time_code(time, 4 * filters[0])
    x = layers.Conv2D(filters[0], 2, 2, "same", name="patches")(image)
    ways = []
    for number, size in enumerate(filters, start=1):
        if number > 1:
            x = layers.Conv2D(size, 3, 2, "same", name=f"down_{number}")(x)
        for block in range(1, (blocks if number == len(filters) else 1) + 1):
            x = _residual(x, code, size, f"in_{number}_{block}")
        ways.append(x)
    x = _attention(x, "look")
    for number in range(len(filters), 0, -1):
        way, count = ways[number - 1], blocks
        if number < len(filters):
            count = 1
            x = layers.UpSampling2D(2, name=f"up_{number}")(x)
            x = cropped(x, *way.shape[1:3], name=f"crop_{number}")
            x = layers.Concatenate(name=f"join_{number}")([x, way])
        for block in range(1, count + 1):
            x = _residual(x, code, filters[number - 1], f"out_{number}_{block}")
    x = _active(x, "last")
    outputs = cropped(doubled(x, channels), height, width, name="crop")
    denoiser = keras.Model({"image": image, "time": time}, outputs, name="denoiser")
    return Diffusion(denoiser, name="diffusion")


def _time_code(time, size: int):
    """Embed times, (batch, 1) -> (batch, size): sinusoids, then a dense layer."""
    waves = size // 4
    frequencies = np.geomspace(1, 1000, waves, dtype="float32")
    angles = keras.layers.Dense(
        waves, use_bias=False, trainable=False, dtype="float32", name="time_waves",
        kernel_initializer=keras.initializers.Constant(frequencies[None]),
    )(time)  # fmt: skip
    code = keras.layers.Concatenate(dtype="float32", name="time_code")(
        [keras.ops.sin(angles), keras.ops.cos(angles)]
    )
    return keras.layers.Dense(size, activation="silu", name="time_dense")(code)


def _residual(x, code, size: int, name: str):
    """Two convolutions, the time embedding added between them, beside a shortcut."""
    layers, way = keras.layers, x
    if x.shape[-1] != size:
        way = layers.Conv2D(size, 1, name=f"{name}_way")(x)
    x = layers.Conv2D(size, 3, padding="same", name=f"{name}_conv_1")(_active(x, name))
    added = layers.Dense(size, name=f"{name}_time")(code)
    x = layers.Add(name=f"{name}_timed")(
        [x, layers.Reshape((1, 1, size), name=f"{name}_spread")(added)]
    )
    x = layers.Activation("silu", name=f"{name}_silu_2")(x)
    x = layers.Conv2D(
        size, 3, padding="same", kernel_initializer="zeros", name=f"{name}_conv_2"
    )(x)
    return layers.Add(name=f"{name}_add")([way, x])


def _attention(x, name: str, heads: int = 2):
    """Self-attention over the positions of a map, beside a shortcut."""
    layers = keras.layers
    rows, columns, size = x.shape[1:]
    y = layers.LayerNormalization(name=f"{name}_norm")(x)
    y = layers.Reshape((rows * columns, size), name=f"{name}_flat")(y)
    # With the scores returned, Keras computes plain products: see vit_tiny.
    y, _ = layers.MultiHeadAttention(
        heads, max(1, size // heads), name=f"{name}_attention"
    )(y, y, return_attention_scores=True)
    y = layers.Reshape((rows, columns, size), name=f"{name}_map")(y)
    return layers.Add(name=f"{name}_add")([x, y])


def _active(x, name: str):
    groups = math.gcd(8, x.shape[-1])
    x = keras.layers.GroupNormalization(groups, name=f"{name}_norm")(x)
    return keras.layers.Activation("silu", name=f"{name}_silu")(x)
