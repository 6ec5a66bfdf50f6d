"""The next move of a series: is a value higher or lower some rows later?"""

import keras
import numpy as np

from gpuzoo.tasks import base, classify, rules
from gpuzoo.tasks.forecast import FIELDS, of_series


class Task(classify.Task):
    """As gpuzoo/tasks/classify.py, for windows `series` (batch, window, channels) and
    the classes down and up (gpuzoo/data/series_table.py).

    An evaluation also returns the accuracy of two rules: `base_rate`, to say always
    what is more frequent in the training part, and `linear`, the sign of the linear
    function of the window that fits it best (gpuzoo/tasks/rules.py).
    """

    fields = ("series", "label")
    field = "series"
    models = "forecast"
    pictures = ("confusion",)
    metrics = (
        *classify.Task.metrics,
        base.Metric("base_rate", greater_is_better=True, format=".2%"),
        base.Metric("linear", greater_is_better=True, format=".2%"),
    )
    uses = frozenset({"label_smoothing", "class_weight"}) | FIELDS

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        series, label = dataset.train["series"], dataset.train["label"]
        self.frequent = int(np.bincount(label, minlength=2).argmax())
        self.linear = rules.Linear(series, 2.0 * label[:, None] - 1, 1)

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {**of_series(dataset), "num_classes": len(dataset.classes)}

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        if fault := base.Task.misfit(model, dataset.input_shape):
            return fault
        return classify.Task.check_model(model, dataset)

    def prepare(self, windows):
        return keras.ops.cast(windows, "float32")

    def rounded_once(self, windows):
        return self.prepare(windows)

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        label = arrays["label"]
        told = self.linear(arrays["series"])[:, 0] > 0
        return {
            **super().summarise(outputs, arrays),
            "base_rate": float(np.mean(label == self.frequent)),
            "linear": float(np.mean(told == label)),
        }
