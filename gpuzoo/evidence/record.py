"""The run folder: what was run, where, on what, and what came of it.

run.json is the record; metrics.jsonl and digests.jsonl are the trail. No environment
dump, no home path and no secret is written.
"""

import datetime
import errno
import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
import sys

from gpuzoo.errors import GpuzooError
from gpuzoo.files import write_atomically
from gpuzoo.machine import environment

SCHEMA_VERSION = 1


class RunFolder:
    """A folder of its own for one run; nothing in it is ever overwritten by another."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.record: dict = {}
        self._files: dict = {}

    @classmethod
    def create(cls, out: str | None, name: str) -> "RunFolder":
        """Make the folder `out`, or the next free runs/<name>-<number>.

        Raises:
            GpuzooError: it holds a run already, or cannot be written.
        """
        try:
            if out:
                path = pathlib.Path(out).expanduser()
                if path.exists() and (not path.is_dir() or any(path.iterdir())):
                    raise GpuzooError(
                        f"--out {out} exists and is not an empty folder; a run is "
                        "never overwritten, name another"
                    )
                path.mkdir(parents=True, exist_ok=True)
            else:
                path = _next_free(pathlib.Path("runs"), name)
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "permission denied")
        except OSError as error:
            raise GpuzooError(
                f"output folder {out or 'runs/'} cannot be written: "
                f"{error.strerror or error}; name another with --out"
            ) from None
        return cls(path)

    def start(self, **fields) -> None:
        """Write run.json for the first time, in the state `running`."""
        self.record = {
            "schema": SCHEMA_VERSION,
            "state": "running",
            "started": _now(),
            "finished": None,
            "command": [redact(word) for word in sys.argv],
            "environment": environment(),
            "code_sha256": code_sha256(),
            "data": None,
            "runtime": None,
            "metrics": {},
            "error": None,
            **fields,
        }
        self.write()

    def update(self, **fields) -> None:
        """Change fields of the record and write it."""
        self.record.update(fields)
        if fields.get("state", "running") != "running":
            self.record["finished"] = _now()
            self.close()
        self.write()

    def write(self) -> None:
        check_record(self.record)
        text = json.dumps(self.record, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path / "run.json", text.encode())

    def watch(self, event: str, row: dict) -> None:
        """A watcher of the loop: one line for each log entry, test and digest."""
        if event in ("train", "test"):
            self._append("metrics.jsonl", {"split": event, **row})
        elif event == "digest":
            self._append("digests.jsonl", row)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def discard(self) -> None:
        """Remove the folder of a run that never began."""
        self.close()
        for name in ("run.json", "metrics.jsonl", "digests.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:
            return  # it holds something that is not ours
        if self.path.parent.name == "runs" and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

    def _append(self, name: str, row: dict) -> None:
        if name not in self._files:
            self._files[name] = open(self.path / name, "a", encoding="utf-8")
        self._files[name].write(json.dumps(row) + "\n")
        self._files[name].flush()


def _next_free(parent: pathlib.Path, name: str) -> pathlib.Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / f"{name}-{number:03d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def read_run(path: str | pathlib.Path) -> dict:
    """The checked record of a run folder."""
    file = pathlib.Path(path) / "run.json"
    try:
        record = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise GpuzooError(f"{path} is no run folder: it has no run.json") from None
    except (OSError, ValueError) as error:
        raise GpuzooError(f"{file} cannot be read: {error}") from None
    check_record(record)
    return record


def check_record(record: dict) -> None:
    """Raises GpuzooError if a record is not as the schema says."""
    import jsonschema

    problem = jsonschema.exceptions.best_match(_validator().iter_errors(record))
    if problem:
        where = "/".join(map(str, problem.absolute_path)) or "the record"
        raise GpuzooError(f"run.json is not valid: {where}: {problem.message}")


@functools.cache
def _validator():
    import jsonschema

    text = (
        importlib.resources.files(__package__).joinpath("run.schema.json").read_text()
    )
    return jsonschema.Draft202012Validator(json.loads(text))


@functools.cache
def code_sha256() -> str:
    """One digest over the sources of gpuzoo, its models and its recipes."""
    digest = hashlib.sha256()
    for package in ("gpuzoo", "gpuzoo.models", "gpuzoo.recipes"):
        top = importlib.resources.files(package)
        for path in sorted(pathlib.Path(str(top)).rglob("*.py")):
            relative = f"{package}/{path.relative_to(str(top))}"
            digest.update(f"{relative} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def redact(text: str) -> str:
    """A path without the name of the user's home."""
    home = str(pathlib.Path.home())
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
