"""The times of a series: the columns that hold them, their order, their steps, what is
missing between them, and their places in the cycles of the calendar."""

import dataclasses
import re

import numpy as np

from gpuzoo import elementary
from gpuzoo.data import table as tables
from gpuzoo.data.columns import Columns, number_text
from gpuzoo.data.lines import Table, quoted
from gpuzoo.errors import GpuzooError

CYCLES = ("day", "week", "month", "year")
GAPS = ("refuse", "interpolate", "ignore")
DAY = 86_400
_HOLIDAYS = 4
"""Weekdays in a row without a line that are passed over."""
_UNIX = {"unix": (1e8, 5e9, 1), "unix ms": (1e11, 5e12, 1000)}
"""Order -> smallest and largest number, and numbers per second."""
_IGNORE = "--gaps ignore takes the lines one after the other"


@dataclasses.dataclass(frozen=True)
class Times:
    """The times of the rows of a table, oldest first."""

    names: tuple[str, ...]
    """The columns that hold them; (): none does."""
    order: str
    """Of dates: of day, month and year, or unix; "": plain numbers, or none."""
    rows: np.ndarray
    """The rows of the table, oldest first."""
    at: np.ndarray
    """Of each of these its time: of dates in seconds since 1970."""
    said: tuple[str, ...] = ()


class _Cells(Table):
    """Columns as the reader of a CSV file has them."""

    source: Columns

    def error(self, row: int, why: str) -> GpuzooError:
        return GpuzooError(f"{self.what}: {self.source.at(row)}: {why}")


def read(table: Columns, named: list[str], others: list[str], order: str = "") -> Times:
    """Find and read the times of the rows.

    Args:
        named: the columns that hold them; []: `others` are looked through.
        order: of the times in the training.

    Raises:
        GpuzooError: they are not sorted, or their order of day and month is not clear.
    """
    rows, cells = np.arange(len(table)), _cells(table, named or others)
    found = (_named(cells) if named else tables.find_times(cells)) if cells else None
    if found is None:
        said = (
            "in the order of the rows: no column of times was found (--columns "
            "NAME:time names it), so the oldest must come first"
        )
        return Times((), "", rows, rows.astype(float), (said,))
    names = tuple(cells.name(place) for place in found.places)
    ways = found.ways
    if "" in ways and (kind := _unix(ways[""])) and (order or _is_named_so(names)):
        ways = {kind: ways[""] / _UNIX[kind][2]}
    if order and order not in ways:
        raise GpuzooError(
            f"{table.what}: the times in {', '.join(map(repr, names))} are not "
            f"{order!r}, as they were in the training; write them alike"
        )
    ways = {order: ways[order]} if order else ways
    chosen, turned = _chosen(cells, dataclasses.replace(found, ways=ways), names)
    at = ways[chosen]
    said = ("the rows are newest first, and reversed",) * turned
    if turned:
        rows, at = rows[::-1], at[::-1]
    return Times(names, chosen, rows, at, said)


def _cells(table: Columns, names: list[str]) -> _Cells | None:
    if not names or not len(table):
        return None
    columns = [
        table.columns[name].texts
        if table.columns[name].values is None
        else ["" if v != v else number_text(v) for v in table.columns[name].values]
        for name in names
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    lines = table.lines or [*range(len(table))]
    cells = _Cells(table.what, table.mark, list(names), lines, rows, [])
    cells.source = table
    return cells


def _named(cells: _Cells) -> tables.Times:
    """Read the columns that the user has named."""
    if ways := tables.ways_of_dates(cells, 0):
        if cells.width > 1:
            return tables.with_time_of_day(cells, 0, ways)
        return tables.Times([0], ways)
    keys = [tables.key_of(cells.column(place)) for place in range(cells.width)]
    for place, key in enumerate(keys):
        if key is None:
            row = next(
                (r for r, one in enumerate(cells.column(place))
                 if tables.key_of([one]) is None), 0,
            )  # fmt: skip
            raise cells.error(
                row,
                f"{quoted(cells.rows[row][place])} of {cells.called(place)} is neither "
                "a date nor a number; correct it, or name another column of times",
            )
    if len(keys) == 1:
        return tables.Times([0], {"": keys[0]})
    _, rank = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)
    return tables.Times([*range(cells.width)], {"": rank.reshape(-1).astype(float)})


