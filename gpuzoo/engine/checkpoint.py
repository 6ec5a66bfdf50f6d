"""Everything the next step depends on, in one file that is whole or not at all.

A checkpoint is a safetensors file: the variables of the model, of the optimizer and of
the random layers, the results not yet logged, the step and the history of the run as
compressed text, and as metadata a sha256 over all of it. The last two are kept; a
damaged one is passed over for the one before it.
"""

import dataclasses
import hashlib
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

    run: str
    """What the run trains, as one digest: no other goes on from here."""
    step: int
    """Steps done."""
    arrays: dict[str, np.ndarray]
    """state/<variable> and journal/<results>."""
    history: list
    """[event, row] of everything logged so far."""
    seconds: dict[str, float]
    """Phase -> seconds so far."""


def identity(recipe, dataset, fast: bool) -> str:
    """Digest of what is trained on what, wherever the files of either lie."""
    told = recipe.as_record()
    for name in ("data", "data_dir", "fallback", "model", "teacher"):
        del told[name]
    text = json.dumps([told, dataset.fingerprint, fast], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove the ones before the last two. Raises OSError."""
    facts = {
        "run": checkpoint.run,
        "step": checkpoint.step,
        "history": checkpoint.history,
        "seconds": checkpoint.seconds,
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
