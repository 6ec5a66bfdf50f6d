"""Forecasting: predict the next values of a time series."""

import keras
import numpy as np
import threadpoolctl

from gpuzoo.data.series import HORIZON, WINDOW
from gpuzoo.tasks import base, ends, rules, scores

FIELDS = frozenset(
    {"target", "columns", "window", "horizon", "gaps", "calendar", "fold"}
)
"""Of a recipe, for series with named columns."""


class Task(base.Task):
    """Minimise the mean squared error of the forecast.

    Examples are windows `series` (batch, window, channels) and the values that follow,
    `target` (batch, horizon), of several targets (batch, horizon, targets), in standard
    deviations of the training part; see gpuzoo/data/series.py and series_table.py. The
    model maps `series` to `target`.

    Metrics: `loss`, the mean squared error over all values. An evaluation also returns
    the error of two baselines:

    - `seasonal`: the value one period before, the period being the one after which the
      training values resemble themselves most, or the last value if none does;
    - `linear`: the linear function of the window that fits the training examples best;
      of a series with named columns as gpuzoo/tasks/rules.py says.
    """

    fields = ("series", "target")
    loss_name = "mean squared error"
    metrics = (base.LOSS, base.Metric("seasonal"), base.Metric("linear"))
    measured = scores.FORECAST
    pictures = ("forecasts",)
    uses = FIELDS
    keras_loss = "MeanSquaredError"
    takes = "series"

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        series, target = dataset.train["series"], dataset.train["target"]
        self.targets = dataset.series.targets if dataset.series else 1
        self.horizon = target.shape[1]
        self.periods = [rules.period(series[:, :, n]) for n in range(self.targets)]
        if dataset.series is None:
            self.linear = _Plain(dataset.train)
        else:
            changes = target.reshape(len(target), -1, self.targets)
            changes = changes - series[:, -1:, : self.targets]
            changes = changes.reshape(len(target), -1)
            self.linear = rules.Linear(series, changes, self.targets)

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        if dataset.series is None:
            return {"input_shape": (WINDOW, 1), "horizon": HORIZON}
        return of_series(dataset)

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        shape, wanted = (WINDOW, 1), (None, HORIZON)
        if (series := dataset.series) is not None:
            shape, wanted = (series.window, series.width), (None, series.horizon)
            wanted += (series.targets,) if series.targets > 1 else ()
        if fault := base.Task.misfit(model, shape):
            return fault
        found = ends.output_shape_of(model)
        return None if found == wanted else f"puts out {found}, not {wanted}"

    @classmethod
    def keras_metrics(cls, model: keras.Model, by_name: bool) -> set[str]:
        """Return the Keras metrics that are its loss."""
        return {"mse", "meansquarederror"}

    def step(self, batch: dict, draws, backend) -> dict:
        """One step of training; returns the loss of the batch."""

        def loss():
            outputs = self.model(batch["series"], training=True)
            loss = keras.ops.mean(_errors(outputs, batch["target"]))
            return loss, {"loss": loss}

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Return of each example the loss and the `forecast`, as `target`."""
        outputs = self.infer(batch)
        return {"loss": _errors(outputs["forecast"], batch["target"]), **outputs}

    def infer(self, batch: dict) -> dict:
        """Return of each window the `forecast`, (batch, horizon), of several targets
        (batch, horizon, targets)."""
        outputs = self.model(batch["series"], training=False)
        return {"forecast": keras.ops.cast(outputs, "float32")}

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        series, target = arrays["series"], arrays["target"]
        told = self.linear(series)
        if not isinstance(self.linear, _Plain):
            told = told.reshape(len(target), -1, self.targets)
            told = (told + series[:, -1:, : self.targets]).reshape(target.shape)
        season = self._season(series).reshape(target.shape)
        return {
            "loss": float(np.mean(outputs["loss"], dtype=np.float64)),
            "seasonal": float(np.mean(np.square(season - target), dtype=np.float64)),
            "linear": scores.rounded(
                np.mean(np.square(told - target), dtype=np.float64)
            ),
        }

    def _season(self, series: np.ndarray) -> np.ndarray:
        """Return of each target the values one period before, (examples, horizon,
        targets)."""
        window, horizon = series.shape[1], self.horizon
        rows = [window - one + np.arange(horizon) % one for one in self.periods]
        return np.stack([series[:, row, n] for n, row in enumerate(rows)], axis=2)

    def scores(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return MAE, RMSE and R2 of the final evaluation, over all values."""
        return scores.regression(arrays["target"], outputs["forecast"])

    def blank_outputs(self, arrays: dict) -> dict:
        """Return a forecast of zeros, for `scores`."""
        return {"forecast": np.zeros_like(arrays["target"])}


def of_series(dataset) -> dict:
    """Return options of a model that describe a series with named columns."""
    series = dataset.series
    several = {"targets": series.targets} if series.targets > 1 else {}
    shape = (series.window, series.width)
    return {"input_shape": shape, "horizon": series.horizon, **several}


def _errors(outputs, target):
    """Return mean squared errors: (batch, ...) -> (batch,)."""
    outputs = keras.ops.cast(outputs, "float32")
    axes = tuple(range(1, len(target.shape)))
    return keras.ops.mean(keras.ops.square(outputs - target), axis=axes)


class _Plain:
    """The least-squares line of a series of one column, without a penalty."""

    def __init__(self, train: dict):
        inputs = _with_one(train["series"][:, :, 0])
        target = train["target"].astype(np.float64)
        with threadpoolctl.threadpool_limits(1):  # the bits depend on the number
            self.line = np.linalg.lstsq(inputs, target, rcond=None)[0]

    def __call__(self, series: np.ndarray) -> np.ndarray:
        with threadpoolctl.threadpool_limits(1):
            return _with_one(series[:, :, 0]) @ self.line


def _with_one(series: np.ndarray) -> np.ndarray:
    return np.concatenate([series, np.ones((len(series), 1))], axis=1, dtype=np.float64)
