"""Series of several columns, with times: windows of the past, and what came after.

Nothing of the future enters: the columns are scaled by the training rows alone, a
window ends before what it predicts, and its last row is never an interpolated one, so
that gaps inside it are filled by rows of the window.
"""

import dataclasses

import numpy as np

from gpuzoo.data import column_kinds, columns, preparation, series_times, tabular
from gpuzoo.data.column_kinds import Reading
from gpuzoo.data.columns import Columns
from gpuzoo.data.dataset import LONG, Arrays, Dataset
from gpuzoo.data.npy import memory
from gpuzoo.data.series import HELD_OUT, HORIZON, WINDOW
from gpuzoo.data.series_form import Channel, Series
from gpuzoo.errors import GpuzooError

TASKS = FORECAST, MOVE = "forecast", "next_move"
KINDS = ("number", "time", "drop")
"""What `columns` may say of a column."""
MOVES = ("down", "up")
LEAST = 10
"""Windows of each part."""
_LIKE = 1e-3
"""Part of the error of "it stays" below which a column is taken for the future."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the recipe says of a series; see its fields."""

    target: str = ""
    columns: tuple[str, ...] = ()
    window: int = WINDOW
    horizon: int = HORIZON
    gaps: str = "refuse"
    calendar: tuple[str, ...] = ()
    fold: str = ""
    validation: float = 0.0


def make(
    name: str, source: str, table: Columns, how: Options, task: str = FORECAST
) -> Dataset:
    """Make a dataset of the rows of a table.

    The last part in time is for testing, and with a fold a part of that; the part
    before it for validation. A window of these may begin in the part before.

    Returns:
        A Dataset whose splits hold `series` (examples, window, channels), float32 (see
        `Series`), and `target` (examples, horizon), of several targets (examples,
        horizon, targets), in standard deviations; for the task next_move instead
        `label` (examples,), int32: whether the target is higher after `horizon` rows
        than at the end of the window. Windows after which it is the same are left out.

    Raises:
        GpuzooError: what is wrong with the table, a column, its times or gaps.
    """
    given = column_kinds.parse_columns(how.columns, [*table.columns], "", KINDS)
    targets = _targets(table, how.target, given)
    _check(table, how, targets, task)
    times = _times(table, targets, given)
    series_times.check_calendar(how.calendar, times)
    placed = series_times.placed(table, times, how.gaps)
    ends = _ends(int(placed.places[-1]) + 1, how)
    kept = placed.places < ends["test"]
    rows, places = times.rows[kept], placed.places[kept]
    train = rows[places < ends["train"]]
    readings = _readings(table, rows, train, given, targets, times)
    names = list(targets) or [[*readings][-1]]
    names += [one for one, r in readings.items() if r.kind == "number" and
              one not in names]  # fmt: skip
    grid = _grid(table, {n: readings[n] for n in names}, rows, places, how.gaps)
    series = Series(
        times.names, times.order, placed.unit, placed.step, len(targets) or 1,
        tuple(
            _channel(table, one, readings[one], grid[: ends["train"], place])
            for place, one in enumerate(names)
        ),
        tuple(how.calendar), how.window, how.horizon, how.gaps,
        tuple((n, r.reason) for n, r in readings.items() if r.kind == "unused"),
    )  # fmt: skip
    made = _Windows(table.what, series, grid, _stamps(times, placed, kept), task)
    splits, left = made.split(ends)
    _check_counts(table, splits, ends, how)
    findings = (
        *table.findings, *times.said, *placed.said,
        *_described(series, readings, splits, left, task), *made.looks_ahead(ends),
    )  # fmt: skip
    first = series.channels[0]
    return Dataset(
        name, source, splits, MOVES if task == MOVE else (),
        tabular.digest(table, how.target), findings, (first.mean, first.deviation),
        series=series,
    )  # fmt: skip


def other(
    table: Columns, series: Series, task: str
) -> tuple[dict[str, Arrays], list[str]]:
    """Return the windows of another table, as examples of a trained model: those of its
    last fifth as `test`, the others as `train`; and findings.

    Raises:
        GpuzooError: as `make`; or too few rows.
    """
    grid, stamps, said = _again(table, series)
    made = _Windows(table.what, series, grid, stamps, task)
    how = Options(window=series.window, horizon=series.horizon)
    ends = _ends(len(grid), how)
    splits, left = made.split(ends)
    _check_counts(table, splits, ends, how)
    said += [_left_out(left, task)] * bool(left)
    count = len(splits["test"]["series"])
    return splits, [*said, f"the last fifth is evaluated, {count:,} windows"]


