"""Numbers of training examples by class: class weights, and whether they are uneven."""

import math

import numpy as np

from gpuzoo.data import masks
from gpuzoo.data.dataset import Dataset
from gpuzoo.errors import GpuzooError, nearest

BALANCED = "balanced"
_COUNTED = 1_000_000
_UNEVEN = 5
"""Ratio of the largest class to the smallest from which on classes are imbalanced."""


def counts(dataset: Dataset) -> np.ndarray:
    """Return the number of training examples of each class; of masks, of pixels."""
    if "mask" in dataset.train:
        every = masks.pixels_of(dataset.train["mask"]).sum(axis=0)
        return every[: len(dataset.classes)]
    labels, classes = dataset.train["label"], len(dataset.classes)
    # In parts: of very many examples in files, a copy would need memory.
    starts = range(0, len(labels), _COUNTED)
    parts = (labels[start : start + _COUNTED] for start in starts)
    return np.sum([np.bincount(part, minlength=classes) for part in parts], axis=0)


def class_weights(texts: tuple[str, ...], dataset: Dataset) -> dict[str, float] | None:
    """Return class -> weight in the training loss; None if all classes are alike.

    Args:
        texts: the field `class_weight` of a recipe. `balanced` is the number of all
            examples over that of the classes and of the examples of a class: the mean
            weight of an example is 1.

    Raises:
        GpuzooError: a class is unknown or given twice, or a weight is not a number of 0
            or more.
    """
    if not texts:
        return None
    if texts == (BALANCED,):
        found = counts(dataset)
        there = found[found > 0]
        weights = there.sum() / (len(there) * np.maximum(found, 1))
        weights = np.where(found > 0, weights, 1.0)
        return dict(zip(dataset.classes, map(float, weights), strict=True))
    given: dict[str, float] = {}
    for text in texts:
        name, weight = _parsed(text, dataset)
        if name in given:
            raise GpuzooError(f"class_weight has class {name!r} twice; give it once")
        given[name] = weight
    weights = {name: given.get(name, 1.0) for name in dataset.classes}
    if not any(weights.values()):
        raise GpuzooError("class_weight is 0 for all classes; give one of them more")
    return weights


def _parsed(text: str, dataset: Dataset) -> tuple[str, float]:
    """Return the class and the weight of one `class:weight`."""
    name, colon, number = text.rpartition(":")
    classes = list(dataset.classes)
    if not colon:
        raise GpuzooError(
            f"class_weight must be {BALANCED} alone, or class:weight for some classes, "
            f"as {classes[0]}:2: {text!r}"
        )
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise GpuzooError(
            f"class_weight of {name} must be a finite number, 0 or more: {number!r}"
        )
    return _class_named(name, dataset), weight


def _class_named(name: str, dataset: Dataset) -> str:
    """Return the class of a name, of an index if none has this name, or of `#index`."""
    classes = list(dataset.classes)
    number = name.removeprefix("#")
    by_index = number.isdecimal() and int(number) < len(classes)
    other = by_index and classes[int(number)] != name
    if name in classes and number != name and other:
        raise GpuzooError(
            f"class_weight: {name!r} is a class and the index of "
            f"{classes[int(number)]!r}; rename the class"
        )
    if name in classes:
        return name
    if not by_index:
        raise GpuzooError(
            f"class_weight: data {dataset.name} have no class {name!r}; "
            f"{nearest(name, classes)}"
        )
    return classes[int(number)]


def findings(dataset: Dataset) -> list[str]:
    """Return a warning if the classes of the training examples are imbalanced."""
    found = counts(dataset)
    most, least = int(found.argmax()), int(found.argmin())
    if found[most] <= _UNEVEN * found[least]:
        return []
    names = dataset.classes
    what = "pixels" if "mask" in dataset.train else "examples"
    return [
        f"the classes are imbalanced: {found[most]:,} training {what} of "
        f"{names[most]!r}, {found[least]:,} of {names[least]!r}; class_weight=balanced "
        "weighs them alike, and the accuracy says little about the small ones"
    ]
