"""Find the time series in a table, and the columns that hold its times."""

import collections
import dataclasses
import pathlib
import re

import numpy as np

from gpuzoo.data import numbers
from gpuzoo.data.lines import WIDEST, Table, quoted, read_table
from gpuzoo.data.moments import clock, is_date, moments, month_number
from gpuzoo.errors import GpuzooError

_WHOLE = re.compile(r"[+-]?\d+")
# Words in the names of columns of times or line numbers.
_TIME_NAMES = {
    "timestamp", "time", "date", "datetime", "unix", "epoch", "year", "quarter",
    "month", "week", "day", "hour", "minute", "second", "t", "ts", "ms", "sec", "step",
    "index", "id", "no", "nr", "num", "row", "seq", "unnamed", "zeit", "datum", "jahr",
}  # fmt: skip
_PARTS = (("year", "yyyy", "yr", "jahr"),
          ("quarter", "qtr", "quartal", "week", "woche", "month", "mm", "mon", "monat"),
          ("day", "dd", "tag"), ("hour", "hh", "hr"), ("minute", "min"))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """A series, oldest first, and findings on how it was read."""

    values: np.ndarray
    """float64"""
    findings: tuple[str, ...]


def read_column(path: pathlib.Path, content: bytes | None = None) -> Column:
    """Read the last numeric column, one line per time.

    Columns are separated by semicolons, tabs, bars, commas or spaces; a first line
    without numbers is a header. The number format (decimal comma, thousands separators)
    is detected from the whole column. If times decrease, the series is reversed.

    Args:
        content: of the file, if it has been read.

    Raises:
        GpuzooError: the line, its content and the remedy; also for ambiguous numbers,
            so that none is misread.
    """
    table = read_table(path, content)
    times = find_times(table) if table.width > 1 else None
    place = _choose(table, times)
    values, said = table.numbers(place)
    order, turned = "", False
    if times:
        turned = falls(table, times)
        order = "times in " + " and ".join(table.called(p) for p in times.places)
        if turned:
            values = values[::-1]
            order = f"newest first in the file and reversed by {order}"
    elif table.width > 1:
        order = (
            "in the order of the file: no column of times was found, so the oldest "
            "line must come first"
        )
    lines = (table.lines[0], table.lines[-1])
    separated = f" of {table.width}, separated by {table.mark!r}" * (table.width > 1)
    table.findings.append(
        f"series: {table.called(place)}{separated}: {len(values):,} values from "
        f"{values[0]:.10g} (line {lines[turned]}) to {values[-1]:.10g} (line "
        f"{lines[not turned]})" + f", {order}" * bool(order)
    )
    table.findings += said
    return Column(np.ascontiguousarray(values), tuple(table.findings))


# --- which column -------------------------------------------------------------------


def _choose(table: Table, times: "Times | None") -> int:
    """Return the last numeric column that holds neither times nor line numbers."""
    kinds = [_column_kind(table.column(place)) for place in range(table.width)]
    _refuse_wide(table, kinds.count("number"), bool(times))
    if table.width == 1:
        if kinds != ["number"]:
            raise _no_numbers(table)
        return 0
    left = times.places if times else []
    candidates = [p for p, k in enumerate(kinds) if k == "number" and p not in left]
    named = [p for p in candidates if not _is_named_like_time(table, p)]
    if candidates and not named:
        raise GpuzooError(
            f"{table.what}: {table.called(candidates[-1])} is named like times or line "
            "numbers and is sorted, and no other column holds a series; rename it if "
            "it is one"
        )
    if not named:
        raise _no_numbers(table)
    uneven = [p for p in named if not _is_even(table.column(p))]
    place = (uneven or named)[-1]
    after = [table.called(p) for p in range(place + 1, table.width)]
    if after:
        table.findings.append(
            f"{', '.join(after)}: text, times or line numbers, ignored"
        )
    return place