def _unix(values: np.ndarray) -> str:
    """Return which seconds since 1970 numbers may be, or ""."""
    for kind, (low, high, _) in _UNIX.items():
        if (values >= low).all() and (values <= high).all():
            return kind
    return ""


def _is_named_so(names: tuple[str, ...]) -> bool:
    words = set(re.findall(r"[a-z]+", " ".join(names).lower()))
    return bool(
        words & {"unix", "epoch", "timestamp", "time", "ts", "date", "datetime"}
    )


def _chosen(cells: _Cells, found: tables.Times, names) -> tuple[str, bool]:
    """Return the reading of the times by which they are sorted, of several the most
    even one, and whether they are newest first."""
    sorted_, even = {}, {}
    for order, values in found.ways.items():
        steps = np.diff(values)
        for turned in (False, True):
            forward = -steps if turned else steps
            if (forward >= 0).all() or tables.clock_change(forward):
                sorted_[order] = turned
                _, index = measured(values[::-1] if turned else values, bool(order))
                _, count = _most_frequent(np.diff(index))
                even[order] = count
                break
    if not sorted_:
        tables.falls(cells, found)  # raises: it says where
    best = [order for order in sorted_ if even[order] == max(even.values())]
    first = found.ways[best[0]]
    if any((found.ways[order] != first).any() for order in best):
        raise GpuzooError(
            f"{cells.what}: the order of day and month in "
            f"{', '.join(map(repr, names))} is not clear; write 2024-05-31"
        )
    return best[0], sorted_[best[0]]


def _most_frequent(steps: np.ndarray) -> tuple[float, int]:
    values, counts = np.unique(steps, return_counts=True)
    if not len(values):
        return 0.0, 0
    return float(values[np.argmax(counts)]), int(counts.max())


# --- steps and gaps -----------------------------------------------------------------


