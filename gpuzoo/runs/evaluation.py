"""The figures of a run's final evaluation: in run.json, or in a file if there are many
classes."""

import hashlib
import json

from gpuzoo.files import parse_json
from gpuzoo.runs.record import check_record, private

FILE = "evaluation.json"
INLINE = 30
"""Classes at most of which run.json itself holds the rows and the confusion matrix."""
AVERAGES = ("macro", "weighted", "micro")
_LONG = ("per_class", "confusion")


def parts(found: dict) -> tuple[dict, bytes]:
    """Return what run.json holds of figures (gpuzoo/tasks/scores.py), and the content
    of evaluation.json, empty if it is not needed."""
    found = private(found)
    if len(found.get("per_class", ())) <= INLINE:
        return found, b""
    long = {name: found[name] for name in _LONG if name in found}
    text = json.dumps(long, separators=(",", ":")) + "\n"
    return {k: v for k, v in found.items() if k not in _LONG}, text.encode()


def flat(found: dict) -> dict[str, float | None]:
    """Return the figures that are single numbers: `auc`, `macro_f1`, ..."""
    return {
        f"{name}_{part}" if part else name: number
        for name, value in found.items()
        if name not in (*_LONG, "undefined")
        for part, number in (value.items() if name in AVERAGES else [("", value)])
    }


def whole(record: dict, read) -> dict:
    """Return all figures of a run; {} if it has none.

    Args:
        read: name of a file in the run folder -> content.

    Raises:
        OSError, ValueError, GpuzooError: evaluation.json cannot be read, has changed
            or is not valid.
    """
    found = record.get("evaluation", {})
    if not found or FILE not in record["files"] or "per_class" in found:
        return found
    content = read(FILE)
    if hashlib.sha256(content).hexdigest() != record["files"][FILE]:
        raise ValueError(f"{FILE} has been changed since the run ended")
    found = {**found, **parse_json(content.decode())}
    check_record({**record, "evaluation": {**found, "confusion": []}})
    return found


def differences(record: dict, found: dict) -> dict[str, tuple]:
    """Return field -> values in the record and in figures computed again, of those that
    differ."""
    recorded = record.get("evaluation")
    here, content = parts(found)
    before, now = (
        dict(_fields("evaluation", one)) if one else {} for one in (recorded, here)
    )
    if content:
        before[FILE] = record["files"].get(FILE)
        now[FILE] = hashlib.sha256(content).hexdigest()
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return {k: pair for k, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}


def _fields(name: str, value):
    """Yield the names and values of nested fields; a row of a matrix is one."""
    nested = isinstance(value, dict | list) and len(value) > 0
    if nested and isinstance(value, list):
        nested = isinstance(value[0], dict | list)
    if not nested:
        yield name, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value, start=1)
    for key, one in items:
        yield from _fields(f"{name}/{key}", one)
