"""The run folder: settings, machine, code and results of a run.

run.json is the record; metrics.jsonl and digests.jsonl are the trail. No environment
dump, no home path and no secret is written.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import stat
import sys

from gpuzoo.data.dataset import ORDER
from gpuzoo.errors import GpuzooError
from gpuzoo.files import Folder, expand, is_temporary, temporary_name
from gpuzoo.home import redact
from gpuzoo.runs import derived
from gpuzoo.runs.record import (
    SCHEMA_VERSION,
    change_texts,
    check_record,
    checked,
    now,
    private,
    read_run,
    run_id,
    seal,
)
from gpuzoo.runtime.environment import environment
from gpuzoo.weights import weights_bytes

TRAIL = ("metrics.jsonl", "digests.jsonl")
SIGNATURE = "run.json.sig"
"""By `gpuzoo sign`, of the bytes of run.json."""
_PLOTS = (
    "curves", "confusion", "confusion_of_pixels", "mistakes", "film_mistakes",
    "reconstructions", "samples", "detections", "forecasts", "frames", "predicted_true",
    "residuals", "segmentations", "similarities", "worst_pairs",
)  # fmt: skip
_OUTPUTS = {
    "weights.safetensors", "initial_weights.safetensors", "architecture.json",
    "state.safetensors", "initial_state.safetensors", "evaluation.json", "samples.gif",
    *derived.DERIVED, *(f"{name}.png" for name in _PLOTS),
}  # fmt: skip
# The first characters of their rows.
_HEADS = {
    "metrics.jsonl": tuple(f'{{"split": "{name}", "epoch": ' for name in ORDER),
    "digests.jsonl": ('{"step": ',),
}


class RunFolder(Folder):
    """The folder of one run, which no other run overwrites.

    It is held open and locked from `create` or `open` until `close`: a run continues in
    its folder if that is renamed, and never in another that takes the name.
    """

    def __init__(self, path: pathlib.Path, record: dict):
        super().__init__(path)
        self.record = record
        self._seen: tuple = ()  # stat of run.json when its id was last read
        self._trail: dict[str, int] = {}  # name -> descriptor, to append to
        self._made: list[pathlib.Path] = []  # folders created for it
        self._begun: list[str] = []  # files written at its start
        self._written: dict[str, str] = {}  # name -> sha256, by this process
        self.say = lambda text: None  # called for each file that is set aside

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @classmethod
    def create(
        cls,
        out: str | None,
        name: str,
        files: dict[str, bytes] | None = None,
        **fields,
    ) -> "RunFolder":
        """Create the folder `out`, or the next free runs/<name>-<number>, with the
        initial `files` of the run, name -> content.

        It appears together with its run.json, in the state `running`: a kill at any
        time leaves either no folder or one that can be resumed.

        Raises:
            GpuzooError: it is not empty, or cannot be written.
        """
        record = {
            "schema": SCHEMA_VERSION,
            "id": "",  # written into its checkpoints; see _begin
            "state": "running",
            "started": now(),
            "finished": None,
            "command": [private(redact(word)) for word in sys.argv],
            "environment": environment(),
            "code": None,  # known once the model is built
            "inputs": {},
            "data": None,
            "runtime": None,
            "metrics": {},
            "error": None,
            **fields,
        }
        goal = expand(str(out)) if out else None
        try:
            if goal and goal.exists():
                return cls._fill(goal, record, files or {})
            parent = goal.parent if goal else pathlib.Path("runs")
            new = parent / temporary_name()
            above = (parent, *parent.parents)
            made = [path for path in above if not path.exists()]
            new.mkdir(parents=True)
            folder = cls(new, record)
            folder._made = [new, *made]
            try:
                folder.lock()
                folder._begin(files or {})
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
    def _fill(cls, goal: pathlib.Path, record: dict, files: dict) -> "RunFolder":
        folder = cls(goal, record) if goal.is_dir() else None
        try:
            if folder:
                folder.lock()  # of two processes the second finds a record
            if not folder or not all(map(is_temporary, folder.names())):
                raise GpuzooError(
                    f"--out {goal} exists and is not an empty folder; a run is never "
                    "overwritten, name another"
                )
            folder.remove_temporary()
            folder._begin(files or {})
        except BaseException:
            if folder:
                folder.close()
            raise
        return folder

    def _begin(self, files: dict[str, bytes]) -> None:
        """Write the record last: a folder with a record can be resumed."""
        self._begun = list(files)
        self._redact()
        self.record["id"] = run_id(self.record, self.record.get("findings", []))
        for name, content in files.items():
            self.write_file(name, content)
        self.write()

    @classmethod
    def open(cls, path: str | pathlib.Path, *, sealed: bool = True) -> "RunFolder":
        """Open the folder of an existing run, to continue it, or to write what follows
        from it (derived.py).

        Args:
            sealed: refuse an edited record.

        Raises:
            GpuzooError: it is not a run folder, or is locked by another process.
        """
        path = expand(path)
        try:
            folder = cls(path, {})
        except OSError:
            read_run(path)  # raises the error that names the cause
            raise
        try:
            folder.lock()
            folder.record = checked(path, folder.read_file, sealed=sealed)
            folder.remove_temporary()
            folder.sub("samples").remove_temporary()
        except BaseException:
            folder.close()
            raise
        return folder

    def check(self) -> None:
        """Check, before every write, that the folder still belongs to this run.

        Raises:
            GpuzooError: it holds the record of another run.
        """
        found = self.find("run.json")
        seen = found and (found.st_ino, found.st_mtime_ns, found.st_size)
        if found is None or seen == self._seen:
            return
        own = self.record.get("id")
        try:
            other = json.loads(self.read_file("run.json"))["id"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            other = own  # damaged: of no other run
        if other != own:
            raise GpuzooError(
                f"output folder {self.locate()} holds another run now (id {other}, not "
                f"{own}); this one ends and writes nothing more into it"
            )
        self._seen = seen

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file of the run. An existing file that is not known to be the run's
        own is renamed.

        Known are files of the same content, those whose digest the record or this
        process has, and those that name the run themselves (derived.py).
        """
        if name != "run.json":
            self.check()
            self._make_way(name, content)
        super().write_file(name, content)
        self._written[name] = hashlib.sha256(content).hexdigest()

    def _make_way(self, name: str, content: bytes | None = None) -> None:
        found = self._find_output(name)
        if found and not (stat.S_ISREG(found.st_mode) and self._is_own(name, content)):
            self._set_aside(name)

    def _find_output(self, name: str) -> os.stat_result | None:
        """Return the stat of a file or link of that name; a folder is left, which makes
        the write fail."""
        folder = name.rpartition("/")[0]
        if folder and self.sub(folder).is_link():
            return None
        found = self.find(name)
        return found if found and not stat.S_ISDIR(found.st_mode) else None

    def _is_own(self, name: str, content: bytes | None = None) -> bool:
        try:
            there = self.read_file(name)
        except OSError:
            return False
        known = self.record.get("files", {}).get(name), self._written.get(name)
        return (
            there == content
            or hashlib.sha256(there).hexdigest() in known
            or derived.is_own(name, there, self.record.get("id", ""))
        )

    def _set_aside(self, name: str) -> None:
        new = self.set_aside(name)
        self.say(f"{name} was not written by this run; it is kept as {new}.")

    def clear_trail(self) -> None:
        """Set aside files named like the trail, before the first row is written."""
        self.check()
        for name in TRAIL:
            self._make_way(name)

    def _is_own_trail(self, name: str, content: str) -> bool:
        """Return whether a file starts with the rows of a checkpoint, or they with it:
        what this run had written when it was killed."""
        if self._is_own(name):
            return True
        try:
            there = self.read_file(name).decode()
        except (OSError, UnicodeDecodeError):
            return False
        *rows, rest = there.split("\n")  # the last one may be half a row
        heads = _HEADS[name]
        return (there.startswith(content) or content.startswith(there)) and (
            all(map(_is_row, rows))
            and all(row.startswith(heads) for row in rows)
            and any(rest.startswith(h) or h.startswith(rest) for h in heads)
        )

    def restore(self, history: list) -> None:
        """Restore the trail of a checkpoint. Sheets of later evaluations stay: they are
        drawn again, to the same bytes; but not the one that a stop has drawn."""
        self.check()
        self._end_trail()
        watched = [row["epoch"] for event, row in history if event in ("val", "test")]
        self._remove_sheets(set(watched))
        rows: dict[str, list[str]] = {name: [] for name in TRAIL}
        for event, row in history:
            name, line = _line(event, row)
            rows[name].append(line)
        for name, lines in rows.items():
            content = "".join(lines)
            if self._find_output(name) and not self._is_own_trail(name, content):
                self._set_aside(name)
            if lines:
                self._trail[name] = self._replace(name, content.encode())
            else:
                self.remove_file(name)

    def _remove_sheets(self, epochs: set) -> None:
        """Remove the sheets that the record of a stop lists, but those of these epochs:
        a run that was not stopped has none of the epoch of a stop."""
        for name in self.record.get("files", {}):
            number = re.fullmatch(r"samples/epoch-(\d+)\.png", name)
            if number and int(number[1]) not in epochs and self._is_own(name):
                with self.sub("samples").opened() as samples:
                    samples.remove_file(name.rpartition("/")[2])

    def metrics(self) -> list[dict]:
        """Return the rows of metrics.jsonl."""
        lines = self.read_file("metrics.jsonl").decode().splitlines()
        return [json.loads(line) for line in lines]

    def sheets(self) -> list[str]:
        """Return the sheets `samples/epoch-<n>.png` that the run has drawn."""
        names = [f"samples/epoch-{row['epoch']:03d}.png" for row in self._tests()]
        try:
            with self.sub("samples").opened() as samples:
                there = {f"samples/{name}" for name in samples.names()}
        except OSError:
            return []
        return [name for name in dict.fromkeys(names) if name in there]

    def _tests(self) -> list[dict]:
        """Return the rows of evaluations; none if the trail cannot be read."""
        found = []
        with contextlib.suppress(OSError, ValueError):
            for line in self.read_file("metrics.jsonl").decode().splitlines():
                with contextlib.suppress(ValueError):  # a half row: power cut
                    row = json.loads(line)
                    if isinstance(row, dict) and row.get("split") in ("val", "test"):
                        if isinstance(row.get("epoch"), int):
                            found.append(row)
        return found

    def update(self, **fields) -> None:
        """Change fields of the record and write it."""
        self.record.update(fields)
        if fields.get("state", "running") != "running":
            self.record["finished"] = now()
            self._end_trail()
        self.write()

    def _redact(self) -> None:
        for part in ("recipe", "options"):
            self.record[part] = change_texts(redact, self.record[part])
        # Not these, which are read back by a user with the same home.
        read = ("recipe", "options", "command")
        rest = {k: v for k, v in self.record.items() if k not in read}
        self.record.update(private(rest))

    def write(self) -> None:
        self._redact()
        self.record["seal"] = seal(self.record)
        check_record(self.record)
        text = json.dumps(self.record, indent=1) + "\n"
        self.write_file("run.json", text.encode())

    def watch(self, event: str, row: dict) -> None:
        """Watch the loop: append one line for each log entry, evaluation, digest."""
        if event in (*ORDER, "digest"):
            self._append(*_line(event, row))

    def close(self) -> None:
        """Unlock and close the folder."""
        self._end_trail()
        super().close()

    def _end_trail(self) -> None:
        for descriptor in self._trail.values():
            os.close(descriptor)
        self._trail = {}

    def discard(self) -> None:
        """Remove the folder of a run that has not started, and close it."""
        with contextlib.suppress(OSError, GpuzooError):
            self.check()
            own = [name for name in self._begun if self._is_own(name)]
            for name in ("run.json", *self._trail, *own):
                self.remove_file(name)
            self.remove_temporary()
            self._remove_folders()
        self.close()

    def remove_outputs(self) -> list[str]:
        """Remove the files that the run wrote, and the folder if nothing else is in it.

        Returns:
            The names of what stays: files that were changed after the run ended, or
            that are not the run's; and run.json, while one of its outputs stays.

        Raises:
            OSError: the folder cannot be written.
        """
        self.check()
        self._remove_sheets(set())
        self.sub("samples").remove_if_empty()
        given = (
            "architecture_sha256", "initial_weights_sha256", "initial_state_sha256",
            "weights_sha256",
        )  # fmt: skip
        known = {self.record.get(name) for name in given}
        # Only names of outputs: the digests in run.json are those of all files that
        # were in the folder at the end, also of the user's.
        for name in {*_OUTPUTS, *TRAIL} & set(self.names()):
            own = self._is_own_trail(name, "") if name in TRAIL else self._is_own(name)
            try:
                found = hashlib.sha256(self.read_file(name)).hexdigest()
            except OSError:  # a folder, a link
                continue
            if own or found in known:
                self.remove_file(name)
        if not {*_OUTPUTS, "samples", "checkpoints"} & set(self.names()):
            self.remove_file("run.json")
        left = self.names()
        if not left:
            self.locate().rmdir()
        return left

    def _remove_folders(self) -> None:
        """Remove the folders that it created, innermost first, if empty."""
        if self.descriptor is None or not self._made:
            return
        own = os.stat(self.locate())
        if os.path.samestat(own, os.fstat(self.descriptor)):
            for path in (self.path, *self._made[1:]):
                path.rmdir()

    def _move_to(self, goal, parent: pathlib.Path, name: str) -> None:
        """Rename the folder to its final name; a rename onto a run fails."""
        number = 1
        while True:
            path = goal or parent / f"{name}-{number:03d}"
            try:
                # rename() replaces an empty folder, which may be a user's.
                if os.path.lexists(path):
                    raise FileExistsError(errno.EEXIST, "it exists", str(path))
                os.rename(self.path, path)
            except OSError as error:
                taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
                if goal or not taken:
                    raise
                number += 1
            else:
                self.path = self._made[0] = path
                above = Folder(parent)
                if above.descriptor is not None:
                    os.fsync(above.descriptor)
                above.close()
                return

    def _append(self, name: str, line: str) -> None:
        """Append a row to a file of this run; one that was replaced, or has another
        hard link, is copied first."""
        self.check()
        if name not in self._trail:
            self._make_way(name)
            self._trail[name] = self._replace(name, b"")
        with open(self._renew(name), "ab", buffering=0, closefd=False) as file:
            file.write(line.encode())

    def keep_trail(self) -> None:
        """Restore the trail if it was removed during the run."""
        self.check()
        for name in self._trail:
            self._renew(name)

    def _renew(self, name: str) -> int:
        descriptor = self._trail[name]
        found, own = self.find(name), os.fstat(descriptor)
        if not found or not os.path.samestat(found, own) or own.st_nlink != 1:
            content = os.pread(descriptor, own.st_size, 0)
            self._trail[name] = self._replace(name, content)
            os.close(descriptor)
        return self._trail[name]


def _line(event: str, row: dict) -> tuple[str, str]:
    """Return the trail file of a row, and its line."""
    if event == "digest":
        return "digests.jsonl", json.dumps(row) + "\n"
    return "metrics.jsonl", json.dumps({"split": event, **row}) + "\n"


def _is_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def write_weights(folder, weights: dict) -> str:
    content = weights_bytes(weights)
    folder.write_file("weights.safetensors", content)
    return hashlib.sha256(content).hexdigest()
