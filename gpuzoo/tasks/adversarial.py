"""Adversarial training (GANs): a generator of images and a discriminator."""

import keras
import numpy as np

from gpuzoo import randomness
from gpuzoo.errors import GpuzooError
from gpuzoo.tasks import augment, base, frechet
from gpuzoo.tasks.base import minimise


class Task(base.Task):
    """Update the discriminator, then the generator, each on its own loss.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    for a model with classes with labels (batch,), int32. The losses are the model's:
    models/gan.py. If it has several discriminator steps per generator step, each uses
    its part of the batch.

    Metrics of a step: `loss`, the generator's, and `discriminator`, the other one's. An
    evaluation generates as many images as there are test examples, always from the same
    codes, and returns `loss` and:

    - `frechet`: the distance between them and the test images under the fixed
      classifier of gpuzoo/tasks/frechet.py, if it recognises such images.
    - `accuracy`, with classes: the fraction that it assigns to the requested class.
    """

    loss_name = "the model's own, of both networks"
    step_metrics = (base.LOSS, base.Metric("discriminator"))
    headline = frechet.FRECHET
    pictures = ("samples",)
    modules = frechet.MODULES
    takes, generates = "", True

    def __init__(self, *, model: keras.Model, dataset, **parts):
        super().__init__(model=model, dataset=dataset, **parts)
        self.conditional = model.conditional
        self.classes = len(dataset.classes)
        if self.conditional:
            self.fields = ("image", "label")

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        recipe = self.recipe
        self.parts = self.model.critic_steps
        if recipe.batch_size % self.parts:
            raise GpuzooError(
                f"batch_size of {recipe.model} must be a multiple of {self.parts}, one "
                f"part for each step of its discriminator: {recipe.batch_size}"
            )
        self.for_discriminator, self.for_generator = self.optimizers or (None, None)
        self.measure = frechet.Measure(dataset)
        self.metrics = (base.LOSS, *self.measure.metrics)
        if self.conditional and self.measure.metrics:
            self.metrics = (*self.metrics, base.ACCURACY)
        codes = self._codes(len(dataset.test["image"]), recipe.seed)
        self.fixed = keras.ops.convert_to_tensor(codes)

    @classmethod
    def check_recipe(cls, recipe) -> None:
        super().check_recipe(recipe)
        if recipe.sparsity:
            raise GpuzooError(
                "sparsity cannot be combined with the task adversarial: a pruned "
                "discriminator would change what the generator learns; leave it out"
            )
        if recipe.accumulate > 1:
            raise GpuzooError(
                f"accumulate={recipe.accumulate} cannot be combined with the task "
                "adversarial: its two networks update in turn within a step; leave it "
                "out, or set a smaller batch_size"
            )

    @staticmethod
    def count_draws(recipe, model: keras.Model) -> int:
        """Return the uniform numbers per example of a step: two codes, a place between
        two images, and those of the augmentations."""
        changes = sum(change.draws for change in augment.parse(recipe.augment))
        return 2 * model.latents + 1 + changes

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return base.shape_and_classes(dataset)

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        parts = ("generator", "discriminator", "latents", "conditional", "critic_steps")
        missing = [part for part in parts if not hasattr(model, part)]
        if missing:
            return f"has no {', '.join(missing)}; see models/gan.py"
        if model.conditional and "label" not in dataset.train:
            return f"generates images by class, and data {dataset.name} have no classes"
        image, drawn = (None, *dataset.input_shape), model.generator.output_shape
        return None if drawn == image else f"generates {drawn}, not {image}"

    @staticmethod
    def groups(model: keras.Model) -> list[list]:
        """Return the trainable weights of each optimizer."""
        return [
            model.discriminator.trainable_variables,
            model.generator.trainable_variables,
        ]

    @staticmethod
    def moves(model: keras.Model) -> list[int]:
        """Return the updates of each optimizer per step."""
        return [model.critic_steps, 1]

    def step(self, batch: dict, draws, backend) -> dict:
        """Do one training step of both; return their losses."""
        latents, size = self.model.latents, draws.shape[0] // self.parts
        free = draws[:, 2 * latents + 1 :]
        images, _ = augment.apply(self.changes, batch["image"], free)
        real = augment.pixels(images)
        losses = []
        for part in range(self.parts):
            rows = slice(part * size, (part + 1) * size)
            labels = batch["label"][rows] if self.conditional else None
            losses.append(self._discriminate(real[rows], labels, draws[rows], backend))
        codes = 2 * draws[:size, latents : 2 * latents] - 1
        labels = batch["label"][:size] if self.conditional else None
        return {
            "loss": self._generate(codes, labels, backend),
            "discriminator": sum(losses[1:], start=losses[0]) / self.parts,
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
        """Return of each test example the score of the image generated in its place and
        the classifier's features of both; `samples`, uint8: the images."""
        model = self.model
        codes = keras.ops.take(self.fixed, batch["index"], axis=0)
        labels = batch["label"] if self.conditional else None
        fake = model.draw(codes, labels)
        outputs = {"score": model.judge(fake, labels)[:, 0]}
        outputs |= self.measure.look(fake, augment.pixels(batch["image"]))
        return {**outputs, "samples": augment.bytes_of(fake)}

    def codes(self, count: int, seed: int, label: int | None = None) -> dict:
        """Return the codes of images, and with classes the requested ones."""
        found = {"code": self._codes(count, seed)}
        if self.conditional:
            labels = np.arange(count) % self.classes if label is None else label
            found["label"] = np.broadcast_to(labels, count).astype(np.int32)
        return found

    def generate(self, batch: dict) -> dict:
        """Return `samples`, uint8."""
        fake = self.model.draw(batch["code"], batch.get("label"))
        return {"samples": augment.bytes_of(fake)}

    def _codes(self, count: int, seed: int) -> np.ndarray:
        shape = (count, self.model.latents)
        codes = 2 * randomness.uniform(shape, seed, "adversarial", "codes") - 1
        return codes.astype(np.float32)

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        figures = {"loss": float(self.model.generator_loss(outputs["score"]))}
        figures |= self.measure.summarise(outputs)
        if base.ACCURACY in self.metrics:
            right = outputs["predicted"] == arrays["label"]
            figures["accuracy"] = float(np.mean(right))
        return figures
