"""Boxes, the places and the classes of the objects in an image: checked and counted.

Of each image they are `objects`, (most, 6), float32: top, left, bottom and right in
pixels, edges counting from 0, the class, and OBJECT; IGNORED of what is neither to be
found nor a mistake (`iscrowd` of COCO, `difficult` of Pascal VOC); rows of zeros, NONE,
follow.
"""

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.dataset import ORDER, Arrays, Dataset, fingerprint
from gpuzoo.data.masks import choose_of
from gpuzoo.data.validate import HELD_OUT, alike, clean_splits, duplicates
from gpuzoo.errors import GpuzooError

OBJECT, NONE, IGNORED = 1.0, 0.0, -1.0
_OUTSIDE = 0.5  # part of a box that may lie outside of its image


def make_dataset(
    name: str, source: str, splits: dict[str, Arrays], classes: tuple[str, ...]
) -> Dataset:
    """Check images and build a Dataset of them and their objects.

    Args:
        splits: each with `image`, as for `validate.make_dataset`, and `objects`, of
            boxes that `clean` has returned.

    Raises:
        GpuzooError: no object to train on, or a class that no training image has.
    """
    clean, found = clean_splits(name, splits)
    most = max(part["objects"].shape[1] for part in clean.values())
    for part in clean.values():
        rows = part["objects"]
        wider = np.zeros((len(rows), max(most, 1), 6), np.float32)
        wider[:, : rows.shape[1]] = rows
        part["objects"] = wider
    there = {split: counts(part, len(classes)) for split, part in clean.items()}
    train = there["train"]
    if not train.any():
        raise GpuzooError(
            f"{name}: no training image has a box; check that the labels belong to the "
            "images"
        )
    for split, mine in there.items():
        if (other := np.flatnonzero(mine.astype(bool) & (train == 0))).size:
            raise GpuzooError(
                f"{name}: {split} boxes have the class {classes[other[0]]!r}, and no "
                "training box has it; move an image with it to the training part, or "
                "remove these boxes"
            )
    if empty := [c for c, count in zip(classes, train, strict=True) if not count]:
        listed = ", ".join(map(repr, empty[:5])) + ", ..." * (len(empty) > 5)
        found.append(f"no training box has the class {listed}")
    if not there["test"].any():
        found.append("no test image has a box: nothing says how well they are found")
    pixels = {split: part["image"] for split, part in clean.items()}
    found += [*alike(classes), *duplicates("image", pixels)]
    digest = fingerprint(clean, classes)
    return Dataset(name, source, clean, classes, digest, findings=tuple(found))


