"""Number formats: thousands separators, decimal separators, units."""

import collections
import dataclasses
import functools
import re
import unicodedata

import numpy as np

GONE = {
    "", "?", "#n/a", "#na", "n/a", "na", "n.a.", "<na>", "nan", "-nan", "nat", "null",
    "(null)", "\\n", "1.#qnan", "-1.#qnan", "1.#ind", "-1.#ind",
}  # fmt: skip
"""What programs write for a missing value."""
MISSING = GONE | {"-", "--", "---", "\u2014", ".", "..", "...", "\u2026", "none"}
"""Among numbers."""
# Equivalent characters: non-breaking spaces, the Swiss apostrophe, and minus signs and
# dashes.
_SAME = str.maketrans(
    dict.fromkeys("\u00a0\u202f\u2009", " ")
    | {"\u2019": "'", "\u2212": "-", "\u2013": "-", "\ufeff": None}
)
_FORMULA = re.compile(r'="([^"]*)"')  # text in a CSV file for Excel
_UNITS = "$€£¥%"
# Units behind a number, and currencies before one, that all numbers of a column have.
_BEHIND = re.compile(r"\d\s*([^\W\d_][^\d\s.,+-]{0,7}|[^\w\s.,+'()-][^\d\s]{0,3})")
_BEFORE = re.compile(
    r"[+-]?(USD|EUR|GBP|CHF|JPY|CNY|INR|Rs\.?|kr\.?|z\u0142|[A-Z]{0,3}[$€£¥₹₽₩₺₴₪฿])"
    r"\s*[+-]?[.,]?\d.*"
)
_BOOKED = re.compile(r"([^\w()]{0,2})\((.*\d.*)\)|(.*\d\s*[^\w\s()-]?)-")
_MARKS = str.maketrans({"\u066b": ".", "\u066c": ","})  # of Arabic numbers
_NAMES = {",": "commas", ".": "points", " ": "blanks", "'": "apostrophes"}


class Unreadable(ValueError):
    """A cell that is not a number, or is ambiguous: `row`, and why."""

    def __init__(self, row: int, why: str):
        super().__init__(why)
        self.row = row


@dataclasses.dataclass(frozen=True)
class Form:
    """A number format: thousands separator ("": none), decimal separator, and what
    stands at every number."""

    thousands: str
    point: str
    unit: str = ""

    @property
    def record(self) -> tuple[str, ...]:
        return (self.thousands, self.point, *([self.unit] if self.unit else []))

    @functools.cached_property
    def pattern(self) -> re.Pattern:
        t, p = re.escape(self.thousands), re.escape(self.point)
        whole = rf"(?:\d{{1,3}}|[1-9]\d{{0,2}}(?:{t}\d{{3}})+)" if t else r"\d+"
        text = rf"[+-]?(?:{whole}(?:{p}\d*)?|{p}\d+)(?:[eE][+-]?\d+)?"
        return re.compile(text, re.ASCII)

    def value(self, cell: str) -> float:
        plain = cell.replace(self.thousands, "") if self.thousands else cell
        return float(plain.replace(self.point, "."))

    def fits(self, cells: list[str]) -> list[bool]:
        """Return which cells fit the format; where most have decimals, not those with a
        thousands separator and no decimals (1.234 among 5,1234)."""
        decimal = sum(self.point in cell for cell in cells)
        strict = self.thousands and 2 * decimal > len(cells)
        return [
            bool(self.pattern.fullmatch(cell))
            and not (strict and self.thousands in cell and self.point not in cell)
            for cell in cells
        ]

    def __str__(self) -> str:
        point = f"decimal {_NAMES[self.point]}"
        if not self.thousands:
            return point
        return f"{_NAMES[self.thousands]} before thousands and {point}"


PLAIN = Form("", ".")
_FORMS = (PLAIN, Form("", ","), Form(",", "."), Form(".", ","), Form(" ", "."),
          Form(" ", ","), Form("'", "."), Form("'", ","))  # fmt: skip


