"""Generative adversarial networks.

A generator makes images from random codes; a discriminator learns to distinguish them
from the images of a dataset, and the generator to be mistaken for them.
"""

import math

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image, cropped, doubled, halved, input_gradient


@keras.saving.register_keras_serializable("gpuzoo")
class Adversaries(keras.Model):
    """A generator and its discriminator, with the loss of each.

    `generator`: codes (batch, latents) in [-1, 1] to images (batch, height, width,
    channels) in [0, 1]; `discriminator`: images to scores (batch, 1), high for real
    ones. Inputs and outputs are float32. Conditional networks take a dict: `code` or
    `image`, and `label` (batch,), int32.

    Called like its discriminator. `compile(optimizer)` and `fit(images)`, or with
    labels `fit({"image": ..., "label": ...})`, train both at once on the sum of their
    losses, each without a gradient for the other network; the task `adversarial` trains
    them in turn, as the papers do, with `critic_steps` steps of the discriminator for
    each of the generator. `penalty` is the weight of the gradient penalty: the squared
    norm of the discriminator's gradient at real images.
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
        """Return the config, for `.keras` files and `keras.models.clone_model`."""
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
        """Generate images from codes, and labels if conditional."""
        given = {"code": codes, "label": labels} if self.conditional else codes
        return _full(self.generator(given, training=training))

    def judge(self, images, labels=None, training: bool = False):
        """Score images, with their labels if conditional."""
        given = {"image": images, "label": labels} if self.conditional else images
        return _full(self.discriminator(given, training=training))

    def discriminator_loss(self, real, fake, labels, between):
        """Return the cross-entropy of real against generated images plus the penalty.

        `between`, (batch, 1) in [0, 1], is for losses that interpolate between a real
        and a generated image.
        """
        softplus, mean = keras.ops.softplus, keras.ops.mean
        told_fake = mean(softplus(self.judge(fake, labels, True)))
        if not self.penalty:
            return mean(softplus(-self.judge(real, labels, True))) + told_fake
        scores, squares = self.slope(keras.ops.cast(real, fake.dtype), labels)
        return mean(softplus(-scores)) + told_fake + self.penalty / 2 * mean(squares)

    def slope(self, images, labels):
        """Return the scores of images, (batch, 1), and the squared norm, (batch,), of
        the gradient of each with respect to the pixels of its image."""

        def added(images):
            scores = self.judge(images, labels, True)
            return keras.ops.sum(scores), scores

        gradient, scores = input_gradient(added, images)
        return scores, keras.ops.sum(keras.ops.square(gradient), axis=(1, 2, 3))

    def generator_loss(self, scores):
        """Return the loss of the generator for the scores of generated images."""
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
        # The generator's loss must not train the discriminator.
        weights = self.discriminator.weights
        held = [(w, keras.ops.stop_gradient(w.value)) for w in weights]
        with keras.StatelessScope(state_mapping=held):
            scores = self.judge(fake, labels, training=False)
        return loss + self.generator_loss(scores)


def _full(values):
    """Cast to float32: a user's network may return 16-bit values."""
    return keras.ops.cast(values, "float32")


@keras.saving.register_keras_serializable("gpuzoo")
class Critics(Adversaries):
    """A GAN with the Wasserstein distance and a penalty on gradients far from 1."""

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
    codes (batch, latents), uniform in [-1, 1]. Returns a `keras.Model` that contains
    the functional models `generator`, codes to images, and `discriminator`, images to
    scores (batch, 1).

    Differences from the paper: one upsampling by two for each of `filters`, as the
    images are small; the generator uses layer normalization over the channels instead
    of batch normalization, so that averaged weights (`ema_decay`) need no statistics of
    their own; the discriminator has no normalization, may take `critic_steps` steps for
    each step of the generator, each on its part of the batch, and is regularized by
    `penalty` times half the squared norm of its gradient at real images (Mescheder,
    Geiger and Nowozin, arXiv 1801.04406), where the paper uses small steps; the last
    layer is a sub-pixel convolution.
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
    """A DCGAN conditioned on class labels.

    As `gan`, with a label for each image: both networks take a dict, `code` (batch,
    latents) or `image` (batch, height, width, channels), and `label` (batch,), int32
    below num_classes. The label is one-hot encoded and concatenated to the code in the
    generator, and to the channels of the image in the discriminator.

    Differences from the paper: its networks are dense, with maxout in the
    discriminator, and pass the label through a separate hidden layer; these are the
    convolutional networks of `gan`, with the differences given there.
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
    """A Wasserstein GAN with gradient penalty (WGAN-GP).

    Images (batch, height, width, channels) in [0, 1], codes (batch, latents) and
    networks as in `gan`. The critic's score is not a probability: it is trained to
    differ as much as possible between real and generated images, while `penalty` keeps
    the norm of its gradient between them near 1. It takes `critic_steps` steps for each
    step of the generator. Loss, penalty and both defaults are the paper's.

    Differences from the paper: each step of the critic uses its part of the batch,
    where the paper takes a whole batch; no normalization in the critic, where the paper
    recommends layer normalization; the generator is that of `gan`, with its
    differences; the score has no bias, which cancels in a difference of scores.
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
    # Sides of the image and of each smaller map; odd sides round up.
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
        # Not LeakyReLU: TensorFlow's graph optimizer fails on two calls of it.
        x = 0.6 * x + 0.4 * keras.ops.abs(x)
    x = layers.Flatten(name="d_flatten")(x)
    outputs = layers.Dense(1, use_bias=biased, dtype="float32", name="score")(x)
    return keras.Model(inputs, outputs, name="discriminator")
