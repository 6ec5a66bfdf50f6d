"""Plots of a segmentation: masks beside predictions, and which classes are confused."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gpuzoo.data import masks
from gpuzoo.data.dataset import Dataset

_ROWS, _BLOCKS = 6, 2  # examples down and across
_NAMED = 24  # classes in the legend at most
_LETTERS = 16  # of the name of a class
_INK, _MUTED = "#1a1a2e", "#8a8fa3"
_WRONG, _VOID = (200, 85, 61), (200, 200, 200)
_GAP = 0.06  # white between pictures, of their width


def segmentations(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot the first test images, each with its mask, the predicted one and the
    mistakes in red; pixels without a known class are grey."""
    told = outputs["predicted"][: _ROWS * _BLOCKS]
    images = _coloured(dataset.test["image"][: len(told)])
    sheet = _sheet(images, dataset.test["mask"][: len(told)], told)
    names = [
        one if len(one) <= _LETTERS else one[: _LETTERS - 1] + "\u2026"
        for one in dataset.classes[:_NAMED]
    ]
    legend = 0.2 + 0.2 * -(-len(names) // 6)
    height = 9 * sheet.shape[0] / sheet.shape[1]
    whole = height + legend + 0.4
    figure = Figure(figsize=(9, whole))
    axes = figure.add_axes((0.01, legend / whole, 0.98, height / whole))
    axes.imshow(sheet)
    axes.axis("off")
    colours = masks.palette() / 255
    patches = [Patch(color=colours[i], label=name) for i, name in enumerate(names)]
    figure.legend(
        handles=patches, loc="lower center", ncols=6, frameon=False, fontsize=7,
    )  # fmt: skip
    text = "image, mask, prediction, mistakes"
    figure.suptitle(f"{title} · {text}", color=_MUTED, fontsize=9)
    return figure


def _sheet(images: np.ndarray, wanted: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Return rows of pictures as one, pixel for pixel, uint8."""
    colours = masks.palette()
    known = (wanted != masks.VOID)[..., None]
    drawn = np.where(known, colours[wanted], np.uint8(_VOID))
    wrong = (wanted != told)[..., None] & known
    pale = (images // 4 + 160).astype(np.uint8)
    errors = np.where(wrong, np.uint8(_WRONG), pale)
    errors = np.where(known, errors, np.uint8(_VOID))
    height, width = images.shape[1:3]
    gap = max(1, round(_GAP * width))
    rows = -(-len(images) // _BLOCKS)
    step, block = height + gap, 4 * (width + gap) + 2 * gap
    sheet = np.full((rows * step, _BLOCKS * block - 3 * gap, 3), 255, np.uint8)
    for place, four in enumerate(
        zip(images, drawn, colours[told], errors, strict=True)
    ):
        row, column = divmod(place, _BLOCKS)
        for number, picture in enumerate(four):
            left = column * block + number * (width + gap)
            sheet[row * step : row * step + height, left : left + width] = picture
    return sheet


def _coloured(images: np.ndarray) -> np.ndarray:
    """Return images (count, height, width, 3), uint8."""
    if images.dtype != np.uint8:
        images = np.round(255 * images).astype(np.uint8)
    if images.shape[-1] not in (3, 4):
        images = images.mean(axis=-1, keepdims=True).astype(np.uint8)
        images = images.repeat(3, axis=-1)
    return images[..., :3]


def confusion_of_pixels(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot of the pixels of each class what part is predicted as which, in percent, and
    the intersection over union of each class."""
    told, count = outputs["predicted"], len(dataset.classes)
    wanted = dataset.test["mask"][: len(told)]
    confusion = masks.confusion_of(wanted, told, count)
    iou = masks.overlaps(confusion)["each"]["iou"]
    parts = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.5 * count + 1.5, 5.5, 16))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    wrong = parts * (1 - np.eye(count))
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1.0, wrong.max()))
    if count <= 30:
        for (row, column), part in np.ndenumerate(parts):
            if part >= 0.05:
                dark = wrong[row, column] > 0.6 * max(1.0, wrong.max())
                axes.text(
                    column, row, f"{part:.1f}", ha="center", va="center", fontsize=7,
                    color="white" if dark else _INK,
                )  # fmt: skip
        names = [one[:_LETTERS] for one in dataset.classes]
        axes.set_xticks(range(count), names, rotation=90 * (max(map(len, names)) > 3))
        axes.set_yticks(range(count), names)
        for row, one in enumerate(iou):
            text = "-" if one is None else f"{one:.3f}"
            axes.text(count - 0.3, row, text, va="center", fontsize=8, color=_INK)
    axes.set_xlabel("predicted, in percent of the true class")
    axes.set_ylabel("true")
    figure.suptitle(f"{title} · at the right IoU", color=_MUTED, fontsize=9)
    return figure
