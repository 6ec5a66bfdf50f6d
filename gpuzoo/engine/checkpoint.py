"""Everything the next step depends on, in one file that is whole or not at all.

A checkpoint is a safetensors file: the variables of the model, of the optimizer and of
the random layers, the results not yet logged, the step and the history of the run as
compressed text, and as metadata a sha256 over all of it. The last two are kept; a
damaged one is passed over for the one before it.
"""

import dataclasses
import json
import pathlib
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo.digests import digest_all
from gpuzoo.files import remove_leftovers, write_atomically

KEPT = 2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps."""

    step: int
    """Steps done."""
    arrays: dict[str, np.ndarray]
    """state/<variable> and journal/<results>."""
    history: list
    """[event, row] of everything logged so far."""
    seconds: dict[str, float]
    """Phase -> seconds so far."""
    run: str = ""
    """What its record calls the run; no other goes on from here."""


def save(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove the ones before the last two. Raises OSError."""
    facts = {
        "step": checkpoint.step,
        "history": checkpoint.history,
        "seconds": checkpoint.seconds,
        "run": checkpoint.run,
    }
    # Not as metadata, of which safetensors takes 100 MB and long runs have more.
    text = zlib.compress(json.dumps(facts).encode(), 1)
    arrays = {"facts": np.frombuffer(text, np.uint8), **checkpoint.arrays}
    content = safetensors.numpy.save(
        {name: np.asarray(a, order="C") for name, a in arrays.items()},
        metadata={"gpuzoo": digest_all(arrays)},
    )
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"step-{checkpoint.step:09d}.safetensors", content)
    for old in _files(folder)[KEPT:]:
        old.unlink()


def load(
    folder: pathlib.Path, run: str | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and of that run (None: of any), and the names
    of newer ones, which are damaged or another run's."""
    damaged = []
    if folder.is_dir():
        remove_leftovers(folder)
        for path in _files(folder):
            checkpoint = _read(path)
            if checkpoint and run in (None, checkpoint.run):
                return checkpoint, damaged
            damaged.append(path.name)
    return None, damaged


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _read(path: pathlib.Path) -> Checkpoint | None:
    try:
        with safetensors.safe_open(path, "np") as file:
            seal = file.metadata()["gpuzoo"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if seal != digest_all(arrays):
            return None
        facts = json.loads(zlib.decompress(arrays.pop("facts").tobytes()))
        return Checkpoint(arrays=arrays, **facts)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None
