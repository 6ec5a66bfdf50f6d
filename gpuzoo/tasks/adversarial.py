"""Adversarial training: a generator of images and the judge that it has to deceive."""

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.errors import GpuzooError
from gpuzoo.tasks import augment, base, frechet
from gpuzoo.tasks.base import minimise


class Task(base.Task):
    """The discriminator moves, then the generator, each on its own loss.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    for a model with classes with labels (batch,), int32. The losses are the model's:
    models/gan.py. Where it asks for several steps of the discriminator for one of the
    generator, each is done on its part of the batch.

    Figures of a step: `loss`, the generator's, and `discriminator`, the other's. An
    evaluation draws as many images as there are test examples, always of the same
    codes, and tells `loss` and:

    - `frechet`: the distance between them and the test images under the fixed
      classifier of gpuzoo/tasks/frechet.py, if it can read such images.
    - `accuracy`, with classes: how many that classifier takes for what they were asked
      to be.
    """

    loss_name = "the model's own, of both networks"
    step_metrics = (base.LOSS, base.Metric("discriminator"))
    headline = frechet.FRECHET
    pictures = ("samples",)
    modules = frechet.MODULES

    def __init__(self, *, model: keras.Model, optimizers: list, recipe, dataset):
        super().__init__(
            model=model, optimizers=optimizers, recipe=recipe, dataset=dataset
        )
        self.conditional = model.conditional
        self.parts = model.critic_steps
        if recipe.batch_size % self.parts:
            raise GpuzooError(
                f"batch_size of {recipe.model} must be a multiple of {self.parts}, one "
                f"part for each step of its discriminator: {recipe.batch_size}"
            )
        self.for_discriminator, self.for_generator = optimizers
        if self.conditional:
            self.fields = ("image", "label")
        self.measure = frechet.Measure(dataset)
        self.metrics = (base.LOSS, *self.measure.metrics)
        if self.conditional and self.measure.metrics:
            self.metrics = (*self.metrics, base.ACCURACY)
        codes = (recipe.seed, "adversarial", "codes")
        shape = (len(dataset.test["image"]), model.latents)
        codes = 2 * randomness.uniform(shape, *codes) - 1
        self.codes = keras.ops.convert_to_tensor(codes.astype(np.float32))

    @staticmethod
    def count_draws(recipe, model: keras.Model) -> int:
        """Uniform numbers that a step needs for each example: two codes, a place
        between two images, and what the changes need."""
        changes = sum(change.draws for change in augment.parse(recipe.augment))
        return 2 * model.latents + 1 + changes

    @staticmethod
    def model_options(dataset) -> dict:
        """Options of the model that follow from the data."""
        return {
            "input_shape": tuple(dataset.input_shape),
            "num_classes": len(dataset.classes),
        }

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """What is wrong with a model, or None."""
        parts = ("generator", "discriminator", "latents", "conditional", "critic_steps")
        missing = [part for part in parts if not hasattr(model, part)]
        if missing:
            return f"has no {', '.join(missing)}; see models/gan.py"
        if model.conditional and "label" not in dataset.train:
            return f"draws images of a class, and data {dataset.name} have no classes"
        image, drawn = (None, *dataset.input_shape), model.generator.output_shape
        return None if drawn == image else f"draws {drawn}, not {image}"

    @staticmethod
    def groups(model: keras.Model) -> list[list]:
        """The weights that each optimizer moves."""
        return [
            model.discriminator.trainable_variables,
            model.generator.trainable_variables,
        ]

    @staticmethod
    def moves(model: keras.Model) -> list[int]:
        """How often each optimizer moves them in a step."""
        return [model.critic_steps, 1]

    def step(self, batch: dict, draws, backend) -> dict:
        """One step of both; returns their losses."""
        latents, size = self.model.latents, draws.shape[0] // self.parts
        free = draws[:, 2 * latents + 1 :]
        images, _ = augment.apply(self.changes, batch["image"], free)
        real = augment.pixels(images)
        told = []
        for part in range(self.parts):
            rows = slice(part * size, (part + 1) * size)
            labels = batch["label"][rows] if self.conditional else None
            told.append(self._discriminate(real[rows], labels, draws[rows], backend))
        codes = 2 * draws[:size, latents : 2 * latents] - 1
        labels = batch["label"][:size] if self.conditional else None
        return {
            "loss": self._generate(codes, labels, backend),
            "discriminator": sum(told[1:], start=told[0]) / self.parts,
        }

    def _discriminate(self, real, labels, draws, backend):
        model = self.model
        latents = model.latents
        codes, between = draws[:, :latents], draws[:, 2 * latents : 2 * latents + 1]
        fake = keras.ops.stop_gradient(model.draw(2 * codes - 1, labels, training=True))

        def loss():
            loss = model.discriminator_loss(real, fake, labels, between)
            return loss, loss

        return minimise(loss, self.for_discriminator, model.discriminator, backend)

    def _generate(self, codes, labels, backend):
        model = self.model

        def loss():
            fake = model.draw(codes, labels, training=True)
            loss = model.generator_loss(model.judge(fake, labels, training=True))
            return loss, loss

        return minimise(loss, self.for_generator, model.generator, backend)

    def evaluate(self, batch: dict) -> dict:
        """Per test example, of the image that is drawn in its place: its score, and
        what the fixed classifier sees in both; `samples`, uint8: the images."""
        model = self.model
        codes = keras.ops.take(self.codes, batch["index"], axis=0)
        labels = batch["label"] if self.conditional else None
        fake = model.draw(codes, labels)
        outputs = {"score": model.judge(fake, labels)[:, 0]}
        outputs |= self.measure.look(fake, augment.pixels(batch["image"]))
        return {**outputs, "samples": augment.bytes_of(fake)}

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """The figures of an evaluation; `arrays` are the examples it was done on."""
        figures = {"loss": float(self.model.generator_loss(outputs["score"]))}
        figures |= self.measure.summarise(outputs)
        if base.ACCURACY in self.metrics:
            right = outputs["predicted"] == arrays["label"]
            figures["accuracy"] = float(np.mean(right))
        return figures