def last_window(table: Columns, series: Series) -> tuple[np.ndarray, list[str]]:
    """Return the last rows of another table as one window (window, channels), and
    findings.

    Raises:
        GpuzooError: as `make`; too few rows, or a value of the last row is missing.
    """
    grid, stamps, said = _again(table, series)
    if len(grid) < series.window:
        raise GpuzooError(
            f"{table.what}: {len(grid)} rows; the model takes the last {series.window}"
        )
    made = _Windows(table.what, series, grid, stamps, FORECAST)
    if not made.known[-1].all():
        name = series.channels[int(np.argmin(made.known[-1]))].name
        raise GpuzooError(
            f"{table.what}: column {name!r} has no value in the last row, from which "
            "the forecast starts; fill it in, or remove the row"
        )
    if made.first > len(grid) - series.window:
        raise GpuzooError(
            f"{table.what}: a column has no value before row "
            f"{made.first + 1} of the times, and the model takes the last "
            f"{series.window}"
        )
    said.append(f"the last {series.window} of {len(grid):,} rows are read")
    return made.rows[-series.window :], said


# --- columns ------------------------------------------------------------------------


def _targets(table: Columns, target: str, given: dict) -> list[str]:
    """Return the columns that a target names: one, or several separated by commas."""
    if not target.strip():
        return []
    whole = columns.clean_name(target)
    parts = [whole] if whole in table.columns else whole.split(",")
    names = [columns.clean_name(one) for one in parts]
    for name in names:
        preparation.column_of(name, table)
        if names.count(name) > 1:
            raise GpuzooError(f"target: {name!r} is named twice; name it once")
        if name in given:
            raise GpuzooError(
                f"columns: {name!r} is a target, which is a number; leave it out there"
            )
    return names


def _check(table: Columns, how: Options, targets: list, task: str) -> None:
    numbers = column_kinds.numbers.is_number
    if table.lines and any(map(numbers, table.columns)):
        raise GpuzooError(
            f"{table.what}: the first line must name the columns, and holds numbers; "
            "add names above it"
        )
    if len(table) < how.window + how.horizon:
        raise GpuzooError(
            f"{table.what}: {len(table)} rows; a window of {how.window} and a horizon "
            f"of {how.horizon} need more"
        )
    if task == MOVE and len(targets) != 1:
        named = ", ".join(map(repr, targets)) or "none"
        raise GpuzooError(
            f"the task next_move needs one target, the column whose move is predicted, "
            f"and got {named}: --target NAME"
        )


def _times(table: Columns, targets: list[str], given: dict) -> series_times.Times:
    named = [one for one, kind in given.items() if kind == "time"]
    others = [n for n in table.columns if n not in targets and n not in given]
    if not targets and others:  # the last column may be the series
        others = others[:-1] or others
    return series_times.read(table, named, others)


def _readings(table, rows, train, given: dict, targets: list, times) -> dict:
    """Return how each column but those of times is read.

    Raises:
        GpuzooError: a target is not a number, or none is left.
    """
    found: dict[str, Reading] = {}
    for name, column in table.columns.items():
        if name in times.names:
            continue
        if name in targets:
            found[name] = column_kinds.as_numbers(table, column, rows)
            continue
        wanted = given.get(name, "")
        read = column_kinds.decide(table, column, rows, train, wanted)
        if read.kind in ("category", "date"):
            what = {"category": "text", "date": "dates besides the times"}[read.kind]
            read = Reading("unused", reason=what)
        found[name] = read
    if not any(one.kind == "number" for one in found.values()):
        raise GpuzooError(
            f"{table.what}: no column of numbers; name the one to predict with "
            "--target NAME"
        )
    if not targets:  # the last one of numbers comes last
        last = [one for one, read in found.items() if read.kind == "number"][-1]
        found[last] = found.pop(last)
    return found


def _grid(table, readings: dict, rows, places, gaps: str) -> np.ndarray:
    """Return values (places, columns), NaN where one is missing.

    Raises:
        GpuzooError: one is, and `gaps` is not interpolate.
    """
    grid = np.full((int(places[-1]) + 1, len(readings)), np.nan)
    for place, (name, read) in enumerate(readings.items()):
        values = read.values[rows]
        gone = np.isnan(values)
        if gone.any() and gaps != "interpolate":
            raise table.error(
                int(rows[int(np.argmax(gone))]), name,
                f"is missing, one of {int(gone.sum()):,} values; fill it in, or --gaps "
                "interpolate does, or leave the column out with --columns "
                f"{name}:drop",
            )  # fmt: skip
        if np.abs(values[~gone]).max(initial=0) > 1e30:
            raise GpuzooError(
                f"{table.what}: values of column {name!r} up to "
                f"{np.abs(values[~gone]).max():g} are too large; rescale them"
            )
        grid[places, place] = values
    return grid


