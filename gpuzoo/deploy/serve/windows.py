"""Rows of a series that a client sends as JSON, by the names of the columns."""

import numpy as np

from gpuzoo.data import columns, series_table
from gpuzoo.data.series_form import Series
from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.deploy.serve.rows import fault_of
from gpuzoo.errors import GpuzooError

_LONGEST = 100  # characters of a number or a time


def from_examples(
    examples: list, series: Series
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the inputs by name, and warnings, of a list of objects, one for each
    series: column -> its last rows, a list of numbers or texts.

    Raises:
        Refused: other types, a column that is missing, too few rows, or what
            `gpuzoo predict` refuses.
    """
    found, said = [], []
    needed = names(series)
    for number, example in enumerate(examples):
        what = f"inputs[{number}]"
        if type(example) is not dict:
            raise Refused(422, f"{what} must be an object, column -> list of values")
        for name in needed:
            cells = example.get(name)
            if type(cells) is not list or not cells:
                raise Refused(
                    422,
                    f"{what}, {name[:60]!r}: expected a list of values, oldest first; "
                    f"the columns are {', '.join(needed)}",
                )
            for cell in cells:
                if fault := fault_of(cell, _LONGEST):
                    raise Refused(422, f"{what}, {name[:60]!r}: {fault}")
        try:
            table = columns.from_memory(what, {n: example[n] for n in needed})
            window, lines = series_table.last_window(table, series)
        except GpuzooError as error:
            raise Refused(422, str(error)[:500]) from None
        if other := sorted(example.keys() - set(needed)):
            lines.append(f"not used by the model: column {other[0][:60]!r}")
        found.append(window)
        said += [f"{what}: {line}" for line in lines if "rows are read" not in line]
    return {"series": np.stack(found)}, said


def names(series: Series) -> list[str]:
    """Return the columns that a client must send."""
    return [*series.times, *(one.name for one in series.channels)]


def in_units(forecast: np.ndarray, series: Series) -> dict[str, list]:
    """Return a forecast of one series in the units of its targets, by their names."""
    told = series.unscaled(forecast).reshape(-1, series.targets)
    return dict(zip(series.names, told.T.tolist(), strict=True))


def schema(series: Series) -> dict:
    """Return the JSON schema of a series."""
    cell = {"type": ["number", "string", "null"]}
    column = {"type": "array", "items": cell, "minItems": series.window}
    found = dict.fromkeys(names(series), column)
    return {"type": "object", "required": [*found], "properties": found}
