"""Time series: windows of the past, and what came after each."""

import dataclasses
import pathlib

import numpy as np

from gpuzoo.data import table
from gpuzoo.data.dataset import Dataset, fingerprint
from gpuzoo.errors import GpuzooError

WINDOW = 64  # values that a model sees
HORIZON = 16  # values after them that it foretells
HELD_OUT = 0.2  # the last part of a series, for testing


def from_csv(path: pathlib.Path) -> Dataset:
    """The last column of numbers of a CSV file, one line for each time; what was taken
    is the first of its findings (gpuzoo/data/table.py).

    Raises:
        GpuzooError: a line that cannot be read, or may be read in two ways.
    """
    column = table.read_column(path)
    dataset = make_series(path.stem, "CSV file", column.values)
    return dataclasses.replace(dataset, findings=column.findings)


def make_series(name: str, source: str, values: np.ndarray) -> Dataset:
    """Cut a series into windows; those that reach into its last part are for testing.

    Returns:
        A Dataset whose splits hold `series` (examples, WINDOW, 1) and `target`
        (examples, HORIZON), float32, moved and scaled to mean 0 and deviation 1 of the
        training part.

    Raises:
        GpuzooError: too few values, one that is not finite, too large or all the same.
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
            f"{name}: values up to {np.abs(values).max():g} are too large to be "
            "scaled; divide them"
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
    return Dataset(name, source, splits, (), fingerprint(splits))
