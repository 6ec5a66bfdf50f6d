"""Forecasting: the next values of a series."""

import keras
import numpy as np
import threadpoolctl

from gpuzoo.data.series import HORIZON, WINDOW
from gpuzoo.tasks import base, ends


class Task(base.Task):
    """Mean squared error of the values to come.

    Examples are windows `series` (batch, WINDOW, 1) with what followed, `target`
    (batch, HORIZON), in standard deviations of the training part; see
    gpuzoo/data/series.py. The model maps the one to the other.

    Figures: `loss`, the mean squared error over all HORIZON values. An evaluation tells
    besides what it would be with two rules that need no training to speak of:

    - `seasonal`: the value one period before, the period being the one after which the
      training values resemble themselves most, or the last value if none does;
    - `linear`: the linear function of the window that fits the training examples best.
    """

    fields = ("series", "target")
    loss_name = "mean squared error"
    metrics = (base.LOSS, base.Metric("seasonal"), base.Metric("linear"))
    pictures = ("forecasts",)
    uses = frozenset()

    def __init__(self, *, recipe, dataset, **parts):
        super().__init__(recipe=recipe, dataset=dataset, **parts)
        self.period = _period(dataset.train["series"])
        self.line = _fit(dataset.train)

    @staticmethod
    def model_options(dataset) -> dict:
        """Options of the model that follow from the data."""
        return {"input_shape": (WINDOW, 1), "horizon": HORIZON}

    @staticmethod
    def check_model(model: keras.Model, dataset) -> str | None:
        """What is wrong with a model, or None."""
        if fault := base.Task.misfit(model, (WINDOW, 1)):
            return fault
        found, wanted = ends.output_shape_of(model), (None, HORIZON)
        return None if found == wanted else f"puts out {found}, not {wanted}"

    def step(self, batch: dict, draws, backend) -> dict:
        """One step of training; returns the loss of the batch."""

        def loss():
            told = self.model(batch["series"], training=True)
            loss = keras.ops.mean(_errors(told, batch["target"]))
            return loss, {"loss": loss}

        return self.minimise(loss, backend)

    def evaluate(self, batch: dict) -> dict:
        """Per example: the loss, and what is `foretold`, (batch, HORIZON)."""
        told = keras.ops.cast(self.model(batch["series"], training=False), "float32")
        return {"loss": _errors(told, batch["target"]), "foretold": told}

    def summarise(self, outputs: dict[str, np.ndarray], arrays: dict) -> dict:
        """The figures of an evaluation; `arrays` are the examples it was done on."""
        series, target = arrays["series"][:, :, 0], arrays["target"]
        ahead = np.arange(HORIZON) % self.period
        season = series[:, WINDOW - self.period + ahead]
        with threadpoolctl.threadpool_limits(1):
            straight = _with_one(series) @ self.line
        return {
            "loss": float(np.mean(outputs["loss"], dtype=np.float64)),
            "seasonal": float(np.mean(np.square(season - target), dtype=np.float64)),
            "linear": float(np.mean(np.square(straight - target), dtype=np.float64)),
        }


def _errors(told, target):
    """(batch, HORIZON) -> (batch,)"""
    told = keras.ops.cast(told, "float32")
    return keras.ops.mean(keras.ops.square(told - target), axis=-1)


def _period(windows: np.ndarray) -> int:
    """The lag, up to WINDOW, at which a series is most like itself, if that is a peak;
    1, the last value, if there is none."""
    values = np.concatenate([windows[0, :, 0], windows[1:, -1, 0]]).astype(np.float64)
    values -= values.mean()
    lags = np.arange(WINDOW + 1)
    like = np.array([np.dot(values[lag:], values[: len(values) - lag]) for lag in lags])
    if like[0] == 0:  # one value, over and over
        return 1
    like /= like[0]
    inner = like[1:-1]
    peaks = (
        np.flatnonzero((inner > like[:-2]) & (inner >= like[2:]) & (inner > 0.2)) + 1
    )
    return int(peaks[np.argmax(like[peaks])]) if len(peaks) else 1


def _fit(train: dict) -> np.ndarray:
    """(WINDOW + 1, HORIZON), by least squares."""
    inputs = _with_one(train["series"][:, :, 0])
    target = train["target"].astype(np.float64)
    with threadpoolctl.threadpool_limits(1):  # or the bits are those of their number
        return np.linalg.lstsq(inputs, target, rcond=None)[0]


def _with_one(series: np.ndarray) -> np.ndarray:
    return np.concatenate([series, np.ones((len(series), 1))], axis=1, dtype=np.float64)
