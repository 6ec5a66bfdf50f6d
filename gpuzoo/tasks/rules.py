"""Rules that need no training, to compare forecasts of a series with."""

import numpy as np
import threadpoolctl

MOST = 1_024
"""Inputs of the linear rule: of wider windows the last rows."""
_CELLS = 2e7
"""Numbers that it is fitted on: of more windows evenly spaced ones."""
_PENALTIES = 10.0 ** np.arange(-8, 3)


class Linear:
    """The linear function of a window, of all its columns, for what comes after, fitted
    by least squares with a penalty on the squares of its coefficients (ridge). It
    predicts changes from the last row, so that without coefficients it says that all
    stays. The penalty is the one that errs least on the last fifth of the training
    windows, after a fit to the others."""

    def __init__(self, windows: np.ndarray, wanted: np.ndarray, targets: int):
        """`windows` (examples, rows, columns), `wanted` (examples, values), and how
        many columns, the first ones, are relative to their last row."""
        self.targets = targets
        self.rows = max(1, MOST // windows.shape[2])
        size = min(self.rows, windows.shape[1]) * windows.shape[2]
        every = max(1, int(len(windows) * size / _CELLS))
        with threadpoolctl.threadpool_limits(1):  # the bits depend on the number
            x, y = self._inputs(windows[::every]), wanted[::every].astype(np.float64)
            part = max(1, len(x) - len(x) // 5)
            errors = [
                np.square(told - y[part:]).mean() if len(y) > part else 0.0
                for told in self._fits(x[:part], y[:part], x[part:])
            ]
            self.penalty = _PENALTIES[int(np.argmin(errors))]
            self.mean, self.level = x.mean(axis=0), y.mean(axis=0)
            values, vectors = np.linalg.eigh(_square(x - self.mean))
            sides = vectors.T @ ((x - self.mean).T @ (y - self.level))
            weights = 1 / (np.maximum(values, 0) + self.penalty * values[-1] + 1e-30)
            self.line = vectors @ (weights[:, None] * sides)

    def _fits(self, x, y, other):
        mean, level = x.mean(axis=0), y.mean(axis=0)
        values, vectors = np.linalg.eigh(_square(x - mean))
        sides = vectors.T @ ((x - mean).T @ (y - level))
        along = (other - mean) @ vectors
        for penalty in _PENALTIES:
            weights = 1 / (np.maximum(values, 0) + penalty * values[-1] + 1e-30)
            yield along @ (weights[:, None] * sides) + level

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Return its predictions (examples, values)."""
        with threadpoolctl.threadpool_limits(1):
            return (self._inputs(windows) - self.mean) @ self.line + self.level

    def _inputs(self, windows: np.ndarray) -> np.ndarray:
        windows = windows[:, -self.rows :].astype(np.float64)
        windows[:, :, : self.targets] -= windows[:, -1:, : self.targets]
        return windows.reshape(len(windows), -1)


def _square(x: np.ndarray) -> np.ndarray:
    return x.T @ x


def period(windows: np.ndarray) -> int:
    """Return the lag, up to the rows of a window, of the highest peak of the
    autocorrelation of consecutive windows (examples, rows); 1, the last value, if there
    is none."""
    rows = windows.shape[1]
    values = np.concatenate([windows[0], windows[1:, -1]]).astype(np.float64)
    values -= values.mean()
    lags = np.arange(min(rows, len(values) - 1) + 1)
    like = np.array([np.dot(values[lag:], values[: len(values) - lag]) for lag in lags])
    if like[0] == 0:  # a constant series
        return 1
    like /= like[0]
    inner = like[1:-1]
    peaks = (
        np.flatnonzero((inner > like[:-2]) & (inner >= like[2:]) & (inner > 0.2)) + 1
    )
    return int(peaks[np.argmax(like[peaks])]) if len(peaks) else 1
