"""The series in a CSV file, whichever program wrote it."""

import collections
import csv
import dataclasses
import io
import pathlib
import re

import numpy as np

from gpuzoo.data.moments import is_date, moments
from gpuzoo.errors import GpuzooError

MARKS = ";\t|,"  # that may separate columns; the first that parts the first line
# A table of more columns than this, none of which is a time, is no series.
WIDEST = 32
# So many numbers with a mark settle that it groups thousands: fewer decimals would
# hardly all end after three digits.
_SETTLED = 20
_MISSING = {"", "-", "--", "?", "#n/a", "n/a", "na", "nan", "null", "none"}
_SPACES = str.maketrans(dict.fromkeys("\u00a0\u202f\u2009", " ") | {"\u2212": "-"})
_INDEX_NAMES = {"", "unnamed: 0", "index"}


@dataclasses.dataclass(frozen=True)
class Column:
    """A series, oldest first, and what was taken for it."""

    values: np.ndarray
    """float64"""
    findings: tuple[str, ...]


@dataclasses.dataclass
class _Table:
    """The cells of a file, with the line that each row stands in."""

    what: str
    mark: str
    head: list[str] | None
    head_line: int
    lines: list[int]
    rows: list[list[str]]
    findings: list[str]

    def column(self, place: int) -> list[str]:
        return [row[place] for row in self.rows]

    @property
    def width(self) -> int:
        return len(self.rows[0])

    def called(self, place: int) -> str:
        name = self.head[place].strip() if self.head else ""
        return f"column {_quoted(name)}" if name else f"column {place + 1}"


def read_column(path: pathlib.Path) -> Column:
    """The last column of numbers, one line for each time.

    Columns are separated by semicolons, tabs, bars, commas or blanks; a first line
    without numbers names them. How numbers are written (decimal comma, thousands marks)
    is told from the whole column. Where times fall, the series is turned round.

    Raises:
        GpuzooError: the line, what it holds, and the remedy; also where the meaning
            cannot be told, so that no number is taken for another.
    """
    what = f"data {path.name!r}"
    text, findings = _text(what, path)
    table = _parted(what, text)
    table.findings = findings + table.findings
    times = _times(table)
    place, read = _choose(table, times)
    values = read.values
    order, turned = ", in the order of the file" * (table.width > 1), False
    if times:
        turned = _falls(table, times)
        order = f", times in {table.called(times.place)}"
    if turned:
        values = values[::-1]
        order = f", newest first in the file and turned round by {order[11:]}"
    lines = (table.lines[0], table.lines[-1])
    separated = f" of {table.width}, separated by {table.mark!r}" * (table.width > 1)
    table.findings.append(
        f"series: {table.called(place)}{separated}: {len(values):,} values from "
        f"{values[0]:.10g} (line {lines[turned]}) to {values[-1]:.10g} (line "
        f"{lines[not turned]}){order}"
    )
    if read.said:
        table.findings.append(read.said)
    return Column(np.ascontiguousarray(values), tuple(table.findings))


# --- text ---------------------------------------------------------------------------


