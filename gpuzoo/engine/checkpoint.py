"""Checkpoints: everything the next step depends on, in one file, written atomically.

A checkpoint is a safetensors file: the variables of the model, of the optimizer and of
the random layers, the results not yet logged, the step and the history of the run as
compressed text, and as metadata a sha256 over all of it and the id of the run. The last
two checkpoints are kept; if the last is damaged the one before is used. Others stay in
the run folder when the run has finished (recipe field keep_checkpoints): they hold
neither history nor seconds, so that their bytes follow from the run. A file with the
name of a checkpoint and without the id of the run is not the run's own: it is never
read, removed or overwritten.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo.files import Folder, SubFolder
from gpuzoo.weights import digest_all, weights_bytes

KEPT = 2
FOLDER = "checkpoints"
"""Their folder in that of the run."""
_STEP, _KEPT = "step", "kept"
_NAMES = {
    kind: re.compile(rf"{kind}-(\d{{9,}})(-\d+)?\.safetensors")
    for kind in (_STEP, _KEPT)
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps."""

    step: int
    """Steps done."""
    arrays: dict[str, np.ndarray]
    """state/<variable>, journal/<results> and best/<weight>."""
    history: list
    """[event, row] of all that was logged so far."""
    seconds: dict[str, float]
    """Phase -> seconds so far."""
    run: str = ""
    """The id of the run; no other run may resume from it."""
    choice: dict = dataclasses.field(default_factory=dict)
    """Which evaluation was the best so far (gpuzoo/engine/choice.py)."""


def save(folder: pathlib.Path | SubFolder, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all of the run but the last two.

    Raises:
        OSError: it cannot be written, or the folder is a link.
    """
    with _sub(folder) as sub:
        sub.parent.check()
        with sub.opened(make=True) as opened:
            name = _free_name(opened, checkpoint, _STEP)
            opened.write_file(name, content_of(checkpoint))
            for name in _own(opened, checkpoint.run)[KEPT:]:
                opened.remove_file(name)


def keep(folder: SubFolder, checkpoint: Checkpoint) -> None:
    """Write a checkpoint that stays; written again, it has the same bytes."""
    folder.parent.check()
    with folder.opened(make=True) as opened:
        name = _free_name(opened, checkpoint, _KEPT)
        opened.write_file(name, content_of(checkpoint))


def lasting(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint as it stays."""
    return dataclasses.replace(checkpoint, history=[], seconds={})


def content_of(checkpoint: Checkpoint) -> bytes:
    """Return the file of a checkpoint."""
    facts = {
        "step": checkpoint.step,
        "history": checkpoint.history,
        "seconds": checkpoint.seconds,
        "run": checkpoint.run,
        "choice": checkpoint.choice,
    }
    # Not as metadata: safetensors allows 100 MB, and long runs have more.
    text = zlib.compress(json.dumps(facts).encode(), 1)
    arrays = {"facts": np.frombuffer(text, np.uint8), **checkpoint.arrays}
    return safetensors.numpy.save(
        {name: np.asarray(a, order="C") for name, a in arrays.items()},
        metadata={"gpuzoo": digest_all(arrays), "run": checkpoint.run},
    )


def state_sha256(checkpoint: Checkpoint) -> str:
    """Return the digest of all that the next step depends on: equal for all runs that
    go the same way, whatever their id."""
    facts = json.dumps([checkpoint.step, checkpoint.choice], sort_keys=True)
    content = weights_bytes(checkpoint.arrays) + facts.encode()
    return hashlib.sha256(content).hexdigest()


def load(
    folder: pathlib.Path | SubFolder, run: str | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest valid checkpoint of that run (None: of any), and the names of
    newer ones, which are damaged, of another run, or links."""
    damaged = []
    with _sub(folder) as sub:
        if sub.is_link():
            return None, [f"folder {sub.path} (a link)"]
        if sub.parent.find(sub.name) is None:
            return None, []
        with sub.opened() as opened:
            opened.remove_temporary()
            for name in _files(opened):
                checkpoint = _read(opened, name)
                if checkpoint and run in (None, checkpoint.run):
                    return checkpoint, damaged
                damaged.append(name)
    return None, damaged


def remove(folder: SubFolder, run: str, kept=()) -> None:
    """Remove the checkpoints to resume from of a run, and of those that stay the files
    `kept`; then the folder, if it is empty."""
    with contextlib.suppress(OSError):
        with folder.opened() as opened:
            opened.remove_temporary()
            for name in (*_own(opened, run), *kept):
                opened.remove_file(name)
        folder.remove_if_empty()


def kept_of(folder: SubFolder, run: str) -> list[dict]:
    """Return `step`, `file` and `state_sha256` of each checkpoint of a run that stays,
    in their order; damaged ones are left out."""
    found = []
    with contextlib.suppress(OSError), folder.opened() as opened:
        for name in _files(opened, _KEPT)[::-1]:
            one = _read(opened, name)
            if one and one.run == run:
                file = f"{folder.name}/{name}"
                found.append(
                    {"step": one.step, "file": file, "state_sha256": state_sha256(one)}
                )
    return found


@contextlib.contextmanager
def _sub(folder: pathlib.Path | SubFolder):
    if isinstance(folder, SubFolder):
        yield folder
        return
    parent = Folder(folder.parent)
    try:
        yield parent.sub(folder.name)
    finally:
        parent.close()


def _files(folder: Folder, kind: str = _STEP) -> list[str]:
    """Return the names of checkpoints, newest first."""
    matches = map(_NAMES[kind].fullmatch, folder.names())
    found = [match for match in matches if match]
    found.sort(key=lambda match: (int(match[1]), match[0]), reverse=True)
    return [match[0] for match in found]


def _own(folder: Folder, run: str) -> list[str]:
    """Return those that the run has written."""
    return [name for name in _files(folder) if _writer(folder, name) == run]


def _free_name(folder: Folder, checkpoint: Checkpoint, kind: str) -> str:
    """Return the name for a checkpoint: a file of the run, or an unused name."""
    stem, number = f"{kind}-{checkpoint.step:09d}", 1
    name = f"{stem}.safetensors"
    while folder.find(name) and _writer(folder, name) != checkpoint.run:
        number += 1
        name = f"{stem}-{number}.safetensors"
    return name


def _writer(folder: Folder, name: str) -> str | None:
    """Return the id of the run that wrote a file, from the header alone; None if it
    cannot be read."""
    try:
        with open(folder.open_file(name), "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100_000_000:  # the limit of safetensors
                return None
            metadata = json.loads(file.read(length))["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return metadata.get("run")


def _read(folder: Folder, name: str) -> Checkpoint | None:
    try:
        return parse(folder.read_file(name))
    except OSError:
        return None


def parse(content: bytes) -> Checkpoint | None:
    """Return the checkpoint in a file; None if it is damaged."""
    try:
        length = int.from_bytes(content[:8], "little")
        seal = json.loads(content[8 : 8 + length])["__metadata__"]["gpuzoo"]
        arrays = safetensors.numpy.load(content)
        del content
        if seal != digest_all(arrays):
            return None
        facts = json.loads(zlib.decompress(arrays.pop("facts").tobytes()))
        return Checkpoint(arrays=arrays, **facts)
    except (
        ValueError, KeyError, TypeError, RecursionError, zlib.error,
        safetensors.SafetensorError,
    ):  # fmt: skip
        return None
