"""Examples that stay in their files: decoded when a step needs them, never all at once.

A first pass looks at every example as `make_dataset` does, a few at a time: shapes,
labels, duplicates, and the same fingerprint. What it finds is kept in the cache, for
files of the same names, sizes and times of change; so is the label of every example.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from gpuzoo.data.dataset import Dataset
from gpuzoo.data.validate import alike, dark, empty_classes, repeated
from gpuzoo.errors import GpuzooError
from gpuzoo.files import new_file, parse_json, read_inside, root, write_atomically

# Bytes of images that may be asked for as one array.
_MOST_BYTES = 2**30
_CHUNK = 2**18


class Images:
    """Images in files, (examples, height, width, channels), uint8: slices stay there,
    indices are decoded.

    Args:
        read: places, (n,) -> images, (n, height, width, channels).
        rows: places of the examples; None: all of them.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, read: Callable, shape: tuple[int, ...], rows=None):
        self._read, self.shape = read, tuple(shape)
        self._rows = range(shape[0]) if rows is None else rows

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen):
        if isinstance(chosen, slice):
            rows = self._rows[chosen]
            return Images(self._read, (len(rows), *self.shape[1:]), rows)
        if isinstance(chosen, int | np.integer):
            return self[np.array([chosen])][0]
        chosen = np.asarray(chosen)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        chosen = np.where(chosen < 0, chosen + len(self), chosen)
        rows = self._rows
        if isinstance(rows, range):
            places = np.asarray(rows.start + rows.step * chosen)
        else:
            places = rows[chosen]
        found = self._read(places.ravel())
        return found.reshape(*places.shape, *self.shape[1:])

    def part(self, chosen: np.ndarray) -> "Images":
        """Return some of them, by their indices, still in their files."""
        rows = np.asarray(self._rows, np.int32)[chosen]
        return Images(self._read, (len(rows), *self.shape[1:]), rows)

    def __array__(self, dtype=None, copy=None):
        if self.nbytes > _MOST_BYTES:
            raise GpuzooError(
                f"stream=disk: {len(self)} images, {self.nbytes / 1e9:.1f} GB, are "
                "needed at once here, and stay in their files; use another value of "
                "stream"
            )
        return np.asarray(self[np.arange(len(self))], dtype)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the examples of a split are.

    A `block` is some examples that follow each other: images, a list of (height, width,
    channels), uint8; labels, a list; and what is to be kept in a file to find them
    again, an array with one entry per example, or None.
    """

    blocks: Callable[[], Iterator[tuple[list, list, np.ndarray | None]]]
    count: int
    reader: Callable[[pathlib.Path | None], Callable]
    """The file of what was kept -> the function of `Images`."""


def open_dataset(
    name: str, source: str, key: str, classes: tuple[str, ...],
    splits: dict[str, Source], note,
) -> Dataset:  # fmt: skip
    """Return a dataset whose images stay in their files.

    Args:
        key: of the files' names, sizes and times.
        note: called with lines for the user.

    Raises:
        GpuzooError: an image or a label is not suited for training.
        ValueError: a file is damaged.
    """
    folder = root() / "index" / name.replace("/", "--") / key
    found = _read(folder)
    if found is None:
        total = sum(split.count for split in splits.values())
        note(f"Looking once at all {total:,} examples of {name} ...")
        found = _look(name, classes, splits, folder)
    images = {}
    for split, told in found["splits"].items():
        kept = folder / told["places"] if told["places"] else None
        shape = (told["count"], *found["shape"])
        images[split] = {
            "image": Images(splits[split].reader(kept), shape),
            "label": np.memmap(folder / told["labels"], np.int32, "r"),
        }
    return Dataset(
        name, source, images, tuple(classes), found["fingerprint"],
        tuple(found["findings"]),
    )  # fmt: skip


def key_of(files: list[pathlib.Path], top: pathlib.Path, *more: str) -> str:
    """Return a key of the names, sizes and times of change of files."""
    digest = hashlib.sha256(json.dumps(more).encode())
    for file in files:
        told = file.stat()
        line = f"{file.relative_to(top)} {told.st_size} {told.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return f"disk-{digest.hexdigest()[:16]}"


def _read(folder: pathlib.Path) -> dict | None:
    """Return what a first pass has found, or None."""
    try:
        found = parse_json(read_inside(folder, "manifest.json").decode())
        rest = {key: value for key, value in found.items() if key != "seal"}
        if found["seal"] != _seal(rest):
            return None
        for told in found["splits"].values():
            for file, size in told["files"].items():
                if (folder / file).stat().st_size != size:
                    return None
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(found: dict) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _look(
    name: str, classes: tuple[str, ...], splits: dict[str, Source], folder: pathlib.Path
) -> dict:
    """Do the first pass; keep and return what it finds."""
    folder.mkdir(parents=True, exist_ok=True)
    digest, looks = hashlib.sha256(), {}
    tested: Counter = Counter()  # digests of the test examples, which come first
    for split in sorted(splits):  # as in `fingerprint`
        looks[split] = look = _Look(f"{name}, {split}", classes, tested)
        look.through(splits[split], split, folder, digest)
    digest.update(json.dumps(list(classes)).encode())
    train, shapes = looks["train"], {s: look.shape for s, look in looks.items()}
    if len(set(shapes.values())) > 1:
        raise GpuzooError(f"{name}: the images of the splits differ in shape: {shapes}")
    present = np.count_nonzero(train.counts)
    if present < 2:
        raise GpuzooError(f"{name}: only {present} class among the training labels")
    findings = dark(train.brightest) + alike(classes)
    findings += empty_classes({s: look.counts for s, look in looks.items()}, classes)
    count = sum(tested[one] for one in train.seen)
    findings += repeated("image", count, splits["test"].count, "test", "train")
    found = {
        "shape": list(train.shape), "fingerprint": digest.hexdigest(),
        "findings": findings, "splits": {s: look.kept for s, look in looks.items()},
    }  # fmt: skip
    found["seal"] = _seal(found)
    write_atomically(folder / "manifest.json", json.dumps(found, indent=1).encode())
    return found


class _Look:
    """What the first pass finds in a split: `shape`, `counts` of the classes, the
    `brightest` number, digests `seen` before in a test example, names of files `kept`.
    """

    def __init__(self, what: str, classes: tuple[str, ...], tested: Counter):
        self.what, self.tested = what, tested
        self.shape: tuple[int, ...] = ()
        self.counts, self.brightest = np.zeros(len(classes), np.int64), 0
        self.seen: set[bytes] = set()
        self.kept: dict = {}

    def through(self, source: Source, split: str, folder: pathlib.Path, digest) -> None:
        """Look at all examples; add them to the digest of the dataset."""
        name = f"{split}-{secrets.token_hex(4)}"  # another process may look, too
        labels, places = folder / f"{name}.labels", folder / f"{name}.places"
        count, is_kept = 0, False
        with new_file(labels) as told, new_file(places) as there:
            for images, own, place in source.blocks():
                if not count:
                    self.shape = images[0].shape
                    head = f"{split}/image uint8 {(source.count, *self.shape)}\n"
                    digest.update(head.encode())
                self._images(images, count, split, digest)
                told.write(self._labels(own, count).tobytes())
                count += len(images)
                if place is not None:
                    is_kept = True
                    there.write(place.tobytes())
        if count != source.count:
            raise ValueError(f"expected {source.count} {split} examples, got {count}")
        digest.update(f"{split}/label int32 {(count,)}\n".encode())
        with open(labels, "rb") as told:
            while part := told.read(_CHUNK):
                digest.update(part)
        self.kept = {
            "count": count, "labels": labels.name,
            "places": places.name if is_kept else None,
            "files": {p.name: p.stat().st_size for p in (labels, places)},
        }  # fmt: skip

    def _images(self, images: list, first: int, split: str, digest) -> None:
        for place, image in enumerate(images, first):
            if image.dtype != np.uint8 or image.ndim != 3:
                raise GpuzooError(
                    f"{self.what} images: {image.dtype} {image.shape} at {place}; with "
                    "stream=disk they must be uint8 (height, width, channels)"
                )
            if image.shape != self.shape:
                raise GpuzooError(
                    f"{self.what} images have several sizes: {self.shape}, and "
                    f"{image.shape} at {place}; save them as an image folder and use "
                    "--image-size"
                )
            content = np.ascontiguousarray(image)
            digest.update(content)
            own = hashlib.blake2b(content, digest_size=16).digest()
            if split == "test":
                self.tested[own] += 1
            elif own in self.tested:
                self.seen.add(own)
            if self.brightest < 255:
                self.brightest = max(self.brightest, int(content.max()))

    def _labels(self, labels: list, first: int) -> np.ndarray:
        found = np.array(labels).astype(np.int64)
        if (wrong := (found < 0) | (found >= len(self.counts))).any():
            place = int(wrong.argmax())
            raise GpuzooError(
                f"{self.what} labels: {found[place]} at {first + place}; they must be "
                f"in 0..{len(self.counts) - 1}"
            )
        self.counts += np.bincount(found, minlength=len(self.counts))
        return found.astype("<i4")
