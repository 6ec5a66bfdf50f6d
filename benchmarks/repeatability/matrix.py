"""The data and the record of repeatable.py: merged with an earlier one, as a table."""

import json
import pathlib
import sys

import numpy as np


def merged(record: dict, path: pathlib.Path) -> dict:
    """Merge the record with an earlier one of other models and modes."""
    if not path.exists():
        return record
    old = json.loads(path.read_text())
    differing = {"code_sha256", "date", "command", "modes"}
    if any(old.get(key) != record[key] for key in record.keys() - differing):
        return record
    first = old["date"].partition(" ")[0]
    if first != record["date"]:
        record = {**record, "date": f"{first} to {record['date']}"}
    modes = dict(old["modes"])
    for mode, results in record["modes"].items():
        modes[mode] = dict(sorted({**modes.get(mode, {}), **results}.items()))
    return {**record, "modes": dict(sorted(modes.items()))}


def table(modes: dict) -> str:
    """Return a table with a row per model and a column per mode."""
    models = sorted({name for results in modes.values() for name in results})
    rows = [["model", *modes]]
    for name in models:
        rows.append(
            [name, *(r.get(name, {}).get("verdict", "") for r in modes.values())]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)


def small_digits(folder: str, steps: int, batch: int) -> str:
    """Write a file with as many digits of every class as the steps need."""
    import gpuzoo

    data = gpuzoo.load_data("digits")
    train, path = data.train, pathlib.Path(folder) / "digits.npz"
    label, count = train["label"], max(steps * batch, 10)
    if count > len(label):
        sys.exit(f"{count} examples are needed; there are {len(label)}")
    # How many of its class come before an example: the first ten are of ten classes.
    before = [np.count_nonzero(label[:i] == label[i]) for i in range(len(label))]
    taken = np.argsort(before, kind="stable")[:count]
    np.savez(
        path,
        x_train=train["image"][taken], y_train=label[taken],
        x_test=data.test["image"][:16], y_test=data.test["label"][:16],
    )  # fmt: skip
    return str(path)
