"""Rows of a table that a client sends as JSON, by the names of the columns."""

import math

import numpy as np

from gpuzoo.data import columns, preparation
from gpuzoo.data.preparation import Preparation
from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.errors import GpuzooError

_LONGEST = 1_000  # characters; a category or a number has fewer
_WARNINGS = 100


def from_examples(
    examples: list, prepared: Preparation
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the inputs by name, and warnings, of a list of objects, one for each row:
    column -> number, text, true, false or null, which is a missing value.

    Raises:
        Refused: other types, a column that is missing, or a cell that cannot be read.
    """
    names: dict[str, None] = {}
    for number, row in enumerate(examples):
        if type(row) is not dict:
            used = ", ".join(prepared.used)
            what = "must be an object, column -> value; the columns are"
            raise Refused(422, f"inputs[{number}] {what} {used}")
        names |= dict.fromkeys(row)
        for name, value in row.items():
            if fault := _fault(value):
                raise Refused(422, f"inputs[{number}], {name[:60]!r}: {fault}")
    for number, row in enumerate(examples):
        if len(row) < len(names):
            missing = next(name for name in names if name not in row)[:60]
            what = "which another row has; null is a missing value"
            raise Refused(422, f"inputs[{number}] has no {missing!r}, {what}")
    if not names:
        raise Refused(422, f"the columns are {', '.join(prepared.used)}")
    try:
        table = columns.from_memory(
            "inputs", {name: [row[name] for row in examples] for name in names}
        )
        readings, said = preparation.read_again(table, prepared)
    except GpuzooError as error:
        raise Refused(422, str(error)[:500]) from None
    said += [
        f"inputs[{number}]: {line}"
        for number, lines in enumerate(preparation.strange(table, prepared, readings))
        for line in lines
    ][:_WARNINGS]
    every = np.arange(len(examples))
    return preparation.unprepared(prepared, readings, every), said


def _fault(value) -> str:
    """Return what is wrong with a value, or ""."""
    if value is None or type(value) is bool:
        return ""
    if type(value) is str:
        too_long = len(value) > _LONGEST
        return f"a text of more than {_LONGEST} characters" if too_long else ""
    if type(value) is int:
        return "" if abs(value) < 2**53 else "whole numbers must be below 2**53"
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
