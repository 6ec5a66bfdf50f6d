"""Autoencoding: reconstruct images from a code, and generate new ones."""

import math

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.tasks import augment, base, ends, frechet

LOSS = base.Metric("loss", unit="nats per image")
ERROR = base.Metric("error")
KL = base.Metric("kl", unit="nats per image")


class Task(base.Task):
    """Minimise the cross-entropy of the pixels, and of a VAE the KL divergence.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1].
    The model maps images in [0, 1] to logits of the same shape, or to the sigmoid of
    these, which is then left out of the loss; without a channel axis of one or flat if
    it is built for that. A variational autoencoder (VAE) maps them to a dict of these
    as `reconstruction` with `mean` and `log_variance`, both (batch, latents), of the
    normal distribution of each image's code, and has a layer `decoder` that maps codes
    to logits.

    Metrics, all in float32 whatever the compute dtype:

    - `loss`, in nats per image: the binary cross-entropy of the pixels, each taken as
      the probability of being white, summed over all pixels and channels; plus `kl`.
      With `kl` it is the negative evidence lower bound (Kingma and Welling, arXiv
      1312.6114), estimated with one code per image. For images of black and white it
      bounds the negative log-likelihood; for grey ones the cross-entropy cannot fall
      below the entropy of the pixels themselves.
    - `error`: the mean squared error of a pixel in [0, 1]. An evaluation decodes the
      mean code for it, a training step the sampled code.
    - `kl`, in nats per image: the KL divergence of the code's distribution from the
      prior, the standard normal distribution.
    - `frechet`, in an evaluation: the distance between as many images sampled from the
      prior and the test images under the fixed classifier of gpuzoo/tasks/frechet.py,
      if it recognises such images.
    """

    told_by_layer = "divergence"
    loss_name = "reconstruction"
    metrics = step_metrics = (LOSS, ERROR)  # a VAE has more
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
            self.step_metrics = self.metrics = (LOSS, ERROR, KL)
            self.generates = True

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        if self.variational:
            self.measure = frechet.Measure(dataset)
            self.metrics = (*self.step_metrics, *self.measure.metrics)
            codes = self._normal(len(dataset.test["image"]), "prior", self.seed)
            self.prior = keras.ops.convert_to_tensor(codes)

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
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
        """Do one training step; return the metrics of the batch."""
        images, _ = augment.apply(self.changes, batch["image"], draws)
        pixels = augment.pixels(images)

        def loss():
            outputs = self._outputs(self.network(pixels, training=True))
            figures = self._figures(pixels, outputs, outputs["reconstruction"])
            means = {name: keras.ops.mean(each) for name, each in figures.items()}
            return means["loss"], means

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Return of each example the metrics and the `reconstruction` of the mean code,
        uint8.

        The codes of a VAE are a function of the seed, the same in every evaluation;
        `samples`, uint8, are images generated from the prior.
        """
        pixels = augment.pixels(batch["image"])
        outputs = self._outputs(self.network(pixels, training=False))
        shown = drawn = outputs["reconstruction"]
        if self.variational:
            noise = self._normal(pixels.shape[0], "code", self.seed)
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

    def infer(self, batch: dict) -> dict:
        """Return of each image its `reconstruction`, uint8."""
        pixels = augment.pixels(batch["image"])
        outputs = self._outputs(self.network(pixels, training=False))
        shown = keras.ops.sigmoid(outputs["reconstruction"])
        return {"reconstruction": augment.bytes_of(shown)}

    def codes(self, count: int, seed: int, label: int | None = None) -> dict:
        """Return codes from the prior, for the decoder of a VAE."""
        return {"code": self._normal(count, "prior", seed)}

    def generate(self, batch: dict) -> dict:
        """Return `samples`, uint8."""
        drawn = keras.ops.sigmoid(self._decode(batch["code"]))
        return {"samples": augment.bytes_of(drawn)}

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        means = {
            name: float(np.mean(outputs[name], dtype=np.float64))
            for name in (one.name for one in self.step_metrics)
        }
        return means | (self.measure.summarise(outputs) if self.variational else {})

    def _figures(self, pixels, outputs: dict, shown) -> dict:
        """Return every metric, (batch,); the error is that of the logits `shown`."""
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
        """Return the outputs of the model, by name and in float32."""
        if not self.variational:
            outputs = {"reconstruction": outputs}
        outputs = {k: keras.ops.cast(v, "float32") for k, v in outputs.items()}
        return {**outputs, "reconstruction": self._image(outputs["reconstruction"])}

    def _decode(self, codes):
        """Map codes (batch, latents) to logits (batch, height, width, channels)."""
        with self.network.left_out():
            logits = self.decoder(codes, training=False)
        return self._image(keras.ops.cast(logits, "float32"))

    def _image(self, logits):
        """Return logits of pixels in the shape of the images."""
        if tuple(logits.shape[1:]) == self.image:
            return logits
        return keras.ops.reshape(logits, (keras.ops.shape(logits)[0], *self.image))

    def _normal(self, count: int, purpose: str, seed: int) -> np.ndarray:
        """Return (count, latents) normal numbers, a function of seed and purpose."""
        shape = (count, self.latents)
        draws = randomness.normal(shape, seed, "autoencode", purpose)
        return draws.astype(np.float32)


def _own_end(model, decoder, reconstruction) -> str | None:
    """Return what is wrong with the last activation of a decoder, or None: it must be
    that of the whole model, so that it can be left out of both."""
    if not isinstance(decoder, keras.Function | keras.Sequential):
        return None
    own = ends.find(ends.output_of(decoder), decoder)
    if not own.kind or own.operation is ends.find(reconstruction, model).operation:
        return None
    return f"has a layer 'decoder' that ends in a {own.kind}; let it put out the logits"


def cross_entropy(images, logits):
    """Return the binary cross-entropy of images in [0, 1], (batch, ...), and logits of
    the same shape, summed over all pixels: (batch,), float32, in nats per image. A
    loss for Keras's `compile` as well."""
    logits = keras.ops.cast(logits, "float32")
    # This form neither overflows nor cancels.
    return _sum(keras.ops.softplus(logits) - images * logits)


def _sum(values):
    """Sum over all axes but the first."""
    return keras.ops.sum(values, axis=tuple(range(1, len(values.shape))))
