"""Plots of identities: how similar pairs of test images are, and the worst pairs."""

import numpy as np
from matplotlib.figure import Figure

from gpuzoo.data.dataset import Dataset
from gpuzoo.tasks import pairs

_SHOWN = 8  # pairs of each kind
_LETTERS = 18  # of the name of an identity
_INK, _MUTED, _SAME, _OTHER = "#1a1a2e", "#8a8fa3", "#7aa6d8", "#c8553d"


def similarities(title: str, dataset: Dataset, outputs: dict) -> Figure:
    """Plot the similarities of pairs of one identity and of two, and the two errors at
    each threshold, with the point where they are equal."""
    from sklearn import metrics

    found = _pairs(dataset, outputs)
    figures = pairs.verification(found)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.linspace(-1, 1, 81)
    for kind, colour, name in (
        (found.same, _SAME, "same identity"),
        (~found.same, _OTHER, "different identities"),
    ):
        counts = np.histogram(found.similarity[kind], edges)[0] / kind.sum()
        left.stairs(100 * counts, edges, color=colour, fill=True, alpha=0.6, label=name)
    left.axvline(figures["threshold"], color=_INK, lw=1)
    left.set(xlabel="similarity (cosine)", ylabel="% of the pairs")
    left.set_xticks(np.linspace(-1, 1, 5))
    left.set_title(f"threshold {figures['threshold']:.3f}", color=_INK, fontsize=10)
    wrong, accepted, _ = metrics.roc_curve(found.same, found.similarity)
    right.plot(100 * wrong, 100 * (1 - accepted), color=_OTHER)
    rate = 100 * figures["eer"]
    right.plot(rate, rate, "o", color=_INK)
    limit = min(max(4 * rate, 1.0), 100.0)
    right.plot([0, limit], [0, limit], color=_MUTED, lw=1)
    right.set(
        xlim=(0, limit), ylim=(0, limit), xlabel="% of different pairs taken for same",
        ylabel="% of same pairs taken for different",
    )  # fmt: skip
    right.set_title(f"equal error rate {rate:.2f} %", color=_INK, fontsize=10)
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title} · pairs of test images", color=_MUTED, fontsize=9)
    return figure


def worst_pairs(title: str, dataset: Dataset, outputs: dict) -> Figure | None:
    """Plot the pairs of one identity that are least alike, above, and those of two
    identities that are most alike, below; each picture is in at most one pair."""
    found = _pairs(dataset, outputs)
    rows = []
    for kind, sign in ((found.same, 1), (~found.same, -1)):
        places = np.flatnonzero(kind)
        order = places[np.argsort(sign * found.similarity[places], kind="stable")]
        rows.append(_apart(found, order))
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.subplots(4, _SHOWN)
    for axes in grid.flat:
        axes.axis("off")
    for line, chosen in enumerate(rows):
        for column, pair in enumerate(chosen):
            for part, places in enumerate((found.first, found.second)):
                place = places[pair]
                axes = grid[2 * line + part, column]
                _show(axes, dataset.test["image"][place])
                name = dataset.classes[dataset.test["label"][place]]
                name = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
                text = name if part else f"{found.similarity[pair]:.3f}\n{name}"
                axes.set_title(text, fontsize=7, color=_INK, pad=2)
    text = "one identity and least alike, above; two and most alike, below"
    figure.suptitle(f"{title} · {text}", color=_MUTED, fontsize=9)
    return figure


def _pairs(dataset: Dataset, outputs: dict) -> pairs.Pairs:
    vectors = outputs["embedding"]
    return pairs.pairs(vectors, dataset.test["label"][: len(vectors)])


def _apart(found: pairs.Pairs, order: np.ndarray) -> list[int]:
    """Return the first pairs of an order in which no picture is in two."""
    taken: set[int] = set()
    chosen: list[int] = []
    for pair in order:
        both = {int(found.first[pair]), int(found.second[pair])}
        if not both & taken:
            taken |= both
            chosen.append(int(pair))
        if len(chosen) == _SHOWN:
            break
    return chosen


def _show(axes, image: np.ndarray) -> None:
    image = image if image.shape[-1] in (3, 4) else image.mean(axis=-1)
    white = 255 if image.max() > 1 else 1
    axes.imshow(image / white, cmap="gray_r", vmin=0, vmax=1)
