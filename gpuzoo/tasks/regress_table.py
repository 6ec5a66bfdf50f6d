"""Regression of a column of a table."""

import keras
import numpy as np

from gpuzoo.data.dataset import Arrays
from gpuzoo.tasks import base, ends, scores
from gpuzoo.tasks.classify_table import of_columns

_R2 = base.Metric("r2", greater_is_better=True)


class Task(base.Task):
    """Minimise the mean squared error of a number.

    Examples are rows `table` (batch, numbers), float32, and `target` (batch,), in
    standard deviations of the training part; see gpuzoo/data/tabular.py. The model maps
    `table` to (batch, 1).

    Metrics: `loss`, the mean squared error in these units, and `r2`. The figures of the
    final evaluation, and predictions, are in the unit of the target.
    """

    fields = ("table", "target")
    models = "table"
    loss_name = "mean squared error"
    metrics = (base.LOSS, _R2)
    measured = (base.Metric("mae"), base.Metric("rmse"))
    headline = _R2
    pictures = ("predicted_true", "residuals")
    uses = frozenset({"target", "columns"})
    keras_loss = "MeanSquaredError"
    takes = "table"

    def __init__(self, *, dataset, **parts):
        super().__init__(dataset=dataset, **parts)
        self.scale = dataset.scale

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {**of_columns(dataset), "num_outputs": 1}

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        if fault := base.Task.misfit(model, dataset.input_shape):
            return fault
        found = ends.output_shape_of(model)
        return None if found == (None, 1) else f"puts out {found}, not (None, 1)"

    @classmethod
    def keras_metrics(cls, model: keras.Model, by_name: bool) -> set[str]:
        """Return the Keras metrics that are its loss."""
        return {"mse", "meansquarederror"}

    def step(self, batch: dict, draws, backend) -> dict:
        """One step of training; returns the loss of the batch."""

        def loss():
            scaled = self._scaled(batch, training=True)
            loss = keras.ops.mean(keras.ops.square(scaled - batch["target"]))
            return loss, {"loss": loss}

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Return of each row the loss and the prediction, `scaled`."""
        outputs = self.infer(batch)
        error = keras.ops.square(outputs["scaled"] - batch["target"])
        return {"loss": error, **outputs}

    def infer(self, batch: dict) -> dict:
        """Return of each row the prediction in standard deviations, `scaled`."""
        return {"scaled": self._scaled(batch, training=False)}

    def _scaled(self, batch: dict, training: bool):
        rows = keras.ops.cast(batch["table"], "float32")
        outputs = self.model(rows, training=training)
        return keras.ops.cast(outputs, "float32")[:, 0]

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        r2 = scores.regression(arrays["target"], outputs["scaled"])["r2"]
        return {
            "loss": float(np.mean(outputs["loss"], dtype=np.float64)),
            **({} if r2 is None else {"r2": r2}),
        }

    def scores(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return MAE, RMSE and R2 of the final evaluation, in the unit of the
        target."""
        wanted, told = (self.unscaled(a) for a in (arrays["target"], outputs["scaled"]))
        return scores.regression(wanted, told)

    def blank_outputs(self, arrays: dict) -> dict:
        """Return the mean as the prediction, for `scores`."""
        return {"scaled": np.zeros_like(arrays["target"])}

    def unscaled(self, values: np.ndarray) -> np.ndarray:
        """Return numbers in the unit of the target, float64."""
        mean, deviation = self.scale
        return values.astype(np.float64) * deviation + mean

    def in_units(self, outputs: Arrays) -> Arrays:
        """Return the outputs of `infer` with the prediction in the unit of the target,
        `value`."""
        return {"value": self.unscaled(outputs["scaled"])}