def _refuse_wide(table: Table, count: int, timed: bool) -> None:
    pixels = sum(
        bool(re.match(r"(pixel|px|attr|feature|f|x|v)[_ ]?\d", name.lower()))
        for name in table.head or []
    )
    if (count > WIDEST and not timed) or (count > 8 and 2 * pixels > count):
        raise GpuzooError(
            f"{table.what}: is a table of {table.width} columns, not a series; keep "
            "the columns of the series and its times, or save images and labels as "
            "arrays x and y in a .npz file"
        )


def _no_numbers(table: Table) -> GpuzooError:
    cells = table.column(table.width - 1)
    odd = (i for i, cell in enumerate(cells) if numbers.kind(cell) != "number")
    row = next(odd, 0)
    return table.error(
        row,
        f"{quoted(cells[row])} is not a number; the last column must hold the series",
    )


def _column_kind(cells: list[str]) -> str:
    """Return the type of most cells: number, text, date or empty."""
    kinds = collections.Counter(map(numbers.kind, cells))
    if kinds["missing"] == len(cells):
        return "empty"
    if clock(cells[0]) is not None and clock(cells[-1]) is not None:
        return "date"
    if is_date(cells[0]) and is_date(cells[-1]) and not _WHOLE.fullmatch(cells[0]):
        return "date"
    return "number" if kinds["number"] >= kinds["text"] else "text"


def _is_named_like_time(table: Table, place: int) -> bool:
    """Whether a column has the name of times, or none, and is sorted."""
    name = table.name(place)
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)  # of userId too
    words = {word.lower().removesuffix("s") for word in words} | {name.lower()}
    if table.head is None or not (words & _TIME_NAMES or not name):
        return False
    return _is_sorted(key_of(table.column(place)))


def _is_even(cells: list[str]) -> bool:
    """Whether integers change by a constant step, as line numbers do."""
    if not all(map(_WHOLE.fullmatch, cells)):
        return False
    steps = np.diff([int(cell) for cell in cells])
    return bool(steps.size and steps[0] and (steps == steps[0]).all())


# --- times --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Times:
    """The columns of times."""

    places: list[int]
    ways: dict[str, np.ndarray]
    """Numbers that increase with time, for each interpretation: of dates seconds since
    1970, for each order of day, month and year; "": other numbers."""


def find_times(table: Table) -> Times | None:
    """Find dates, perhaps with a separate column for the time of day; columns of year,
    month, ...; or sorted numbers in the first columns or named like times."""
    for place in range(table.width):
        if ways := ways_of_dates(table, place):
            return with_time_of_day(table, place, ways)
    places = []
    for names in _PARTS:
        places += [p for p in range(table.width) if table.name(p).lower() in names][:1]
    if len(places) > 1 and table.name(places[0]).lower() in _PARTS[0]:
        keys = [key_of(table.column(p)) for p in places]
        if all(key is not None for key in keys):
            return Times(places, {"": _rank(keys)})
    named = [p for p in range(table.width) if _is_named_like_time(table, p)]
    if named and named[0] > 0:
        return Times(named[-1:], {"": key_of(table.column(named[-1]))})
    keys = []
    for place in range(min(max(table.width - 1, 1), len(_PARTS))):
        keys.append(key_of(table.column(place)))
        if not _is_sorted(keys[0]) or keys[-1] is None:
            break
        rank = _rank(keys)
        if _is_sorted(rank) and (np.diff(rank) != 0).all():
            return Times([*range(place + 1)], {"": rank if place else keys[0]})
    if _is_sorted(keys[0]) and (named or len(np.unique(keys[0])) > 10):
        return Times([0], {"": keys[0]})  # with duplicate times
    last = table.column(table.width - 1)
    return Times([table.width - 1], {"": key_of(last)}) if _is_even(last) else None