def clean(cell: str) -> str:
    """Strip a cell and normalize its separators and minus signs."""
    cell = cell.translate(_SAME).strip()
    formula = _FORMULA.fullmatch(cell)
    return formula[1].strip() if formula else cell


def kind(cell: str) -> str:
    """Return "number" (or what begins like one), "missing" or "text"."""
    if cell.lower() in MISSING:
        return "missing"
    return "number" if re.match(r"[+-]?[^\w.,+-]{0,2}[+-]?[.,]?\d", cell) else "text"


def is_number(cell: str, unit: str = "") -> bool:
    """Whether a cell is a number in one of the formats, perhaps with a unit."""
    (plain,), _ = _without_unit([cell], (*_UNITS, unit))
    return any(form.pattern.fullmatch(plain) for form in _FORMS)


def are_numbers(cells: list[str]) -> bool:
    """Whether one number format fits all cells."""
    cells, _ = _without_unit(cells, _UNITS)
    return any(all(map(form.pattern.fullmatch, cells)) for form in _FORMS)


def read(
    cells: list[str], grouped_by: str = "", always: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Return the numbers of a column, all in one format, and findings about it; see
    `read_in`."""
    values, said, _ = read_in(None, cells, grouped_by, always, _UNITS)
    return values, said


def read_in(
    form: Form | None, cells: list[str], grouped_by: str = "", always: bool = False,
    units=None,
) -> tuple[np.ndarray, list[str], Form]:  # fmt: skip
    """Return the numbers of a column, findings about their format, and the format.

    Args:
        form: the format of another file of the same origin, whose decimal mark is
            that of these numbers.
        cells: as returned by `clean`.
        grouped_by: the character that separates thousands if three digits follow it in
            every cell.
        always: also if some cells do not have it.
        units: see `_without_unit`.

    Raises:
        Unreadable: the first cell that is not a number, or is ambiguous.
    """
    plain, unit = _without_unit(cells, units)
    said: list[str] = []
    if form is None:
        form, said = _form(plain, grouped_by, always)
    elif cells and unit != form.unit:
        theirs = f"the unit {form.unit!r}" if form.unit else "no unit"
        raise Unreadable(0, f"must be written as in the training, with {theirs}")
    else:
        form = _alike(form, plain)
    if unit:
        said.append(f"the unit {unit!r} of every number is ignored")
    if any(map(_BOOKED.fullmatch, cells)):
        said.append("numbers as (1.50) or 1.50- are read as negative ones")
    form = dataclasses.replace(form, unit=unit)
    return np.array([form.value(cell) for cell in plain]), said, form


def _alike(form: Form, cells: list[str]) -> Form:
    """Return the format with the same decimal mark that fits all cells: a guess from
    the cells would let the value of one depend on the others."""
    form = dataclasses.replace(form, unit="")
    alike = [form, *(one for one in _FORMS if one.point == form.point)]
    for one in alike:
        if all(map(one.pattern.fullmatch, cells)):
            return one
    row = next(
        (
            row
            for row, cell in enumerate(cells)
            if not any(one.pattern.fullmatch(cell) for one in alike)
        ),
        next(n for n, cell in enumerate(cells) if not form.pattern.fullmatch(cell)),
    )
    mark = f"decimal {_NAMES[form.point]}"
    raise Unreadable(row, f"is not a number with {mark}, as the training had them")


def _form(cells: list[str], grouped_by: str, always: bool) -> tuple[Form, list[str]]:
    text = set("".join(cells))
    both = [form for form in _FORMS if {form.thousands, form.point} == {".", ","}]
    if {".", ","} <= text and all(
        all(map(form.pattern.fullmatch, cells)) for form in both
    ):
        mark = min(".,", key=lambda mark: sum(mark in cell for cell in cells))
        raise _unclear(next(i for i, cell in enumerate(cells) if mark in cell))
    # Without its marks a format is one of the two that have no thousands separator.
    likely = [form for form in _FORMS if not form.thousands or form.thousands in text]
    fitting = [form for form in likely if all(form.fits(cells))]
    # Formats that differ only in unused separators are the same.
    forms = {
        (form.thousands in text and form.thousands, form.point in text and form.point)
        : form for form in reversed(fitting)
    }  # fmt: skip
    if not forms:
        raise _no_number(cells)
    forms = [form for form in fitting if form in forms.values()]
    if len(forms) == 1:
        form = forms[0]
        return form, [f"numbers are read with {form}"] if form != PLAIN else []
    plain = next(form for form in forms if not form.thousands)
    grouped = next(form for form in forms if form.thousands)
    mark = plain.point
    marked = [i for i, cell in enumerate(cells) if mark in cell]
    if len(marked) < len(cells) and not (
        always and mark == grouped_by
    ):  # 998 and 1.002
        raise _unclear(marked[0])
    form = grouped if mark == grouped_by else plain
    # Three digits after every separator: the two readings differ only in scale.
    first = cells[marked[0]]
    return form, [
        f"numbers are read with {form}: {first!r} is {form.value(first):.10g}, not "
        f"{(plain if form is grouped else grouped).value(first):.10g}"
    ]


def _without_unit(cells: list[str], units=None) -> tuple[list[str], str]:
    """Return numbers with digits and signs as usual, and without a unit that all of
    them have.

    Args:
        units: those that are known; default: also that of the first number.
    """
    cells = [_plain(cell) for cell in cells]
    for sign in (*_UNITS, unit_of(cells[:1])) if units is None else units:
        if cells and sign and sign in cells[0] and (found := _cut(cells, sign)):
            return found, sign
    return cells, ""


def _cut(cells: list[str], sign: str) -> list[str] | None:
    """Return numbers without a unit; None if one of them does not have it."""
    s = re.escape(sign)
    for pattern in (rf"([+-]?){s}\s*(.+)", rf"()(.+?)\s*{s}"):
        found = [re.fullmatch(pattern, cell) for cell in cells]
        if all(found):
            return [one[1] + one[2] for one in found]
    return None


def unit_of(cells: list[str]) -> str:
    """Return what stands behind, or as a currency before, nearly all numbers; or ""."""
    units: collections.Counter = collections.Counter()
    for cell in cells:
        if found := _BEFORE.fullmatch(cell) or re.fullmatch(
            rf".*{_BEHIND.pattern}", cell
        ):
            units[found[1]] += 1
    (unit, count), *_ = units.most_common(1) or [("", 0)]
    return unit if count >= 0.9 * len(cells) else ""


def _plain(cell: str) -> str:
    """Return a number with the digits 0 to 9, and with a minus sign in front if it is
    written (1.50) or 1.50-, as in bookkeeping."""
    if not cell.isascii():
        cell = "".join(str(unicodedata.decimal(one, one)) for one in cell)
        cell = cell.translate(_MARKS)
    if found := _BOOKED.fullmatch(cell):
        cell = "-" + ((found[1] or "") + found[2] if found[2] else found[3].strip())
    return cell


def _unclear(row: int) -> Unreadable:
    return Unreadable(
        row,
        "may have a mark of thousands or a decimal one; write no thousands marks, and "
        "all numbers with decimals",
    )


def _no_number(cells: list[str]) -> Unreadable:
    fits = {form: form.fits(cells) for form in _FORMS}
    best = max(_FORMS, key=lambda form: sum(fits[form]))
    row = fits[best].index(False)
    if cells[row].lower() in MISSING:
        return Unreadable(row, "missing")
    written = "" if best == PLAIN else f" with {best}"
    written = written.replace("decimal commas", "a decimal comma")
    return Unreadable(row, f"is not a number{written}")
