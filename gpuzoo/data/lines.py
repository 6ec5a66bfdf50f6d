"""Parse a CSV file: encoding, separator, header and rows."""

import contextlib
import csv
import dataclasses
import io
import pathlib
import re

import numpy as np

from gpuzoo.data import numbers
from gpuzoo.data.moments import is_date
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular, too_large

MARKS = ";\t|,"  # separators; the first one that splits the first line is used
# Wider tables are not taken as time series, unless there are times.
WIDEST = 32
_MOST_BYTES = 1 << 30
_NONE = "\x1f"  # which no file holds: control characters are refused
_WHOLE = re.compile(r"[+-]?\d+")


@dataclasses.dataclass
class Table:
    """The cells of a file, with the line number of each row."""

    what: str
    mark: str
    head: list[str] | None
    lines: list[int]
    rows: list[list[str]]
    findings: list[str]
    joined: bool = False
    """Whether numbers that the separator had split were joined again."""

    def column(self, place: int) -> list[str]:
        return [row[place] for row in self.rows]

    @property
    def width(self) -> int:
        return len(self.rows[0])

    def name(self, place: int) -> str:
        return self.head[place].strip() if self.head else ""

    def called(self, place: int) -> str:
        name = self.name(place)
        return f"column {quoted(name)}" if name else f"column {place + 1}"

    def error(self, row: int, why: str) -> GpuzooError:
        return GpuzooError(f"{self.what}: line {self.lines[row]}: {why}")

    def numbers(self, place: int) -> tuple[np.ndarray, list[str]]:
        """Return the numbers of a column, and findings on their format.

        Raises:
            GpuzooError: a line without a number, or with an ambiguous one.
        """
        cells = self.column(place)
        apart = self.mark == "," and self.width > 1 and not self.joined
        try:
            # If commas separate columns, a quoted comma is a thousands separator.
            return numbers.read(cells, "," if self.mark == "," else "", apart)
        except numbers.Unreadable as error:
            cell, why = quoted(cells[error.row]), str(error)
            if why == "missing":
                why = (
                    f"is not a number: a value of {self.called(place)} is missing; "
                    "fill it in, or remove the line"
                )
            elif why.startswith("is not a number"):
                why += "; the last column must hold the series"
            raise self.error(error.row, f"{cell} {why}") from None


def read_table(path: pathlib.Path, content: bytes | None = None) -> Table:
    """Read a file: detect its encoding, separator and header.

    Args:
        content: of the file, if it has been read.

    Raises:
        GpuzooError: a line that cannot be read or is ambiguous.
    """
    what = f"data {path.name!r}"
    text, findings = _text(what, path, content)
    table = _parted(what, text)
    table.findings = findings + table.findings
    return table


def read_named(path: pathlib.Path, content: bytes | None = None) -> Table:
    """Read a file whose first line names its columns, every other cell as it stands: a
    cell in quotation marks may hold line breaks, and no line is left out.

    Args:
        content: of the file, if it has been read.

    Raises:
        GpuzooError: a line that cannot be read, or of another number of cells.
    """
    what = f"data {path.name!r}"
    text, findings = _text(what, path, content)
    named = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)  # as Excel writes it
    text = text[named.end() :] if named else text
    mark = named[1] if named else _mark(text)
    head = text.lstrip("\r\n").splitlines()[:1]
    if not named and head and not re.search(rf"[ {MARKS}]", head[0].strip()):
        mark = _NONE  # one column: what is below belongs to its cells
    skipped = 1 if named else 0
    rows = _rows(what, text, mark, skipped, broken=True)
    if mark == " " and _are_texts(rows):
        mark = _NONE
        rows = _rows(what, text, mark, skipped, broken=True)
    if not rows:
        raise GpuzooError(f"{what}: it is empty; the first line must name the columns")
    (_, head), *below = rows
    if mark == _NONE and (blank := _blank(text, skipped, rows[-1][0])):
        listed = ", ".join(map(str, blank[:10])) + ", ..." * (len(blank) > 10)
        findings.append(
            f"{len(blank):,} blank lines are no rows (an empty cell is written as "
            f'""): lines {listed}'
        )
    lines, cells = [line for line, _ in below], [row for _, row in below]
    for line, row in below:
        if len(row) != len(head):
            raise GpuzooError(
                f"{what}: line {line}: {len(row)} columns, separated by {mark!r}, "
                f"where the first line names {len(head)}; all must have the same "
                "number: put cells that contain the separator in quotation marks"
            )
    return Table(what, mark, head, lines, cells, findings)