def with_time_of_day(table: Table, day: int, ways: dict) -> Times:
    others = [place for place in range(table.width) if place != day]
    for place in others:
        clocks = [clock(cell) for cell in table.column(place)]
        if None not in clocks:
            at = np.array(clocks)
            return Times([day, place], {one: way + at for one, way in ways.items()})
    first = next(iter(ways.values()))
    if (first == first[0]).all():  # all on one day
        for place in others[:-1]:
            key = key_of(table.column(place))
            if _is_sorted(key) and (np.diff(key) != 0).all():
                return Times([day, place], {"": key})
    return Times([day], ways)


def key_of(cells: list[str]) -> np.ndarray | None:
    """Return sort keys of numbers, names of months or times of day; or None."""
    if clock(cells[0]) is not None:
        found = [clock(cell) for cell in cells]
    elif month_number(cells[0]) and not cells[0].isdecimal():
        found = [month_number(cell) or None for cell in cells]
    else:
        try:
            return numbers.read(cells)[0]
        except numbers.Unreadable:
            return None
    return None if None in found else np.array(found, float)


def _rank(keys: list[np.ndarray]) -> np.ndarray:
    """Return the rank of each row when sorted by the first key, then the next."""
    _, rank = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)
    return rank.reshape(-1)


def _is_sorted(key: np.ndarray | None) -> bool:
    steps = np.diff(key) if key is not None else np.zeros(0)
    return bool(steps.any() and ((steps >= 0).all() or (steps <= 0).all()))


def ways_of_dates(table: Table, place: int) -> dict[str, np.ndarray]:
    """Return the dates of a column for each order of day, month and year that fits all
    of them.

    Raises:
        GpuzooError: only some cells are dates.
    """
    cells = table.column(place)
    some = {0, len(cells) // 3, len(cells) // 2, len(cells) - 1}
    if 2 * sum(is_date(cells[i]) for i in some) <= len(some):
        return {}
    found = [moments(cell) if is_date(cell) else {} for cell in cells]
    counts = collections.Counter(order for each in found for order in each)
    orders = [order for order, count in counts.items() if count == len(cells)]
    if orders:
        return {o: np.array([each[o] for each in found]) for o in orders}
    best, count = counts.most_common(1)[0]
    if count < 0.9 * len(cells):
        return {}
    bad = next(i for i, each in enumerate(found) if best not in each)
    raise table.error(
        bad,
        f"{quoted(cells[bad])} is not a date like the others of {table.called(place)}; "
        "write it alike, or remove the line",
    )


def falls(table: Table, times: Times) -> bool:
    """Whether times decrease.

    Raises:
        GpuzooError: they are not sorted.
    """
    for values in times.ways.values():
        steps = np.diff(values)
        if (steps >= 0).all() or clock_change(steps):
            return _note_duplicates(table, times, steps)
        if (steps <= 0).all() or clock_change(-steps):
            _note_duplicates(table, times, steps)
            return True
    steps = np.diff(next(iter(times.ways.values())))
    way = 1 if np.count_nonzero(steps > 0) >= np.count_nonzero(steps < 0) else -1
    row = int(np.argmax(way * steps < 0)) + 1
    now, before = (
        quoted(" ".join(table.rows[i][place] for place in times.places))
        for i in (row, row - 1)
    )
    names = " and ".join(table.called(place) for place in times.places)
    raise table.error(
        row,
        f"{now} comes after {before}; sort the lines by {names}, and keep only one "
        "series",
    )


def clock_change(steps: np.ndarray) -> bool:
    """Whether times only go back by an hour, as at the end of daylight saving time."""
    back = steps[steps < 0]
    return len(back) <= 1 + len(steps) / 500 and bool((back >= -3600).all())


def _note_duplicates(table: Table, times: Times, steps: np.ndarray) -> bool:
    same = int(np.count_nonzero(steps == 0))
    if same:
        table.findings.append(
            f"{same:,} lines have the same time as the line before in "
            f"{table.called(times.places[-1])}"
        )
    return False
