"""Pictures by identity: faces, glyphs, products. The identities of the parts of such
data are apart, so that a model is tested on identities that it has never seen."""

import collections
import dataclasses
import os
import pathlib
import unicodedata

import numpy as np

from gpuzoo import randomness
from gpuzoo.data import arrays, folders, from_python, images, validate
from gpuzoo.data.dataset import LONG, ORDER, Arrays, Dataset, fingerprint
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand

TASK = "embed"
_NEEDED = (
    "give a folder with one sub-folder of images for each identity (or such folders "
    "under train/ and test/), a .npz file with x and y, or glyphs"
)


def load(name: str, made, data_dir, sizes: tuple, task: str, note) -> Dataset:
    """Load generated data, a folder or a .npz file by identity.

    Args:
        made: a function that makes the data; None: they are in files.
        sizes: image_size and audio_seconds of the recipe.
        note: called with lines for the user.
        data_dir, task: those of the recipe.

    Raises:
        GpuzooError: the data are damaged, have too few identities, or one identity in
            two parts; or an option is for other data.
    """
    size, seconds = sizes
    if made and task not in ("", TASK):
        raise GpuzooError(
            f"data {name}: the identities of its test part are not in its training "
            f"part; it is for the task {TASK}, not for {task}"
        )
    for option, wrong, of in (
        ("data_dir", data_dir is not None, "TFDS datasets"),
        ("audio_seconds", seconds, "folders of .wav files"),
        ("image_size", size and made, "folders of images"),
    ):
        if wrong:
            raise GpuzooError(
                f"{option} is for {of}, and data {name!r} is none; leave it out"
            )
    if made:
        return made()
    title, source, splits = read(expand(name), name, size, note)
    if whole := splits.get(""):
        splits = _apart(f"data {title}", whole, validate.HELD_OUT, "test", 0)
        counts = {split: len(set(part["label"])) for split, part in splits.items()}
        note(
            f"data {title}: one part, split by identity: {counts['train']} identities "
            f"for training, {counts['test']} others for testing"
        )
    return make_dataset(title, source, splits)


def read(path: pathlib.Path, name: str, size: int, note) -> tuple[str, str, dict]:
    """Return name, source, and the arrays of each split ("" without splits), `image`
    and `label`, the name of the identity."""
    if path.suffix.lower() == ".npz":
        if size:
            raise GpuzooError(
                f"image_size is for a folder of images, and data {name!r} is not one; "
                "leave it out"
            )
        splits = arrays.read(path, note)
        return _of_arrays(path, splits)
    what = f"data folder {path.name!r}"
    if not path.exists():
        raise GpuzooError(
            f"data {name!r}: there is no such file or folder; the task {TASK} needs "
            f"identities: {_NEEDED}"
        )
    if not folders.is_folder(path):
        raise GpuzooError(f"data {name!r}: the task {TASK} needs identities: {_NEEDED}")
    parts = folders.find_splits(what, path, note) or {"": path}
    splits = {k: _read_part(what, one, size, note) for k, one in parts.items()}
    channels = max(fields["image"].shape[3] for fields in splits.values())
    for fields in splits.values():
        shape = (*fields["image"].shape[:3], channels)
        fields["image"] = np.ascontiguousarray(np.broadcast_to(fields["image"], shape))
    return path.name, "image folder", splits


def _of_arrays(path: pathlib.Path, splits: dict) -> tuple[str, str, dict]:
    """Return name, source and splits of the arrays of a .npz file."""
    title = "arrays" if from_python.is_kept(path) else path.stem
    what = f"data {path.name!r}"
    for split, fields in splits.items():
        part = f"{what}, {LONG[split]} part" if split else what
        if "label" not in fields:
            raise GpuzooError(f"{part} has no identities: save them as y, one of each")
        labels = fields["label"]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "iubUS":
            raise GpuzooError(
                f"{part}: y must be one name or whole number of the identity for each "
                f"image, (images,): {labels.dtype} {labels.shape}"
            )
        if len(labels) != len(fields["image"]):
            raise GpuzooError(
                f"{part}: {len(fields['image'])} images but {len(labels)} identities"
            )
        fields["label"] = labels.astype(str)
    return title, "npz file", splits


