"""Decoded datasets on disk: written once, checked at every load.

<cache>/data/<name>/<key>/ holds `arrays.safetensors` and `manifest.json`. A folder is
filled under a temporary name and renamed into place, so it is there whole or not at
all, and of two processes that decode at once one wins and both are right.
"""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np
import safetensors.numpy

from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.dataset import fingerprint as dataset_fingerprint
from gpuzoo.errors import GpuzooError
from gpuzoo.files import WRITING, expand, remove_abandoned, write_atomically

_TYPES = {
    "BOOL": "?", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F32": "<f4",
}  # fmt: skip


def root() -> pathlib.Path:
    """GPUZOO_CACHE, or gpuzoo's folder in the user's cache folder."""
    if named := os.environ.get("GPUZOO_CACHE"):
        return expand(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(base) / "gpuzoo"


def load(
    name: str, key: str | None = None, *, fingerprint: str | None = None
) -> Dataset | None:
    """The cached dataset of that name, key and fingerprint, or None.

    Without a key: the one that was decoded last. An entry that is damaged is removed
    and counts as not there.

    Raises:
        GpuzooError: an entry that may be whole cannot be read.
    """
    try:
        for folder in _entries(name, key):
            dataset = _read(folder)
            if not dataset:
                shutil.rmtree(folder, ignore_errors=True)
            elif fingerprint in (None, dataset.fingerprint):
                return dataset
    except OSError as error:
        raise GpuzooError(
            f"cache {error.filename or root()} cannot be read: {error.strerror}; check "
            "its permissions, or name another folder in GPUZOO_CACHE"
        ) from None
    return None


def store(dataset: Dataset, key: str) -> None:
    """Write a dataset into the cache.

    Raises:
        OSError: the cache cannot be written; nothing half-written stays.
    """
    parent = _parent(dataset.name)
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=WRITING, dir=parent))
    try:
        arrays = {
            f"{split}/{name}": array
            for split, fields in dataset.splits.items()
            for name, array in fields.items()
        }
        manifest = {
            "name": dataset.name,
            "source": dataset.source,
            "classes": list(dataset.classes),
            "fingerprint": dataset.fingerprint,
            "findings": list(dataset.findings),
        }
        manifest["seal"] = _seal(manifest)
        write_atomically(
            temporary / "arrays.safetensors", safetensors.numpy.save(arrays)
        )
        write_atomically(
            temporary / "manifest.json", json.dumps(manifest, indent=1).encode()
        )
        try:
            os.rename(temporary, parent / key)
        except OSError:
            # Another process was first. Its entry is checked like any other.
            if not (parent / key).is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parent(name: str) -> pathlib.Path:
    return root() / "data" / name.replace("/", "--")  # a TFDS name/configuration


def _entries(name: str, key: str | None) -> list[pathlib.Path]:
    parent = _parent(name)
    if key is not None:
        return [parent / key] if (parent / key).is_dir() else []
    if not parent.is_dir():
        return []
    entries = [path for path in parent.iterdir() if not path.name.startswith(".")]
    return sorted(entries, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _read(folder: pathlib.Path) -> Dataset | None:
    """The entry, or None if its bytes are not those that were written.

    Raises:
        OSError, MemoryError: that cannot be told.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if manifest["seal"] != _seal(manifest):
            return None
        arrays = _mapped(folder / "arrays.safetensors")
        splits: dict = {}
        for path, array in arrays.items():
            split, _, name = path.partition("/")
            splits.setdefault(split, {})[name] = array
        if dataset_fingerprint(splits) != manifest["fingerprint"]:
            return None
        return Dataset(
            manifest["name"], manifest["source"], splits, tuple(manifest["classes"]),
            manifest["fingerprint"], tuple(manifest["findings"]),
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, MemoryError):
        raise
    except Exception:  # of damaged JSON: many kinds
        return None


def _mapped(path: pathlib.Path) -> Arrays:
    """The arrays of a safetensors file; they stay on the disk until they are read, so
    that they may be larger than the memory."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its header is damaged")
        header = json.loads(file.read(length))
    return {
        name: np.memmap(
            path, _TYPES[told["dtype"]], "r", 8 + length + told["data_offsets"][0],
            tuple(told["shape"]),
        )
        for name, told in header.items()
        if name != "__metadata__"
    }  # fmt: skip


def _seal(manifest: dict) -> str:
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