def _text(what: str, path: pathlib.Path) -> tuple[str, list[str]]:
    """The characters of a file, and a finding if they are not UTF-8."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise GpuzooError(f"{what}: there is no such file; check the path") from None
    except OSError as error:
        raise GpuzooError(f"{what}: cannot be read: {error.strerror}") from None
    encoding = "utf-8-sig"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif content[1:2] == b"\0" or content[:1] == b"\0":
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    found = []
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise GpuzooError(
                f"{what}: not a readable CSV file: it begins like UTF-16 and is none; "
                "save it as UTF-8"
            ) from None
        text = content.decode("cp1252", "replace")
        found = ["the file is no UTF-8 and was read as Windows-1252"]
    control = re.search(r"[\0-\x08\x0e-\x1f\x7f]", text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise GpuzooError(
            f"{what}: line {line}: not a readable CSV file: it holds the byte "
            f"{control[0]!r}, which no text has; save it as CSV again"
        )
    return text, found


def _quoted(cell: str, most: int = 60) -> str:
    """A cell as a message shows it: one line, not a page."""
    first = cell.strip().split("\n")[0].strip()
    return repr(first[:most] + "..." * (len(first) > most or len(cell.strip()) > most))


# --- rows and columns ---------------------------------------------------------------


def _parted(what: str, text: str) -> _Table:
    """The rows of a file, all of one width."""
    findings = []
    named = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)  # as Excel writes it
    skipped = 1 if named else 0
    if named:
        text = text[named.end() :]
    mark, rows = _rows(what, text, named and named[1], skipped)
    comments = [line for line, row in rows if row[0].lstrip().startswith("#")]
    if len(comments) > 1 or (comments and comments != [rows[0][0]]):
        findings.append(f"{len(comments)} lines that begin with # are left out")
        rows = [(n, row) for n, row in rows if not row[0].lstrip().startswith("#")]
    if not rows:
        raise GpuzooError(f"{what}: it holds no values; check the path")
    rows = _join(what, mark, rows)
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise GpuzooError(
                f"{what}: line {line}: {len(row)} columns, parted by {mark!r}, where "
                f"the first line has {width}; all must have as many"
            )
    table = _Table(what, mark, None, 0, [n for n, _ in rows], [r for _, r in rows], [])
    table.findings = findings
    if len(table.rows) > 1:
        _take_head(table)
    if table.width == 1:
        _refuse_gaps(what, table.lines)
    return table


def _rows(what, text, mark, skipped) -> tuple[str, list[tuple[int, list[str]]]]:
    """What separates the columns, and the number and cells of each line that is not
    blank or of empty cells alone."""
    if not mark:
        lines = [line for line in text.splitlines()[:20] if line.strip()][:3]
        first = lines[0] if lines else ""
        parted = ((m, next(csv.reader([first], delimiter=m), [])) for m in MARKS)
        mark = next((m for m, row in parted if len(row) > 1), "")
        if (
            not mark
            and lines[1:]
            and all(re.search(r"\S\s+\S", line) for line in lines[1:])
        ):
            grouped = [re.fullmatch(r"\s*[+-]?\d{1,3}( \d{3})+\s*", x) for x in lines]
            mark = " " if not any(grouped) else ","
        mark = mark or ","
    rows = _part(what, text, mark, skipped)
    return mark, rows


def _part(what, text: str, mark: str, skipped: int) -> list[tuple[int, list[str]]]:
    if mark == " ":
        parted = enumerate((line.split() for line in text.splitlines()), skipped + 1)
        return [(number, row) for number, row in parted if row]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    rows, before, bare = [], skipped, 0
    try:
        for row in reader:
            number = reader.line_num + skipped
            if any(cell.strip() for cell in row):
                # Names of columns may run over a few lines, values never.
                if number - before > (1 if rows else 5) and _runs_on(row):
                    raise GpuzooError(
                        f"{what}: line {before + 1}: a quotation mark is opened there "
                        "and not closed; close it, or take it out"
                    )
                if bare and rows:
                    raise GpuzooError(
                        f"{what}: line {bare}: all cells are empty; leave the line "
                        "out, or fill in the value that is missing"
                    )
                rows.append((number, [cell.translate(_SPACES).strip() for cell in row]))
            elif len(row) > 1:
                bare = bare or number
            before = number
    except csv.Error as error:
        raise GpuzooError(
            f"{what}: line {reader.line_num + skipped}: not a readable CSV file: "
            f"{error}; look for a quotation mark that is not closed"
        ) from None
    return rows


def _runs_on(row: list[str]) -> bool:
    return any("\n" in cell.strip() or "\r" in cell.strip() for cell in row)


_WHOLE = re.compile(r"[+-]?\d+")
_DIGITS = re.compile(r"\d+")


def _join(what: str, mark: str, rows: list) -> list:
    """Numbers that commas have parted are put together again: 20,05 and 1,234,567.

    Where commas part the columns and stand in the numbers too, the header tells how
    many columns there are, or the narrowest row; without a header, that the digits
    after the last comma begin with zeros tells a decimal one.
    """
    if mark != ",":
        return rows
    body = rows[1:] or rows
    widths = {len(row) for _, row in body}
    narrow, wide = min(widths), max(widths)
    head = rows[0][1]
    headed = rows is not body and not _WHOLE.fullmatch(head[-1].lstrip("'"))
    headed = headed and not re.fullmatch(r"[\d.,]+", head[-1])
    width = len(head) if headed else min(narrow, len(head))
    if wide > width:
        if not headed:
            width = _first_of_thousands(rows, width)
        tails = [",".join(row[width - 1 :]) for _, row in body]
        if _as_written(tails) is not None:
            joined = [(n, [*row[: width - 1], ",".join(row[width - 1 :])])
                      for n, row in (body if headed else rows)]  # fmt: skip
            return [rows[0], *joined] if headed else joined
        return rows
    other = not headed and len(head) != width
    if not 2 <= width <= WIDEST or not narrow == wide == width or other:
        return rows
    return _join_equal(what, rows, body, headed)


def _join_equal(what: str, rows: list, body: list, headed: bool) -> list:
    """All rows have as many cells, which the header, if there is one, has too."""
    seen = body if headed else rows
    groups = _groups(seen)
    if groups > 1 and not headed:
        cut = len(seen[0][1]) - groups - 1
        return [(n, [*row[:cut], ",".join(row[cut:])]) for n, row in rows]
    after = [row[-1] for _, row in seen]
    before = [row[-2] for _, row in seen]
    whole = all(map(_WHOLE.fullmatch, before)) and all(map(_DIGITS.fullmatch, after))
    if not whole:
        return rows
    # Decimals all have one number of digits, or no zeros at their ends.
    equal = len({*map(len, after)}) == 1
    if not equal and any(len(a) > 1 and a.endswith("0") for a in after):
        return rows
    steps = np.diff([float(cell) for cell in before])
    if steps.size and (steps == 1).all():  # an index
        return rows
    led = any(len(cell) > 1 and cell.startswith("0") for cell in after)
    if headed and not led:
        return rows
    if not headed and led:
        return [(n, [*row[:-2], ",".join(row[-2:])]) for n, row in rows]
    if not led and steps.size and ((steps > 0).all() or (steps < 0).all()):
        return rows  # a time
    line, row = seen[0]
    raise GpuzooError(
        f"{what}: line {line}: {_quoted(','.join(row))} may be a number with a decimal "
        "comma or two columns; write decimal points, or semicolons between the columns"
        + (", or a first line that names the columns" if not headed else "")
    )


def _first_of_thousands(rows: list, width: int) -> int:
    """The least number of columns with which all ends of rows are whole numbers in
    groups of thousands: of 970,000 and 1,006,000 one."""
    thousands = _Way(",", ".").pattern
    for fewer in range(1, width):
        ends = (",".join(row[fewer - 1 :]) for _, row in rows)
        if all(map(thousands.fullmatch, ends)):
            return fewer
    return width


def _groups(rows: list) -> int:
    """How many of the last columns are groups of thousands: three digits in every row,
    some of which begin with a zero, after a number of at most three."""
    count = 0
    for cells in zip(*(reversed(row) for _, row in rows), strict=False):
        if not all(re.fullmatch(r"\d{3}", cell) for cell in cells):
            first = all(re.fullmatch(r"[+-]?[1-9]\d{0,2}", cell) for cell in cells)
            return count if first else 0
        if not any(cell.startswith("0") for cell in cells):
            return count
        count += 1
    return 0


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


# --- the header ---------------------------------------------------------------------


def _take_head(table: _Table) -> None:
    """Take the first row for the names of the columns if it is no row like the others.

    Raises GpuzooError if it may be both.
    """
    first, rest = table.rows[0], table.rows[1:]
    odd = [
        place
        for place, cell in enumerate(first)
        if _kind(cell) != "number" and _kind(rest[-1][place]) == "number"
    ]
    dates = [
        place
        for place, cell in enumerate(first)
        if is_date(rest[-1][place]) and not is_date(cell)
    ]
    text = all(_kind(cell) != "number" and not is_date(cell) for cell in first)
    if odd or dates or (text and any(first)):
        pass
    elif not (table.width > 1 and _counts_columns(first, rest)):
        said = _digits_above(table, first[-1], [row[-1] for row in rest])
        if not said:
            return
        table.findings.append(said)
    table.head, table.head_line = first, table.lines[0]
    table.rows, table.lines = rest, table.lines[1:]


def _counts_columns(first: list[str], rest: list[list[str]]) -> bool:
    """Whether it is the header of a data frame without names: 0, 1, 2, ... above an
    index that begins with 0 too, or above numbers that have decimals."""
    names = [str(place) for place in range(len(first))]
    if first != names:
        return False
    return rest[0][0] == "0" or all("." in row[-1] for row in rest)


def _digits_above(table: _Table, cell: str, others: list[str]) -> str:
    """What to say where a first line of digits is a header; empty where it is none."""
    if not _DIGITS.fullmatch(cell):
        return ""
    numbers = _as_written(others)
    if numbers is None or len(others) < 3:
        return ""
    decimals = all(re.search(r"[.,]\d", other) for other in others)
    low, high = numbers.min(), numbers.max()
    apart = max(low - float(cell), float(cell) - high) > high - low > 0
    line = table.lines[0]
    if decimals and apart:
        return f"line {line}, {_quoted(cell)}, is taken for a header"
    if (decimals and cell == "0") or (apart and not decimals and cell == "0"):
        raise GpuzooError(
            f"{table.what}: line {line}: {_quoted(cell)} may be a value or, as data "
            "frames write it, a header; name the column in the first line, or write "
            "the value as the others are written"
        )
    if apart and re.fullmatch(r"(19|20)\d\d", cell):
        raise GpuzooError(
            f"{table.what}: line {line}: {_quoted(cell)} may be a value or a header; "
            "name the column in the first line with letters, or leave the line out"
        )
    return ""


def _as_written(cells: list[str]) -> np.ndarray | None:
    fits = [way for way in _WAYS if all(map(way.pattern.fullmatch, cells))]
    return np.array([fits[0].value(cell) for cell in cells]) if fits else None


def _kind(cell: str) -> str:
    if cell.lower() in _MISSING:
        return "missing"
    return "number" if re.match(r"[^\w.,+-]{0,2}[+-]?[.,]?\d", cell) else "text"


# --- numbers ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Way:
    """A way to write numbers: what groups thousands and what precedes decimals."""

    thousands: str
    point: str

    @property
    def pattern(self) -> re.Pattern:
        return _pattern(self.thousands, self.point)

    def value(self, cell: str) -> float:
        plain = cell.replace(self.thousands, "") if self.thousands else cell
        return float(plain.replace(self.point, "."))

    def __str__(self) -> str:
        point = {".": "decimal points", ",": "decimal commas"}[self.point]
        if not self.thousands:
            return point
        name = {",": "commas", ".": "points", " ": "blanks", "'": "apostrophes"}
        return f"{name[self.thousands]} before thousands and {point}"


_WAYS = tuple(
    _Way(thousands, point)
    for thousands, point in (("", "."), ("", ","), (",", "."), (".", ","), (" ", "."),
                             (" ", ","), ("'", "."), ("'", ","))
)  # fmt: skip
_PATTERNS: dict = {}


def _pattern(thousands: str, point: str) -> re.Pattern:
    if (thousands, point) not in _PATTERNS:
        t, p = re.escape(thousands), re.escape(point)
        whole = rf"(?:\d{{1,3}}|[1-9]\d{{0,2}}(?:{t}\d{{3}})+)" if t else r"\d+"
        text = rf"[+-]?(?:{whole}(?:{p}\d*)?|{p}\d+)(?:[eE][+-]?\d+)?"
        _PATTERNS[thousands, point] = re.compile(text, re.ASCII)
    return _PATTERNS[thousands, point]


@dataclasses.dataclass(frozen=True)
class _Read:
    """What a column of text holds."""

    values: np.ndarray
    said: str


def _read_numbers(table: _Table, place: int) -> _Read:
    """The numbers of a column, all written in one way.

    Raises:
        GpuzooError: the line of the first that is none, or that may be two.
    """
    cells, unit = _without_units(table.column(place))
    ways = _likely(table, cells)
    if not ways:
        fits = {way: _fitting(way, cells) for way in _WAYS}
        best = max(_WAYS, key=lambda way: sum(fits[way]))
        bad = fits[best].index(False)
        raise _no_number(table, place, bad, best)
    way = ways[0] if len(ways) == 1 else _decide(table, cells, ways)
    said = [f"numbers are read with {way}"] if way != _WAYS[0] else []
    said += [f"{unit!r} beside every number is left out"] if unit else []
    return _Read(np.array([way.value(cell) for cell in cells]), "; ".join(said))


def _without_units(cells: list[str]) -> tuple[list[str], str]:
    """The numbers alone, where every one has the same sign of a currency before it or
    after, or that of per cent."""
    for signs, pattern in (("$€£¥", r"([+-]?){0}\s*(.+)"), ("%€$£¥", r"()(.+?)\s*{0}")):
        for sign in signs:
            if cells and cells[0].find(sign) >= 0:
                whole = re.compile(pattern.format(re.escape(sign)))
                found = [whole.fullmatch(cell) for cell in cells]
                if all(found):
                    return [f"{one[1]}{one[2]}" for one in found], sign
    return cells, ""


def _fitting(way: _Way, cells: list[str]) -> list[bool]:
    """Which numbers may be written so; not those with a mark of thousands and without
    decimals where most have some: 1.234 among 5,1234."""
    strict = way.thousands and 2 * sum(way.point in c for c in cells) > len(cells)
    return [
        bool(way.pattern.fullmatch(cell))
        and not (strict and way.thousands in cell and way.point not in cell)
        for cell in cells
    ]


def _likely(table: _Table, cells: list[str]) -> list[_Way]:
    """The ways in which all numbers of a column may be written."""
    text = set("".join(cells))
    if "." in text and "," in text:
        both = [way for way in _WAYS if {way.thousands, way.point} == {".", ","}]
        if all(all(map(way.pattern.fullmatch, cells)) for way in both):
            mark = min(".,", key=lambda mark: sum(mark in cell for cell in cells))
            place = next(i for i, cell in enumerate(cells) if mark in cell)
            raise _unclear(table, cells, place)
    fits = [way for way in _WAYS if all(_fitting(way, cells))]
    # A mark that does not occur makes no difference.
    used = {
        (way.thousands in text and way.thousands, way.point in text and way.point): way
        for way in reversed(fits)
    }
    return [way for way in fits if way in used.values()]


def _decide(table: _Table, cells: list[str], ways: list[_Way]) -> _Way:
    """Between a mark of decimals and one of thousands, where both fit the column."""
    plain = next((way for way in ways if not way.thousands), None)
    grouped = next((way for way in ways if way.thousands), None)
    if plain is None or grouped is None or len(ways) > 2:
        marked = next(i for i, c in enumerate(cells) if not _DIGITS.fullmatch(c))
        raise _unclear(table, cells, marked)
    if plain.point != grouped.thousands:
        return plain
    marked = [i for i, cell in enumerate(cells) if plain.point in cell]
    if len(marked) == len(cells):  # three digits each: the same but for their scale
        return grouped if (plain.point, table.mark) == (",", ",") else plain
    if len(marked) < _SETTLED:
        raise _unclear(table, cells, marked[0])
    return grouped


def _unclear(table: _Table, cells: list[str], place: int) -> GpuzooError:
    return GpuzooError(
        f"{table.what}: line {table.lines[place]}: {_quoted(cells[place])} may have a "
        "mark of thousands or a decimal one; write no thousands marks, and all numbers "
        "with decimals"
    )


def _no_number(table: _Table, place: int, row: int, way: _Way) -> GpuzooError:
    cell = table.rows[row][place]
    where = f"{table.what}: line {table.lines[row]}: {_quoted(cell)} is no number"
    if cell.lower() in _MISSING:
        return GpuzooError(
            f"{where}: a value of {table.called(place)} is missing; fill it in, or "
            "leave the line out"
        )
    kind = {_WAYS[0]: "", _WAYS[1]: " with a decimal comma"}.get(way, f" with {way}")
    return GpuzooError(f"{where}{kind}; the last column must hold the series")


def _choose(table: _Table, times: "_Times | None") -> tuple[int, _Read]:
    """The last column of numbers that is neither a time nor an index."""
    kinds = [_column_kind(table.column(place)) for place in range(table.width)]
    numbers = kinds.count("number")
    called = [name.lower() for name in table.head or []]
    pixels = sum(
        bool(re.match(r"(pixel|px|attr|feature|f|x|v)[_ ]?\d", n)) for n in called
    )
    if (numbers > WIDEST and not times) or (numbers > 8 and 2 * pixels > numbers):
        raise GpuzooError(
            f"{table.what}: is a table of {table.width} columns, not a series; keep "
            "the column of the series (and its times), or save images and labels as "
            "arrays x and y of a .npz file"
        )
    left = []
    for place in reversed(range(table.width)):
        if times and place == times.place and table.width > 1:
            left.append(place)
        elif kinds[place] != "number" or (table.width > 1 and _is_index(table, place)):
            left.append(place)
        else:
            break
    else:
        _refuse_all(table, kinds)
    last = [p for p in left if p > place]
    if last:
        names = ", ".join(table.called(p) for p in sorted(last))
        table.findings.append(f"{names}: text or times, not read")
    return place, _read_numbers(table, place)


def _refuse_all(table: _Table, kinds: list[str]):
    """No column of numbers: the first cell that is none."""
    place = table.width - 1
    cells = table.column(place)
    bad = next((i for i, c in enumerate(cells) if _kind(c) != "number"), 0)
    raise GpuzooError(
        f"{table.what}: line {table.lines[bad]}: {_quoted(cells[bad])} is no number; "
        "the last column must hold the series"
    )


def _column_kind(cells: list[str]) -> str:
    """number, text or empty: what most of its cells are."""
    kinds = [_kind(cell) for cell in cells]
    counts = {kind: kinds.count(kind) for kind in ("number", "text", "missing")}
    if counts["missing"] == len(cells):
        return "empty"
    if (
        is_date(cells[-1])
        and is_date(cells[0])
        and not _WAYS[0].pattern.fullmatch(cells[0])
    ):
        return "date"
    return "number" if counts["number"] >= counts["text"] else "text"


def _is_index(table: _Table, place: int) -> bool:
    """Whether a data frame has numbered its rows there."""
    named = table.head and table.head[place].lower() in _INDEX_NAMES
    cells = table.column(place)
    if not named or not all(map(_DIGITS.fullmatch, cells)):
        return False
    return bool((np.abs(np.diff([int(cell) for cell in cells])) == 1).all())


# --- times --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Times:
    """A column that tells when."""

    place: int
    ways: list[np.ndarray]
    """Seconds, or another number that rises with time, in each way to read them."""


def _times(table: _Table) -> _Times | None:
    """The first column of dates; or a first column of whole numbers that all rise, or
    all fall."""
    if table.width == 1:
        return None
    for place in range(table.width):
        if ways := _ways_of_dates(table, place):
            return _Times(place, ways)
    cells = table.column(0)
    if not all(map(_WHOLE.fullmatch, cells)):
        return None
    steps = np.diff(values := np.array([float(cell) for cell in cells]))
    if steps.size and ((steps > 0).all() or (steps < 0).all()):
        return _Times(0, [values])
    return None


def _ways_of_dates(table: _Table, place: int) -> list[np.ndarray]:
    """What the dates of a column are in each order of day, month and year that fits
    all of them.

    Raises GpuzooError where only some are dates.
    """
    cells = table.column(place)
    some = {0, len(cells) // 3, len(cells) // 2, len(cells) - 1}
    if 2 * sum(is_date(cells[i]) for i in some) <= len(some):
        return []
    found = [moments(cell) if is_date(cell) else {} for cell in cells]
    counts = collections.Counter(order for each in found for order in each)
    orders = [order for order, count in counts.items() if count == len(cells)]
    if orders:
        return [np.array([each[order] for each in found]) for order in orders]
    best, count = counts.most_common(1)[0]
    if count < 0.9 * len(cells):
        return []
    bad = next(i for i, each in enumerate(found) if best not in each)
    raise GpuzooError(
        f"{table.what}: line {table.lines[bad]}: {_quoted(cells[bad])} is no date like "
        f"the others of {table.called(place)}; write it alike, or leave the line out"
    )


def _falls(table: _Table, times: _Times) -> bool:
    """Whether the newest comes first.

    Raises GpuzooError where times go up and down.
    """
    for values in times.ways:
        steps = np.diff(values)
        if (steps >= 0).all() or _clock_change(steps):
            return _told_twice(table, times, steps)
        if (steps <= 0).all() or _clock_change(-steps):
            _told_twice(table, times, steps)
            return True
    steps = np.diff(times.ways[0])
    way = 1 if np.count_nonzero(steps > 0) >= np.count_nonzero(steps < 0) else -1
    row = int(np.argmax(way * steps < 0)) + 1
    cells = table.column(times.place)
    raise GpuzooError(
        f"{table.what}: line {table.lines[row]}: {_quoted(cells[row])} comes after "
        f"{_quoted(cells[row - 1])}; sort the lines by {table.called(times.place)}, "
        "and keep those of one series"
    )


def _clock_change(steps: np.ndarray) -> bool:
    """Whether times only go back by the hour that clocks go back in autumn."""
    back = steps[steps < 0]
    return len(back) <= 1 + len(steps) / 500 and (back >= -3600).all()


def _told_twice(table: _Table, times: _Times, steps: np.ndarray) -> bool:
    same = int(np.count_nonzero(steps == 0))
    if same:
        table.findings.append(
            f"{same:,} lines have the time of the line before in "
            f"{table.called(times.place)}"
        )
    return False
