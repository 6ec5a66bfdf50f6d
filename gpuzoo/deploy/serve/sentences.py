"""Texts that a client sends as JSON."""

import numpy as np

from gpuzoo.data import columns, texts
from gpuzoo.data.vocabulary import Vocabulary
from gpuzoo.deploy.serve.inputs import Refused

_LONGEST = 100_000  # characters of a text
_LISTED = 5
_WARNINGS = 100


def from_examples(
    examples: list, known: Vocabulary
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the inputs by name, and warnings, of a list of texts, or of objects,
    column -> text.

    Raises:
        Refused: other types, a column that is missing, or a text that is too long.
    """
    rows, others = [], set()
    for number, one in enumerate(examples):
        if type(one) is str and len(known.columns) == 1:
            one = {known.columns[0]: one}
        if type(one) is not dict or not all(
            type(one.get(name)) is str for name in known.columns
        ):
            raise Refused(
                422, f"inputs[{number}] must be {described(known)}, each a string"
            )
        if any(len(one[name]) > _LONGEST for name in known.columns):
            raise Refused(
                422, f"inputs[{number}]: a text of more than {_LONGEST:,} characters"
            )
        rows.append(one)
        others |= one.keys() - {*known.columns, known.target}
    table = columns.from_memory(
        "inputs", {name: [row[name] for row in rows] for name in known.columns}
    )
    found = texts.joined(table, known.columns)
    said = []
    if others:
        listed = ", ".join(repr(name[:60]) for name in sorted(others)[:_LISTED])
        dots = ", ..." * (len(others) > _LISTED)
        said.append(f"not read, and ignored: column {listed}{dots}")
    said += [
        f"inputs[{number}]: {line}"
        for number, text in enumerate(found)
        for line in known.strange(text)
    ][:_WARNINGS]
    return {"text": known.encode(found)}, said


def described(known: Vocabulary) -> str:
    """Return what an example is."""
    names = ", ".join(known.columns)
    if len(known.columns) == 1:
        return f"a text, or an object, column -> text: {names}"
    return f"an object, column -> text: {names}"


def schema(known: Vocabulary) -> dict:
    """Return the JSON schema of an example."""
    text = {"type": "string", "maxLength": _LONGEST}
    named = {
        "type": "object", "required": [*known.columns],
        "properties": dict.fromkeys(known.columns, text),
    }  # fmt: skip
    return {"anyOf": [text, named]} if len(known.columns) == 1 else named
