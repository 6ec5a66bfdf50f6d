"""Time series: input windows and forecast targets."""

import dataclasses
import pathlib

import numpy as np

from gpuzoo.data import table
from gpuzoo.data.dataset import Arrays, Dataset, fingerprint
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
    scaled, scale = _standardize(name, values, border)
    splits = {"train": _windows(scaled[:border]), "test": _windows(scaled[border:])}
    return Dataset(name, source, splits, (), fingerprint(splits), scale=scale)


def with_validation(dataset: Dataset, fraction: float) -> Dataset:
    """Return a series with the last part of its training values for validation,
    standardized anew, by the others.

    Raises:
        GpuzooError: too few values in one of the parts, or all the same.
    """
    mean, deviation = dataset.scale or (0.0, 1.0)
    parts = [_values(part) * deviation + mean for part in (dataset.train, dataset.test)]
    count, least = len(parts[0]), WINDOW + HORIZON
    border = count - round(fraction * count)
    if min(border, count - border) < least:
        raise GpuzooError(
            f"validation={fraction:g} of {count} training values leaves {border} for "
            f"training and {count - border} for validation; at least {least} are needed"
        )
    scaled, scale = _standardize(dataset.name, np.concatenate(parts), border)
    cut = {
        "train": scaled[:border], "val": scaled[border:count], "test": scaled[count:],
    }  # fmt: skip
    splits = {split: _windows(part) for split, part in cut.items()}
    return dataclasses.replace(dataset, splits=splits, scale=scale)


def _values(arrays: Arrays) -> np.ndarray:
    """Return the values that windows were cut from."""
    series, target = arrays["series"][:, :, 0], arrays["target"]
    found = np.concatenate([series[:, 0], series[-1, 1:], target[-1]])
    return found.astype(np.float64)


def _windows(part: np.ndarray) -> Arrays:
    windows = np.lib.stride_tricks.sliding_window_view(part, WINDOW + HORIZON)
    return {
        "series": np.ascontiguousarray(windows[:, :WINDOW, None]),
        "target": np.ascontiguousarray(windows[:, WINDOW:]),
    }


def _standardize(name: str, values: np.ndarray, border: int) -> tuple:
    """Return values as float32 and mean and deviation of those before the border, by
    which they were standardized."""
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
    return scaled, (float(mean), float(deviation))


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
