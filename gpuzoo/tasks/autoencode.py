"""Autoencoding: images are reconstructed from a code, and drawn from it."""

import math

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.tasks import augment, base, ends, frechet

LOSS = base.Metric("loss", unit="nats per image")
ERROR = base.Metric("error")
KL = base.Metric("kl", unit="nats per image")


class Task(base.Task):
    """Cross-entropy of the pixels, and the divergence of the code if it is drawn.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1].
    The model maps images in [0, 1] to logits of the same shape, or to the sigmoid of
    these, which is then left out of the loss; without a channel axis of one or flat if
    it is built for that. Or, a variational
    autoencoder, to a dict of these as `reconstruction` with `mean` and `log_variance`,
    both (batch, latents), of the normal distribution of each image's code; it then has
    a layer `decoder` that maps codes to logits.

    Figures, all in float32 whatever the layers compute in:

    - `loss`, in nats per image: the binary cross-entropy of the pixels, each taken as
      the probability of being white, summed over all pixels and channels; plus `kl`.
      With `kl` it is the negative evidence lower bound (Kingma and Welling, arXiv
      1312.6114), estimated with one code per image. For images of black and white it
      bounds the negative log-likelihood; for grey ones the cross-entropy cannot fall
      below the entropy of the pixels themselves.
    - `error`: the mean squared error of a pixel in [0, 1]. An evaluation decodes the
      mean code for it, a step of training the code that was drawn.
    - `kl`, in nats per image: Kullback and Leibler's divergence of the code's
      distribution from the prior, the standard normal one.
    - `frechet`, in an evaluation: the distance between as many images drawn from the
      prior and the test images under the fixed classifier of gpuzoo/tasks/frechet.py,
      if it can read such images.
    """

    told_by_layer = "divergence"
    loss_name = "reconstruction"
    metrics = step_metrics = (LOSS, ERROR)  # a variational one has more
    headline = LOSS
    pictures = ("reconstructions", "samples")
    modules = frechet.MODULES

    def __init__(self, *, model: keras.Model, recipe, dataset, **parts):
        super().__init__(model=model, recipe=recipe, dataset=dataset, **parts)
        self.seed = recipe.seed
        outputs = ends.output_of(model)
        self.variational = isinstance(outputs, dict)
        pixels = outputs["reconstruction"] if self.variational else outputs
        self.network = ends.Network(model, dataset.input_shape, pixels)
        self.image = tuple(dataset.input_shape)
        if self.variational:
            self.decoder = model.get_layer("decoder")
            self.latents = model.output["mean"].shape[1]
            self.measure = frechet.Measure(dataset)
            self.step_metrics = (LOSS, ERROR, KL)
            self.metrics = (*self.step_metrics, *self.measure.metrics)
            codes = self._normal(len(dataset.test["image"]), "prior")
            self.prior = keras.ops.convert_to_tensor(codes)

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """What is wrong with a model, or None."""
        if fault := base.Task.misfit(model, dataset.input_shape, reshapes=True):
            return fault
        image = (None, *ends.taken_form(model, dataset.input_shape))
        outputs = ends.output_of(model)
        if not isinstance(outputs, dict):
            shape = getattr(outputs, "shape", "several tensors")
            if shape != image:
                return f"puts out {shape}, not {image}"
            return base.Task.squashed(model, outputs)
        if set(outputs) != {"reconstruction", "mean", "log_variance"}:
            return (
                f"puts out {', '.join(sorted(outputs))}, not reconstruction, mean and "
                "log_variance"
            )
        shapes = {name: tensor.shape for name, tensor in outputs.items()}
        code = shapes["mean"]
        if shapes["reconstruction"] != image:
            return f"reconstructs {shapes['reconstruction']}, not {image}"
        if len(code) != 2 or shapes["log_variance"] != code:
            return (
                f"has a mean of {code} and a log_variance of {shapes['log_variance']}; "
                "both must be (batch, latents)"
            )
        decoders = [layer for layer in model.layers if layer.name == "decoder"]
        if not decoders or decoders[0].compute_output_shape(code) != image:
            return f"has no layer 'decoder' from codes {code} to logits {image}"
        return base.Task.squashed(model, outputs["reconstruction"]) or _own_end(
            model, decoders[0], outputs["reconstruction"]
        )

    def step(self, batch: dict, draws, backend) -> dict:
        """One step of training; returns the figures of the batch."""
        images, _ = augment.apply(self.changes, batch["image"], draws)
        pixels = augment.pixels(images)

        def loss():
            outputs = self._outputs(self.network(pixels, training=True))
            figures = self._figures(pixels, outputs, outputs["reconstruction"])
            means = {name: keras.ops.mean(each) for name, each in figures.items()}
            return means["loss"], means

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Per example: the figures, and `reconstruction`, uint8, of the mean code.

        A variational autoencoder's codes for the loss are drawn at an address of the
        seed, the same in every evaluation; `samples`, uint8, are images from the
        prior, decoded from numbers at another address.
        """
        pixels = augment.pixels(batch["image"])
        outputs = self._outputs(self.network(pixels, training=False))
        shown = drawn = outputs["reconstruction"]
        if self.variational:
            noise = self._normal(pixels.shape[0], "code")
            deviation = keras.ops.exp(0.5 * outputs["log_variance"])
            drawn = self._decode(outputs["mean"] + deviation * noise)
        figures = self._figures(pixels, {**outputs, "reconstruction": drawn}, shown)
        images = {"reconstruction": augment.bytes_of(keras.ops.sigmoid(shown))}
        if self.variational:
            codes = keras.ops.take(self.prior, batch["index"], axis=0)
            drawn = keras.ops.sigmoid(self._decode(codes))
            images["samples"] = augment.bytes_of(drawn)
            images |= self.measure.look(drawn, pixels)
        return {**figures, **images}

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """The figures of an evaluation; `arrays` are the examples it was done on."""
        means = {
            name: float(np.mean(outputs[name], dtype=np.float64))
            for name in (one.name for one in self.step_metrics)
        }
        return means | (self.measure.summarise(outputs) if self.variational else {})

    def _figures(self, pixels, outputs: dict, shown) -> dict:
        """Every figure, (batch,); the error is that of the logits `shown`."""
        logits = outputs["reconstruction"]
        loss = cross_entropy(pixels, logits)
        error = _sum(keras.ops.square(keras.ops.sigmoid(shown) - pixels))
        error = error / math.prod(pixels.shape[1:])
        if not self.variational:
            return {"loss": loss, "error": error}
        mean, log_variance = outputs["mean"], outputs["log_variance"]
        variance = keras.ops.exp(log_variance)
        kl = 0.5 * _sum(keras.ops.square(mean) + variance - 1 - log_variance)
        return {"loss": loss + kl, "error": error, "kl": kl}

    def _outputs(self, outputs) -> dict:
        """What the model puts out, by name and in float32."""
        if not self.variational:
            outputs = {"reconstruction": outputs}
        outputs = {k: keras.ops.cast(v, "float32") for k, v in outputs.items()}
        return {**outputs, "reconstruction": self._image(outputs["reconstruction"])}

    def _decode(self, codes):
        """Codes (batch, latents) -> logits (batch, height, width, channels)."""
        with self.network.left_out():
            logits = self.decoder(codes, training=False)
        return self._image(keras.ops.cast(logits, "float32"))

    def _image(self, logits):
        """Logits of pixels in the shape of the images."""
        if tuple(logits.shape[1:]) == self.image:
            return logits
        return keras.ops.reshape(logits, (keras.ops.shape(logits)[0], *self.image))

    def _normal(self, count: int, purpose: str) -> np.ndarray:
        """(count, latents) standard normal numbers, a function of seed and purpose."""
        shape = (count, self.latents)
        draws = randomness.normal(shape, self.seed, "autoencode", purpose)
        return draws.astype(np.float32)


def _own_end(model, decoder, reconstruction) -> str | None:
    """What is wrong with the activation that a decoder ends in, or None: it must be the
    one that the whole model ends in, for both to be computed without it."""
    if not isinstance(decoder, keras.Function | keras.Sequential):
        return None
    own = ends.find(ends.output_of(decoder), decoder)
    if not own.kind or own.operation is ends.find(reconstruction, model).operation:
        return None
    return f"has a layer 'decoder' that ends in a {own.kind}; let it put out the logits"


def cross_entropy(images, logits):
    """The binary cross-entropy of images with numbers in [0, 1], (batch, ...), and
    logits of the same shape, summed over all pixels: (batch,), float32, in nats per
    image. A loss for Keras's `compile` as well."""
    logits = keras.ops.cast(logits, "float32")
    # The form that neither overflows nor cancels.
    return _sum(keras.ops.softplus(logits) - images * logits)


def _sum(values):
    """(batch, ...) -> (batch,)"""
    return keras.ops.sum(values, axis=tuple(range(1, len(values.shape))))