def _read_part(what: str, folder: pathlib.Path, size: int, note) -> dict:
    """Return `image` and `label` of the sub-folders of a folder."""
    names = folders.sub_folders(what, folder)
    if len(names) < 2:
        folders.refuse_wrapped(what, folder, names)
        raise GpuzooError(
            f"{what}: {folder.name}/ needs one sub-folder of images for each of at "
            f"least two identities; it has {len(names)}"
        )
    found = folders.find_files(what, folder, names)
    if folders.choose(what, folder, found, note):
        raise GpuzooError(f"{what}: sounds, and the task {TASK} takes images")
    folders.note_hidden(what, folder, note)
    folders.note_places(what, folder, found, note)
    fields = images.read_folder(what, folder, found, size, note)
    # Bytes of names that are not UTF-8 are shown as \xe4.
    shown = [os.fsencode(one).decode("utf-8", "backslashreplace") for one in names]
    return {"image": fields["image"], "label": np.array(shown)[fields["label"]]}


def make_dataset(name: str, source: str, splits: dict[str, Arrays]) -> Dataset:
    """Check the parts and build a Dataset.

    Args:
        splits: split -> `image`, and `label`, the names of the identities.

    Returns:
        A dataset whose classes are the identities: first those of the training part,
        which are 0, 1, ..., then those of the validation and of the test part.

    Raises:
        GpuzooError: an identity is in two parts, or a part has too few of them.
    """
    clean, found = validate.clean_splits(name, splits)
    _check_apart(name, clean)
    for split, part in clean.items():
        _check_enough(f"{name}, {LONG[split]} part", part["label"])
    dataset = _numbered(name, source, clean)
    examples = {split: part["image"] for split, part in dataset.splits.items()}
    found += [*validate.duplicates("image", examples), *_alone(dataset)]
    return dataclasses.replace(dataset, findings=tuple(found))


def _numbered(name: str, source: str, splits: dict[str, Arrays]) -> Dataset:
    """Return a dataset with numbers in place of the names of the identities."""
    classes: list[str] = []
    clean: dict[str, Arrays] = {}
    for split in (one for one in ORDER if one in splits):
        names, places = np.unique(splits[split]["label"], return_inverse=True)
        label = (places.reshape(-1) + len(classes)).astype(np.int32)
        clean[split] = {**splits[split], "label": label}
        if split != "train":  # of the first ones alone some are of one identity, too
            order = _by_twos(places.reshape(-1))
            clean[split] = {name: a[order] for name, a in clean[split].items()}
        classes += names.tolist()
    every = tuple(classes)
    return Dataset(name, source, clean, every, fingerprint(clean, every))


def _by_twos(labels: np.ndarray) -> np.ndarray:
    """Return an order of examples: two of each identity, then two more of each, ...;
    identities with one example are the last."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    turn = np.empty(len(labels), int)
    turn[order] = (np.arange(len(labels)) - starts) // 2
    single = np.bincount(labels)[labels] == 1
    return np.lexsort((labels, turn, single))


def _check_apart(name: str, splits: dict[str, Arrays]) -> None:
    """Raise if an identity is in two parts."""
    first: dict[str, str] = {}
    for split in (one for one in ORDER if one in splits):
        mine = sorted(set(splits[split]["label"].tolist()))
        both = [one for one in mine if plain(one) in first]
        if both:
            other = LONG[first[plain(both[0])]]
            raise GpuzooError(
                f"{name}: identity {both[0]!r} is in the {other} and in the "
                f"{LONG[split]} part ({len(both)} of {len(mine)} are): the identities "
                "of the parts must be apart; give all of an identity to one part, or "
                "one folder without parts, which is split by identity"
            )
        first |= dict.fromkeys(map(plain, mine), split)


def plain(name: str) -> str:
    """Return a name as a reader tells it from others: without case, accents composed,
    no blanks around it."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _check_enough(what: str, labels: np.ndarray) -> None:
    """Raise unless a part has two identities, and one of them two pictures."""
    counts = collections.Counter(labels.tolist())
    if len(counts) < 2 or max(counts.values()) < 2:
        raise GpuzooError(
            f"{what}: needs at least two identities, and two images of one of them: "
            f"{len(counts)} identities, at most {max(counts.values())} images of one"
        )


