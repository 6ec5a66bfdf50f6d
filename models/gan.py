"""Generative adversarial networks: one network draws, another tells it from the real.

A generator makes images of random codes; a discriminator learns to tell them from the
images of a dataset, and the generator to be taken for them.
"""

import math

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image, cropped, doubled, halved, input_gradient


@keras.saving.register_keras_serializable("gpuzoo")
class Adversaries(keras.Model):
    """A generator and its discriminator, and what each of them wants.

    `generator`: codes (batch, latents), numbers in [-1, 1], to images (batch, height,
    width, channels) in [0, 1]; `discriminator`: images to scores (batch, 1), high for
    real ones. Both are float32 at their ends. With classes both take a dict: `code` or
    `image`, and `label` (batch,), int32.

    Called like its discriminator. `compile(optimizer)` and `fit(images)`, or with
    classes `fit({"image": ..., "label": ...})`, move both at once on one sum of losses,
    in which each is blind to the other's; the task `adversarial` moves them in turn,
    as the papers do, the discriminator `critic_steps` times for each of the generator.
    `penalty` weighs the square of the discriminator's slope at real images.
    """

    def __init__(
        self, generator: keras.Model, discriminator: keras.Model, critic_steps: int,
        penalty: float, name: str,
    ):  # fmt: skip
        super().__init__(name=name)
        self.critic_steps, self.penalty = critic_steps, penalty
        self.generator = generator
        self.discriminator = discriminator
        self.conditional = isinstance(generator.input, dict)
        codes = generator.input["code"] if self.conditional else generator.input
        self.latents = codes.shape[1]
        self.codes = keras.random.SeedGenerator(name="codes")
        self.built = True

    def get_config(self) -> dict:
        """What it is made of, for `.keras` files and `keras.models.clone_model`."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        return {
            "name": self.name,
            "critic_steps": self.critic_steps,
            "penalty": self.penalty,
            **{k: keras.saving.serialize_keras_object(v) for k, v in networks.items()},
        }

    @classmethod
    def from_config(cls, config: dict) -> "Adversaries":
        made = keras.saving.deserialize_keras_object
        networks = {k: made(config[k]) for k in ("generator", "discriminator")}
        return cls(**{**config, **networks})

    def call(self, real, training: bool = False):
        return self.discriminator(real, training=training)

    def draw(self, codes, labels=None, training: bool = False):
        """Images of codes, and with classes of labels."""
        given = {"code": codes, "label": labels} if self.conditional else codes
        return _full(self.generator(given, training=training))

    def judge(self, images, labels=None, training: bool = False):
        """Scores of images, and with classes of their labels."""
        given = {"image": images, "label": labels} if self.conditional else images
        return _full(self.discriminator(given, training=training))

    def discriminator_loss(self, real, fake, labels, between):
        """Of images of both kinds, a scalar: cross-entropy of telling them apart, and
        the penalty.

        `between`, (batch, 1) numbers in [0, 1], is for losses that look between a real
        and a generated image.
        """
        softplus, mean = keras.ops.softplus, keras.ops.mean
        told_fake = mean(softplus(self.judge(fake, labels, True)))
        if not self.penalty:
            return mean(softplus(-self.judge(real, labels, True))) + told_fake
        scores, squares = self.slope(keras.ops.cast(real, fake.dtype), labels)
        return mean(softplus(-scores)) + told_fake + self.penalty / 2 * mean(squares)

    def slope(self, images, labels):
        """Scores of images, (batch, 1), and, (batch,), the sum of the squares of the
        slope of each by the pixels of its image."""

        def added(images):
            scores = self.judge(images, labels, True)
            return keras.ops.sum(scores), scores

        gradient, scores = input_gradient(added, images)
        return scores, keras.ops.sum(keras.ops.square(gradient), axis=(1, 2, 3))

    def generator_loss(self, scores):
        """Of the scores of generated images, a scalar: of being taken for real."""
        return keras.ops.mean(keras.ops.softplus(-scores))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        real, labels = (x["image"], x["label"]) if self.conditional else (x, None)
        batch = keras.ops.shape(real)[0]
        codes = keras.random.uniform((batch, self.latents), -1, 1, seed=self.codes)
        between = keras.random.uniform((batch, 1), seed=self.codes)
        fake = self.draw(codes, labels, training=True)
        still = keras.ops.stop_gradient(fake)
        loss = self.discriminator_loss(real, still, labels, between)
        # The generator's loss must not move the discriminator.
        weights = self.discriminator.weights
        held = [(w, keras.ops.stop_gradient(w.value)) for w in weights]
        with keras.StatelessScope(state_mapping=held):
            scores = self.judge(fake, labels, training=False)
        return loss + self.generator_loss(scores)


def _full(values):
    """As float32: a network of a user's may end in 16 bits."""
    return keras.ops.cast(values, "float32")