def clean(boxes: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of an image without what lies outside of it, and by how many
    pixels each lay outside, (boxes,).

    Args:
        boxes: (boxes, 4), float64: top, left, bottom and right in pixels.
        shape: height and width of the image.

    Raises:
        ValueError: a box is not finite, turned round, empty, or mostly outside.
    """
    if (bad := ~np.isfinite(boxes).all(axis=1)).any():
        raise ValueError(f"{_said(boxes[bad][0])} is not finite")
    low, high = boxes[:, :2], boxes[:, 2:]
    if (bad := (high < low).any(axis=1)).any():
        raise ValueError(
            f"{_said(boxes[bad][0])} ends before it begins: are its corners exchanged, "
            "or are they a corner and a size?"
        )
    if (bad := (high == low).any(axis=1)).any():
        raise ValueError(f"{_said(boxes[bad][0])} is empty; remove it")
    size = np.array(shape, np.float64)
    inside = np.concatenate([np.clip(low, 0, size), np.clip(high, 0, size)], axis=1)
    part = _areas(inside) / _areas(boxes)
    if (bad := part < 1 - _OUTSIDE).any():
        raise ValueError(
            f"{_said(boxes[bad][0])} lies outside of its image of {shape[1]}x"
            f"{shape[0]} pixels; is it of another image, or of another size of it?"
        )
    return inside, np.abs(inside - boxes).max(axis=1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _said(box: np.ndarray) -> str:
    top, left, bottom, right = (f"{side:.6g}" for side in box)
    return f"the box from x {left} to {right} and y {top} to {bottom}"


def are_fractions(boxes: np.ndarray) -> bool:
    """Whether boxes (all of a dataset, 4), in pixels, can only be parts of the sides of
    images: none reaches beyond the first pixel."""
    return bool(len(boxes)) and bool((np.abs(boxes) <= 1).all())


def rows(boxes: np.ndarray, labels, ignored) -> np.ndarray:
    """Return objects (boxes, 6) of an image, each once."""
    kind = np.where(np.asarray(ignored, bool), IGNORED, OBJECT)
    labels = np.asarray(labels, np.float64)
    whole = np.concatenate([boxes, labels[:, None], kind[:, None]], axis=1)
    _, first = np.unique(whole, axis=0, return_index=True)
    return whole[np.sort(first)].astype(np.float32)


def padded(images: list[np.ndarray]) -> np.ndarray:
    """Return the objects of images, (boxes, 6) each, as one array."""
    most = max((len(one) for one in images), default=0)
    whole = np.zeros((len(images), most, 6), np.float32)
    for place, one in zip(whole, images, strict=True):
        place[: len(one)] = one
    return whole


# --- arrays -------------------------------------------------------------------------


def are_boxes(splits: dict[str, Arrays]) -> bool:
    """Whether the arrays of a file have boxes."""
    return any("boxes" in arrays for arrays in splits.values())


def from_arrays(what: str, name: str, splits: dict[str, Arrays], note) -> Dataset:
    """Build a Dataset of arrays: `image`; `boxes` (examples, most, 4), left, top, right
    and bottom in pixels; `label` (examples, most), integers from 0 or names, with
    -1 or an empty name of rows that are no box.

    Raises:
        GpuzooError: other shapes or values.
    """
    for split, arrays in splits.items():
        _check_shapes(f"{what}, {split}".rstrip(", "), arrays)
    there = np.concatenate([_is_box(a["label"]).ravel() for a in splits.values()])
    every = np.concatenate([a["boxes"].reshape(-1, 4) for a in splits.values()])[there]
    if are_fractions(every):
        raise GpuzooError(
            f"{what}: all boxes are within 0 to 1, and they must be in pixels; "
            "multiply them by the width and the height of the images"
        )
    classes = _classes(what, splits)
    made = {}
    for split, arrays in splits.items():
        objects = _objects(f"{what}, {split}".rstrip(", "), arrays, classes)
        made[split] = {"image": arrays["image"], "objects": objects}
    if "" in made:
        made = hold_out(what, made[""], len(classes))
    dataset = make_dataset(name, "npz file with boxes", made, classes)
    note(said(dataset))
    return dataset


def _check_shapes(what: str, arrays: Arrays) -> None:
    if {"boxes", "label"} - set(arrays):
        raise GpuzooError(
            f"{what}: boxes need labels, and labels boxes: give the arrays x, boxes "
            "(examples, most, 4) and labels (examples, most)"
        )
    boxes, labels = arrays["boxes"], arrays["label"]
    count = len(arrays["image"])
    if boxes.dtype.kind not in "iuf" or boxes.ndim != 3 or boxes.shape[2] != 4:
        raise GpuzooError(
            f"{what} boxes: must be numbers (examples, most, 4), left, top, right and "
            f"bottom in pixels: {boxes.dtype} {boxes.shape}"
        )
    if labels.shape != boxes.shape[:2] or labels.dtype.kind not in "iuU":
        raise GpuzooError(
            f"{what} labels: must be integers or names, one for each of the boxes "
            f"{boxes.shape[:2]}, with -1 or '' where there is none: {labels.dtype} "
            f"{labels.shape}"
        )
    if len(boxes) != count:
        raise GpuzooError(f"{what}: {count} images but boxes of {len(boxes)}")
    if labels.dtype.kind in "iu" and labels.size and labels.min() < -1:
        raise GpuzooError(
            f"{what} labels: {labels.min()} is negative; classes count from 0, and -1 "
            "stands for no box"
        )


def _is_box(labels: np.ndarray) -> np.ndarray:
    return labels != "" if labels.dtype.kind == "U" else labels.astype(np.int64) >= 0


def _classes(what: str, splits: dict[str, Arrays]) -> tuple[str, ...]:
    labels = {split: arrays["label"] for split, arrays in splits.items()}
    if len({array.dtype.kind == "U" for array in labels.values()}) > 1:
        raise GpuzooError(f"{what}: some labels are names and some numbers; use one")
    found = np.unique(np.concatenate([a[_is_box(a)] for a in labels.values()]))
    if found.dtype.kind == "U" or not found.size:
        return tuple(found.tolist())
    highest = int(found.max())
    if highest + 1 > max(2 * len(found), len(found) + 10):
        raise GpuzooError(
            f"{what} labels: the highest is {highest}, and only {len(found)} values "
            "occur; number the classes 0, 1, 2, ..., or give their names"
        )
    return tuple(map(str, range(highest + 1)))


def _objects(what: str, arrays: Arrays, classes: tuple[str, ...]) -> np.ndarray:
    index = {name: number for number, name in enumerate(classes)}
    made, shape = [], arrays["image"].shape[1:3]
    for place, (boxes, labels) in enumerate(
        zip(arrays["boxes"], arrays["label"], strict=True)
    ):
        taken = _is_box(labels)
        corners = boxes[taken].astype(np.float64)[:, [1, 0, 3, 2]]
        try:
            corners, _ = clean(corners, shape)
        except ValueError as error:
            raise GpuzooError(f"{what} boxes, image {place}: {error}") from None
        numbers = [index[str(label)] for label in labels[taken].tolist()]
        made.append(rows(corners, numbers, np.zeros(len(numbers))))
    return padded(made)


# --- counts and splits --------------------------------------------------------------


def present(objects: np.ndarray, classes: int) -> np.ndarray:
    """Return (examples, classes): how many objects of each class an image has."""
    found = np.zeros((len(objects), classes), np.int64)
    image, place = np.nonzero(objects[..., 5] == OBJECT)
    np.add.at(found, (image, objects[image, place, 4].astype(int)), 1)
    return found


def counts(part: Arrays, classes: int) -> np.ndarray:
    """Return how many objects of each class a split has."""
    return present(part["objects"], classes).sum(axis=0)


def hold_out(what: str, whole: Arrays, classes: int) -> dict[str, Arrays]:
    """Split off a fixed fifth of the examples for testing; each class keeps an example
    for training."""
    count = len(whole["image"])
    if count < 10:
        raise GpuzooError(f"{what}: {count} examples; at least 10 are needed")
    order = randomness.permutation(count, 0, "hold out")
    chosen = choose(whole["objects"], classes, order, round(count * HELD_OUT))
    if not chosen.any():
        raise GpuzooError(
            f"{what}: no image can be held out for testing, as each has a class that "
            "no other one has; give train/ and test/ of your own"
        )
    parts = {"train": ~chosen, "test": chosen}
    return {
        split: {name: array[taken] for name, array in whole.items()}
        for split, taken in parts.items()
    }


def choose(
    objects: np.ndarray, classes: int, order: np.ndarray, wanted: int
) -> np.ndarray:
    """Return (examples,), whether one is chosen: the first `wanted` in an order of
    which each class leaves another example behind."""
    return choose_of(present(objects, classes) > 0, order, wanted)


def said(dataset: Dataset, how: str = "") -> str:
    """Return a line about what was read; `how`: in which form."""
    splits = [dataset.splits[split] for split in ORDER if split in dataset.splits]
    images = sum(len(part["image"]) for part in splits)
    kinds = np.concatenate([part["objects"][..., 5].ravel() for part in splits])
    empty = sum(int((~part["objects"][..., 5].any(axis=1)).sum()) for part in splits)
    height, width, _ = dataset.input_shape
    names = ", ".join(dataset.classes[:8]) + ", ..." * (len(dataset.classes) > 8)
    line = (
        f"data {dataset.name!r}: {images:,} images of {width}x{height} pixels with "
        f"{int((kinds == OBJECT).sum()):,} boxes{how} of {len(dataset.classes)} "
        f"classes: {names}"
    )
    if empty:
        line += f"; {empty:,} images have none"
    if ignored := int((kinds == IGNORED).sum()):
        line += f"; {ignored:,} crowds or difficult objects are left out of training "
        line += "and figures"
    return line
