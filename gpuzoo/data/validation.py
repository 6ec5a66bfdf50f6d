"""Take a part of the training examples for validation."""

import dataclasses

import numpy as np

from gpuzoo import randomness
from gpuzoo.data import boxes, masks, series
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.npy import memory
from gpuzoo.data.on_disk import Images
from gpuzoo.errors import GpuzooError


def with_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Return a dataset with a fraction of its training examples as the split `val`.

    The examples are chosen by the seed, from every class alike; of a series they are
    the last part of the training values, and no window is in both parts. The
    fingerprint stays that of the data as they were read.

    Args:
        fraction: in [0, 1); 0: the dataset as it is.

    Raises:
        GpuzooError: the data have a validation part of their own, or too few examples.
    """
    if not 0 <= fraction < 1:
        raise GpuzooError(f"validation must be a fraction in [0, 1): {fraction}")
    if not fraction:
        return dataset
    if "val" in dataset.splits:
        raise GpuzooError(
            f"validation={fraction:g}: data {dataset.name} have a validation part of "
            f"their own, of {dataset.count('val')} examples; leave validation out"
        )
    if dataset.field == "series":
        return series.with_validation(dataset, fraction)
    count = dataset.count("train")
    wanted = round(fraction * count)
    if not 0 < wanted < count:
        raise GpuzooError(
            f"validation={fraction:g} of {count} training examples are {wanted}; at "
            "least one must be left for each part"
        )
    order = randomness.permutation(count, seed, "validation")
    labels = dataset.train.get("label", np.zeros(count, np.int32))
    chosen = np.zeros(count, bool)
    if "mask" in dataset.train:
        chosen = masks.choose(dataset.train["mask"], order, wanted)
    elif "objects" in dataset.train:
        objects, classes = dataset.train["objects"], len(dataset.classes)
        chosen = boxes.choose(objects, classes, order, wanted)
    else:
        for label, number in enumerate(shares(labels[order], wanted)):
            chosen[order[labels[order] == label][:number]] = True
    if not chosen.any():
        raise GpuzooError(
            f"validation={fraction:g}: no class has a second example, and each keeps "
            "one for training"
        )
    copied = [a for a in dataset.train.values() if not isinstance(a, Images)]
    size = sum(array.nbytes for array in copied)
    mapped = any(isinstance(array, np.memmap) for array in copied)
    if mapped and size > memory() // 2:  # the parts are copies
        raise GpuzooError(
            f"validation={fraction:g}: the {size / 1e9:.0f} GB of training examples "
            "are split in memory, which has not enough; put a validation part into "
            "the data"
        )
    parts = {"train": ~chosen, "val": chosen}
    splits: dict[str, Arrays] = {
        split: {name: _part(array, rows) for name, array in dataset.train.items()}
        for split, rows in parts.items()
    }
    splits["test"] = dataset.test
    found = []
    if dataset.classes and not {"mask", "objects"} & set(dataset.train):
        there = np.bincount(labels[chosen], minlength=len(dataset.classes))
        trained = np.bincount(labels, minlength=len(dataset.classes))
        empty = np.flatnonzero((there == 0) & (trained > 0))
        names = [repr(dataset.classes[label]) for label in empty]
        if names:
            listed = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
            found = [f"too few examples for validation of the classes {listed}"]
    findings = (*dataset.findings, *found)
    return dataclasses.replace(dataset, splits=splits, findings=findings)


def _part(array, rows: np.ndarray):
    """Return some rows, chosen by a mask; of images in files they stay there."""
    return array.part(rows) if isinstance(array, Images) else array[rows]


def shares(labels: np.ndarray, wanted: int) -> np.ndarray:
    """Return how many examples of each class to take so that they are `wanted` in all:
    the same fraction of each, rounded by the largest remainders, of which equal ones go
    to the class that comes first in `labels`. A class keeps at least one example."""
    counts = np.bincount(labels)
    exact = counts * wanted / len(labels)
    taken = np.floor(exact).astype(int)
    first = np.full(len(counts), len(labels))
    np.minimum.at(first, labels, np.arange(len(labels)))
    # Rounded: equal classes must not differ by the last bit of a product.
    remainders = np.round(exact - taken, 9)
    for label in np.lexsort((first, -remainders)):
        if taken.sum() == wanted:
            break
        taken[label] += taken[label] < counts[label] - 1
    return taken