def _are_texts(rows: list) -> bool:
    """Whether what blanks seem to part are the words of texts, one in each line."""
    widths = {len(row) for _, row in rows}
    if len(widths) > 2 or any(row[0].startswith('"') for _, row in rows):
        return True
    cells = (cell for _, row in rows[1:] for cell in row)
    return not any(numbers.kind(cell) == "number" or is_date(cell) for cell in cells)


def _blank(text: str, skipped: int, last: int) -> list[int]:
    """Return the blank lines of a file of one column, up to its last row."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_NONE)
    lines = [reader.line_num + skipped for row in _each(reader) if not row]
    return [line for line in lines if line < last]


def _each(reader):
    """Yield the rows of a csv.reader."""
    with _long_cells():
        yield from reader


@contextlib.contextmanager
def _long_cells():
    """Let a cell be as long as a file; csv's own limit is 131,072 characters."""
    before = csv.field_size_limit(_MOST_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def quoted(cell: str, most: int = 60) -> str:
    """Quote a cell for a message: one line, shortened."""
    first = cell.strip().split("\n")[0].strip()
    return repr(first[:most] + "..." * (len(first) > most or len(cell.strip()) > most))


# --- text ---------------------------------------------------------------------------


def _text(what: str, path: pathlib.Path, content) -> tuple[str, list[str]]:
    """Return the text of a file, and a finding if it is not UTF-8."""
    try:
        if content is None:
            content = read_regular(path, _MOST_BYTES)
        elif len(content) > _MOST_BYTES:
            raise OSError(too_large(len(content), _MOST_BYTES))
    except FileNotFoundError:
        raise GpuzooError(f"{what}: there is no such file; check the path") from None
    except OSError as error:
        raise GpuzooError(
            f"{what}: cannot be read: {error.strerror or error}"
        ) from None
    encoding = "utf-8"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif content[1:2] == b"\0" or content[:1] == b"\0":
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    found = []
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise GpuzooError(
                f"{what}: not a readable CSV file: it begins like UTF-16 but is not; "
                "save it as UTF-8"
            ) from None
        text = _windows(what, content)
        word = re.search(r"\w*[^\0-\x7f]\w*", text)
        found = [
            "the file is not UTF-8 and was read as Windows-1252: "
            f"{word[0][:30] if word else ''!r} must be what you have written"
        ]
    control = re.search(r"[\0-\x08\x0e-\x1f\x7f]", text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise GpuzooError(
            f"{what}: line {line}: not a readable CSV file: it holds the control "
            f"character {control[0]!r}; save it as CSV again"
        )
    return text.lstrip("\ufeff"), found


def _windows(what: str, content: bytes) -> str:
    """Decode a file in Windows-1252.

    Raises:
        GpuzooError: it is UTF-8 with a damaged letter, or has letters that Windows-1252
            does not have.
    """
    rough = content.decode("utf-8", "replace")
    bad = rough.count("\ufffd")
    if len(rough) - bad - len(rough.encode("ascii", "ignore")) > bad:
        line = rough.count("\n", 0, rough.index("\ufffd")) + 1
        raise GpuzooError(f"{what}: line {line}: a letter is not UTF-8; save it again")
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise GpuzooError(
            f"{what}: line {line}: neither UTF-8 nor Windows-1252; save it as UTF-8"
        ) from None


# --- rows and columns ---------------------------------------------------------------


def _parted(what: str, text: str) -> Table:
    """Split a file into rows of equal width and column names."""
    findings = []
    named = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)  # as Excel writes it
    if named:
        text = text[named.end() :]
    mark = named[1] if named else _mark(text)
    rows = _rows(what, text, mark, 1 if named else 0)
    comments = [line for line, row in rows if row[0].startswith("#")]
    if len(comments) > 1 or (comments and comments != [rows[0][0]]):
        findings.append(f"{len(comments)} lines that begin with # are ignored")
        rows = [(n, row) for n, row in rows if not row[0].startswith("#")]
    if not rows:
        raise GpuzooError(f"{what}: it contains no values; check the path")
    names = rows[0][1] if _is_head(rows) else None
    table = Table(what, mark, names, *zip(*rows[names is not None :], strict=True), [])
    table.findings = findings
    _join(table)
    width = len(table.head or table.rows[0])
    for row, cells in enumerate(table.rows):
        if len(cells) != width:
            raise table.error(
                row,
                f"{len(cells)} columns, separated by {mark!r}, where the first line "
                f"has {width}; all must have the same number; remove any title line",
            )
    if not table.head:
        _refuse_digits_above(table)
    if table.width == 1:
        _refuse_gaps(table)
    return table


def _mark(text: str) -> str:
    """Detect the separator from the first two lines that are not empty."""
    lines = (line for line in text.splitlines()[:50] if line.strip())
    lines = [line for line in lines if not line.startswith("#")][:3]
    for line in lines[:2]:
        for mark in MARKS:
            with _long_cells():
                if len(next(csv.reader([line], delimiter=mark), [])) > 1:
                    return mark
    apart = [re.search(r"\S[ \t]+\S", line) for line in lines[1:]]
    return " " if apart and all(apart) else ","


def _rows(
    what, text: str, mark: str, skipped: int, broken: bool = False
) -> list[tuple[int, list[str]]]:
    """Return line number and cells of each row that is not empty; `broken`: cells may
    hold line breaks."""
    if mark == " ":
        lines = enumerate((line.strip(" \t") for line in text.splitlines()), 1)
        return [
            (number + skipped, [numbers.clean(c) for c in re.split(r"[ \t]+", line)])
            for number, line in lines
            if line
        ]
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=mark, strict=broken)
    rows, before, bare = [], skipped, 0
    try:
        for row in _each(reader):
            number = reader.line_num + skipped
            written = mark == _NONE and row and rows  # "" in a file of one column
            if written or any(cell.strip() for cell in row):
                # Column names may span a few lines, values never.
                many = number - before > (1 if rows else 5) and not broken
                if many and _runs_on(row):
                    raise GpuzooError(
                        f"{what}: line {before + 1}: a quotation mark is opened there "
                        "and not closed; close or remove it"
                    )
                if bare and rows:
                    raise GpuzooError(
                        f"{what}: line {bare}: all cells are empty; remove the line or "
                        "fill in the missing value"
                    )
                rows.append((number, [numbers.clean(cell) for cell in row]))
            elif len(row) > 1:
                bare = bare or number
            before = number
    except csv.Error as error:
        if "unexpected end" in str(error):  # of strict reading
            raise GpuzooError(
                f"{what}: line {before + 1}: a quotation mark is opened there and not "
                "closed; close or remove it"
            ) from None
        raise GpuzooError(
            f"{what}: line {reader.line_num + skipped}: not a readable CSV file: "
            f"{error}; look for a quotation mark that is not closed, or inside a cell "
            "not doubled"
        ) from None
    return rows


