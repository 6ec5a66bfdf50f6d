"""Find, filter and sort the runs in a folder."""

import json
import operator
import pathlib
import re

from gpuzoo.errors import GpuzooError, nearest
from gpuzoo.files import Folder, expand
from gpuzoo.runs.record import read_run

SWEEP = "sweep.json"
"""The file of a sweep, beside its runs."""
_OPERATORS = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_DEEPEST = 3  # folders below the one given: runs/, a sweep's folder, its runs


def find(folder: str | pathlib.Path) -> tuple[list[dict], list[str]]:
    """Return the runs in a folder and its sub-folders, oldest first.

    Returns:
        Rows: `run` (the path), `state` (of a run that no process holds any more, and
        that has not ended: killed), `started`, `seconds` (of the whole training),
        the fields of the recipe and the options, the data that were used, the metrics,
        `weights_sha256`. And a line for each run whose record cannot be read.
    """
    top = expand(folder)
    if not top.is_dir():
        raise GpuzooError(f"folder {top} does not exist; name the folder of the runs")
    rows: list[dict] = []
    faults: list[str] = []
    for path in _folders(top, 0, faults):
        try:
            rows.append(_row(path, read_run(path)))
        except GpuzooError as error:
            faults.append(str(error))
    return sorted(rows, key=lambda row: (row["started"], row["run"])), faults


def select(rows: list[dict], conditions) -> list[dict]:
    """Return the rows that meet all conditions, such as `state=finished`,
    `test_accuracy>0.99` or `epochs!=1`. A run without such a field does not meet any.

    Raises:
        GpuzooError: a condition cannot be parsed, or no row has its field.
    """
    known = {name for row in rows for name in row}
    for condition in conditions:
        parts = re.fullmatch(r"\s*(\w[\w-]*)\s*(!=|<=|>=|=|<|>)(.*)", condition)
        if not parts:
            raise GpuzooError(
                f"condition {condition!r} must look like FIELD=VALUE, with one of "
                f"{' '.join(_OPERATORS)}"
            )
        name, sign, text = parts[1].replace("-", "_"), parts[2], parts[3].strip()
        if rows and name not in known:
            raise GpuzooError(f"runs have no field {name!r}; {nearest(name, known)}")
        compare = _OPERATORS[sign]
        rows = [row for row in rows if _meets(row.get(name), compare, text)]
    return rows


def ordered(rows: list[dict], by: str, descending: bool = False) -> list[dict]:
    """Return the rows sorted by a field; runs without the field come last."""
    name = by.replace("-", "_")
    known = {name for row in rows for name in row}
    if rows and name not in known:
        raise GpuzooError(f"runs have no field {name!r}; {nearest(name, known)}")
    have = [row for row in rows if row.get(name) is not None]
    rest = [row for row in rows if row.get(name) is None]
    numbers = all(isinstance(row[name], int | float) for row in have)
    key = (lambda row: row[name]) if numbers else (lambda row: str(row[name]))
    return sorted(have, key=key, reverse=descending) + rest


def _folders(path: pathlib.Path, depth: int, faults: list[str]):
    if (path / "run.json").is_file():
        yield path
    elif depth < _DEEPEST:
        try:
            names = sorted(path.iterdir())
        except OSError as error:
            faults.append(f"{path}: {error.strerror or error}")
            return
        for below in names:
            # Not through links: a run would be listed, and removed, by two names.
            if below.is_dir() and not (below.is_symlink() or below.name[0] == "."):
                yield from _folders(below, depth + 1, faults)


def _row(path: pathlib.Path, record: dict) -> dict:
    return {
        "run": str(path),
        "state": _state(path, record),
        "started": record["started"],
        "seconds": (record.get("seconds") or {}).get("wall"),
        **record["options"],
        **record["recipe"],
        "recipe": record["recipe"]["name"],
        **({"data": record["data"]["name"]} if record["data"] else {}),
        **record["metrics"],
        "weights_sha256": record.get("weights_sha256"),
    }


def _state(path: pathlib.Path, record: dict) -> str:
    if record["state"] != "running":
        return record["state"]
    try:
        folder = Folder(path)
    except OSError:
        return record["state"]
    try:
        if folder.is_locked() is not False:
            return "running"
        # It may have ended after its record was read.
        state = read_run(path)["state"]
        return "killed" if state == "running" else state
    finally:
        folder.close()


def _meets(value, compare, text: str) -> bool:
    if value is None:
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return compare(value if isinstance(value, str) else json.dumps(value), text)
    try:
        return compare(value, float(text))
    except ValueError:
        raise GpuzooError(f"a condition compares a number with {text!r}") from None
