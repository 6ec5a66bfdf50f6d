"""Masks, the class of every pixel of an image: checked, compared, written."""

import io

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.dataset import ORDER, Arrays, Dataset, fingerprint
from gpuzoo.data.validate import HELD_OUT, alike, clean_splits, duplicates
from gpuzoo.errors import GpuzooError

VOID = 255
"""Of a pixel whose class is not known: it counts neither in the loss nor in a metric,
as in Pascal VOC."""


def are_masks(splits: dict[str, Arrays]) -> bool:
    """Whether the labels of examples are masks: (examples, height, width), perhaps with
    a last axis of one or of classes."""
    return any(np.ndim(arrays.get("label", 0)) >= 3 for arrays in splits.values())


def make_dataset(
    name: str,
    source: str,
    splits: dict[str, Arrays],
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Check images and their masks and build a Dataset.

    Args:
        splits: each with `image`, as for `validate.make_dataset`, and `label`, masks as
            `clean` takes them.
        classes: their names; default: their numbers.

    Raises:
        GpuzooError: the fault, the array, and the remedy.
    """
    images, found = clean_splits(name, splits)
    clean: dict[str, Arrays] = {}
    for split, arrays in images.items():
        what, image = f"{name}, {split} masks", arrays["image"]
        mask = clean_masks(what, arrays["label"])
        if mask.shape != image.shape[:3]:
            raise GpuzooError(
                f"{what}: the shape is {mask.shape} (examples, height, width), and "
                f"that of the images is {image.shape[:3]}; give every image a mask of "
                "its size"
            )
        clean[split] = {"image": image, "mask": mask}
    there = {split: pixels_of(arrays["mask"]) for split, arrays in clean.items()}
    classes = _classes(name, there, classes)
    train = there["train"].sum(axis=0)
    if empty := [c for c, count in zip(classes, train, strict=False) if not count]:
        listed = ", ".join(map(repr, empty[:5])) + ", ..." * (len(empty) > 5)
        found.append(f"no training pixel has the class {listed}")
    images_of = {split: arrays["image"] for split, arrays in clean.items()}
    found += [*alike(classes), *duplicates("image", images_of)]
    digest = fingerprint(clean, classes)
    return Dataset(name, source, clean, classes, digest, findings=tuple(found))


def clean_masks(what: str, masks: np.ndarray) -> np.ndarray:
    """Return masks as (examples, height, width), uint8: the number of the class of each
    pixel, or VOID.

    Args:
        masks: integers, also as floats, or booleans; a last axis of one is left
            out, and one of several holds one-hot classes.

    Raises:
        GpuzooError: other shapes or values.
    """
    if masks.dtype.kind not in "biuf":
        raise GpuzooError(
            f"{what}: must be integers, the class of each pixel, not {masks.dtype}"
        )
    if masks.ndim == 4 and masks.shape[-1] == 1:
        masks = masks[..., 0]
    elif masks.ndim == 4:
        masks = _from_one_hot(what, masks)
    if masks.ndim != 3 or 0 in masks.shape:
        raise GpuzooError(
            f"{what}: the shape must be (examples, height, width), with at least one "
            f"of each: {masks.shape}"
        )
    if masks.dtype.kind == "f":
        whole = np.isfinite(masks) & (masks == np.floor(masks))
        if not whole.all():
            index = np.unravel_index(np.argmin(whole), masks.shape)
            raise GpuzooError(
                f"{what}: {masks[index]:.6g} at index {tuple(map(int, index))} is not "
                "a class; a mask holds integers: take y > 0.5 of probabilities, or "
                "their argmax"
            )
    low, high = masks.min(), masks.max()
    if low < 0:
        raise GpuzooError(
            f"{what}: {int(low)} is negative; number the classes from 0, and write "
            f"{VOID} for pixels to be ignored: np.where(y < 0, {VOID}, y)"
        )
    if high > VOID:
        raise GpuzooError(
            f"{what}: {int(high)} is too large; classes are 0 to {VOID - 1}, and "
            f"{VOID} stands for pixels to be ignored"
        )
    return np.ascontiguousarray(masks, np.uint8)


def _from_one_hot(what: str, masks: np.ndarray) -> np.ndarray:
    zeros_and_ones = ((masks == 0) | (masks == 1)).all()
    if not zeros_and_ones or (masks.sum(axis=-1) != 1).any():
        raise GpuzooError(
            f"{what}: the shape is {masks.shape}, and the last axis does not hold one "
            "1 and otherwise 0 (one-hot classes); give (examples, height, width) with "
            "the number of the class of each pixel"
        )
    return masks.argmax(axis=-1)


def pixels_of(masks: np.ndarray) -> np.ndarray:
    """Return how many pixels of each value every mask has, (examples, 256)."""
    flat = masks.reshape(len(masks), -1)
    return np.stack([np.bincount(one, minlength=256) for one in flat])


def _classes(name: str, there: dict, classes) -> tuple[str, ...]:
    """Return the names of the classes.

    Args:
        there: split -> `pixels_of` its masks.

    Raises:
        GpuzooError: fewer than two, or one that the training masks lack.
    """
    values = {split: counts.any(axis=0) for split, counts in there.items()}
    everywhere = np.flatnonzero(np.any(list(values.values()), axis=0))
    if everywhere.tolist() == [0, VOID]:
        raise GpuzooError(
            f"{name}: the masks hold only 0 and {VOID}, and {VOID} stands for pixels "
            f"to be ignored; of two classes write 0 and 1: y // {VOID}, or of a folder "
            "name the colours in classes.csv: 'background,0,0,0' and "
            "'object,255,255,255'"
        )
    known = {split: np.flatnonzero(one[:VOID]) for split, one in values.items()}
    train = known["train"]
    if len(train) < 2:
        which = f"only class {train[0]}" if len(train) else "no class"
        raise GpuzooError(
            f"{name}: the training masks have {which}; at least two are needed, "
            "numbered 0, 1, ... (the background is one)"
        )
    for split, mine in known.items():
        if classes and mine.size and mine[-1] >= len(classes):
            raise GpuzooError(
                f"{name}: {split} masks have the class {mine[-1]}, and there are names "
                f"for {len(classes)}, 0 to {len(classes) - 1}; add its name"
            )
        if not mine.size:
            raise GpuzooError(
                f"{name}: all pixels of the {split} masks are {VOID}, to be ignored; "
                "give masks with classes"
            )
        if other := sorted(set(mine.tolist()) - set(train.tolist())):
            called = repr(classes[other[0]]) if classes else other[0]
            raise GpuzooError(
                f"{name}: {split} masks have the class {called}, and no training mask "
                f"has it; move an image with it to the training part, or write {VOID} "
                "for pixels to be ignored"
            )
    count = int(train[-1]) + 1
    if not classes and count > max(2 * len(train), len(train) + 10):
        raise GpuzooError(
            f"{name}: the highest class of the training masks is {count - 1}, and only "
            f"{len(train)} values occur: {', '.join(map(str, train[:5]))}, ...; number "
            "the classes 0, 1, 2, ..., or name all of them in classes.txt"
        )
    return tuple(classes or map(str, range(count)))


def hold_out(what: str, whole: Arrays) -> dict[str, Arrays]:
    """Split off a fixed fifth of the examples for testing; each class keeps an example
    for training.

    Args:
        whole: `image` and `label`, masks as `clean_masks` takes them.
    """
    masks, count = clean_masks(f"{what}, masks", whole["label"]), len(whole["image"])
    if len(masks) != count:
        raise GpuzooError(f"{what}: {count} images but {len(masks)} masks")
    if count < 10:
        raise GpuzooError(f"{what}: {count} examples; at least 10 are needed")
    order = randomness.permutation(count, 0, "hold out")
    chosen = choose(masks, order, round(count * HELD_OUT))
    if not chosen.any():
        raise GpuzooError(
            f"{what}: no image can be held out for testing, as each has a class that "
            "no other one has; give train/ and test/ of your own"
        )
    parts = {"train": ~chosen, "test": chosen}
    return {
        split: {"image": whole["image"][rows], "label": masks[rows]}
        for split, rows in parts.items()
    }


def choose(masks: np.ndarray, order: np.ndarray, wanted: int) -> np.ndarray:
    """Return (examples,), whether one is chosen: the first `wanted` in an order of
    which each class leaves another example behind."""
    return choose_of(pixels_of(masks)[:, :VOID] > 0, order, wanted)


def choose_of(there: np.ndarray, order: np.ndarray, wanted: int) -> np.ndarray:
    """Do the same, by which classes each example has, (examples, classes)."""
    left, chosen = there.sum(axis=0), np.zeros(len(there), bool)
    for index in order:
        if chosen.sum() == wanted:
            break
        if (left[there[index]] > 1).all():
            chosen[index] = True
            left -= there[index]
    return chosen


def ignored(splits: dict[str, Arrays]) -> float:
    """Return the fraction of pixels that are VOID."""
    masks = [arrays["mask"] for arrays in splits.values()]
    return sum((m == VOID).sum() for m in masks) / sum(m.size for m in masks)


def said(dataset: Dataset, how: str = "") -> str:
    """Return a line about what was read; `how`: how the masks hold their classes."""
    counts = sum(dataset.counts[split] for split in ORDER if split in dataset.splits)
    height, width, _ = dataset.input_shape
    names = ", ".join(dataset.classes[:8]) + ", ..." * (len(dataset.classes) > 8)
    line = (
        f"data {dataset.name!r}: {counts:,} images of {width}x{height} pixels with "
        f"masks{how} of {len(dataset.classes)} classes: {names}"
    )
    if void := ignored(dataset.splits):
        line += f"; {void:.2%} of the pixels are ignored ({VOID})"
    return line


# --- compared and written -----------------------------------------------------------


def confusion_of(masks: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Return how many pixels of each class (down) are predicted as each (across),
    without VOID ones."""
    found = np.zeros(count * count, np.int64)
    for mask, told in zip(masks, predicted, strict=True):
        known = mask != VOID
        pairs = mask[known].astype(np.int64) * count + told[known]
        found += np.bincount(pairs, minlength=count * count)
    return found.reshape(count, count)


def overlaps(confusion: np.ndarray) -> dict:
    """Return `mean_iou` and `mean_dice` of a matrix of counts of pixels, NaN if it has
    none, and `each`: `iou`, `precision` and `recall` of each class, None where one is
    not defined."""
    counts = confusion.astype(np.float64)
    both, true, told = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = both / (true + told - both)
        dice = 2 * both / (true + told)
        parts = {"iou": iou, "precision": both / told, "recall": both / true}
    occurs = true + told > 0
    means = {"mean_iou": iou, "mean_dice": dice}
    return {
        **{
            name: float(each[occurs].mean()) if occurs.any() else np.nan
            for name, each in means.items()
        },
        "each": {
            name: [None if np.isnan(one) else float(one) for one in each]
            for name, each in parts.items()
        },
    }


def palette() -> np.ndarray:
    """Return the colours in which classes are drawn, (256, 3), uint8: those of Pascal
    VOC, in which 0 is black."""
    colours = np.zeros((256, 3), np.uint8)
    numbers = np.arange(256)
    for bit in range(8):  # three bits of a number at a time, for the three channels
        for channel in range(3):
            low = (numbers >> (3 * bit + channel)) & 1
            colours[:, channel] |= (low << (7 - bit)).astype(np.uint8)
    return colours


def png(mask: np.ndarray) -> bytes:
    """Return a mask (height, width), uint8, as a PNG file: the numbers of the classes,
    with the colours of `palette`."""
    from PIL import Image

    image, content = Image.fromarray(mask), io.BytesIO()
    image.putpalette(palette().tobytes())
    image.save(content, "png")
    return content.getvalue()


def areas(mask: np.ndarray, classes: tuple[str, ...]) -> list[dict]:
    """Return `class`, `pixels` and `fraction` of each class in a mask, the largest
    first."""
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return [
        {
            "class": classes[index], "pixels": int(counts[index]),
            "fraction": counts[index] / mask.size,
        }
        for index in order
        if counts[index]
    ]  # fmt: skip
