"""Classification: which of several classes an example belongs to."""

import keras
import numpy as np

from gpuzoo.data import augment
from gpuzoo.tasks.one_loss import OneLoss


class Task(OneLoss):
    """Cross-entropy on logits, with label smoothing, and accuracy.

    Examples are images (batch, height, width, channels), uint8 or floats in [0, 1],
    with labels (batch,), int32. The model maps images in [0, 1] to logits
    (batch, classes).
    """

    fields = ("image", "label")
    field = "image"
    """The one that the model is given."""
    figures = step_figures = ("loss", "accuracy")
    """What an evaluation and a step tell."""
    headline = "accuracy"
    """The figure that a run is judged by."""

    def __init__(self, *, recipe, dataset, **parts):
        super().__init__(recipe=recipe, dataset=dataset, **parts)
        self.classes = len(dataset.classes)
        self.smoothing = recipe.label_smoothing
        self.views = recipe.views

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
        if fault := OneLoss.misfit(model, dataset.input_shape):
            return fault
        if (found := OneLoss.shape(model)) != (None, len(dataset.classes)):
            return (
                f"puts out {found}, not (batch, classes) = "
                f"(None, {len(dataset.classes)})"
            )
        return OneLoss.squashed(OneLoss.output(model), "softmax")

    def prepare(self, images):
        """uint8 pixels -> numbers in [0, 1] of the dtype that the layers compute in."""
        return augment.pixels(images, keras.config.dtype_policy().compute_dtype)

    def step(self, batch: dict, draws, backend) -> dict:
        """One step of training; returns the loss and the accuracy on the batch."""
        images, own = augment.apply(self.changes, batch[self.field], draws)
        images = self.prepare(images)

        def loss():
            logits = self.model(images, training=True)
            loss = self.loss(images, batch["label"], own, logits)
            return loss, (loss, logits)

        loss, logits = self.minimise(loss, backend)
        correct = keras.ops.equal(_predicted(logits), batch["label"])
        return {
            "loss": loss,
            "accuracy": keras.ops.mean(keras.ops.cast(correct, "float32")),
        }

    def loss(self, images, labels, own, logits):
        """The mean loss of a batch; `own`: what of each image is its own, or None."""
        loss = self._cross_entropy(labels, logits)
        if own is not None:
            other = keras.ops.flip(labels, axis=0)
            loss = own * loss + (1 - own) * self._cross_entropy(other, logits)
        return keras.ops.mean(loss)

    def evaluate(self, batch: dict) -> dict:
        """Per example: loss, predicted class and the probability given to it."""
        logits = sum(
            weight * keras.ops.cast(self.model(view, training=False), "float32")
            for weight, view in _views(self.prepare(batch[self.field]), self.views)
        )
        return {
            "loss": self._cross_entropy(batch["label"], logits, smoothing=0.0),
            "predicted": _predicted(logits),
            "confidence": keras.ops.max(keras.ops.softmax(logits), axis=-1),
        }

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """The figures of an evaluation; `arrays` are the examples it was done on."""
        return {
            "loss": float(np.mean(outputs["loss"], dtype=np.float64)),
            "accuracy": float(np.mean(outputs["predicted"] == arrays["label"])),
        }

    def _cross_entropy(self, labels, logits, smoothing: float | None = None):
        return keras.losses.categorical_crossentropy(
            keras.ops.one_hot(labels, self.classes, dtype="float32"),
            keras.ops.cast(logits, "float32"),
            from_logits=True,
            label_smoothing=self.smoothing if smoothing is None else smoothing,
        )


def _views(images, kind: str) -> list[tuple[float, object]]:
    """What is looked at in place of the images alone, with weights that add up to 1;
    of the moved ones, zeros move in."""
    if kind == "one":
        return [(1.0, images)]
    both = [images, keras.ops.flip(images, axis=2)]
    if kind == "mirrored":
        return [(0.5, view) for view in both]
    views = [(0.25, view) for view in both]
    for before, after in ((1, 0), (0, 1)):
        pad = ((0, 0), (before, after), (before, after), (0, 0))
        first, last = (after, None) if after else (0, -1)
        for view in both:
            padded = keras.ops.pad(view, pad)
            views.append((0.125, padded[:, first:last, first:last]))
    return views


def _predicted(logits):
    return keras.ops.cast(keras.ops.argmax(logits, axis=-1), "int32")