def _runs_on(row: list[str]) -> bool:
    return any("\n" in cell.strip() or "\r" in cell.strip() for cell in row)


def _refuse_gaps(table: Table) -> None:
    """Refuse a blank line in a file with one column as a missing value, unless there is
    one after each line."""
    apart = np.diff(table.lines)
    if apart.size and apart.max() != apart.min():
        line = table.lines[int(np.argmax(apart))] + 1
        raise GpuzooError(
            f"{table.what}: line {line}: is blank; remove the line or fill in the "
            "missing value"
        )


# --- the header ---------------------------------------------------------------------


def _is_head(rows: list) -> bool:
    """Whether the first line is a header: it has text where the last line has a number
    or a date, or only text; or an empty cell above an index."""
    if len(rows) < 2:
        return False
    first, last = rows[0][1], rows[-1][1]
    text = [numbers.kind(cell) == "text" and not is_date(cell) for cell in first]
    below = [numbers.kind(cell) == "number" or is_date(cell) for cell in last]
    if any(a and b for a, b in zip(text, below, strict=False)):
        return True
    plain = all(numbers.kind(cell) != "number" and not is_date(cell) for cell in first)
    unnamed = not first[0] and len(first) > 1 and _WHOLE.fullmatch(last[0])
    return (plain and any(text)) or bool(unnamed)


