"""Time series: input windows and forecast targets."""

import dataclasses
import pathlib

import numpy as np

from gpuzoo.data import table
from gpuzoo.data.dataset import Dataset, fingerprint
from gpuzoo.errors import GpuzooError

WINDOW = 64  # input values of a model
HORIZON = 16  # forecast values
HELD_OUT = 0.2  # test fraction, at the end of a series


def from_csv(path: pathlib.Path) -> Dataset:
    """Load the last numeric column of a CSV file, one line per time; its first finding
    says what was read (gpuzoo/data/table.py).

    Raises:
        GpuzooError: a line that cannot be read or is ambiguous.
    """
    column = table.read_column(path)
    dataset = make_series(path.stem, "CSV file", column.values)
    return dataclasses.replace(dataset, findings=column.findings)


def make_series(name: str, source: str, values: np.ndarray) -> Dataset:
    """Cut a series into windows; those of its last part are for testing.

    Returns:
        A Dataset whose splits hold `series` (examples, WINDOW, 1) and `target`
        (examples, HORIZON), float32, standardized by mean and deviation of the training
        part.

    Raises:
        GpuzooError: too few values, values not finite or too large, or all the same.
    """
    least = round((WINDOW + HORIZON) / HELD_OUT)
    if len(values) < least:
        raise GpuzooError(f"{name}: {len(values)} values; at least {least} are needed")
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        raise GpuzooError(
            f"{name}: {values[index]} at place {index}; every value must be finite"
        )
    border = round(len(values) * (1 - HELD_OUT))
    with np.errstate(over="ignore"):
        mean, deviation = values[:border].mean(), values[:border].std()
    if not np.isfinite(deviation):
        raise GpuzooError(
            f"{name}: values up to {np.abs(values).max():g} are too large; rescale them"
        )
    if deviation <= 1e-12 * np.abs(values[:border]).max():  # or rounding errors
        raise GpuzooError(f"{name}: all training values are {values[0]:g}")
    with np.errstate(over="ignore"):
        scaled = ((values - mean) / deviation).astype(np.float32)
    if not np.isfinite(scaled).all():
        index = int(np.argmin(np.isfinite(scaled)))
        raise GpuzooError(
            f"{name}: {values[index]:g} at place {index} is too far from the training "
            f"values, {mean:g} with a deviation of {deviation:g}"
        )
    splits = {}
    for split, part in (("train", scaled[:border]), ("test", scaled[border:])):
        windows = np.lib.stride_tricks.sliding_window_view(part, WINDOW + HORIZON)
        splits[split] = {
            "series": np.ascontiguousarray(windows[:, :WINDOW, None]),
            "target": np.ascontiguousarray(windows[:, WINDOW:]),
        }
    scale = float(mean), float(deviation)
    return Dataset(name, source, splits, (), fingerprint(splits), scale=scale)


def standardized(what: str, values: np.ndarray, scale) -> np.ndarray:
    """Return raw windows as float32, standardized as the training data were.

    Raises:
        GpuzooError: values that are no numbers, not finite or too large.
    """
    if values.dtype.kind not in "iuf":
        raise GpuzooError(f"{what}: must be numbers, not {values.dtype}")
    mean, deviation = scale
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = ((values.astype(np.float64) - mean) / deviation).astype(np.float32)
    if not np.isfinite(scaled).all():
        index = int(np.argmin(np.isfinite(scaled)))
        raise GpuzooError(
            f"{what}: {values.flat[index]:g} at place {index}; every value must be "
            "finite and not too far from the training values"
        )
    return scaled
