"""Cache of decoded datasets: written once, checked at every load.

<cache>/data/<name>/<key>/ holds `arrays.safetensors` and `manifest.json` with the
digest of the arrays: an entry with a missing or damaged file is ignored. Two processes
may decode at the same time. No folder is removed. A damaged entry is overwritten, file
by file, if the file MARKER in it shows that it is gpuzoo's.
"""

import contextlib
import errno
import hashlib
import json
import pathlib
import re

import numpy as np
import safetensors.numpy

from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.dataset import fingerprint as dataset_fingerprint
from gpuzoo.errors import GpuzooError
from gpuzoo.files import (
    MARKER,
    open_inside,
    parse_json,
    read_inside,
    remove_abandoned,
    root,
    write_atomically,
)

_NOTHING = re.compile("(?!)")  # an entry contains no temporary folders
_TYPES = {
    "BOOL": "?", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F32": "<f4",
}  # fmt: skip


def load(
    name: str, key: str | None = None, *, fingerprint: str | None = None
) -> Dataset | None:
    """Return the cached dataset with that name, key and fingerprint, or None.

    Without a key: the one that was decoded last. Damaged entries are ignored.

    Raises:
        GpuzooError: an entry that may be complete cannot be read.
    """
    try:
        for folder in _entries(name, key):
            dataset = _read(folder)
            if dataset and fingerprint in (None, dataset.fingerprint):
                return dataset
    except OSError as error:
        raise GpuzooError(
            f"cache {error.filename or root()} cannot be read: {error.strerror}; check "
            "its permissions, or set GPUZOO_CACHE to another folder"
        ) from None
    return None


def store(dataset: Dataset, key: str) -> None:
    """Write a dataset into the cache.

    Raises:
        OSError: the cache cannot be written; no partial file is left.
    """
    parent = _parent(dataset.name)
    folder = parent / key
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder)
    for entry in _entries(dataset.name, None):
        if _is_ours(entry):
            remove_abandoned(entry, _NOTHING)
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
    write_atomically(folder / "arrays.safetensors", safetensors.numpy.save(arrays))
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def _claim(folder: pathlib.Path) -> None:
    """Check that a folder is gpuzoo's entry; mark it as one if it is empty.

    Raises:
        OSError: it holds files that are not gpuzoo's.
    """
    foreign = any(folder.iterdir()) and not (_is_ours(folder) or _read(folder))
    if foreign or folder.is_symlink():
        raise FileExistsError(
            errno.EEXIST, "it is not a gpuzoo cache entry; move it away", str(folder)
        )
    if not _is_ours(folder):
        with contextlib.suppress(FileExistsError):  # another process was first
            (folder / MARKER).touch(exist_ok=False)


def _is_ours(folder: pathlib.Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return read_inside(folder, MARKER) == b""
    return False


def _parent(name: str) -> pathlib.Path:
    return root() / "data" / name.replace("/", "--")  # a TFDS name/configuration


def _entries(name: str, key: str | None) -> list[pathlib.Path]:
    parent = _parent(name)
    if key is not None:
        return [parent / key] if (parent / key).is_dir() else []
    if not parent.is_dir():
        return []
    found = []
    for path in parent.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # no entry
            found.append(((path / "manifest.json").stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def _read(folder: pathlib.Path) -> Dataset | None:
    """Return an entry, or None if it is missing or damaged.

    Raises:
        OSError, MemoryError: it cannot be checked.
    """
    try:
        manifest = parse_json(read_inside(folder, "manifest.json").decode())
        if manifest["seal"] != _seal(manifest):
            return None
        arrays = _mapped(folder / "arrays.safetensors")
        splits: dict = {}
        for path, array in arrays.items():
            split, _, name = path.partition("/")
            splits.setdefault(split, {})[name] = array
        classes = tuple(manifest["classes"])
        if dataset_fingerprint(splits, classes) != manifest["fingerprint"]:
            return None
        return Dataset(
            manifest["name"], manifest["source"], splits, classes,
            manifest["fingerprint"], tuple(manifest["findings"]),
        )  # fmt: skip
    except (OSError, MemoryError) as error:
        # It is missing, or is a link, a pipe or a folder.
        no_file = errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EISDIR
        if isinstance(error, OSError) and error.errno in no_file:
            return None
        raise
    except Exception:  # damaged JSON raises many types
        return None


def _mapped(path: pathlib.Path) -> Arrays:
    """Memory-map the arrays of a safetensors file, so that they may be larger than
    memory."""
    with open(open_inside(path.parent, path.name), "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its header is damaged")
        header = json.loads(file.read(length))
    return {
        name: np.memmap(
            path, _TYPES[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }  # fmt: skip


def _seal(manifest: dict) -> str:
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
