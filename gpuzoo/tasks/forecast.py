"""Forecasting: predict the next values of a time series."""

import keras
import numpy as np
import threadpoolctl

from gpuzoo.data.series import HORIZON, WINDOW
from gpuzoo.tasks import base, ends, scores


class Task(base.Task):
    """Minimise the mean squared error of the forecast.

    Examples are windows `series` (batch, WINDOW, 1) and the values that follow,
    `target` (batch, HORIZON), in standard deviations of the training part; see
    gpuzoo/data/series.py. The model maps `series` to `target`.

    Metrics: `loss`, the mean squared error over all HORIZON values. An evaluation also
    returns the error of two baselines:

    - `seasonal`: the value one period before, the period being the one after which the
      training values resemble themselves most, or the last value if none does;
    - `linear`: the linear function of the window that fits the training examples best.
    """

    fields = ("series", "target")
    loss_name = "mean squared error"
    metrics = (base.LOSS, base.Metric("seasonal"), base.Metric("linear"))
    measured = scores.FORECAST
    pictures = ("forecasts",)
    uses = frozenset()
    keras_loss = "MeanSquaredError"
    takes = "series"

    def begin(self, optimizers: list, dataset) -> None:
        super().begin(optimizers, dataset)
        self.period = _period(dataset.train["series"])
        self.line = _fit(dataset.train)

    @staticmethod
    def model_options(dataset) -> dict:
        """Return options of the model that the data determine."""
        return {"input_shape": (WINDOW, 1), "horizon": HORIZON}

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """Return what is wrong with a model, or None."""
        if fault := base.Task.misfit(model, (WINDOW, 1)):
            return fault
        found, wanted = ends.output_shape_of(model), (None, HORIZON)
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
        """Return of each example the loss and the `forecast`, (batch, HORIZON)."""
        outputs = self.infer(batch)
        return {"loss": _errors(outputs["forecast"], batch["target"]), **outputs}

    def infer(self, batch: dict) -> dict:
        """Return of each window the `forecast`, (batch, HORIZON)."""
        outputs = self.model(batch["series"], training=False)
        return {"forecast": keras.ops.cast(outputs, "float32")}

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return the metrics of an evaluation; `arrays`: the examples evaluated."""
        series, target = arrays["series"][:, :, 0], arrays["target"]
        ahead = np.arange(HORIZON) % self.period
        season = series[:, WINDOW - self.period + ahead]
        with threadpoolctl.threadpool_limits(1):
            straight = _with_one(series) @ self.line
        return {
            "loss": float(np.mean(outputs["loss"], dtype=np.float64)),
            "seasonal": float(np.mean(np.square(season - target), dtype=np.float64)),
            "linear": scores.rounded(
                np.mean(np.square(straight - target), dtype=np.float64)
            ),
        }

    def scores(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """Return MAE, RMSE and R2 of the final evaluation, over all HORIZON values."""
        return scores.regression(arrays["target"], outputs["forecast"])

    def blank_outputs(self, arrays: dict) -> dict:
        """Return a forecast of zeros, for `scores`."""
        return {"forecast": np.zeros_like(arrays["target"])}


def _errors(outputs, target):
    """Return mean squared errors: (batch, HORIZON) -> (batch,)."""
    outputs = keras.ops.cast(outputs, "float32")
    return keras.ops.mean(keras.ops.square(outputs - target), axis=-1)


def _period(windows: np.ndarray) -> int:
    """Return the lag, up to WINDOW, of the highest peak of the autocorrelation; 1, the
    last value, if there is none."""
    values = np.concatenate([windows[0, :, 0], windows[1:, -1, 0]]).astype(np.float64)
    values -= values.mean()
    lags = np.arange(WINDOW + 1)
    like = np.array([np.dot(values[lag:], values[: len(values) - lag]) for lag in lags])
    if like[0] == 0:  # a constant series
        return 1
    like /= like[0]
    inner = like[1:-1]
    peaks = (
        np.flatnonzero((inner > like[:-2]) & (inner >= like[2:]) & (inner > 0.2)) + 1
    )
    return int(peaks[np.argmax(like[peaks])]) if len(peaks) else 1


def _fit(train: dict) -> np.ndarray:
    """Return the least-squares coefficients, (WINDOW + 1, HORIZON)."""
    inputs = _with_one(train["series"][:, :, 0])
    target = train["target"].astype(np.float64)
    with threadpoolctl.threadpool_limits(1):  # the bits depend on the number of threads
        return np.linalg.lstsq(inputs, target, rcond=None)[0]


def _with_one(series: np.ndarray) -> np.ndarray:
    return np.concatenate([series, np.ones((len(series), 1))], axis=1, dtype=np.float64)
