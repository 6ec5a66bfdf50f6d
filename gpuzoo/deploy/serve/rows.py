"""Rows of a table that a client sends as JSON, by the names of the columns."""

import math

import numpy as np

from gpuzoo.data import columns, preparation
from gpuzoo.data.preparation import Preparation
from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.errors import GpuzooError

_LONGEST = 1_000  # characters of a category
_NUMBER = 100  # of a number or a date
_LISTED = 5
_WARNINGS = 100


def from_examples(
    examples: list, prepared: Preparation
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the inputs by name, and warnings, of a list of objects, one for each row:
    column -> number, text, true, false or null, which is a missing value.

    Raises:
        Refused: other types, a column that is missing, or a cell that cannot be read.
    """
    known = {*prepared.used, prepared.target.name, *(n for n, _ in prepared.unused)}
    longest = {
        **dict.fromkeys(known, _LONGEST),
        **{one.name: _NUMBER for one in prepared.numeric},
    }
    names, others = dict.fromkeys(prepared.used), set()
    for number, row in enumerate(examples):
        if type(row) is not dict:
            used = ", ".join(prepared.used)
            what = "must be an object, column -> value; the columns are"
            raise Refused(422, f"inputs[{number}] {what} {used}")
        others |= row.keys() - known
        for name in names:
            if name not in row:
                what = "null is a missing value; the columns are"
                used = ", ".join(prepared.used)
                raise Refused(422, f"inputs[{number}] has no {name!r}: {what} {used}")
            if fault := fault_of(row[name], longest[name]):
                raise Refused(422, f"inputs[{number}], {name[:60]!r}: {fault}")
    try:
        table = columns.from_memory(
            "inputs", {name: [row[name] for row in examples] for name in names}
        )
        readings, said = preparation.read_again(table, prepared)
    except GpuzooError as error:
        raise Refused(422, str(error)[:500]) from None
    if others:
        listed = ", ".join(repr(name[:60]) for name in sorted(others)[:_LISTED])
        dots = ", ..." * (len(others) > _LISTED)
        said.append(f"not in the training data, and ignored: column {listed}{dots}")
    said += [
        f"inputs[{number}]: {line}"
        for number, lines in enumerate(preparation.strange(table, prepared, readings))
        for line in lines
    ][:_WARNINGS]
    every = np.arange(len(examples))
    return preparation.unprepared(prepared, readings, every), said


def fault_of(value, longest: int) -> str:
    """Return what is wrong with a value, or ""."""
    if value is None or type(value) is bool:
        return ""
    if type(value) is str:
        too_long = len(value) > longest
        return f"a text of more than {longest} characters" if too_long else ""
    if type(value) is int:
        return "" if abs(value) < 2**53 else "integers must be below 2**53"
    if type(value) is float:
        return "" if math.isfinite(value) else "the values must be finite"
    return "expected a number, a text, true, false or null"


def schema(prepared: Preparation) -> dict:
    """Return the JSON schema of a row."""
    found: dict = {
        one.name: {"type": ["number", "string", "null"]} for one in prepared.numeric
    }
    for one in prepared.categorical:
        found[one.name] = {
            "type": ["string", "number", "boolean", "null"],
            "examples": list(one.categories[:10]),
        }
    return {"type": "object", "required": [*found], "properties": found}
