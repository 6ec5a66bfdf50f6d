"""Multi-label classification: predict all labels of an example, none or several."""

import keras
import numpy as np

from gpuzoo.tasks import base, classify, ends, scores


class Task(classify.Task):
    """Minimise the binary cross-entropy of the logits of every label, averaged over the
    labels.

    As gpuzoo/tasks/classify.py, with `labels` (batch, labels), uint8, 0 or 1. The model
    has one output per label: its logit, or a sigmoid of it, which the loss leaves out.
    A label is predicted if its probability is above 0.5. `accuracy` is the fraction of
    all decisions, examples times labels, that are right.
    """

    fields = ("image", "labels")
    target = "labels"
    loss_name = "binary cross-entropy of each label"
    models = "classify"
    uses = classify.Task.uses - {"class_weight"}
    pictures = ()

    def __init__(self, **parts):
        super().__init__(**parts)
        self.measured = scores.LABELS

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        if fault := base.Task.misfit(model, dataset.input_shape, reshapes=True):
            return fault
        found, units = ends.output_shape_of(model), len(dataset.classes)
        if found != (None, units):
            return f"puts out {found}, not (batch, labels) = (None, {units})"
        end = ends.find(ends.output_of(model), model)
        wanted = f"end it in Dense({units}), or Dense({units}, activation='sigmoid')"
        if not end.kind:
            if ends.in_unit_range(end, model):
                return (
                    f"puts out numbers in [0, 1], from {end.operation.name!r}; {wanted}"
                )
            return None
        if end.kind != "sigmoid":
            return (
                f"ends in a {end.kind}, and an example may have several labels or "
                f"none; {wanted}"
            )
        if end.only_moved() and end.used_once(model) and ends.skips_only(end, model):
            return None
        return f"ends in a sigmoid{end.reason(model)}; {wanted}"

    @classmethod
    def keras_metrics(cls, model: keras.Model, by_name: bool) -> set[str]:
        """Return the Keras metrics that are its accuracy."""
        return {"binaryaccuracy", *(("accuracy", "acc") if by_name else ())}

    def infer(self, batch: dict) -> dict:
        """Return of each example `predicted`, 0 or 1 for each label, and the `logits`,
        whose sigmoid are the probabilities."""
        return self._infer(batch)[1]

    def _infer(self, batch: dict) -> tuple:
        logits, _ = self._logits(batch)
        return logits, {"predicted": self._decided(logits), "logits": logits}

    def _decided(self, logits):
        return keras.ops.cast(logits > 0, "uint8")

    def scores(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the figures of the final evaluation."""
        return scores.multilabel(
            arrays["labels"], outputs["predicted"], outputs["logits"], self.names
        )

    def _losses(self, labels, logits, smoothing: float):
        """Return losses (batch,) of labels and logits, both (batch, labels)."""
        logits = keras.ops.cast(logits, "float32")
        if self.compiled:
            return self.compiled(labels, logits)
        return keras.losses.binary_crossentropy(
            keras.ops.cast(labels, "float32"), logits, from_logits=True,
            label_smoothing=smoothing,
        )  # fmt: skip