def _alone(dataset: Dataset) -> list[str]:
    """Report test identities with one picture, which no other can be found for."""
    counts = np.bincount(dataset.test["label"])
    alone = np.flatnonzero(counts == 1)
    if not len(alone):
        return []
    names = [repr(dataset.classes[label]) for label in alone[:5]]
    listed = ", ".join(names) + ", ..." * (len(alone) > 5)
    return [
        f"{len(alone)} test identities have one image, which counts as different from "
        f"all others only: {listed}"
    ]


def _apart(what: str, whole: Arrays, part: float, split: str, seed: int) -> dict:
    """Return training and another part of arrays, with a fraction of the identities,
    chosen by the seed, in the latter."""
    # A name that is written in two ways is one identity, and goes to one part.
    known = {one: plain(one) for one in set(whole["label"].tolist())}
    same = np.array([known[one] for one in whole["label"].tolist()])
    names, places = np.unique(same, return_inverse=True)
    wanted = max(2, round(part * len(names)))
    if len(names) - wanted < 2:
        raise GpuzooError(
            f"{what}: {len(names)} identities; at least four are needed, two of them "
            f"for the {LONG[split]} part"
        )
    order = randomness.permutation(len(names), seed, "identities", split)
    chosen = np.isin(places.reshape(-1), order[:wanted])
    return {
        one: {name: array[rows] for name, array in whole.items()}
        for one, rows in (("train", ~chosen), (split, chosen))
    }


def with_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Return a dataset with a fraction of its training identities, at least two, as the
    split `val`; the seed chooses which. The fingerprint stays that of the data as they
    were read.

    Raises:
        GpuzooError: the data have a validation part of their own, or too few
            identities.
    """
    if not fraction:
        return dataset
    if not 0 <= fraction < 1:
        raise GpuzooError(f"validation must be a fraction in [0, 1): {fraction!r}")
    if "val" in dataset.splits:
        raise GpuzooError(
            f"validation={fraction:g}: data {dataset.name} have a validation part of "
            "their own; leave validation out"
        )
    names = np.array(dataset.classes)
    named = {
        split: {**part, "label": names[part["label"]]}
        for split, part in dataset.splits.items()
    }
    what = f"validation={fraction:g} of data {dataset.name}"
    parts = _apart(what, named["train"], fraction, "val", seed)
    for split, part in parts.items():
        _check_enough(f"{what}, {LONG[split]} part", part["label"])
    made = _numbered(dataset.name, dataset.source, {**parts, "test": named["test"]})
    return dataclasses.replace(
        made, fingerprint=dataset.fingerprint, findings=dataset.findings
    )


def other(name: str, shape: tuple[int, ...], known: tuple[str, ...], note) -> Dataset:
    """Return other data to evaluate a run on, all in the part `test`.

    Args:
        shape: (height, width, channels) of the run's images.
        known: the identities of the run's data.

    Raises:
        GpuzooError: see `load`; or the images have another shape.
    """
    path, size = expand(name), shape[0] if shape[0] == shape[1] else 0
    folder = path.suffix.lower() != ".npz"
    title, source, splits = read(path, name, size if folder else 0, note)
    part = splits.get("", splits.get("test"))
    if "" not in splits:
        note(f"data {title}: the test part is evaluated")
    image = validate.clean_images(f"{title}, images", part["image"])
    if {image.shape[-1], shape[-1]} == {1, 3}:
        note(f"data {title}: converted to " + ("grey" if shape[-1] == 1 else "colour"))
        image = images.with_channels(image, shape[-1])
    if image.shape[1:] != tuple(shape):
        raise GpuzooError(
            f"data {title} have images of {image.shape[1:]}, and the run takes "
            f"{tuple(shape)}"
        )
    _check_enough(title, part["label"])
    seen = sorted(set(part["label"].tolist()) & set(known))
    if seen:
        note(
            f"data {title}: {len(seen)} identities have names that the run's data have "
            f"({', '.join(map(repr, seen[:3]))}): if the run was trained on them, the "
            "figures are not those of unseen ones"
        )
    clean = {"image": image, "label": part["label"]}
    dataset = _numbered(title, source, {"test": clean})
    found = tuple(_alone(dataset))
    for line in found:
        note(f"data {title}: {line}")
    splits = {"train": dataset.test, "test": dataset.test}
    return dataclasses.replace(dataset, splits=splits, findings=found)
