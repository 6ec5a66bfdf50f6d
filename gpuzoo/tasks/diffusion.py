"""Diffusion: a network learns to remove noise, and generates images from noise."""

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.tasks import augment, base, frechet


class Task(base.Task):
    """Minimise the squared error of the predicted velocity at random times.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1].
    The model defines its loss and the sampling: models/diffusion.py.

    Metrics: `loss`, the mean squared error of the velocity. An evaluation uses evenly
    spread times, generates as many images, always from the same noise, and also returns
    `frechet`, the distance between them and the test images under the fixed classifier
    of gpuzoo/tasks/frechet.py, if it recognises such images.
    """

    loss_name = "mean squared error of the velocity"
    headline = frechet.FRECHET
    pictures = ("samples",)
    modules = frechet.MODULES
    own_draws = 1  # a time
    takes, generates = "", True

    def __init__(self, *, dataset, **parts):
        super().__init__(dataset=dataset, **parts)
        self.image = tuple(dataset.input_shape)

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        self.measure = frechet.Measure(dataset)
        self.metrics = (base.LOSS, *self.measure.metrics)
        count = len(dataset.test["image"])
        self.noise, self.start = (
            keras.ops.convert_to_tensor(self._noise(count, self.recipe.seed, purpose))
            for purpose in ("noise", "start")
        )
        times = (np.arange(len(self.noise), dtype="f4") + 0.5) / len(self.noise)
        self.times = keras.ops.convert_to_tensor(times[:, None])

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        missing = [
            x for x in ("losses_of", "draw", "denoiser") if not hasattr(model, x)
        ]
        if missing:
            return f"has no {', '.join(missing)}; see models/diffusion.py"
        image, found = (None, *dataset.input_shape), model.denoiser.output_shape
        return None if found == image else f"puts out {found}, not {image}"

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step; return the loss of the batch."""
        images, _ = augment.apply(self.changes, batch["image"], draws[:, 1:])
        images, count = augment.pixels(images), draws.shape[0]
        # Stratified: one time per slice, so that the mean loss varies less.
        times = (np.arange(count, dtype="f4")[:, None] + draws[:, :1]) / count

        def loss():
            loss = keras.ops.mean(self.model.losses_of(images, times, training=True))
            return loss, {"loss": loss}

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Return of each test example its loss; `samples`, uint8, an image generated in
        its place, and the features of the fixed classifier of both."""
        images = augment.pixels(batch["image"])
        times, noise, start = (
            keras.ops.take(one, batch["index"], axis=0)
            for one in (self.times, self.noise, self.start)
        )
        drawn = self.model.draw(start)
        return {
            "loss": self.model.losses_of(images, times, noise=noise),
            "samples": augment.bytes_of(drawn),
            **self.measure.look(drawn, images),
        }

    def codes(self, count: int, seed: int, label: int | None = None) -> dict:
        """Return the noise that images begin with."""
        return {"start": self._noise(count, seed, "start")}

    def generate(self, batch: dict) -> dict:
        """Return `samples`, uint8."""
        return {"samples": augment.bytes_of(self.model.draw(batch["start"]))}

    def _noise(self, count: int, seed: int, purpose: str) -> np.ndarray:
        # "denoise": another word would draw other numbers
        noise = randomness.normal((count, *self.image), seed, "denoise", purpose)
        return noise.astype("f4")

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        loss = float(np.mean(outputs["loss"], dtype=np.float64))
        return {"loss": loss, **self.measure.summarise(outputs)}
