"""Digests of trained weights, written down once for each class of machine.

A change of numerics is meant to fail here: look why, write the new digests with
GPUZOO_WRITE_REFERENCE=1 (and without -n) and say in the commit what has changed.
"""

import json
import os
import pathlib

from gpuzoo.runtime import environment

FILE = pathlib.Path(__file__).parent / "reference_digests.json"


def known_digest(found: str, threads: int, *keys: str) -> str | None:
    """The digest that was written down under the keys; None for another machine.

    With GPUZOO_WRITE_REFERENCE=1 it is `found` that is written down.
    """
    versions, packages = environment.versions(), ("tensorflow", "keras", "numpy")
    kind = " ".join(
        [
            environment.cpu_model(),
            *environment.cpu_isa(),
            f"threads={threads}",
            *(f"{name}={versions.get(name)}" for name in packages),
            *(f"{k}={v}" for k, v in environment.moving_variables().items()),
        ]
    )
    known = json.loads(FILE.read_text())
    place = known.setdefault(kind, {})
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    if os.environ.get("GPUZOO_WRITE_REFERENCE"):
        place[keys[-1]] = found
        FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return place.get(keys[-1])