def _channel(table, name: str, read: Reading, train: np.ndarray) -> Channel:
    there = train[~np.isnan(train)]
    if not len(there):
        raise GpuzooError(f"{table.what}: column {name!r} has no training value")
    mean, deviation = preparation.moments_of(there)
    if (there == there[0]).all():
        raise GpuzooError(
            f"{table.what}: all training values of column {name!r} are {there[0]:g}; "
            f"there is nothing to learn; leave it out with --columns {name}:drop, or "
            "name another target"
        )
    return Channel(name, mean, deviation, (read.form.thousands, read.form.point))


def _again(table: Columns, series: Series) -> tuple:
    """Return values (places, channels), stamps and findings of another table."""
    needed = [*series.times, *(one.name for one in series.channels)]
    if missing := [name for name in needed if name not in table.columns]:
        listed = ", ".join(map(repr, missing[:5])) + ", ..." * (len(missing) > 5)
        s = "s" * (len(missing) > 1)
        raise GpuzooError(
            f"{table.what}: without the column{s} {listed}, on which the model was "
            "trained"
        )
    if not len(table):
        raise GpuzooError(f"{table.what}: no rows below the names of the columns")
    times = series_times.read(table, [*series.times], [], series.order)
    gaps = "ignore" if series.unit == "line" else series.gaps
    placed = series_times.placed(table, times, gaps, series.step)
    readings = {
        one.name: column_kinds.as_numbers(
            table, table.columns[one.name], times.rows,
            column_kinds.numbers.Form(*one.form),
        )
        for one in series.channels
    }  # fmt: skip
    grid = _grid(table, readings, times.rows, placed.places, series.gaps)
    kept = np.ones(len(times.rows), bool)
    said = [*table.findings, *times.said, *placed.said]
    return grid, _stamps(times, placed, kept), said


def _stamps(times, placed, kept) -> np.ndarray:
    """Return the time of each place."""
    places, at = placed.places[kept], times.at[kept]
    return np.interp(np.arange(places[-1] + 1), places, at)


# --- windows ------------------------------------------------------------------------


def _ends(count: int, how: Options) -> dict[str, int]:
    """Return split -> the place at which it ends."""
    number, _, folds = (how.fold or "1/1").partition("/")
    left = int(folds) - int(number)
    held = count * HELD_OUT
    test = count - round(held * left / int(folds))
    border = count - round(held * (left + 1) / int(folds))
    if not how.validation:
        return {"train": border, "test": test}
    train = border - round(how.validation * border)
    return {"train": train, "val": border, "test": test}


