"""Pictures of a run: the curves, the confusion matrix, the worst mistakes.

The same run gives the same files: no date and no version is written into them.
"""

import pathlib
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gpuzoo.data.dataset import Dataset

MISTAKES = 24  # shown on the sheet
_INK, _MUTED, _TRAIN, _TEST = "#1a1a2e", "#8a8fa3", "#7aa6d8", "#c8553d"


def names(task: str) -> list[str]:
    """The files that a run of a task is drawn into."""
    return ["curves.png", *(f"{kind.__name__}.png" for kind in _KINDS[task])]


def draw_all(
    folder: pathlib.Path,
    task: str,
    title: str,
    rows: list[dict],
    dataset: Dataset,
    outputs: dict,
) -> None:
    """Draw every picture of a run into its folder; `outputs` as in engine/loop.py."""
    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):
        # Class names are the user's: a dollar sign is no formula, and a letter that the
        # font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figures = [curves(title, rows)]
        figures += [kind(title, dataset, outputs) for kind in _KINDS[task]]
        for name, figure in zip(names(task), figures, strict=True):
            figure.savefig(folder / name, dpi=110, metadata={"Software": None})


def curves(title: str, rows: list[dict]) -> Figure:
    """Every figure over the steps; rows as in metrics.jsonl."""
    keys = [key for key in rows[0] if key not in ("split", "epoch", "step")]
    keys.sort(key=lambda key: (key != "loss", key))
    figure = Figure(figsize=(4.5 * max(2, len(keys)), 3.8), layout="constrained")
    for axes, key in zip(
        figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True
    ):
        for split, colour in (("train", _TRAIN), ("test", _TEST)):
            points = [(r["step"], r[key]) for r in rows if r["split"] == split]
            style = "o-" if len(points) < 30 else "-"
            axes.plot(
                *zip(*points, strict=True), style, color=colour, ms=4, label=split
            )
        axes.set_xlabel("step")
        axes.set_title(key, loc="left", color=_INK)
        last = [r for r in rows if r["split"] == "test"][-1]
        axes.annotate(
            f"{last[key]:.4f}", (last["step"], last[key]), (0, 8), color=_TEST,
            textcoords="offset points", ha="right",
        )  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title, color=_MUTED, fontsize=9)
    return figure


def confusion(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """True classes down, predicted across; the diagonal is left out of the colours,
    so that the mistakes can be seen."""
    classes, predicted = dataset.classes, outputs["predicted"]
    labels, count = dataset.test["label"][: len(predicted)], len(dataset.classes)
    matrix = np.bincount(labels * count + predicted, minlength=count**2)
    matrix = matrix.reshape(count, count)
    wrong = matrix * (1 - np.eye(count, dtype=int))
    side = float(np.clip(0.5 * count + 1.5, 4.5, 16))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1, wrong.max()))
    if count <= 30:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                right = row == column
                axes.text(
                    column, row, str(number), ha="center", va="center", fontsize=8,
                    color=_MUTED if right else _INK,
                )  # fmt: skip
        axes.set_xticks(
            range(count), classes, rotation=90 * (max(map(len, classes)) > 3)
        )
        axes.set_yticks(range(count), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right, total = np.trace(matrix), matrix.sum()
    axes.set_title(
        f"{total - right} mistakes in {total} ({right / total:.2%} right)",
        loc="left", color=_INK,
    )  # fmt: skip
    figure.suptitle(title, color=_MUTED, fontsize=9)
    return figure


def mistakes(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """The mistakes that the model was surest of, worst first."""
    images, classes = dataset.test["image"], dataset.classes
    labels = dataset.test["label"][: len(outputs["predicted"])]
    wrong = np.flatnonzero(outputs["predicted"] != labels)
    worst = wrong[np.argsort(-outputs["confidence"][wrong], kind="stable")][:MISTAKES]
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(4, MISTAKES // 4)
    for axes, index in zip(grid.flat, worst, strict=False):
        image = images[index]
        if image.shape[-1] not in (3, 4):
            image = image.mean(axis=-1)
        axes.imshow(image, cmap="gray_r")
        told = classes[outputs["predicted"][index]]
        sure = outputs["confidence"][index]
        axes.set_title(
            f"{classes[labels[index]]}, not {told} ({sure:.0%})", fontsize=8, color=_INK
        )
    for axes in grid.flat:
        axes.axis("off")
    text = (
        "no mistakes" if not len(worst) else "true class, not the predicted (how sure)"
    )
    figure.suptitle(f"{title} · {text}", color=_MUTED, fontsize=9)
    return figure


# Task -> its pictures besides the curves.
_KINDS = {"classify": (confusion, mistakes)}
