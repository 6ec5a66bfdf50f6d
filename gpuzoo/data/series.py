"""Time series: windows of the past, and what came after each."""

import csv
import dataclasses
import io
import pathlib
import re

import numpy as np

from gpuzoo.data.dataset import Dataset, fingerprint
from gpuzoo.errors import GpuzooError

WINDOW = 64  # values that a model sees
HORIZON = 16  # values after them that it foretells
HELD_OUT = 0.2  # the last part of a series, for testing


def mackey_glass() -> Dataset:
    """10,000 values of the delayed equation of Mackey and Glass (Science 197 (1977)
    287), chaotic at a delay of 17; computed here, by Runge and Kutta's fourth-order
    rule at steps of 0.1 with the delayed value taken between them, one value per unit
    of time after the first 1,000."""
    steps, delay, count = 10, 170, 11_000
    x = [1.2] * (delay + count * steps + 1)

    def slope(now: float, then: float) -> float:
        square = then * then
        fourth = square * square
        return 0.2 * then / (1 + fourth * fourth * square) - 0.1 * now

    step = 0.1
    for i in range(delay, len(x) - 1):
        then, after = x[i - delay], x[i - delay + 1]
        between = (then + after) / 2
        a = slope(x[i], then)
        b = slope(x[i] + step / 2 * a, between)
        c = slope(x[i] + step / 2 * b, between)
        d = slope(x[i] + step * c, after)
        x[i + 1] = x[i] + step / 6 * (a + 2 * b + 2 * c + d)
    values = np.array(x[delay::steps][1_000:11_000])
    return make_series("mackey_glass", "computed by gpuzoo", values)


def from_csv(path: pathlib.Path) -> Dataset:
    """The last column of a CSV file, one line for each time, oldest first; a first line
    without a number is taken for the names of the columns. Semicolons or tabs may stand
    between the columns; beside semicolons a comma is a decimal one.

    Raises:
        GpuzooError: a line that has not as many columns as the first, or no number.
    """
    what = f"data {path.name!r}"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        mark, rows = _rows(text)
    except FileNotFoundError:
        raise GpuzooError(f"{what}: there is no such file; check the path") from None
    except (OSError, ValueError, csv.Error) as error:
        raise GpuzooError(f"{what}: not a readable CSV file: {error}") from None
    columns, lines = len(rows[0][1]) if rows else 0, []
    values, swapped = [], str.maketrans(".,", ",.")
    commas = mark == ";" and any(re.search(r"\d,\d", row[-1]) for _, row in rows)
    for place, (line, row) in enumerate(rows):
        if len(row) != columns:
            raise GpuzooError(
                f"{what}: line {line}: {len(row)} columns, parted by {mark!r}, where "
                f"the first line has {columns}; all must have as many"
            )
        try:
            values.append(float(row[-1].translate(swapped) if commas else row[-1]))
        except ValueError:
            if place:
                kind = "number with a decimal comma" if commas else "number"
                raise GpuzooError(
                    f"{what}: line {line}: {row[-1]!r} is no {kind}; the last column "
                    "must hold the series"
                ) from None
        else:
            lines.append(line)
    _refuse_gaps(what, lines if columns == 1 else [])
    dataset = make_series(path.stem, "CSV file", np.array(values))
    if columns < 2:
        return dataset
    told = f"the last of {columns} columns, parted by {mark!r}, is the series"
    return dataclasses.replace(dataset, findings=(*dataset.findings, told))


def _refuse_gaps(what: str, lines: list[int]) -> None:
    """A blank line among lines of one value is a value that is missing; but not where
    there is one after each."""
    apart = np.diff(lines)
    if apart.size and apart.max() != apart.min():
        line = lines[int(np.argmax(apart))] + 1
        raise GpuzooError(
            f"{what}: line {line}: is blank; leave the line out, or fill in the value "
            "that is missing"
        )


def _rows(text: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """What separates the columns, and the number and cells of each line that is not
    blank: the first of semicolon, tab and comma that parts the first line."""
    for mark in ";\t,":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        rows = [(reader.line_num, row) for row in reader if row]
        if rows and len(rows[0][1]) > 1:
            break
    return mark, rows


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
