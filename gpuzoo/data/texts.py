"""Texts as data: a column of texts and one of classes, of which the training part makes
the vocabulary."""

import os
import pathlib
import shlex

import numpy as np

from gpuzoo.data import column_kinds, columns, tabular
from gpuzoo.data.columns import Column, Columns
from gpuzoo.data.dataset import LONG, Dataset
from gpuzoo.data.validate import alike
from gpuzoo.data.validation import with_validation
from gpuzoo.data.vocabulary import UNKNOWN, Vocabulary, fit, words
from gpuzoo.errors import GpuzooError

TASK = "classify_text"
KINDS = ("text", "drop")
"""What the recipe field `columns` may say of a column."""
TEXT, LABEL = "text", "label"
"""The columns of texts and labels from Python."""
_LOOKED_AT = 500
"""Cells that show which column holds the texts."""
_LISTED = 30


def make(
    name: str,
    source: str,
    table: Columns,
    *,
    target: str,
    kinds: tuple[str, ...] = (),
    validation: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Make a dataset of a table with texts: a fixed fifth of its rows is for testing.

    Args:
        target: name of the column of classes.
        kinds: the recipe field `columns`: name:text or name:drop.
        validation, seed: as for `load_data`.

    Returns:
        A Dataset whose splits hold `text`, (examples, words), int32
        (gpuzoo/data/vocabulary.py), and `label`.

    Raises:
        GpuzooError: what is wrong with the table, the target or the texts.
    """
    target = columns.clean_name(target)
    wanted = tabular.preparation.column_of(target, table)
    others = [one for one in table.columns if one != target]
    if len(table) < tabular.LEAST:
        raise GpuzooError(
            f"{table.what}: {len(table)} rows below the names of the columns; at least "
            f"{tabular.LEAST} are needed"
        )
    chosen = _chosen(table, others, column_kinds.parse_columns(
        kinds, others, target, KINDS
    ))  # fmt: skip
    goal = tabular.goal_of(table, wanted, tabular.CLASSIFY, numeric=False)
    found = list(map(words, joined(table, chosen)))
    full = _with_words(table, goal.rows, found)
    splits = tabular.with_rows(
        table.what, {"table": goal.rows[full, None], "label": goal.values[full]}
    )
    rough = with_validation(
        Dataset(name, source, splits, goal.classes, ""), validation, seed
    )
    parts = {split: part["table"][:, 0] for split, part in rough.splits.items()}
    each = {split: [found[row] for row in mine] for split, mine in parts.items()}
    known, clean = _encoded(table, chosen, target, each)
    for split, part in clean.items():
        part["label"] = rough.splits[split]["label"].astype(np.int32)
    findings = (
        *table.findings, *_described(table, known, each, clean), *goal.said,
        *_empty(table, goal.rows[~full]),
        *rough.findings, *alike(goal.classes),
        *tabular.empty_classes(clean, goal.classes), *_duplicates(each),
    )  # fmt: skip
    fingerprint = _digest(table, chosen, target)
    return Dataset(name, source, clean, goal.classes, fingerprint, findings, text=known)


def _with_words(table: Columns, rows, found: list[list[str]]) -> np.ndarray:
    """Return which of some rows have a text with words."""
    full = np.array([bool(found[row]) for row in rows])
    if not full.any():
        raise GpuzooError(
            f"{table.what}: every text is empty; name another column with --columns "
            "NAME:text"
        )
    return full


def _digest(table: Columns, chosen: list[str], target: str) -> str:
    """Return the sha256 of the columns that are used."""
    used = {one: table.columns[one] for one in (*chosen, target)}
    return tabular.digest(Columns(table.what, used, mark=table.mark), target)


def _encoded(
    table: Columns, chosen: list[str], target: str, each: dict[str, list[list[str]]]
) -> tuple[Vocabulary, dict[str, dict[str, np.ndarray]]]:
    """Return the vocabulary of the training part, and all parts by it."""
    known = fit(tuple(chosen), target, each["train"])
    if not known.words:
        raise GpuzooError(
            f"{table.what}: no word is in two training texts; there is nothing to "
            "learn: give more texts, or another column with --columns NAME:text"
        )
    return known, {
        split: {"text": known.of_words(mine)} for split, mine in each.items()
    }


def other(
    table: Columns, known: Vocabulary, classes: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the rows of another table with classes, as examples of a trained model,
    and findings.

    Raises:
        GpuzooError: a column is missing, a class is unknown, or no row is left.
    """
    target = tabular.preparation.column_of(known.target, table)
    _check(table, known)
    rows, labels = tabular.labels_again(table, target, classes)
    texts = joined(table, known.columns)
    full = np.array([bool(words(texts[row])) for row in rows], bool)
    if not full.any():
        raise GpuzooError(
            f"{table.what}: no row has a text and a class; {target.name!r} must hold "
            f"the classes and {', '.join(map(repr, known.columns))} the texts"
        )
    said = tabular.left_out(
        table, target.name, np.setdiff1d(np.arange(len(table)), rows)
    )
    said += _empty(table, rows[~full])
    used = [texts[row] for row in rows[full]]
    found = {"text": known.encode(used), "label": labels[full]}
    return found, [*said, *known.lost(used)]


def given(examples, known: Vocabulary) -> tuple[list[str], list[str]]:
    """Return the texts that a user gives to predict, and findings.

    Args:
        examples: a text, a list or an array of texts, a table (`columns.is_table`), or
            the path of a file of one, as a pathlib.Path.

    Raises:
        GpuzooError: anything else, or a column is missing.
    """
    found, said = _given("texts to predict", examples, known)
    return found, [*said, *known.lost(found)]


def _given(what: str, examples, known: Vocabulary) -> tuple[list[str], list[str]]:
    if isinstance(examples, str):
        if pathlib.PurePath(examples).suffix.lower() in columns.SUFFIXES:
            raise GpuzooError(
                f"{what}: {examples[:60]!r} looks like the name of a file, and a str "
                "is a text; for the file give pathlib.Path(...), for the text [...]"
            )
        return [examples], []
    row = hasattr(examples, "iloc") and not columns.is_table(examples)
    if row and {*known.columns} <= {*examples.index}:  # of a data frame
        examples = dict(examples)
    if isinstance(examples, os.PathLike):
        return of_table(columns.from_file(pathlib.Path(examples)), known)
    if columns.is_table(examples):
        return of_table(columns.from_memory(what, examples), known)
    cells = _listed(examples)
    if not isinstance(cells, list | tuple) or not all(map(_is_text, cells)):
        raise GpuzooError(
            f"{what} must be a str, a list of str, a data frame, a dict of columns, or "
            f"the pathlib.Path of a .csv or .parquet file, not {_kind(cells)}"
        )
    if len(known.columns) > 1:
        names = ", ".join(map(repr, known.columns))
        raise GpuzooError(
            f"{what}: a text has the columns {names}; give a data frame or a dict"
        )
    if not cells:
        raise GpuzooError("no texts to predict")
    return list(cells), []


def of_table(table: Columns, known: Vocabulary) -> tuple[list[str], list[str]]:
    """Return the texts of a table, and findings.

    Raises:
        GpuzooError: it has no rows, or a column is missing.
    """
    if not len(table):
        raise GpuzooError(f"{table.what}: no rows below the names of the columns")
    _check(table, known)
    return joined(table, known.columns), table.findings


def from_pair(data) -> Columns | None:
    """Return (texts, labels) of Python as a table; None if they are none.

    Raises:
        GpuzooError: different numbers of texts and labels, or texts that are bytes.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        return None
    texts = _listed(data[0])
    if isinstance(texts, list | tuple) and bytes in map(type, texts):
        raise GpuzooError("data: the texts are bytes; decode them: text.decode()")
    if not isinstance(texts, list | tuple) or not any(map(_is_text, texts)):
        return None
    return columns.from_memory("data", {TEXT: list(texts), LABEL: data[1]})


def joined(table: Columns, names) -> list[str]:
    """Return the text of each row: its cells, one after the other."""
    cells = [_cells(table.columns[name]) for name in names]
    return ["\n".join(filter(None, row)) for row in zip(*cells, strict=True)]


def _cells(column: Column) -> list[str]:
    if column.texts is not None:
        return column.texts
    return [
        "" if value != value else columns.number_text(value)
        for value in column.values.tolist()
    ]


def _listed(texts):
    """Return a list of what has one: arrays, series of pandas and of polars."""
    for name in ("tolist", "to_list"):
        if hasattr(texts, name):
            return getattr(texts, name)()
    return texts


def _kind(cells) -> str:
    if not isinstance(cells, list | tuple):
        return type(cells).__name__
    other = next(one for one in cells if not _is_text(one))
    return f"{type(other).__name__} among them"


def _is_text(one) -> bool:
    return isinstance(one, str)


def _check(table: Columns, known: Vocabulary) -> None:
    for name in known.columns:
        if name not in table.columns:
            listed = ", ".join(map(repr, list(table.columns)[:_LISTED]))
            raise GpuzooError(
                f"{table.what}: has no column {name!r}, which holds the texts that the "
                f"model was trained on; rename the one that does; its columns are "
                f"{listed}"
            )


def _chosen(table: Columns, others: list[str], given: dict[str, str]) -> list[str]:
    """Return the columns that hold the texts: those that are named, or the one with the
    most words.

    Raises:
        GpuzooError: there is none, or it could be another one.
    """
    if named := [one for one in others if given.get(one) == "text"]:
        return named
    left = [one for one in others if given.get(one) != "drop"]
    counts = {one: _words_of(table.columns[one]) for one in left}
    counts = {one: count for one, count in counts.items() if count}
    if not others:
        raise GpuzooError(
            f"{table.what}: its only column is the target; a column of texts is missing"
        )
    if not counts and len(left) == 1 and table.columns[left[0]].texts is not None:
        return left  # texts without letters, as emoji are
    if not counts:
        raise GpuzooError(
            f"{table.what}: no column beside the target holds texts with letters; name "
            "one with --columns NAME:text; the columns beside the target are "
            f"{', '.join(map(repr, others[:_LISTED]))}"
        )
    first, *rest = sorted(counts, key=lambda one: -counts[one])
    if rest and 2 * counts[rest[0]] > counts[first]:
        one, other = (shlex.quote(f"{name}:text") for name in (first, rest[0]))
        raise GpuzooError(
            f"{table.what}: the columns {first!r} and {rest[0]!r} both hold texts; add "
            f"--columns {one}, or {one} {other} for both"
        )
    return [first]


def _words_of(column: Column) -> float:
    """Return the mean number of words with letters in the first cells of a column."""
    if column.values is not None:
        return 0.0
    cells = column.texts[:_LOOKED_AT]
    found = [
        sum(word[0].isalpha() for word in words(cell[:2_000]) if word) for cell in cells
    ]
    return sum(found) / max(sum(map(bool, cells)), 1)


# --- findings -----------------------------------------------------------------------


def _described(
    table: Columns, known: Vocabulary, each: dict[str, list[list[str]]], clean: dict
) -> list[str]:
    names = " and ".join(map(repr, known.columns))
    longer = [
        f"{sum(len(text) > known.length for text in mine):,} of {len(mine):,} "
        f"{LONG[split]} texts"
        for split, mine in each.items()
    ]
    found = [
        f"texts of {names}: the first {known.length} words are read; longer are "
        f"{', '.join(longer)}",
        f"{len(known.words):,} words are known, each in two training texts or more",
    ]
    shares = []
    for split, part in clean.items():
        seen = part["text"] > 0
        share = (part["text"] == UNKNOWN).sum() / max(seen.sum(), 1)
        shares.append(f"{LONG[split]} {share:.2g}")
    found.append(f"fraction of words that are unknown: {', '.join(shares)}")
    used = {*known.columns, known.target}
    if unused := [repr(one) for one in table.columns if one not in used]:
        dots = ", ..." * (len(unused) > _LISTED)
        found.append(f"not used: column {', '.join(unused[:_LISTED])}{dots}")
    return found


def _empty(table: Columns, rows: np.ndarray) -> list[str]:
    if not len(rows):
        return []
    places = [table.at(row).rpartition(" ")[2] for row in rows[:_LISTED]]
    kind = "lines" if table.lines else "rows"
    dots = ", ..." * (len(rows) > _LISTED)
    return [
        f"{len(rows):,} of {len(table):,} rows have an empty text and are left out: "
        f"{kind} {', '.join(places)}{dots}"
    ]


def _duplicates(parts: dict[str, list[list[str]]]) -> list[str]:
    """Report texts that are, word by word, training texts, too."""
    seen = set(map(tuple, parts["train"]))
    found = []
    for split in ("val", "test"):
        mine = parts.get(split, ())
        if count := sum(tuple(text) in seen for text in mine):
            found.append(
                f"{count:,} of {len(mine):,} {LONG[split]} texts are also training "
                "texts"
            )
    return found