@keras.saving.register_keras_serializable("gpuzoo")
class Critics(Adversaries):
    """Wasserstein's distance in place of the cross-entropy, and a gradient near 1."""

    def discriminator_loss(self, real, fake, labels, between):
        between = keras.ops.reshape(between, (-1, 1, 1, 1))
        mixed = fake + between * (keras.ops.cast(real, fake.dtype) - fake)
        _, squares = self.slope(mixed, labels)
        steepness = keras.ops.sqrt(squares + 1e-12)
        distance = keras.ops.mean(self.judge(real, labels, True))
        distance = distance - keras.ops.mean(self.judge(fake, labels, True))
        penalty = keras.ops.mean(keras.ops.square(steepness - 1))
        return self.penalty * penalty - distance

    def generator_loss(self, scores):
        return -keras.ops.mean(scores)


@register(
    task="adversarial",
    reference="Goodfellow et al., arXiv 1406.2661; as convolutions: Radford, Metz and "
    "Chintala, arXiv 1511.06434",
    parameters=463_141,
)
def gan(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    latents: int = 64,
    filters: tuple[int, ...] = (32, 64, 128),
    critic_steps: int = 1,
    penalty: float = 0.05,
) -> keras.Model:
    """A deep convolutional GAN (DCGAN).

    Images (batch, height, width, channels) in [0, 1], any height and width from 8 up;
    codes (batch, latents), uniform in [-1, 1]. Returns a `keras.Model` that holds the
    functional models `generator`, codes to images, and `discriminator`, images to
    scores (batch, 1).

    What differs from the paper: one doubling of the map for each of `filters`, as the
    images are small; in the generator the channels of each pixel are normalised in
    place of the batch, so that a running average of its weights needs no statistics of
    its own (as of a recipe with `average`); nothing is normalised in the discriminator,
    which may move `critic_steps` times for each step of the generator, each time on its
    part of the batch, and is held by `penalty` times half the square of its slope at
    real images (Mescheder, Geiger and Nowozin, arXiv 1801.04406), where the paper has
    small steps; the last layer makes 2x2 pixels of one with a convolution.
    """
    return _adversaries(
        Adversaries, "gan", input_shape, latents, filters, critic_steps, penalty
    )


@register(
    task="adversarial",
    reference="Mirza and Osindero, arXiv 1411.1784",
    parameters=488_741,
)
def conditional_gan(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    latents: int = 64,
    filters: tuple[int, ...] = (32, 64, 128),
    critic_steps: int = 1,
    penalty: float = 0.05,
) -> keras.Model:
    """A DCGAN that draws what it is asked for.

    As gan, with a label for each image: both networks take a dict, `code` (batch,
    latents) or `image` (batch, height, width, channels), and `label` (batch,), int32
    below num_classes. The generator gets the label as one-hot numbers beside the code,
    the discriminator as maps that are 1 where they stand for the class.

    What differs from the paper: its networks are dense layers, in the discriminator
    maxout, and give the label a hidden layer of its own before it meets the code or the
    image; these are the convolutions of gan, with all that differs there.
    """
    return _adversaries(
        Adversaries, "conditional_gan", input_shape, latents, filters, critic_steps,
        penalty, num_classes,
    )  # fmt: skip


