"""The lines of a CSV file, whichever program wrote it, and the columns in them."""

import csv
import dataclasses
import io
import pathlib
import re

import numpy as np

from gpuzoo.data import numbers
from gpuzoo.data.moments import is_date
from gpuzoo.errors import GpuzooError

MARKS = ";\t|,"  # that may separate columns; the first that parts the first line
# No series stands in a table of more columns than this, unless there are times.
WIDEST = 32
_WHOLE = re.compile(r"[+-]?\d+")


@dataclasses.dataclass
class Table:
    """The cells of a file, with the line that each row stands in."""

    what: str
    mark: str
    head: list[str] | None
    lines: list[int]
    rows: list[list[str]]
    findings: list[str]
    joined: bool = False
    """Whether numbers were put together again that the mark had parted."""

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
        """The numbers of a column, and what is worth saying of how they are written.

        Raises GpuzooError: the line that holds none, or one that may be two.
        """
        cells = self.column(place)
        apart = self.mark == "," and self.width > 1 and not self.joined
        try:
            # Where commas separate, a comma in quotation marks groups thousands.
            return numbers.read(cells, "," if self.mark == "," else "", apart)
        except numbers.Unreadable as error:
            cell, why = quoted(cells[error.row]), str(error)
            if why == "missing":
                why = (
                    f"is no number: a value of {self.called(place)} is missing; fill "
                    "it in, or leave the line out"
                )
            raise self.error(error.row, f"{cell} {why}") from None


def read_table(path: pathlib.Path) -> Table:
    """The cells of a file: its encoding, what separates its columns, its header.

    Raises:
        GpuzooError: the line that cannot be read, or may be read in two ways.
    """
    what = f"data {path.name!r}"
    text, findings = _text(what, path)
    table = _parted(what, text)
    table.findings = findings + table.findings
    return table


def quoted(cell: str, most: int = 60) -> str:
    """A cell as a message shows it: one line, not a page."""
    first = cell.strip().split("\n")[0].strip()
    return repr(first[:most] + "..." * (len(first) > most or len(cell.strip()) > most))


# --- text ---------------------------------------------------------------------------


def _text(what: str, path: pathlib.Path) -> tuple[str, list[str]]:
    """The characters of a file, and a finding if they are not UTF-8."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise GpuzooError(f"{what}: there is no such file; check the path") from None
    except OSError as error:
        raise GpuzooError(f"{what}: cannot be read: {error.strerror}") from None
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
    return text.lstrip("\ufeff"), found


# --- rows and columns ---------------------------------------------------------------


def _parted(what: str, text: str) -> Table:
    """The rows of a file, all of one width, and the names above them."""
    findings = []
    named = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)  # as Excel writes it
    if named:
        text = text[named.end() :]
    mark = named[1] if named else _mark(text)
    rows = _rows(what, text, mark, 1 if named else 0)
    comments = [line for line, row in rows if row[0].startswith("#")]
    if len(comments) > 1 or (comments and comments != [rows[0][0]]):
        findings.append(f"{len(comments)} lines that begin with # are left out")
        rows = [(n, row) for n, row in rows if not row[0].startswith("#")]
    if not rows:
        raise GpuzooError(f"{what}: it holds no values; check the path")
    names = rows[0][1] if _is_head(rows) else None
    table = Table(what, mark, names, *zip(*rows[names is not None :], strict=True), [])
    table.findings = findings
    _join(table)
    width = len(table.head or table.rows[0])
    for row, cells in enumerate(table.rows):
        if len(cells) != width:
            raise table.error(
                row,
                f"{len(cells)} columns, parted by {mark!r}, where the first line has "
                f"{width}; all must have as many; leave out a title above the table",
            )
    if not table.head:
        _refuse_digits_above(table)
    if table.width == 1:
        _refuse_gaps(table)
    return table


def _mark(text: str) -> str:
    """What separates the columns, by the first two lines that hold something."""
    lines = (line for line in text.splitlines()[:50] if line.strip())
    lines = [line for line in lines if not line.startswith("#")][:3]
    for line in lines[:2]:
        for mark in MARKS:
            if len(next(csv.reader([line], delimiter=mark), [])) > 1:
                return mark
    apart = [re.search(r"\S[ \t]+\S", line) for line in lines[1:]]
    return " " if apart and all(apart) else ","


def _rows(what, text: str, mark: str, skipped: int) -> list[tuple[int, list[str]]]:
    """The number and the cells of each line that is not blank or of empty cells."""
    if mark == " ":
        lines = enumerate((line.strip(" \t") for line in text.splitlines()), 1)
        return [
            (number + skipped, [numbers.clean(c) for c in re.split(r"[ \t]+", line)])
            for number, line in lines
            if line
        ]
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
                rows.append((number, [numbers.clean(cell) for cell in row]))
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


def _refuse_gaps(table: Table) -> None:
    """A blank line among lines of one value is a value that is missing; but not where
    there is one after each."""
    apart = np.diff(table.lines)
    if apart.size and apart.max() != apart.min():
        line = table.lines[int(np.argmax(apart))] + 1
        raise GpuzooError(
            f"{table.what}: line {line}: is blank; leave the line out, or fill in the "
            "value that is missing"
        )


# --- the header ---------------------------------------------------------------------


def _is_head(rows: list) -> bool:
    """Whether the first line names the columns: it has text where the last line has a
    number or a date, or text alone; or nothing above an index."""
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
    """A first line of 0, 1, 2, ..., as data frames without names write it, or with one
    whole number far from all that follow, may be a header."""
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
            f"{quoted(table.mark.join(first))} may be a header or hold a value; name "
            "the columns in the first line with letters",
        )


# --- numbers that the mark has parted -----------------------------------------------


def _join(table: Table) -> None:
    """Put numbers together again that commas or blanks have parted: 20,05 and
    1 234 567, which may end a row or be all of it.

    Raises GpuzooError where they may be columns too.
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
            f"{quoted(mark.join(rows[0]))} may be a number with a mark of decimals or "
            "thousands, or two columns; write numbers with a decimal point alone, or "
            "semicolons between the columns"
            + ", or name each column in the first line"
            * (not table.head),
        )
    if one:
        table.rows = [[*row[:place], mark.join(row[place:])] for row in rows]
        table.joined = True
        if table.head:
            table.head = [*table.head[:place], mark.join(table.head[place:])]


def _are_one_number(parts: list[list[str]]) -> bool | None:
    """Whether cells that look like parts of one number are so, and no columns of whole
    numbers; None where both may be."""
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
    # Decimals have one number of digits in all rows, or no zeros at their ends. Where
    # they may be decimals or thousands, that no zero leads in any row is a chance that
    # only numbers of a narrow range have.
    lasts = [part[-1] for part in parts]
    whole = len(parts[0]) == 2 and all(map(str.isdecimal, lasts))
    if whole and len({*map(len, lasts)}) > 1:
        if any(len(cell) > 1 and cell.endswith("0") for cell in lasts):
            return False
    return None


def _begins_with_zero(cells: list[str]) -> bool:
    return any(cell[0] == "0" and cell[1:2].isdecimal() for cell in cells if cell)