def measured(at: np.ndarray, dated: bool) -> tuple[str, np.ndarray]:
    """Return the unit in which times go on evenly, and the times in it: months, if all
    are the same day of the month or the last; weekdays, if they are days and none is a
    Saturday or Sunday; else seconds. Plain numbers are as they are."""
    if not dated:
        return "number", at
    step, _ = _most_frequent(np.diff(at))
    stamps = np.floor(at).astype("datetime64[s]")
    if step >= 28 * DAY:
        months = stamps.astype("datetime64[M]")
        into = stamps - months.astype("datetime64[s]")
        left = (months + 1).astype("datetime64[s]") - stamps
        if (into == into[0]).all() or (left == left[0]).all():
            return "month", months.astype(float)
    if step == DAY:
        days = stamps.astype("datetime64[D]")
        if np.is_busday(days).all() and (days[-1] - days[0]).astype(int) >= 7:
            return "weekday", np.busday_count(days[0], days).astype(float)
    return "second", at


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the rows of a series stand on an even scale of times."""

    places: np.ndarray
    """Of each row; integers that increase."""
    unit: str
    """second, weekday, month, number, or line: one after the other."""
    step: float
    """Units from one place to the next."""
    said: tuple[str, ...] = ()


def placed(table: Columns, times: Times, gaps: str, step: float = 0.0) -> Places:
    """Return the places of rows by their times.

    Args:
        gaps: the recipe field.
        step: of the training; 0: the most frequent one.

    Raises:
        GpuzooError: a time twice, steps that are uneven, or times that are missing,
            unless `gaps` says what to do.
    """
    count = len(times.rows)
    if not times.names or gaps == "ignore":
        return Places(np.arange(count), "line", 1.0)
    unit, index = measured(times.at, bool(times.order))
    steps = np.diff(index)
    usual = step or _most_frequent(steps)[0]

    def fault(place: int, why: str) -> GpuzooError:
        at = table.at(times.rows[place + 1])
        cells = [table.columns[name] for name in times.names]
        row = times.rows[place + 1]
        text = " ".join(
            one.texts[row] if one.values is None else number_text(one.values[row])
            for one in cells
        )
        return GpuzooError(f"{table.what}: {at}: {text} {why}")

    if (steps <= 0).any():
        raise fault(
            int(np.argmax(steps <= 0)),
            "is not later than the time before it; keep one row of each time, write "
            f"times in UTC where clocks are changed, or {_IGNORE}",
        )
    each = steps / usual
    whole = np.round(each)
    uneven = (np.abs(each - whole) > 0.05) | (whole < 1)
    if uneven.any():
        place = int(np.argmax(uneven))
        raise fault(
            place,
            f"comes {length(unit, steps[place])} after the time before it, and most "
            f"steps are {length(unit, usual)}; a series needs even steps, or {_IGNORE}",
        )
    said = []
    if unit == "weekday" and usual == 1:
        passed = (whole > 1) & (whole <= _HOLIDAYS + 1)
        if passed.any():
            said.append(
                f"{int((whole - 1)[passed].sum()):,} weekdays without a row, taken for "
                "holidays, are passed over"
            )
        whole = np.where(passed, 1, whole)
    missing = int((whole - 1).sum())
    if missing and gaps == "refuse":
        place = int(np.argmax(whole > 1))
        raise fault(
            place,
            f"comes {length(unit, steps[place])} after the time before it, and most "
            f"steps are {length(unit, usual)}: {missing:,} times are missing in all; "
            f"add them, or --gaps interpolate fills them in, or {_IGNORE}",
        )
    if missing > 3 * count:
        raise GpuzooError(
            f"{table.what}: {missing:,} times are missing between {count:,}, too many "
            f"to interpolate; {_IGNORE}"
        )
    if missing:
        said.append(f"{missing:,} times are missing, and interpolated")
    places = np.concatenate([[0], np.cumsum(whole)]).astype(int)
    return Places(places, unit, usual, tuple(said))


def length(unit: str, steps: float) -> str:
    """Return a length of time as text."""
    steps = float(steps)
    if unit == "number":
        return f"{steps:g}"
    if unit == "second":
        for name, seconds in (("day", DAY), ("hour", 3600), ("minute", 60)):
            if steps >= seconds:
                unit, steps = name, steps / seconds
                break
    return f"{steps:.6g} {unit}{'s' * (steps != 1)}"


# --- the calendar -------------------------------------------------------------------


def check_calendar(cycles: tuple[str, ...], times: Times) -> None:
    """Raise GpuzooError for a cycle that is none, or where there are no dates."""
    for cycle in cycles:
        if cycle not in CYCLES or cycles.count(cycle) > 1:
            raise GpuzooError(
                f"calendar must be some of {', '.join(CYCLES)}, each once: {cycle!r}"
            )
    if cycles and not times.order:
        raise GpuzooError(
            "calendar needs dates, and the series has none; name their column with "
            "--columns NAME:time, or leave calendar out"
        )


def calendar(at: np.ndarray, cycles: tuple[str, ...]) -> np.ndarray:
    """Return of times in seconds since 1970 sine and cosine of their places in each of
    the cycles, (times, 2 * cycles), float64."""
    days = at / DAY
    whole = np.floor(at).astype("datetime64[s]")
    found = []
    for cycle in cycles:
        if cycle == "day":
            turns = days % 1
        elif cycle == "week":
            turns = (days + 3) % 7 / 7  # from Monday on
        else:
            begin = whole.astype(f"datetime64[{cycle[0].upper()}]")
            first = begin.astype("datetime64[s]").astype(float)
            after = (begin + 1).astype("datetime64[s]").astype(float)
            turns = (at - first) / (after - first)
        found += [elementary.sin_turns(turns), elementary.cos_turns(turns)]
    return np.stack(found, axis=1) if found else np.zeros((len(at), 0))
