"""The folder of an ordinary Keras `fit`: its record, fit.json, and its trail.

It holds no run.json: gpuzoo has not done the training and cannot repeat it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
import types

from gpuzoo.catalogue import imports, owners
from gpuzoo.errors import GpuzooError
from gpuzoo.files import LARGEST_JSON, Folder, expand, parse_json, read_inside
from gpuzoo.home import redact
from gpuzoo.runs import chain
from gpuzoo.runs.code import syntax_sha256
from gpuzoo.runs.record import FIT, RESTORE, now, private, seal
from gpuzoo.runtime.environment import environment

SCHEMA_VERSION = 1
_OUTPUTS = ("digests.jsonl", "metrics.jsonl", "weights.safetensors")
_FIELDS = {
    "state": str, "started": str, "command": list, "environment": dict, "code": dict,
    "inputs": dict, "runtime": dict | None, "settings": dict, "not_promised": list,
    "seal": str,
}  # fmt: skip


class FitFolder(Folder):
    """The folder of one `fit`, which nothing overwrites. It is held open and locked
    until `close`. A file that another callback has put there meanwhile is set aside;
    `set_apart` has the new names of these."""

    def __init__(self, path: str | pathlib.Path, **fields):
        """Create it with its record.

        Raises:
            GpuzooError: it is not empty, or cannot be written.
        """
        goal = expand(str(path))
        try:
            goal.mkdir(parents=True, exist_ok=True)
            super().__init__(goal)
        except OSError as error:
            raise GpuzooError(
                f"trail folder {path} cannot be written: {error.strerror or error}; "
                "name another"
            ) from None
        self._rows: dict[str, int] = {}
        self._own: dict[str, str] = {}
        self._chain = chain.START
        self.set_apart: list[str] = []
        try:
            self.lock()
            if self.names():
                raise GpuzooError(
                    f"trail folder {path} is not empty; a trail is never overwritten, "
                    "name another"
                )
            self.record = {
                "schema": SCHEMA_VERSION, "state": "running", "started": now(),
                "command": [private(redact(w)) for w in sys.argv],
                "environment": environment(), "code": code_of_process(), "inputs": {},
                **fields,
            }  # fmt: skip
            self.update()
        except BaseException:
            self.close()
            raise

    def update(self, **fields) -> None:
        """Change fields of the record and write it."""
        ended = now() if fields.get("state") == "finished" else None
        self.record = private({**self.record, **fields, "finished": ended})
        self.record["seal"] = seal(self.record)
        text = json.dumps(self.record, indent=1) + "\n"
        self.write_file(FIT, text.encode())

    def append(self, name: str, row: dict) -> None:
        """Append a row to digests.jsonl, with its chain, or to metrics.jsonl."""
        if name == "digests.jsonl":
            row = chain.chained(row, self._chain)
            self._chain = row["chain"]
        if name not in self._rows:
            self._make_room(name)
            self._rows[name] = self._replace(name, b"")
        with open(self._rows[name], "ab", buffering=0, closefd=False) as file:
            file.write((json.dumps(row) + "\n").encode())

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file, as `Folder.write_file` does."""
        self._make_room(name)
        super().write_file(name, content)
        self._own[name] = hashlib.sha256(content).hexdigest()

    def _make_room(self, name: str) -> None:
        """Set a file aside that is not our own."""
        if self.find(name) is None:
            return
        with contextlib.suppress(OSError):  # a link, or a folder
            if hashlib.sha256(self.read_file(name)).hexdigest() == self._own.get(name):
                return
        self.set_apart.append(self.set_aside(name))

    def digests(self) -> dict[str, str]:
        """Return name -> sha256 of every file but the record."""
        return {
            name: hashlib.sha256(self.read_file(name)).hexdigest()
            for name in self.names()
            if name in _OUTPUTS
        }

    def close(self) -> None:
        """Unlock and close the folder."""
        for descriptor in self._rows.values():
            os.close(descriptor)
        self._rows = {}
        super().close()


def code_of_process() -> dict[str, str]:
    """Return name -> digest of the script and of the user's modules imported so far."""
    found = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType) and name != "__mp_main__":
            for place in owners.places_of(module):
                if os.path.isfile(place) and not owners.is_no_users(place):
                    found[name] = syntax_sha256(imports.source_of(place))
    return dict(sorted(found.items()))


def is_fit(path: pathlib.Path) -> bool:
    """Whether a folder holds the trail of an ordinary fit, and no run."""
    return (path / FIT).is_file() and not (path / "run.json").exists()


def read_fit(path: pathlib.Path) -> dict:
    """Return the record of a `fit`.

    Raises:
        GpuzooError: it cannot be read, or is damaged.
    """
    file = path / FIT
    try:
        record = parse_json(read_inside(path, FIT, LARGEST_JSON).decode())
        if record["schema"] != SCHEMA_VERSION:
            raise ValueError(f"its format is {record['schema']!r}, not 1")
        for name, kind in _FIELDS.items():
            if not isinstance(record[name], kind):
                raise ValueError(f"{name} is {record[name]!r:.40}")
    except OSError as error:
        raise GpuzooError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise GpuzooError(f"{file} is damaged: {what}; {RESTORE}") from None
    return record
