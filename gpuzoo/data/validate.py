"""Check and clean the raw arrays of a dataset."""

import dataclasses
import hashlib
import unicodedata

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.dataset import LONG, ORDER, Arrays, Dataset, fingerprint
from gpuzoo.errors import GpuzooError


def make_dataset(
    name: str,
    source: str,
    splits: dict[str, Arrays],
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Check raw arrays and build a Dataset.

    Without labels, or with only one class, the dataset has no classes.
    Images may be (n, height, width) or (n, height, width, channels), bool, any integer
    dtype with values 0..255, or floats in [0, 1]. Labels may be integers, booleans,
    one-hot rows, or names.

    Raises:
        GpuzooError: the fault, the array, and the remedy.
    """
    clean, found = clean_splits(name, splits)
    dataset = label_examples(name, source, clean, classes)
    return dataclasses.replace(dataset, findings=(*found, *dataset.findings))


def clean_splits(name: str, splits: dict[str, Arrays]) -> tuple[dict, list[str]]:
    """Return the splits with checked images of one shape and dtype, and findings.

    Raises:
        GpuzooError: see `make_dataset`.
    """
    if set(splits) - {"val"} != {"train", "test"}:
        raise GpuzooError(
            f"{name}: needs train and test examples, has {sorted(splits)}"
        )
    images = {
        split: clean_images(f"{name}, {split} images", arrays["image"])
        for split, arrays in splits.items()
    }
    train = images["train"]
    for split, array in images.items():
        if train.shape[1:] != array.shape[1:]:
            raise GpuzooError(
                f"{name}: train images are {train.shape[1:]} but {split} images are "
                f"{array.shape[1:]} (height, width, channels); make them equal"
            )
        if train.dtype != array.dtype:
            raise GpuzooError(
                f"{name}: train images are {train.dtype} but {split} images are "
                f"{array.dtype}; make them equal"
            )
    found = dark(train.max()) if train.dtype == np.uint8 else []
    return {s: {**splits[s], "image": images[s]} for s in splits}, found


def dark(brightest: int) -> list[str]:
    """Report whole-number images whose brightest training pixel is none."""
    if brightest >= 32:
        return []
    told = f"the brightest training pixel is {brightest} of 255: scale the "
    return [told + "images to 0 to 255, or as floats to 0 to 1"]


def label_examples(
    name: str,
    source: str,
    splits: dict[str, Arrays],
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Build a Dataset from checked examples, and labels unless all are of one class."""
    if several_labels(splits):
        return _with_several(name, source, splits, classes)
    splits, lone = _without_lone_class(name, splits, classes)
    if not all("label" in arrays for arrays in splits.values()):
        dataset = Dataset(name, source, splits, (), fingerprint(splits))
        examples = {split: arrays[dataset.field] for split, arrays in splits.items()}
        found = (*lone, *duplicates(dataset.field, examples))
        return dataclasses.replace(dataset, findings=found)
    labels, classes = _clean_labels(name, splits, classes)
    clean = {split: {**splits[split], "label": labels[split]} for split in splits}
    dataset = Dataset(name, source, clean, classes, fingerprint(clean, classes))
    examples = {split: clean[split][dataset.field] for split in splits}
    for split in splits:
        if len(examples[split]) != len(labels[split]):
            raise GpuzooError(
                f"{name}: {len(examples[split])} {split} {dataset.field}s but "
                f"{len(labels[split])} {split} labels"
            )
    findings = (
        *alike(classes),
        *empty_classes(_counts(labels, classes), classes),
        *duplicates(dataset.field, examples),
    )
    return dataclasses.replace(dataset, findings=findings)


def several_labels(splits: dict[str, Arrays]) -> bool:
    """Whether the labels are rows of 0 and 1, (examples, labels), of which at least one
    has not exactly one 1: otherwise they are one-hot rows of classes."""
    found = [np.asarray(arrays.get("label", 0)) for arrays in splits.values()]
    for array in found:
        if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "biuf":
            return False
        if not ((array == 0) | (array == 1)).all():
            return False
    return any((array.sum(axis=1) != 1).any() for array in found)


def _with_several(name: str, source: str, splits: dict, classes) -> Dataset:
    """Build a Dataset with `labels`, (examples, labels), uint8."""
    shapes = {split: arrays["label"].shape for split, arrays in splits.items()}
    if len({columns for _, columns in shapes.values()}) > 1:
        raise GpuzooError(
            f"{name}: the splits have labels of {shapes} (examples, labels); give all "
            "of them the same columns"
        )
    clean = {}
    for split, arrays in splits.items():
        rest = {field: array for field, array in arrays.items() if field != "label"}
        field, count = next((field, len(array)) for field, array in rest.items())
        if count != len(arrays["label"]):
            raise GpuzooError(
                f"{name}: {count} {split} {field}s but {len(arrays['label'])} {split} "
                "labels"
            )
        clean[split] = {**rest, "labels": arrays["label"].astype(np.uint8)}
    classes = classes or tuple(map(str, range(shapes["train"][1])))
    if not clean["train"]["labels"].any():
        raise GpuzooError(f"{name}: no training example has a label")
    dataset = Dataset(name, source, clean, classes, fingerprint(clean, classes))
    examples = {split: arrays[dataset.field] for split, arrays in clean.items()}
    findings = [*alike(classes), *duplicates(dataset.field, examples)]
    for split in (one for one in ORDER if one in clean):
        empty = np.flatnonzero(~clean[split]["labels"].any(axis=0))
        names = ", ".join(repr(classes[label]) for label in empty[:5])
        if names:
            dots = ", ..." * (len(empty) > 5)
            findings.append(f"no {split} example has the label {names}{dots}")
    return dataclasses.replace(dataset, findings=tuple(findings))


def _without_lone_class(name: str, splits: dict, classes) -> tuple[dict, list[str]]:
    """Drop labels of only one class; return the splits and findings."""
    if classes and len(classes) > 1 or not all("label" in a for a in splits.values()):
        return splits, []
    labels = [
        squeeze_labels(f"{name}, {split} labels", arrays["label"])
        for split, arrays in splits.items()
    ]
    if any(
        np.ndim(a["label"]) == 2 and a["label"].shape[1] > 1 for a in splits.values()
    ):
        return splits, []  # one-hot: the columns are classes too
    if any((each != labels[0][0]).any() for each in labels):
        return splits, []
    for split, arrays in splits.items():
        counts = [len(array) for array in arrays.values()]
        if len({*counts}) > 1:
            raise GpuzooError(
                f"{name}: {counts[0]} {split} examples, {counts[1]} labels"
            )
    plain = {
        split: {field: array for field, array in arrays.items() if field != "label"}
        for split, arrays in splits.items()
    }
    label = classes[0] if classes else labels[0][0]
    return plain, [f"only one class, {str(label)!r}: labels are ignored"]


def clean_images(what: str, images: np.ndarray) -> np.ndarray:
    """Return images as (n, height, width, channels), uint8 or float32 in [0, 1]."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise GpuzooError(
            f"{what}: the shape must be (examples, height, width[, channels]) with at "
            f"least one of each: {images.shape}"
        )
    if images.shape[1] <= 4 < min(images.shape[2:]):
        raise GpuzooError(
            f"{what}: the shape {images.shape} has the channels before height and "
            "width; put them last: x.transpose(0, 2, 3, 1)"
        )
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if images.dtype.kind not in "iuf":
        raise GpuzooError(f"{what}: must be numbers, not {images.dtype}")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        index = np.unravel_index(np.argmin(np.isfinite(images)), images.shape)
        raise GpuzooError(
            f"{what}: {images[index]} at index {tuple(map(int, index))}; every value "
            "must be finite"
        )
    low, high = images.min(), images.max()
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.ascontiguousarray(images, np.float32)
    whole = images.dtype.kind in "iu" or (images == np.floor(images)).all()
    if low >= 0 and high <= 255 and whole:
        return images.astype(np.uint8)
    raise GpuzooError(
        f"{what}: values from {low:.12g} to {high:.12g}; they must be floats in [0, 1] "
        "or integers in [0, 255]; rescale them"
    )


def _clean_labels(name, splits, classes):
    raw = {
        s: squeeze_labels(f"{name}, {s} labels", a["label"]) for s, a in splits.items()
    }
    kinds = {array.dtype.kind for array in raw.values()}
    if kinds == {"b"} and classes is None:
        classes = ("False", "True")
    raw = {s: a.astype(int) if a.dtype.kind == "b" else a for s, a in raw.items()}
    if kinds <= {"U"}:
        if classes is None:
            classes = tuple(str(c) for c in np.unique(raw["train"].astype(str)))
        index = {label: i for i, label in enumerate(classes)}
        for split, array in raw.items():
            unknown = set(array.astype(str)) - set(index)
            if unknown:
                raise GpuzooError(
                    f"{name}, {split} labels: {str(min(unknown))!r} is not a class of "
                    f"the training examples: {', '.join(classes)}"
                )
            raw[split] = np.array([index[str(c)] for c in array])
    labels = {}
    for split, array in raw.items():
        what = f"{name}, {split} labels"
        if array.dtype.kind == "f":
            if not (np.isfinite(array).all() and (array == np.floor(array)).all()):
                raise GpuzooError(f"{what}: must be integers, found fractions or NaN")
        elif array.dtype.kind not in "iu":
            raise GpuzooError(
                f"{what}: are names, and others integers: write all alike"
            )
        if array.min() < 0:
            raise GpuzooError(f"{what}: {int(array.min())} is negative; count from 0")
        labels[split] = array
    # One-hot labels have a column per class, even if the last class does not occur.
    shapes = [np.shape(arrays["label"]) for arrays in splits.values()]
    one_hot = {shape[1] for shape in shapes if len(shape) == 2 and shape[1] > 1}
    if len(one_hot) > 1:
        raise GpuzooError(
            f"{name}: one-hot labels of {sorted(one_hot)} columns; give all splits the "
            "same columns, in one order"
        )
    columns = max(one_hot, default=0)
    highest = max(int(labels["train"].max()) + 1, columns)
    count = len(classes) if classes else highest
    for split, array in labels.items():
        if array.max() >= count:
            raise GpuzooError(
                f"{name}, {split} labels: {array.max():g} is out of range; there "
                f"are {count} classes, so labels must be in 0..{count - 1}"
            )
    present = len(np.unique(labels["train"]))
    if present < 2:
        raise GpuzooError(f"{name}: only {present} class among the training labels")
    if count > max(2 * present, present + 10, columns):
        raise GpuzooError(
            f"{name}, train labels: the highest is {count - 1} but only {present} "
            "values occur; number the classes 0, 1, 2, ..."
        )
    classes = classes or tuple(str(i) for i in range(count))
    return {s: a.astype(np.int32) for s, a in labels.items()}, tuple(classes)


def squeeze_labels(what: str, labels: np.ndarray) -> np.ndarray:
    """Return labels as (n,) from (n,), (n, 1) or one-hot (n, classes); bytes decoded.

    Raises:
        GpuzooError: another shape, or names that are not valid text.
    """
    if labels.size == 0:
        raise GpuzooError(f"{what}: there are none")
    if labels.dtype.kind not in "biufUS":
        raise GpuzooError(f"{what}: must be integers or names: {labels.dtype}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    one_hot = labels.ndim == 2 and labels.dtype.kind in "biuf"
    if one_hot and ((labels == 0) | (labels == 1)).all():
        if (labels.sum(axis=1) == 1).all():
            return labels.argmax(axis=1)
    if labels.ndim != 1:
        raise GpuzooError(
            f"{what}: the shape must be (examples,), (examples, 1), one-hot (examples, "
            "classes) or, for several labels per example, (examples, labels) of 0 and "
            f"1: {labels.shape}"
        )
    if labels.dtype.kind == "U":
        _check_text(what, labels)
    labels = _decoded(what, labels) if labels.dtype.kind == "S" else labels
    if labels.dtype.kind == "U" and (empty := np.char.strip(labels) == "").any():
        raise GpuzooError(
            f"{what}: the name at index {empty.argmax()} is empty; leave the example "
            "out, or name its class"
        )
    return labels


def _check_text(what: str, names: np.ndarray) -> None:
    points = np.ascontiguousarray(names.astype(names.dtype.newbyteorder("=")))
    points = points.view(np.uint32)
    if ((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any():
        raise GpuzooError(f"{what}: hold invalid characters; save them again")


def _decoded(what: str, names: np.ndarray) -> np.ndarray:
    try:
        return np.array([name.decode() for name in names.tolist()])
    except UnicodeDecodeError as error:
        raise GpuzooError(
            f"{what}: {error.object!r} is not UTF-8; save the names as text"
        ) from None


def alike(classes: tuple[str, ...]) -> list[str]:
    """Report names of classes that differ in their case or spaces only."""
    seen: dict[str, str] = {}
    found = []
    for name in classes:
        key = unicodedata.normalize("NFKC", name).casefold().strip()
        if seen.setdefault(key, name) != name:
            found.append(f"the classes {seen[key]!r} and {name!r} have similar names")
    return found


def _counts(labels: Arrays, classes: tuple[str, ...]) -> Arrays:
    return {s: np.bincount(a, minlength=len(classes)) for s, a in labels.items()}


def empty_classes(counts: Arrays, classes: tuple[str, ...]) -> list[str]:
    """Report classes without examples; `counts`: split -> examples of each class."""
    found = []
    for split in (name for name in ORDER if name in counts):
        empty = [classes[i] for i in np.flatnonzero(counts[split] == 0)]
        if len(empty) > 1:
            names = f"{empty[0]!r} to {empty[-1]!r}"
            if len(empty) <= 5:
                names = f"{', '.join(map(repr, empty[:-1]))} and {empty[-1]!r}"
            found.append(f"{len(empty)} classes, {names}, have no {split} example")
        elif empty:
            found.append(f"class {empty[0]!r} has no {split} example")
    return found


def duplicates(field: str, examples: Arrays) -> list[str]:
    """Report examples that are, byte for byte, in two splits."""

    def digests(split: str) -> list[bytes]:
        flat = examples[split].reshape(len(examples[split]), -1)
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in flat]

    found, known = [], {"train": digests("train")}
    for split in [name for name in ("val", "test") if name in examples]:
        mine = digests(split)
        for other, theirs in known.items():
            seen = set(theirs)
            count = sum(digest in seen for digest in mine)
            found += repeated(field, count, len(mine), split, other)
        known[split] = mine
    return found


def repeated(field: str, count: int, total: int, split: str, other: str) -> list[str]:
    """Report how many of the examples of a split are also in another."""
    if not count:
        return []
    kind = f"{LONG[other]} {field}"
    also = f"is also a {kind}" if count == 1 else f"are also {kind}s"
    return [f"{count} of {total} {LONG[split]} {field}s {also}"]


# Test fraction for sources without a test split.
HELD_OUT = 0.2


def hold_out(what: str, whole: dict) -> dict:
    """Split off a fixed fifth of the examples for testing."""
    if any(np.ndim(array) == 0 for array in whole.values()):
        raise GpuzooError(f"{what}: a single number, expected an array of examples")
    field, count = next((name, len(array)) for name, array in whole.items())
    if "label" in whole and len(whole["label"]) != count:
        raise GpuzooError(f"{what}: {count} {field}s but {len(whole['label'])} labels")
    if count < 10:
        raise GpuzooError(f"{what}: {count} examples; at least 10 are needed")
    order = randomness.permutation(count, 0, "hold out")
    test, train = np.split(order, [round(count * HELD_OUT)])
    if "label" in whole and not several_labels({"": whole}):
        train, test = _of_every_class(whole["label"], order, train, test)
        if not len(test):
            raise GpuzooError(
                f"{what}: labels are not classes: each of the {count} labels occurs "
                "once; expected two or more examples per class (numbers are predicted "
                "from tables only)"
            )
    parts = {"train": train, "test": test}
    return {
        split: {name: array[part] for name, array in whole.items()}
        for split, part in parts.items()
    }


def _of_every_class(labels, order, train, test) -> tuple[np.ndarray, np.ndarray]:
    """Stratify the split if a class with two or more examples is missing in a part: a
    fifth of every class, at least one. A class with one example is for training.

    Otherwise the split is kept, and so the results on such data.
    """
    _, ids = np.unique(np.reshape(labels, (len(labels), -1)), axis=0,
                       return_inverse=True)  # fmt: skip
    ids = ids.reshape(-1)
    counts, tests = np.bincount(ids), np.bincount(ids[test], minlength=ids.max() + 1)
    wanted = np.maximum(np.round(HELD_OUT * counts).astype(int), 1)
    wanted[counts == 1] = 0
    if ((tests > 0) == (wanted > 0)).all() and (tests < counts).all():
        return train, test
    chosen = np.zeros(len(order), bool)
    for label, count in enumerate(wanted):
        chosen[np.flatnonzero(ids[order] == label)[:count]] = True
    return order[~chosen], order[chosen]
