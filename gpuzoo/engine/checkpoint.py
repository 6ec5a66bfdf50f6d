"""Checkpoints: everything the next step depends on, in one file, written atomically.

A checkpoint is a safetensors file: the variables of the model, of the optimizer and of
the random layers, the results not yet logged, the step and the history of the run as
compressed text, and as metadata a sha256 over all of it and the id of the run. The last
two checkpoints are kept; if the last is damaged the one before is used. A file with the
name of a checkpoint and without the id of the run is not the run's own: it is never
read, removed or overwritten.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo.files import Folder, SubFolder
from gpuzoo.weights import digest_all

KEPT = 2
_NAME = re.compile(r"step-(\d{9,})(-\d+)?\.safetensors")


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
    content = safetensors.numpy.save(
        {name: np.asarray(a, order="C") for name, a in arrays.items()},
        metadata={"gpuzoo": digest_all(arrays), "run": checkpoint.run},
    )
    with _sub(folder) as sub:
        sub.parent.check()
        with sub.opened(make=True) as opened:
            opened.write_file(_free_name(opened, checkpoint), content)
            for name in _own(opened, checkpoint.run)[KEPT:]:
                opened.remove_file(name)


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


def remove(folder: SubFolder, run: str) -> None:
    """Remove all checkpoints of a run, and the folder if it is then empty."""
    with contextlib.suppress(OSError):
        with folder.opened() as opened:
            opened.remove_temporary()
            for name in _own(opened, run):
                opened.remove_file(name)
        folder.remove_if_empty()


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


def _files(folder: Folder) -> list[str]:
    """Return the names of checkpoints, newest first."""
    found = [match for match in map(_NAME.fullmatch, folder.names()) if match]
    found.sort(key=lambda match: (int(match[1]), match[0]), reverse=True)
    return [match[0] for match in found]


def _own(folder: Folder, run: str) -> list[str]:
    """Return those that the run has written."""
    return [name for name in _files(folder) if _writer(folder, name) == run]


def _free_name(folder: Folder, checkpoint: Checkpoint) -> str:
    """Return the name for a checkpoint: a file of the run, or an unused name."""
    name, number = f"step-{checkpoint.step:09d}.safetensors", 1
    while folder.find(name) and _writer(folder, name) != checkpoint.run:
        number += 1
        name = f"step-{checkpoint.step:09d}-{number}.safetensors"
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
        content = folder.read_file(name)
        length = int.from_bytes(content[:8], "little")
        seal = json.loads(content[8 : 8 + length])["__metadata__"]["gpuzoo"]
        arrays = safetensors.numpy.load(content)
        del content
        if seal != digest_all(arrays):
            return None
        facts = json.loads(zlib.decompress(arrays.pop("facts").tobytes()))
        return Checkpoint(arrays=arrays, **facts)
    except (
        OSError, ValueError, KeyError, TypeError, RecursionError, zlib.error,
        safetensors.SafetensorError,
    ):  # fmt: skip
        return None
