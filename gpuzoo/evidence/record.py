"""The run folder: what was run, where, on what, and what came of it.

run.json is the record; metrics.jsonl and digests.jsonl are the trail. No environment
dump, no home path and no secret is written.
"""

import dataclasses
import datetime
import errno
import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
import secrets
import sys

from gpuzoo.errors import GpuzooError
from gpuzoo.evidence.code import code_sha256
from gpuzoo.files import (
    expand,
    held,
    is_leftover,
    redact,
    remove_leftovers,
    sync_folder,
    unredact,
    write_atomically,
)
from gpuzoo.machine import environment
from gpuzoo.recipe import Recipe
from gpuzoo.runtime import Options

SCHEMA_VERSION = 1


class RunFolder:
    """A folder of its own for one run; nothing in it is ever overwritten by another."""

    def __init__(self, path: pathlib.Path, record: dict):
        self.path = path
        self.record = record
        self._files: dict = {}
        self._made: list[pathlib.Path] = []  # folders that were not there before

    @classmethod
    def create(cls, out: str | None, name: str, **fields) -> "RunFolder":
        """Make the folder `out`, or the next free runs/<name>-<number>.

        It appears together with its run.json, in the state `running`: a kill at any
        instant leaves either no folder or one that can be resumed.

        Raises:
            GpuzooError: it holds a run already, or cannot be written.
        """
        record = {
            "schema": SCHEMA_VERSION,
            "id": secrets.token_hex(8),  # its checkpoints bear it
            "state": "running",
            "started": now(),
            "finished": None,
            "command": [redact(word) for word in sys.argv],
            "environment": environment(),
            "code_sha256": code_sha256(fields["recipe"]),
            "data": None,
            "runtime": None,
            "metrics": {},
            "error": None,
            **fields,
        }
        goal = expand(str(out)) if out else None
        try:
            if goal and goal.exists():
                with held(goal):  # of two processes one finds the other's record
                    return cls._fill(goal, record)
            parent = goal.parent if goal else pathlib.Path("runs")
            # Not the process number: in a container it is that of the killed one.
            folder = cls(parent / f".{name}.{secrets.token_hex(4)}", record)
            folder._made = [
                path
                for path in (folder.path, parent, *parent.parents)
                if not path.exists()
            ]
            folder.path.mkdir(parents=True)
            try:
                folder.write()
                folder._move_to(goal, parent, name)
            except BaseException:
                folder.discard()
                raise
            return folder
        except OSError as error:
            raise GpuzooError(
                f"output folder {out or 'runs/'} cannot be written: "
                f"{error.strerror or error}; name another with --out"
            ) from None

    @classmethod
    def _fill(cls, goal: pathlib.Path, record: dict) -> "RunFolder":
        if not goal.is_dir() or not all(map(is_leftover, goal.iterdir())):
            raise GpuzooError(
                f"--out {goal} exists and is not an empty folder; a run is never "
                "overwritten, name another"
            )
        remove_leftovers(goal)
        folder = cls(goal, record)
        folder.write()
        return folder

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "RunFolder":
        """The folder of a run that exists, to go on in it."""
        path = expand(path)
        record = read_run(path)
        remove_leftovers(path)
        return cls(path, record)

    def restore(self, history: list) -> None:
        """Make the trail what it was when a checkpoint was saved, and remove the
        sheets of evaluations that came later."""
        self.close()
        tested = [row["epoch"] for event, row in history if event == "test"]
        kept = {f"epoch-{epoch:03d}.png" for epoch in tested}
        for sheet in self.path.glob("samples/epoch-*.png"):
            if sheet.name not in kept:
                sheet.unlink()
        for name in ("metrics.jsonl", "digests.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        for event, row in history:
            self.watch(event, row)

    def update(self, **fields) -> None:
        """Change fields of the record and write it."""
        self.record.update(fields)
        if fields.get("state", "running") != "running":
            self.record["finished"] = now()
            self.close()
        self.write()

    def write(self) -> None:
        for part in ("recipe", "options"):
            self.record[part] = _each(redact, self.record[part])
        self.record["seal"] = seal(self.record)
        check_record(self.record)
        text = json.dumps(self.record, indent=1) + "\n"
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
        remove_leftovers(self.path)
        for path in self._made:
            try:
                path.rmdir()
            except OSError:
                return  # it holds something that is not ours

    def _move_to(self, goal, parent: pathlib.Path, name: str) -> None:
        """Give the folder its final name; a rename onto a run fails."""
        number = 1
        while True:
            path = goal or parent / f"{name}-{number:03d}"
            try:
                os.rename(self.path, path)
            except OSError as error:
                taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
                if goal or not taken:
                    raise
                number += 1
            else:
                self.path = self._made[0] = path
                sync_folder(parent)
                return

    def _append(self, name: str, row: dict) -> None:
        if name not in self._files:
            self._files[name] = open(self.path / name, "a", encoding="utf-8")
        self._files[name].write(json.dumps(row) + "\n")
        self._files[name].flush()


def seal(record: dict) -> str:
    """sha256 over all other fields of a record: a slip of an editor is noticed."""
    rest = {key: value for key, value in record.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_run(path: str | pathlib.Path, *, sealed: bool = True) -> dict:
    """The checked record of a run folder; `sealed`: refuse one that was edited."""
    file = expand(path) / "run.json"
    try:
        record = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise GpuzooError(f"{path} is no run folder: it has no run.json") from None
    except (OSError, ValueError) as error:
        raise GpuzooError(f"{file} cannot be read: {error}") from None
    check_record(record)
    if sealed and record["seal"] != seal(record):
        raise GpuzooError(f"{file} has been changed since gpuzoo wrote it")
    return record


def recipe_of(record: dict) -> Recipe:
    """The recipe of a run, as it was carried out: its data are named."""
    recipe = _made(Recipe, record, "recipe")
    if recipe.fallback and record["data"]:
        if record["data"]["name"] == recipe.fallback:
            return dataclasses.replace(recipe, data=recipe.fallback, fallback="")
        return dataclasses.replace(recipe, fallback="")
    return recipe


def options_of(record: dict) -> Options:
    """What a run asked of its machine."""
    return _made(Options, record, "options")


def _made(kind: type, record: dict, part: str):
    try:
        return kind(**_each(unredact, record[part]))
    except TypeError as error:  # a field more or less
        raise GpuzooError(f"run.json is not valid: {part}: {error}") from None


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


def _each(change, part: dict) -> dict:
    """A part of a record with all its texts, also those of a list, changed."""

    def changed(value):
        if isinstance(value, list):
            return [changed(one) for one in value]
        return change(value) if isinstance(value, str) else value

    return {name: changed(value) for name, value in part.items()}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
