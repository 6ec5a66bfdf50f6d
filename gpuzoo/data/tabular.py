"""Tables as data: a target column, and rows that are prepared by the training part."""

import collections
import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from gpuzoo.data import column_kinds, columns, preparation
from gpuzoo.data.column_kinds import Reading
from gpuzoo.data.columns import Column, Columns
from gpuzoo.data.dataset import LONG, Dataset
from gpuzoo.data.preparation import Preparation, Target
from gpuzoo.data.validate import alike, hold_out
from gpuzoo.data.validation import with_validation
from gpuzoo.errors import GpuzooError

TASKS = CLASSIFY, REGRESS = "classify_table", "regress_table"
LEAST = 10
"""Rows."""
FEW = 10
"""Different integers up to which a target is taken for classes."""
_FAR_AWAY = {-99.0, -999.0, -9999.0, -99999.0, 999.0, 9999.0, 99999.0}
_NAMED = 30
"""Rows without a target that a message names."""


def make(
    name: str,
    source: str,
    table: Columns,
    *,
    target: str,
    kinds: tuple[str, ...] = (),
    task: str = "",
    validation: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Make a dataset of a table: a fixed fifth of its rows is for testing.

    Args:
        target: name of the column to predict.
        kinds: the recipe field `columns`.
        task: classify_table, regress_table, or anything else for the one that fits the
            target: classes are texts, or at most FEW different integers.
        validation, seed: as for `load_data`.

    Returns:
        A Dataset whose splits hold `table`, (examples, numbers), float32
        (gpuzoo/data/preparation.py), and `label`, or `target`, (examples,), float32,
        standardized by the training part (`scale`).

    Raises:
        GpuzooError: what is wrong with the table, the target or a column.
    """
    target = columns.clean_name(target)
    wanted = preparation.column_of(target, table)
    given = column_kinds.parse_columns(
        kinds, [one for one in table.columns if one != target], target
    )
    if len(table) < LEAST:
        raise GpuzooError(
            f"{table.what}: {len(table)} rows below the names of the columns; at least "
            f"{LEAST} are needed"
        )
    goal = goal_of(table, wanted, task)
    arrays = {"table": goal.rows[:, None]}
    arrays["label" if goal.classes else "target"] = goal.values
    splits = with_rows(table.what, arrays)
    rough = Dataset(name, source, splits, goal.classes, "")
    rough = with_validation(rough, validation, seed)
    rows = {split: part["table"][:, 0] for split, part in rough.splits.items()}
    readings = {
        one: column_kinds.decide(
            table, column, goal.rows, rows["train"], given.get(one, "")
        )
        for one, column in table.columns.items()
        if one != target
    }
    forced = {one for one, kind in given.items() if kind == "category"}
    prepared = preparation.fit(readings, rows["train"], goal.target, forced)
    clean, scale = _prepared(rough, rows, prepared, readings)
    findings = (
        *table.findings, *goal.said, *_described(prepared, readings, goal.rows),
        *rough.findings, *alike(goal.classes), *empty_classes(clean, goal.classes),
        *_duplicates(table, prepared, rows),
    )  # fmt: skip
    return Dataset(
        name, source, clean, goal.classes, digest(table, target), findings,
        scale, prepared, preparation.unprepared(prepared, readings, rows["test"]),
    )  # fmt: skip


def other(
    table: Columns, prepared: Preparation, classes: tuple[str, ...], scale
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the rows of another table with a target, as examples of a trained model,
    and findings.

    Raises:
        GpuzooError: a column is missing, a cell cannot be read, or a class is unknown.
    """
    target = prepared.target
    column = preparation.column_of(target.name, table)
    readings, said = preparation.read_again(table, prepared)
    if target.kind == "number":
        form = column_kinds.numbers.Form(*target.form)
        read = column_kinds.as_numbers(table, column, range(len(table)), form)
        said += [f"column {target.name!r}: {line}" for line in read.said]
        rows = np.flatnonzero(~np.isnan(read.values))
        scaled = (read.values[rows] - scale[0]) / scale[1]
        found = {"target": scaled.astype(np.float32)}
    else:
        rows, labels = labels_again(table, column, classes)
        found = {"label": labels}
    if not len(rows):
        raise GpuzooError(f"{table.what}: no row has a value of {target.name!r}")
    said += left_out(table, target.name, np.setdiff1d(np.arange(len(table)), rows))
    said += preparation.unseen(table, prepared, readings)
    return {"table": preparation.encode(prepared, readings, rows), **found}, said


def labels_again(
    table: Columns, column: Column, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that have a class, and its index among those of a training.

    Raises:
        GpuzooError: a class is unknown.
    """
    places = {one: n for n, one in enumerate(classes)}
    texts = [
        "" if text not in places and text.lower() in column_kinds.numbers.MISSING
        else text
        for text in column_kinds.as_categories(column)
    ]  # fmt: skip
    rows = np.flatnonzero([text != "" for text in texts])
    for row in rows:
        if texts[row] not in places:
            raise table.error(
                row, column.name,
                f"{texts[row][:60]!r} is not a class of the training: "
                f"{', '.join(classes)[:200]}",
            )  # fmt: skip
    return rows, np.array([places[texts[row]] for row in rows], np.int32)


# --- the target ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Goal:
    """The target, read."""

    target: Target
    rows: np.ndarray
    """That have a value of it."""
    values: np.ndarray
    """Of these rows: numbers, or indices of classes."""
    classes: tuple[str, ...]
    said: list[str]


def goal_of(table: Columns, column: Column, task: str, numeric: bool = True) -> Goal:
    """Read the target as classes or as numbers; `numeric`: whether numbers can be
    predicted, which messages then name."""
    every = np.arange(len(table))
    number = _numbers_of_target(table, column, every, task)
    if number is not None:
        there = number.values[~np.isnan(number.values)]
        few = len(np.unique(there)) <= FEW and (there == np.floor(there)).all()
        if task == REGRESS or (task != CLASSIFY and not few):
            return _regression(table, column, number)
    texts = column_kinds.as_categories(column)
    rows = np.flatnonzero([text != "" for text in texts])
    if number is not None:  # among numbers "-" is a missing one, too
        rows = rows[~np.isnan(number.values[rows])]
    counts = collections.Counter(texts[row] for row in rows)
    _check_spread(table, column, rows, len(counts))
    names = sorted(counts, key=_order if number is not None else None)
    if 2 * len(names) > len(rows) or len(names) > 10_000:
        raise GpuzooError(
            f"{table.what}: the target {column.name!r} has {len(names):,} different "
            f"values in {len(rows):,} rows, too many for classes; name another target"
            + ", or add --task regress_table"
            * (number is not None and numeric)
        )
    places = {one: n for n, one in enumerate(names)}
    labels = np.array([places[texts[row]] for row in rows], np.int32)
    said = f"the target {column.name!r} has {len(names)} classes"
    if number is not None and numeric:
        said += ", numbers (--task regress_table predicts them as such)"
    return Goal(
        Target(column.name, "category"), rows, labels, tuple(names),
        [said, *left_out(table, column.name, np.setdiff1d(every, rows))],
    )  # fmt: skip


def _numbers_of_target(
    table: Columns, column: Column, rows: np.ndarray, task: str
) -> Reading | None:
    """Return the target as numbers; None if it holds texts."""
    if column.values is not None or task == REGRESS:
        return column_kinds.as_numbers(table, column, rows)
    read = column_kinds.decide(table, column, rows, rows, "")
    if read.kind == "unused":  # by a rule that is not for targets
        try:
            read = column_kinds.as_numbers(table, column, rows)
        except GpuzooError:
            return None
    return read if read.kind == "number" and not column.typed else None


def _regression(table: Columns, column: Column, read: Reading) -> Goal:
    every = np.arange(len(table))
    rows = np.flatnonzero(~np.isnan(read.values))
    values = read.values[rows]
    _check_spread(table, column, rows, len(np.unique(values)))
    if np.abs(values).max() > 1e30:
        raise GpuzooError(
            f"{table.what}: values of the target {column.name!r} up to "
            f"{np.abs(values).max():g} are too large; rescale them"
        )
    said = (
        f"the target {column.name!r} is a number, of {len(np.unique(values)):,} "
        "different values (--task classify_table takes them for classes)"
    )
    return Goal(
        Target(column.name, "number", read.form.record), rows, values, (),
        [said, *(f"column {column.name!r}: {line}" for line in read.said),
         *left_out(table, column.name, np.setdiff1d(every, rows))],
    )  # fmt: skip


def _check_spread(table: Columns, column: Column, rows, different: int) -> None:
    if not len(rows):
        raise GpuzooError(f"{table.what}: the target {column.name!r} is empty")
    if different < 2:
        raise GpuzooError(
            f"{table.what}: the target {column.name!r} is the same in all "
            f"{len(rows):,} rows; there is nothing to learn"
        )


def _order(name: str) -> tuple:
    """Return the sort key of a class that is a number."""
    return (float(name.replace(",", ".")) if _plain(name) else 0.0, name)


def _plain(name: str) -> bool:
    try:
        float(name.replace(",", "."))
    except ValueError:
        return False
    return True


def left_out(table: Columns, name: str, rows: np.ndarray) -> list[str]:
    if not len(rows):
        return []
    places = [table.at(row).rpartition(" ")[2] for row in rows[:_NAMED]]
    kind = "lines" if table.lines else "rows"
    dots = ", ..." * (len(rows) > _NAMED)
    return [
        f"{len(rows):,} of {len(table):,} rows have no value of the target {name!r} "
        f"and are left out: {kind} {', '.join(places)}{dots}"
    ]


# --- examples -----------------------------------------------------------------------


def with_rows(what: str, arrays: dict) -> dict:
    """Hold out a fifth of the rows; of classes of each, where it can be."""
    if "target" in arrays:
        return hold_out(what, arrays)
    parts = hold_out(what, arrays)
    for split, part in parts.items():
        if len(np.unique(part["label"])) < 2 and split == "train":
            raise GpuzooError(f"{what}: only one class among the training rows")
    return parts


def _prepared(
    rough: Dataset, rows: dict, prepared: Preparation, readings: dict
) -> tuple[dict, tuple | None]:
    """Return the splits as the model takes them, and the scale of the target."""
    scale = None
    if not rough.classes:
        values = rough.train["target"]
        if len(np.unique(values)) < 2:
            raise GpuzooError(
                f"data {rough.name}: the target {prepared.target.name!r} is the same "
                "in all training rows; there is nothing to learn"
            )
        scale = preparation.moments_of(values)
    clean = {}
    for split, part in rough.splits.items():
        made = {"table": preparation.encode(prepared, readings, rows[split])}
        if rough.classes:
            made["label"] = part["label"].astype(np.int32)
        else:
            scaled = (part["target"] - scale[0]) / scale[1]
            made["target"] = scaled.astype(np.float32)
        clean[split] = made
    return clean, scale


def digest(table: Columns, target: str) -> str:
    """Return the sha256 over the names and the cells of all columns, and the target's
    name."""
    digest = hashlib.sha256(json.dumps([target, list(table.columns)]).encode())
    if table.mark == ",":  # on which it depends how "1,234" is read
        digest.update(b"separated by commas")
    for column in table.columns.values():
        if column.values is not None:
            digest.update(b"numbers")
            digest.update(np.ascontiguousarray(column.values).data)
        else:
            digest.update(b"typed" if column.typed else b"")
            digest.update(json.dumps(column.texts).encode())
    return digest.hexdigest()


# --- findings -----------------------------------------------------------------------


def _described(
    prepared: Preparation, readings: dict[str, Reading], rows: np.ndarray
) -> list[str]:
    """Return one line for each kind of column, and for each reason not to use one."""
    dates = [one.name for one in prepared.numeric if one.order]
    plain = [one.name for one in prepared.numeric if not one.order]
    found = []
    for kind, names in (("numbers", plain), ("dates or times", dates)):
        if names:
            found.append(f"read as {kind}: {_listed(names)}")
    if prepared.categorical:
        counts = [
            f"{one.name!r} ({len(one.categories):,})" for one in prepared.categorical
        ]
        found.append(
            "read as categories, with so many known ones: " + ", ".join(counts)
        )
    for reason in dict.fromkeys(why for _, why in prepared.unused):
        names = [name for name, why in prepared.unused if why == reason]
        found.append(f"not used, {reason}: {_listed(names)}")
    found += [*_rare(prepared, readings, rows), *_alike(prepared)]
    found += _far_away(prepared, readings, rows)
    formats: dict[str, list[str]] = {}
    for name, reading in readings.items():
        for line in reading.said if reading.kind == "number" else ():
            formats.setdefault(line, []).append(name)
    found += [f"{line}: {_listed(names)}" for line, names in formats.items()]
    missing = []
    for name in prepared.used:
        reading = readings[name]
        gone = (
            np.isnan(reading.values[rows])
            if reading.texts is None
            else np.array([reading.texts[row] == "" for row in rows])
        )
        if gone.any():
            missing.append(f"{name!r} {gone.mean():.2g}")
    if missing:
        found.append(f"fraction of values that are missing: {', '.join(missing)}")
    return found


def _rare(prepared: Preparation, readings: dict, rows: np.ndarray) -> list[str]:
    """Return a line if categories have no entry of their own."""
    found = []
    for one in prepared.categorical:
        known = {*one.categories, ""}
        texts = readings[one.name].texts
        rare = {texts[row] for row in rows} - known
        if rare:
            found.append(f"{one.name!r} {len(rare):,}")
    if not found:
        return []
    return [
        "categories that are taken for unknown ones, as they are in one training row "
        f"or none, or not among the {preparation.MOST:,} most frequent: "
        + ", ".join(found)
    ]


def _alike(prepared: Preparation) -> list[str]:
    found = []
    for one in prepared.categorical:
        if names := alike(one.categories):
            more = f" and {len(names) - 1} more" * (len(names) > 1)
            found.append(f"column {one.name!r}: {names[0]}{more}")
    return found


def _far_away(prepared: Preparation, readings: dict, rows: np.ndarray) -> list[str]:
    """Return a line on each column that has -999 and the like several times, far from
    its other values."""
    found = []
    for one in (each for each in prepared.numeric if not each.order):
        values = readings[one.name].values[rows]
        values = values[~np.isnan(values)]
        for mark in _FAR_AWAY & {values.min(), values.max()}:
            rest = values[values != mark]
            apart = rest.size and np.abs(rest - mark).min() > 3 * np.ptp(rest)
            if apart and len(values) - len(rest) > 1:
                found.append(
                    f"column {one.name!r}: {mark:g} stands {len(values) - len(rest)} "
                    "times, far from all other values: leave the cells empty if it "
                    "means a missing value"
                )
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def empty_classes(splits: dict, classes: tuple[str, ...]) -> list[str]:
    found = []
    for split, part in splits.items():
        if classes:
            counts = np.bincount(part["label"], minlength=len(classes))
            empty = [classes[place] for place in np.flatnonzero(counts == 0)]
            if empty:
                dots = ", ..." * (len(empty) > 5)
                names = ", ".join(map(repr, empty[:5])) + dots
                found.append(f"no {LONG[split]} row of the classes {names}")
    return found


def _duplicates(table: Columns, prepared: Preparation, rows: dict) -> list[str]:
    """Report rows that are equal, in all columns that are used, to a training row."""
    used = {*prepared.used, prepared.target.name}
    cells = [
        column.texts if column.values is None else column.values.tolist()
        for name, column in table.columns.items()
        if name in used
    ]
    whole = [tuple(map(str, row)) for row in zip(*cells, strict=True)]
    known = {whole[row] for row in rows["train"]}
    found = []
    for split in ("val", "test"):
        mine = rows.get(split, ())
        if count := sum(whole[row] in known for row in mine):
            found.append(
                f"{count:,} of {len(mine):,} {LONG[split]} rows are also training rows"
            )
    return found


def from_path(path: pathlib.Path) -> tuple[str, str, Columns]:
    """Return name, source and columns of a file."""
    table = columns.from_file(path)
    kinds = {".csv": "CSV file", ".parquet": "Parquet file", ".npz": "data frame"}
    return path.stem, kinds[path.suffix.lower()], table
