"""Digests of trained weights, written down once for each machine: its column.

A change of numerics is meant to fail here: look why, write the new digests with
GPUZOO_WRITE_REFERENCE=1 (and without -n) and say in the commit what has changed. The
models of the catalogue in every mode are written by benchmarks/repeatability/scope.py.
"""

import json
import os
import pathlib

from gpuzoo.runtime import environment
from gpuzoo.runtime.processors import classes_of

FILE = pathlib.Path(__file__).parent / "reference_digests.json"
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_PACKAGES = ("tensorflow", "keras", "numpy", "jax")


def columns() -> list[dict]:
    """Return what was written down, a column for each machine and its versions."""
    return json.loads(FILE.read_text())["columns"]


def write(every: list[dict]) -> None:
    FILE.write_text(json.dumps({"columns": every}, indent=1, sort_keys=True) + "\n")


def this_machine(threads: int) -> dict:
    """Return what identifies the column of this machine."""
    versions = environment.versions()
    return {
        "cpu": environment.cpu_model(),
        "cpu_class": environment.cpu_class(),
        "threads": threads,
        "versions": {name: versions.get(name) for name in _PACKAGES},
        "variables": environment.moving_variables(),
    }


def own_column(every: list[dict], threads: int) -> dict:
    """Return the column of this machine; a new one if there is none."""
    here = this_machine(threads)
    for column in every:
        if all(column[name] == value for name, value in here.items()):
            return column
    every.append({**here, "digests": {}})
    return every[-1]


def comparable(threads: int, precision: str, level: str = "repeatable") -> list[dict]:
    """Return the columns with the bits of this machine: of its class in this precision;
    at level portable every column of these versions, since that level replaces what
    the variables move (the matrix functions of NumPy)."""
    here, found = this_machine(threads), []
    runtime = {"precision": precision, "level": level, "variables": {}}
    for column in columns():
        sides = [{"environment": one, "runtime": runtime} for one in (here, column)]
        same = ("threads", "versions") + ("variables",) * (level != "portable")
        if len(set(classes_of(*sides))) == 1 and all(
            column[name] == here[name] for name in same
        ):
            found.append(column)
    return found


def known_digests(found: str, threads: int, *keys: str) -> dict[str, str]:
    """Return the digests that were written down under the keys for machines of this
    class, by the name of the processor.

    With GPUZOO_WRITE_REFERENCE=1 `found` is written down for this machine.
    """
    if os.environ.get("GPUZOO_WRITE_REFERENCE"):
        every = columns()
        place = own_column(every, threads)["digests"]
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = found
        write(every)
    (precision,) = set(keys) & set(PRECISIONS)
    known = {}
    for column in comparable(threads, precision):
        place = column["digests"]
        for key in keys:
            place = place.get(key, {})
        if place:
            known[column["cpu"]] = place
    return known
