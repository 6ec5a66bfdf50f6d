"""Decide what each column of a table holds, by stated rules, and read it so.

Of the values that are not missing:

- numbers: all are numbers in one format, and none begins with a superfluous 0, as a
  post code may;
- dates: all are dates, or times of day;
- categories: texts, of which those that occur more than once in the training rows are
  at least half.

A column that says nothing of other rows is not used: an empty one, a constant one, line
numbers, identifiers, free text. The recipe field `columns` overrules all this.
"""

import collections
import dataclasses
import functools
import re

import numpy as np

from gpuzoo.data import numbers
from gpuzoo.data.columns import Column, Columns, clean_name, number_text
from gpuzoo.data.lines import quoted
from gpuzoo.data.moments import clock, is_date, moments
from gpuzoo.errors import GpuzooError, nearest

KINDS = ("number", "category", "drop")
"""What `columns` may say of a column."""
MISSING_TEXTS = numbers.GONE
"""Of a column of texts, where "none" and "-" may be meant."""
_ZERO_FIRST = re.compile(r"[+-]?0\d+")
_ARTEFACT = re.compile(r"(-?\d{1,15})\.0+")  # 3.0, which was 3 before one was missing
_ID_NAMES = {"id", "ids", "uuid", "guid", "index", "idx", "rowid", "unnamed"}
_LOOKED_AT = 200
"""Cells that show whether it is worth looking at all."""
_MOST = 0.9
"""Fraction of numbers from which on a text among them is taken for a mistake; of few
different texts a half."""
_WORDS_AMONG = 3
CLOCK = "time of day"
_IDS = "line numbers or identifiers (--columns NAME:number uses them)"
_WORDS = (
    "text, of which most values occur once in the training rows (--columns "
    "NAME:category uses it)"
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a column is read."""

    kind: str
    """number, date, category; or unused."""
    values: np.ndarray | None = None
    """Of numbers and dates float64, NaN where missing; dates in days since 1970."""
    texts: list[str] | None = None
    """Of categories, "" where missing."""
    form: numbers.Form = numbers.PLAIN
    order: str = ""
    """Of dates: of day, month and year."""
    reason: str = ""
    """Why it is not used."""
    said: tuple[str, ...] = ()


def parse_columns(
    words: tuple[str, ...], names: list[str], target: str, kinds=KINDS
) -> dict:
    """Return column -> one of kinds, from words name:kind.

    Raises:
        GpuzooError: there is no such column, or no such kind; a column twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, colon, kind = word.rpartition(":")
        name = clean_name(name)
        if not colon or kind not in kinds:
            raise GpuzooError(
                f"columns must be name:kind, with a kind of {', '.join(kinds)}: "
                f"{word!r}"
            )
        if name == target:
            how = "the task says how it is read: --task classify_table or regress_table"
            if kinds is not KINDS:
                how = "it holds the classes; leave it out"
            raise GpuzooError(f"columns: {name!r} is the target; {how}")
        if name not in names:
            raise GpuzooError(f"columns: no column {name!r}; {nearest(name, names)}")
        if name in found:
            raise GpuzooError(f"columns: {name!r} is given twice; give it once")
        found[name] = kind
    return found


def decide(
    table: Columns, column: Column, rows: np.ndarray, train: np.ndarray, wanted: str
) -> Reading:
    """Read a column as what it holds.

    Args:
        rows: the rows of the table that are used, in their order.
        train: those for training.
        wanted: one of KINDS, or "".

    Raises:
        GpuzooError: it is not what it is said to be, or a few texts stand among
            numbers or dates.
    """
    if wanted == "drop":
        return Reading("unused", reason="left out by columns")
    if wanted == "number":
        return _tolerant(as_numbers(table, column, rows), train, always=True)
    if wanted == "category":
        return Reading("category", texts=as_categories(column))
    if column.values is not None:
        return _tolerant(Reading("number", values=column.values), train, column, rows)
    texts = column.texts
    different = dict.fromkeys(texts[row] for row in rows)
    there = [cell for cell in different if cell.lower() not in numbers.MISSING]
    if not there:
        return _as_text(column, train)
    if _mostly(table, column, rows, there, _is_moment, "a date", "dates"):
        return _tolerant(as_dates(table, column, rows), train)
    if column.exact and _mostly_exact(table, column, rows):
        return _tolerant(as_numbers(table, column, rows), train, column, rows)
    plain = not column.typed and not any(map(_ZERO_FIRST.fullmatch, there))
    number = functools.partial(numbers.is_number, unit=numbers.unit_of(there))
    if plain and _mostly(table, column, rows, there, number, "a number", "numbers"):
        return _tolerant(as_numbers(table, column, rows), train, column, rows)
    return _as_text(column, train)


def _mostly_exact(table: Columns, column: Column, rows: np.ndarray) -> bool:
    """Whether at least half of the values are numbers of a data frame.

    Raises:
        GpuzooError: they are, and others are texts.
    """
    there = [row for row in rows if column.texts[row].lower() not in numbers.MISSING]
    wrong = [row for row in there if row not in column.exact]
    if 2 * len(wrong) > len(there):
        return False
    if wrong:
        raise table.error(
            wrong[0], column.name,
            f"{quoted(column.texts[wrong[0]])} is a text, and most values are numbers; "
            "give only numbers, or only texts",
        )  # fmt: skip
    return True


def _mostly(table, column, rows, there: list, test, one: str, kind: str) -> bool:
    """Return whether all different cells pass a test.

    Raises:
        GpuzooError: nearly all do.
    """
    some = there[:: max(1, len(there) // _LOOKED_AT)]
    if 2 * sum(map(test, some)) < len(some):
        return False
    wrong = {cell for cell in there if not test(cell)}
    if not wrong:
        return True
    counts = collections.Counter(column.texts[row] for row in rows)
    total, bad = (sum(counts[cell] for cell in cells) for cells in (there, wrong))
    most = 0.5 if len(wrong) <= _WORDS_AMONG else 1 - _MOST
    if bad > most * total or len(there) - len(wrong) < 10:
        return False
    row = next(row for row in rows if column.texts[row] in wrong)
    raise table.error(
        row, column.name,
        f"{quoted(column.texts[row])} is not {one}, and {total - bad:,} of {total:,} "
        f"values are {kind}; correct it, leave the cell empty, or say what the column "
        f"holds: --columns {quoted(column.name + ':category')} or :drop",
    )  # fmt: skip


def _tolerant(
    reading: Reading, train: np.ndarray, column: Column | None = None, rows=None,
    always: bool = False,
) -> Reading:  # fmt: skip
    """Return a reading of numbers, or why they are not used."""
    if reading.kind == "unused":
        return reading
    values = reading.values[train]
    there = values[~np.isnan(values)]
    if not len(there):
        return Reading("unused", reason="empty in all training rows")
    if not always:
        if len(there) == len(values) and (there == there[0]).all():
            return Reading("unused", reason="the same value in all training rows")
        if column is not None and _are_ids(column.name, reading.values[rows]):
            return Reading("unused", reason=_IDS)
    return reading


def _are_ids(name: str, values: np.ndarray) -> bool:
    """Whether integers, all different, rise by one from row to row, or have the
    name of identifiers."""
    if len(values) < 10 or not (values == np.floor(values)).all():  # NaN: not whole
        return False
    steps = np.diff(values)
    if (steps == steps[0]).all() and abs(steps[0]) == 1:
        return True
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    called = {word.lower() for word in words} & _ID_NAMES
    return bool(called) and len(np.unique(values)) == len(values)


def _as_text(column: Column, train: np.ndarray) -> Reading:
    texts = as_categories(column)
    counts = collections.Counter(texts[row] for row in train)
    missing = counts.pop("", 0)
    total = len(train) - missing
    if not total:
        return Reading("unused", reason="empty in all training rows")
    if len(counts) == 1 and not missing:
        return Reading("unused", reason="the same value in all training rows")
    if 2 * sum(n for n in counts.values() if n > 1) < total:
        return Reading("unused", reason=_WORDS)
    return Reading("category", texts=texts)


# --- reading ------------------------------------------------------------------------


def as_numbers(
    table: Columns, column: Column, rows, form: numbers.Form | None = None
) -> Reading:
    """Read a column as numbers.

    Raises:
        GpuzooError: the row of a cell that is none, is ambiguous or not finite.
    """
    if column.values is not None:
        return Reading("number", values=column.values)
    there = [
        row
        for row in rows
        if row not in column.exact and column.texts[row].lower() not in numbers.MISSING
    ]
    cells = [column.texts[row] for row in there]
    grouped = "," if table.mark == "," else ""
    if not cells and column.exact:  # numbers, and gaps that are written
        there = [row for row in rows if row in column.exact]
        values = np.full(len(column), np.nan)
        values[there] = [column.exact[row] for row in there]
        return Reading("number", values=values, form=form or numbers.PLAIN)
    try:
        found, said, form = numbers.read_in(form, cells, grouped, table.mark == ",")
    except numbers.Unreadable as error:
        row = there[error.row]
        raise table.error(
            row, column.name,
            f"{quoted(column.texts[row])} {error}; correct it, or leave the cell empty",
        ) from None  # fmt: skip
    values = np.full(len(column), np.nan)
    values[there] = found
    for row in column.exact.keys() & set(map(int, rows)):
        values[row] = column.exact[row]
    if not np.isfinite(found).all():
        row = there[int(np.argmin(np.isfinite(found)))]
        raise table.error(row, column.name, f"{column.texts[row]} is not finite")
    return Reading("number", values=values, form=form, said=tuple(said))


def as_dates(table: Columns, column: Column, rows, order: str = "") -> Reading:
    """Read a column of dates as days since 1970-01-01, or of times of day as days.

    Args:
        order: of day, month and year; "": the only one that fits all.

    Raises:
        GpuzooError: the row of a cell that is not a date.
    """
    if column.values is not None:
        row = int(rows[0])
        raise table.error(
            row, column.name,
            f"{column.values[row]:g} is a number, and the column held dates in the "
            "training; write them as texts",
        )  # fmt: skip
    there = [row for row in rows if column.texts[row].lower() not in numbers.MISSING]
    cells = dict.fromkeys(column.texts[row] for row in there)  # in their order
    ways = {cell: _ways(cell) for cell in cells}
    orders = [order] if order else _common(ways)
    if len(orders) > 1 and any(len(set(way.values())) > 1 for way in ways.values()):
        return Reading(
            "unused",
            reason="dates whose order of day and month is not clear; write 2024-05-31",
        )
    values = np.full(len(column), np.nan)
    for row in there:
        way = ways[column.texts[row]]
        if order not in ("", CLOCK) and way.keys() == {"Y M D"}:  # the only reading
            way = {order: way["Y M D"]}
        seconds = way.get(orders[0]) if orders else None
        if seconds is None:
            like = f" in the order {order}" if order else " like the others"
            raise table.error(
                row, column.name,
                f"{quoted(column.texts[row])} is not a date{like}; correct it, or "
                "leave the cell empty",
            )  # fmt: skip
        values[row] = seconds / 86_400
    return Reading("date", values=values, order=orders[0])


def _is_moment(cell: str) -> bool:
    return is_date(cell) or clock(cell) is not None


def _ways(cell: str) -> dict[str, float]:
    """Return order -> seconds of a date or a time of day."""
    if (at := clock(cell)) is not None:
        return {CLOCK: at}
    return moments(cell) if is_date(cell) else {}


def _common(ways: dict[str, dict]) -> list[str]:
    """Return the orders that fit all dates, or else most."""
    counts = collections.Counter(order for way in ways.values() for order in way)
    fitting = [order for order, count in counts.items() if count == len(ways)]
    return fitting or [counts.most_common(1)[0][0]]


def as_categories(column: Column) -> list[str]:
    """Read a column as categories, "" where missing; integers without .0."""
    if column.values is not None:
        return ["" if value != value else number_text(value) for value in column.values]
    return [category(cell) for cell in column.texts]


def category(cell: str) -> str:
    """Return the category or class that a cell names, "" if it is missing."""
    if cell.lower() in MISSING_TEXTS:
        return ""
    whole = _ARTEFACT.fullmatch(cell)
    return whole[1] if whole else cell
