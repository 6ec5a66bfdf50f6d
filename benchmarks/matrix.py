"""The record of repeatable.py: together with an earlier one, and as a table."""

import json
import pathlib


def merged(record: dict, path: pathlib.Path) -> dict:
    """The record with what an earlier one says of other models and modes."""
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
    """Models down, modes across."""
    models = sorted({name for results in modes.values() for name in results})
    rows = [["model", *modes]]
    for name in models:
        rows.append(
            [name, *(r.get(name, {}).get("verdict", "") for r in modes.values())]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)