@register(
    task="adversarial",
    reference="Gulrajani et al., arXiv 1704.00028; Arjovsky, Chintala and Bottou, "
    "arXiv 1701.07875",
    parameters=463_140,
)
def wgan_gp(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    latents: int = 64,
    filters: tuple[int, ...] = (32, 64, 128),
    critic_steps: int = 5,
    penalty: float = 10.0,
) -> keras.Model:
    """A Wasserstein GAN whose critic is held by a penalty on its gradient.

    Images (batch, height, width, channels) in [0, 1], codes (batch, latents) and
    networks as in gan. The critic's score is no probability: it is trained to be as
    different as possible between real and generated images while its slope between
    them stays near 1, as `penalty` weighs it, `critic_steps` times for each step of the
    generator. Distance, penalty and both numbers are the paper's.

    What differs from the paper: each of the critic's steps is on its part of the batch,
    where the paper takes a whole batch for each; nothing is normalised in the critic,
    where the paper advises layer normalisation; the generator is that of gan, with what
    differs there; the score has no bias, which a difference of scores cannot see.
    """
    return _adversaries(
        Critics, "wgan_gp", input_shape, latents, filters, critic_steps, penalty
    )


def _adversaries(
    kind, name, input_shape, latents, filters, critic_steps, penalty, num_classes=0
) -> Adversaries:
    check_image(input_shape, least=8, model=name)
    if min(latents, critic_steps, *filters) < 1 or not filters:
        raise ValueError(
            f"latents and critic_steps of {name} must be positive, and filters one "
            f"or more positive numbers: {latents}, {critic_steps}, {filters}"
        )
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty of {name} must be 0 or more: {penalty}")
    generator = _generator(input_shape, latents, filters, num_classes)
    biased = kind is not Critics  # a difference of two scores has no bias
    discriminator = _discriminator(input_shape, filters, num_classes, biased)
    return kind(generator, discriminator, critic_steps, penalty, name=name)


def _generator(input_shape, latents, filters, num_classes) -> keras.Model:
    layers = keras.layers
    height, width, channels = input_shape
    inputs = x = keras.Input((latents,), name="code")
    if num_classes:
        label = keras.Input((), name="label", dtype="int32")
        inputs = {"code": inputs, "label": label}
        x = layers.Concatenate(name="g_asked")(
            [x, keras.ops.one_hot(label, num_classes)]
        )
    # Of the image, and of each map on the way to the smallest; odd sides round up.
    sides = [(height, width)]
    for _ in filters:
        sides.append((-(-sides[-1][0] // 2), -(-sides[-1][1] // 2)))
    rows, columns = sides[-1]
    x = layers.Dense(rows * columns * filters[-1], use_bias=False, name="g_dense")(x)
    x = layers.Reshape((rows, columns, filters[-1]), name="g_reshape")(x)
    for number in range(len(filters) - 1, 0, -1):
        x = layers.LayerNormalization(name=f"g_norm_{number + 1}")(x)
        x = layers.ReLU(name=f"g_relu_{number + 1}")(x)
        x = layers.Conv2DTranspose(
            filters[number - 1], 4, 2, "same", use_bias=False, name=f"g_conv_{number}"
        )(x)
        x = cropped(x, *sides[number], name=f"g_crop_{number}")
    x = layers.LayerNormalization(name="g_norm_1")(x)
    x = layers.ReLU(name="g_relu_1")(x)
    x = cropped(doubled(x, channels), height, width, name="g_crop")
    outputs = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(inputs, outputs, name="generator")


def _discriminator(input_shape, filters, num_classes, biased) -> keras.Model:
    layers = keras.layers
    inputs = image = keras.Input(input_shape, name="image")
    x = layers.Rescaling(2.0, -1.0, name="d_centre")(image)
    if num_classes:
        label = keras.Input((), name="label", dtype="int32")
        inputs = {"image": image, "label": label}
        maps = keras.ops.one_hot(label, num_classes, dtype=x.dtype)
        maps = layers.Reshape((1, 1, num_classes), name="d_class")(maps)
        maps = layers.UpSampling2D(input_shape[:2], name="d_class_maps")(maps)
        x = layers.Concatenate(name="d_claimed")([x, maps])
    for number, width in enumerate(filters, start=1):
        if number == 1:
            x = halved(x, width, name="d_conv_1")
        else:
            x = layers.Conv2D(width, 4, 2, "same", name=f"d_conv_{number}")(x)
        # Not LeakyReLU: TensorFlow's optimizer of graphs fails over two calls of it.
        x = 0.6 * x + 0.4 * keras.ops.abs(x)
    x = layers.Flatten(name="d_flatten")(x)
    outputs = layers.Dense(1, use_bias=biased, dtype="float32", name="score")(x)
    return keras.Model(inputs, outputs, name="discriminator")
