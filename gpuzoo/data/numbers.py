"""How numbers are written: marks of thousands, marks of decimals, units."""

import dataclasses
import functools
import re

import numpy as np

MISSING = {"", "-", "--", ".", "?", "#n/a", "n/a", "na", "nan", "null", "none"}
# Characters that stand for another: blanks that do not break, the Swiss apostrophe,
# and a minus or a dash before a number.
_SAME = str.maketrans(
    dict.fromkeys("\u00a0\u202f\u2009", " ")
    | {"\u2019": "'", "\u2212": "-", "\u2013": "-", "\ufeff": None}
)
_FORMULA = re.compile(r'="([^"]*)"')  # as Excel keeps text from being changed
_UNITS = "$€£¥%"
_NAMES = {",": "commas", ".": "points", " ": "blanks", "'": "apostrophes"}


class Unreadable(ValueError):
    """A cell that is no number, or may be two: `row`, and why."""

    def __init__(self, row: int, why: str):
        super().__init__(why)
        self.row = row


@dataclasses.dataclass(frozen=True)
class Form:
    """What stands between groups of three digits ("": nothing) and before decimals."""

    thousands: str
    point: str

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
        """Which cells may be written so; where most have decimals, not those that
        have a mark of thousands and no decimals (1.234 among 5,1234)."""
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
    """A cell without blanks around it and with one character for each mark."""
    cell = cell.translate(_SAME).strip()
    formula = _FORMULA.fullmatch(cell)
    return formula[1].strip() if formula else cell


def kind(cell: str) -> str:
    """number (or something that begins like one), missing or text."""
    if cell.lower() in MISSING:
        return "missing"
    return "number" if re.match(r"[+-]?[^\w.,+-]{0,2}[+-]?[.,]?\d", cell) else "text"


def are_numbers(cells: list[str]) -> bool:
    """Whether one form fits all cells."""
    cells, _ = _without_unit(cells)
    return any(all(map(form.pattern.fullmatch, cells)) for form in _FORMS)


def read(
    cells: list[str], grouped_by: str = "", always: bool = False
) -> tuple[np.ndarray, list[str]]:
    """The numbers of a column, all of one form, and what is worth saying of it.

    Args:
        cells: as `clean` leaves them.
        grouped_by: the mark that is one of thousands where it has three digits after
            it in every cell.
        always: so also beside cells that have none.

    Raises:
        Unreadable: the first cell that is no number, or that may be two.
    """
    plain, unit = _without_unit(cells)
    form, said = _form(plain, grouped_by, always)
    if unit:
        said.append(f"{unit!r} beside every number is left out")
    return np.array([form.value(cell) for cell in plain]), said


def _form(cells: list[str], grouped_by: str, always: bool) -> tuple[Form, list[str]]:
    text = set("".join(cells))
    both = [form for form in _FORMS if {form.thousands, form.point} == {".", ","}]
    if {".", ","} <= text and all(
        all(map(form.pattern.fullmatch, cells)) for form in both
    ):
        mark = min(".,", key=lambda mark: sum(mark in cell for cell in cells))
        raise _unclear(next(i for i, cell in enumerate(cells) if mark in cell))
    fitting = [form for form in _FORMS if all(form.fits(cells))]
    # A mark that does not occur makes no difference.
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
    # Three digits after every mark: the two readings differ by their scale alone.
    first = cells[marked[0]]
    return form, [
        f"numbers are read with {form}: {first!r} is {form.value(first):.10g}, not "
        f"{(plain if form is grouped else grouped).value(first):.10g}"
    ]


def _without_unit(cells: list[str]) -> tuple[list[str], str]:
    """The numbers alone where each has the same sign of a currency or per cent."""
    for sign in _UNITS:
        if cells and sign in cells[0]:
            s = re.escape(sign)
            for pattern in (rf"([+-]?){s}\s*(.+)", rf"()(.+?)\s*{s}"):
                found = [re.fullmatch(pattern, cell) for cell in cells]
                if all(found):
                    return [one[1] + one[2] for one in found], sign
    return cells, ""


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
    return Unreadable(
        row, f"is no number{written}; the last column must hold the series"
    )