class _Windows:
    """The windows of a series.

    Attributes:
        rows: (places, numbers), float32: standardized values, interpolated where one
            is missing, and the calendar.
        known: (places, channels): whether a value is none of these.
        first: the first place at which every column has had a value.
    """

    def __init__(self, what: str, series: Series, grid, stamps, task: str):
        self.what, self.series, self.task, self.grid = what, series, task, grid
        self.known = ~np.isnan(grid)
        self.first = int(np.argmax(self.known, axis=0).max())
        filled, every = grid.copy(), np.arange(len(grid))
        for place in np.flatnonzero(~self.known.all(axis=0)):
            there = self.known[:, place]
            filled[:, place] = np.interp(every, every[there], grid[there, place])
        cycles = series_times.calendar(stamps, series.calendar).astype(np.float32)
        self.rows = np.concatenate([series.scaled(what, filled), cycles], axis=1)

    def split(self, ends: dict[str, int]) -> tuple[dict[str, Arrays], int]:
        """Return the windows of each part, and how many are left out."""
        begin, splits, left = self.series.window, {}, 0
        for split, end in ends.items():
            splits[split], gone = self.between(begin, end)
            begin, left = end, left + gone
        return splits, left

    def between(self, begin: int, end: int) -> tuple[Arrays, int]:
        """Return the windows of what is predicted at places in [begin, end), and how
        many are left out: those that end in a row without a value, or are followed by
        one without a target, or by no move."""
        series = self.series
        window, horizon, targets = series.window, series.horizon, series.targets
        last = np.arange(max(window, begin) - 1, end - horizon)
        goals = np.cumsum(np.r_[0, self.known[:, :targets].all(axis=1)])
        right = self.known[last].all(axis=1) & (last - window + 1 >= self.first)
        right &= goals[last + horizon + 1] - goals[last + 1] == horizon
        if self.task == MOVE:
            now, then = self.grid[last, 0], self.grid[last + horizon, 0]
            right &= now != then
        chosen = last[right]
        size = 4 * len(chosen) * window * series.width
        if size > memory() // 4:
            raise GpuzooError(
                f"{self.what}: {len(chosen):,} windows of {window} rows and "
                f"{series.width} numbers take {size / 1e9:.0f} GB; take a shorter "
                "window, fewer columns or fewer rows"
            )
        views = np.lib.stride_tricks.sliding_window_view
        inputs = views(self.rows, window, axis=0)[chosen - window + 1]
        found = {"series": np.ascontiguousarray(inputs.swapaxes(1, 2))}
        if self.task == MOVE:
            found["label"] = (then > now)[right].astype(np.int32)
        else:
            ahead = views(self.rows[:, :targets], horizon, axis=0)[chosen + 1]
            ahead = ahead[:, 0] if targets == 1 else ahead.swapaxes(1, 2)
            found["target"] = np.ascontiguousarray(ahead)
        return found, len(last) - len(chosen)

    def looks_ahead(self, ends: dict[str, int]) -> list[str]:
        """Return a line for each column that is, in the training rows, a target some
        rows later, but for a factor: what a forecast could not know."""
        values = self.grid[: ends["train"]]
        values = values[self.known[: ends["train"]].all(axis=1)][-5_000:]
        found = []
        for place in range(self.series.targets, values.shape[1]):
            for target in range(self.series.targets):
                for later in range(1, min(self.series.horizon, len(values) // 2) + 1):
                    now, then = values[:-later, target], values[later:, target]
                    told = values[:-later, place]
                    stays = np.square(then - now).mean()
                    if stays and _unlike(told, then) < _LIKE * stays:
                        found.append(
                            f"column {self.series.channels[place].name!r} is "
                            f"{self.series.channels[target].name!r} of {later} rows "
                            "later: if it cannot be known at the time of a forecast, "
                            "leave it out with --columns "
                            f"{self.series.channels[place].name}:drop"
                        )
                        break
        return found


def _unlike(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean squared error of the best line from one to other."""
    one, other = one - one.mean(), other - other.mean()
    spread = np.square(one).mean()
    slope = (one * other).mean() / spread if spread else 0.0
    return float(np.square(other - slope * one).mean())


def _check_counts(table: Columns, splits: dict, ends: dict, how: Options) -> None:
    for split, part in splits.items():
        if (count := len(part["series"])) < LEAST:
            raise GpuzooError(
                f"{table.what}: {count} {LONG[split]} windows, and at least {LEAST} "
                f"are needed, of {ends['test']} rows with a window of {how.window} and "
                f"a horizon of {how.horizon}; shorten them, or add rows"
            )
        if "label" in part and split == "train" and len(np.unique(part["label"])) < 2:
            raise GpuzooError(
                f"{table.what}: every move of the training part is "
                f"{MOVES[part['label'][0]]}; there is nothing to learn"
            )


# --- findings -----------------------------------------------------------------------


def _described(
    series: Series, readings: dict, splits: dict, left: int, task: str
) -> list[str]:
    targets = ", ".join(map(repr, series.names))
    inputs = [one.name for one in series.channels[series.targets :]]
    steps = series_times.length(series.unit, series.step)
    when = f"times in {' and '.join(map(repr, series.times))}, " if series.times else ""
    if series.unit != "line":
        when += f"a row every {steps}, "
    said = f"predicted: {targets}; {when}{series.window} rows before {series.horizon}"
    found = [said, f"further inputs: {', '.join(map(repr, inputs)) or 'none'}"]
    for reason in dict.fromkeys(why for _, why in series.unused):
        names = [repr(name) for name, why in series.unused if why == reason]
        found.append(f"not used, {reason}: {', '.join(names)}")
    formats: dict[str, list[str]] = {}
    for name, reading in readings.items():
        for line in reading.said if reading.kind == "number" else ():
            formats.setdefault(line, []).append(repr(name))
    found += [f"{line}: {', '.join(names)}" for line, names in formats.items()]
    if left:
        found.append(_left_out(left, task))
    return found


def _left_out(count: int, task: str) -> str:
    still = ", or are followed by no move" * (task == MOVE)
    return (
        f"{count:,} windows are left out: they end in a row, or are followed by one, "
        f"of which a value is missing{still}"
    )