def _refuse_digits_above(table: Table) -> None:
    """Refuse a first line that may be a header of numbers: 0, 1, 2, ..., as written by
    data frames without names, or an integer far from all that follow."""
    if len(table.rows) < 3:
        return
    first, (*_, cell) = table.rows[0], table.rows[0]
    counted = first == [str(place) for place in range(len(first))]
    apart = False
    if _WHOLE.fullmatch(cell) and numbers.are_numbers(table.column(table.width - 1)):
        values, _ = table.numbers(table.width - 1)
        low, high = values[1:].min(), values[1:].max()
        apart = max(low - values[0], values[0] - high) > high - low > 0
    if counted or apart:
        raise table.error(
            0,
            f"{quoted(table.mark.join(first))} may be a header or a value; name the "
            "columns in the first line with letters",
        )


# --- numbers that the separator has split -------------------------------------------


def _join(table: Table) -> None:
    """Join numbers that commas or spaces have split, 20,05 and 1 234 567, at the end of
    the rows.

    Raises:
        GpuzooError: they may also be columns.
    """
    mark, rows = table.mark, table.rows
    if mark not in ", " or any(mark in cell for row in rows for cell in row):
        return
    narrow, wide = min(map(len, rows)), max(map(len, rows))
    ends = [
        place
        for place in range(min(narrow, WIDEST) if wide > 1 else 0)
        if any(len(row) > place + 1 for row in rows)
        and numbers.are_numbers([mark.join(row[place:]) for row in rows])
    ]
    if not ends:
        return
    place, names = ends[0], len(table.head or [])
    parts = [row[place:] for row in rows]
    one = _are_one_number(parts)
    while one is False and not table.head and ends[1:]:  # behind an index: 7,1,222
        ends = ends[1:]
        place = ends[0]
        one = _are_one_number([row[place:] for row in rows])
    if table.head:
        if names <= place:  # a title: the widths tell
            return
        as_named = narrow == wide == names
        zeros = any(_begins_with_zero(part[1:]) for part in parts)
        if as_named and (mark == "," or one is False) and not zeros:
            return
        if names == place + 1 or (mark == " " and as_named and one):
            one = True
        elif one is False and names - 1 in ends:  # t,v above 7,1,222
            place, one = names - 1, True
        else:
            one = None
    if one is None:
        raise table.error(
            0,
            f"{quoted(mark.join(rows[0]))} may be one number with a decimal or "
            "thousands separator, or two columns; write numbers with a decimal point "
            "only, or separate columns by semicolons"
            + ", or name each column in the first line"
            * (not table.head),
        )
    if one:
        table.rows = [[*row[:place], mark.join(row[place:])] for row in rows]
        table.joined = True
        if table.head:
            table.head = [*table.head[:place], mark.join(table.head[place:])]


def _are_one_number(parts: list[list[str]]) -> bool | None:
    """Whether cells are parts of one number and not columns of integers; None if both
    are possible."""
    firsts = [part[0] for part in parts]
    if (
        not all(map(_WHOLE.fullmatch, firsts))
        or "-0" in firsts
        or len({*map(len, parts)}) > 1
        or any(_begins_with_zero(part[1:]) for part in parts)
    ):
        return True
    steps = np.diff([int(cell) for cell in firsts])
    if steps.size and ((steps == 1).all() or (steps == -1).all()):  # an index
        return False
    if steps.size and ((steps > 0).all() or (steps < 0).all()):  # a time, or a total
        return False if max(map(len, firsts)) > 3 else None
    # Decimals have the same number of digits in all rows, or no trailing zeros. If they
    # may be decimals or thousands, no leading zero in any row is likely only for
    # numbers in a narrow range.
    lasts = [part[-1] for part in parts]
    whole = len(parts[0]) == 2 and all(map(str.isdecimal, lasts))
    if whole and len({*map(len, lasts)}) > 1:
        if any(len(cell) > 1 and cell.endswith("0") for cell in lasts):
            return False
    return None


def _begins_with_zero(cells: list[str]) -> bool:
    return any(cell[0] == "0" and cell[1:2].isdecimal() for cell in cells if cell)
