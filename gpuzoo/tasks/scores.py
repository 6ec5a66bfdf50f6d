"""Figures of a trained model on all test examples: F1, AUC, calibration, R2, ...

They are computed once, at the end, by scikit-learn in float64 on the host; training,
`verify`, `evaluate` and the report use these functions alone. A figure that is not
defined is None, and `undefined` says why.
"""

import numpy as np

from gpuzoo.data import masks as masks_of
from gpuzoo.data.masks import VOID
from gpuzoo.runs.evaluation import AVERAGES
from gpuzoo.tasks.base import Metric

BINS = 15
"""Of the expected calibration error."""
TOP = 5
PARTS = ("precision", "recall", "f1")
CLASSIFIER = tuple(
    Metric(name, greater_is_better=name not in ("log_loss", "ece"))
    for name in (
        "log_loss", "ece", "auc", f"top_{TOP}_accuracy",
        *(f"{mean}_{part}" for mean in ("macro", "weighted") for part in PARTS),
    )
)  # fmt: skip
"""Figures of `classification` that a training may choose by (recipe field monitor)."""
FEW_CLASSES = tuple(one for one in CLASSIFIER if not one.name.startswith("top_"))
LABELS = tuple(
    Metric(name, greater_is_better=name != "log_loss")
    for name in (
        "log_loss", "exact_match", "auc", "mean_average_precision",
        *(f"{mean}_{part}" for mean in AVERAGES for part in PARTS),
    )
)  # fmt: skip
FORECAST = (Metric("mae"), Metric("rmse"), Metric("r2", greater_is_better=True))
NOT_FINITE = "an output of the model is not finite"
_NONE, _ONE_KIND = "no test example", "all or none of the test examples"
_REASONS = {
    "precision": "never predicted", "recall": _NONE,
    "f1": "no test example, and never predicted",
    "auc": _ONE_KIND, "average_precision": _NONE, "mean_average_precision": _NONE,
    "r2": "all target values are equal", "iou": "no pixel, and never predicted",
    "mean_iou": "no pixel with a class", "mean_dice": "no pixel with a class",
}  # fmt: skip


def classification(
    labels: np.ndarray, predicted: np.ndarray, logits: np.ndarray, names
) -> dict:
    """Return the figures of a classifier.

    Args:
        labels: true classes (examples,), integers.
        predicted: classes (examples,).
        logits: (examples, classes); their softmax are the probabilities.
        names: of the classes.

    Returns:
        `log_loss` (in nats), `ece`, the expected calibration error, `auc` (one class
        against the rest, mean over the classes), `top_5_accuracy` (of more than five
        classes), `macro` and `weighted` means of `precision`, `recall` and `f1` over
        the classes with examples, in which the precision of a class that is never
        predicted counts as 0; `per_class` (`name`, `examples`, `precision`, `recall`,
        `f1`, `auc`), `confusion`, the matrix of counts (true classes down), and
        `undefined`, figure -> why it, or that of some classes, is None.
    """
    from sklearn import metrics

    count = len(names)
    confusion = metrics.confusion_matrix(labels, predicted, labels=range(count))
    probabilities, likely = _probabilities(logits)
    # The order of the probabilities, with as many digits near 1 as near 0.
    order = np.where(probabilities < 0.5, probabilities, 2 + likely)
    areas = [_auc(labels == n, order[:, n]) for n in range(count)]
    if count == 2:  # the same but for rounding
        areas[0] = areas[1]
    sure, finite = probabilities.max(axis=1), bool(np.isfinite(probabilities).all())
    found = {
        "log_loss": -float(np.mean(likely[np.arange(len(labels)), labels])),
        "ece": reliability(sure, predicted == labels)["ece"] if finite else np.nan,
        "auc": _mean(areas),
    }
    if count > TOP:
        found[f"top_{TOP}_accuracy"] = float(np.mean(_rank(logits, labels) < TOP))
    parts = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(count), zero_division=np.nan
    )
    rows = _rows(names, *parts, areas)
    found |= _means(rows, "macro", "weighted")
    found = _defined(found, rows, finite)
    return {**found, "per_class": rows, "confusion": confusion.tolist()}


def multilabel(
    labels: np.ndarray, predicted: np.ndarray, logits: np.ndarray, names
) -> dict:
    """Return the figures of a classifier with several labels per example.

    Args:
        labels, predicted: 0 or 1, (examples, labels).
        logits: likewise; their sigmoid are the probabilities.
        names: of the labels.

    Returns:
        `log_loss` (mean over the labels, in nats), `exact_match` (the fraction of
        examples whose labels are all right), `auc` and `mean_average_precision` (means
        over the labels), `macro`, `weighted` and `micro` means of `precision`, `recall`
        and `f1`, as of `classification`; `per_class` (each label: `name`, `examples`
        that have it, `precision`, `recall`, `f1`, `auc`, `average_precision`,
        `true_positives`, ... `true_negatives`) and `undefined`.
    """
    from scipy import special
    from sklearn import metrics

    truth, told = labels.astype(bool), predicted.astype(bool)
    sign = np.where(truth, 1.0, -1.0)
    likely = special.log_expit(sign * logits.astype(np.float64)).astype(np.float32)
    counts = metrics.multilabel_confusion_matrix(truth, told).reshape(-1, 4)
    how = {"zero_division": np.nan}
    parts = metrics.precision_recall_fscore_support(truth, told, **how)
    areas = [_auc(t, z) for t, z in zip(truth.T, logits.T, strict=True)]
    rows = _rows(names, *parts, areas)
    for row, of, (tn, fp, fn, tp) in zip(rows, range(len(rows)), counts, strict=True):
        row |= {
            "average_precision": _average_precision(truth[:, of], logits[:, of]),
            "true_positives": int(tp), "false_positives": int(fp),
            "false_negatives": int(fn), "true_negatives": int(tn),
        }  # fmt: skip
    found = {
        "log_loss": -float(np.mean(likely, dtype=np.float64)),
        "exact_match": float(np.mean((truth == told).all(axis=1))),
        "auc": _mean(areas),
        "mean_average_precision": _mean([row["average_precision"] for row in rows]),
        **_means(rows, "macro", "weighted"),
    }
    found["micro"] = dict.fromkeys(PARTS)
    if truth.any():
        every = metrics.precision_recall_fscore_support(
            truth, told, average="micro", zero_division=0.0
        )
        found["micro"] = dict(zip(PARTS, map(float, every[:3]), strict=True))
    finite = bool(np.isfinite(logits).all())
    return {**_defined(found, rows, finite), "per_class": rows}


def _average_precision(truth: np.ndarray, score: np.ndarray) -> float | None:
    from sklearn import metrics

    if not (truth.any() and np.isfinite(score).all()):
        return None
    return float(metrics.average_precision_score(truth, score))


def regression(target: np.ndarray, forecast: np.ndarray) -> dict:
    """Return `mae`, `rmse` and `r2` over all values of two arrays of one shape, in
    their units; R2 compares with the mean of the target."""
    target, forecast = (np.ravel(a).astype(np.float64) for a in (target, forecast))
    squares = np.square(forecast - target).mean()
    spread = np.square(target - target.mean()).mean()
    found = {
        "mae": float(np.abs(forecast - target).mean()),
        "rmse": float(np.sqrt(squares)),
        "r2": float(1 - squares / spread) if spread else None,
    }
    return _defined(found, [])


def segmentation(masks: np.ndarray, predicted: np.ndarray, names) -> dict:
    """Return the figures of a segmentation, over all pixels that are not VOID.

    Args:
        masks: true classes (examples, height, width), uint8.
        predicted: classes, likewise.
        names: of the classes.

    Returns:
        `mean_iou`, the mean intersection over union of the classes that occur in the
        masks or in the predictions, and `mean_dice`, the mean of their Dice
        coefficients (F1); `per_class` (`name`, `examples`, whose mask has it, `pixels`,
        `iou`, `precision`, `recall`), `confusion`, the matrix of counts of pixels (true
        classes down), and `undefined`, as of `classification`.
    """
    from sklearn import metrics

    count = len(names)
    confusion, there = np.zeros((count, count), np.int64), np.zeros(count, np.int64)
    for mask, told in zip(masks, predicted, strict=True):  # all at once needs memory
        known = mask != VOID
        if not known.any():
            continue
        one = metrics.confusion_matrix(mask[known], told[known], labels=range(count))
        confusion += one
        there += one.sum(axis=1) > 0
    found = masks_of.overlaps(confusion)
    rows = [
        {
            "name": str(name), "examples": int(examples),
            "pixels": int(confusion[label].sum()),
            **{part: found["each"][part][label] for part in ("iou", *PARTS[:2])},
        }
        for label, (name, examples) in enumerate(zip(names, there, strict=True))
    ]  # fmt: skip
    single = {name: found[name] for name in ("mean_iou", "mean_dice")}
    single = {k: None if np.isnan(v) else v for k, v in single.items()}
    figures = _defined(single, rows)
    return {**figures, "per_class": rows, "confusion": confusion.tolist()}


def rounded(figure: float) -> float:
    """Return a figure to 6 significant digits and 9 decimals: further ones are those
    of the matrix library, which follow the processor."""
    return round(float(f"{figure:.6g}"), 9) + 0.0  # no -0.0


def reliability(confidence: np.ndarray, right: np.ndarray) -> dict:
    """Return `ece`, the expected calibration error (Guo et al., arXiv 1706.04599), and
    of each of BINS bins of equal width `examples`, mean `confidence` and `accuracy`.

    Args:
        confidence: probabilities of the predicted classes, (examples,), finite.
        right: whether they are the true classes.
    """
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    sure, known = (
        np.bincount(places, weights=values, minlength=BINS) / np.maximum(counts, 1)
        for values in (confidence, right)
    )
    return {
        "ece": float(np.sum(counts * np.abs(sure - known)) / len(right)),
        "examples": counts.tolist(),
        "confidence": sure.tolist(),
        "accuracy": known.tolist(),
    }


def _probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and their logarithms, rounded to 24 bits: the last bits of
    exp and log depend on the processor, and a run of level portable does not."""
    from scipy import special

    with np.errstate(invalid="ignore"):  # logits that are not finite
        likely = special.log_softmax(logits.astype(np.float64), axis=1)
        rounded = (np.exp(likely), likely)
        return tuple(a.astype(np.float32).astype(np.float64) for a in rounded)


def _auc(truth: np.ndarray, score: np.ndarray) -> float | None:
    """Return the area under the ROC curve; None without examples of both kinds."""
    from scipy import stats

    positive = int(truth.sum())
    negative = len(truth) - positive
    if not (positive and negative and np.isfinite(score).all()):
        return None
    # The Mann-Whitney statistic: its ranks are halves, so that the sum is exact.
    ranks = stats.rankdata(score)[truth].sum() - positive * (positive + 1) / 2
    return float(ranks / (positive * negative))


def _rank(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the place of the true class among the logits, 0 for the first; of equal
    ones the lower class goes first, as for argmax."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    lower = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | (logits == own) & lower).sum(axis=1)


def _rows(names, precision, recall, f1, counts, areas) -> list[dict]:
    return [
        {
            "name": str(name), "examples": int(count),
            **{k: None if np.isnan(v) else float(v)
               for k, v in zip(PARTS, numbers, strict=True)},
            "auc": area,
        }
        for name, count, area, *numbers in zip(
            names, counts, areas, precision, recall, f1, strict=True
        )
    ]  # fmt: skip


def _means(rows: list[dict], *kinds: str) -> dict:
    """Return means of precision, recall and F1 over the classes with examples."""
    there = [row for row in rows if row["examples"]]
    if not there:
        return {kind: dict.fromkeys(PARTS) for kind in kinds}
    counts = np.array([row["examples"] for row in there], np.float64)
    found = {}
    for kind in kinds:
        weights = counts if kind == "weighted" else np.ones_like(counts)
        found[kind] = {
            part: float(np.average([r[part] or 0.0 for r in there], weights=weights))
            for part in PARTS
        }
    return found


def _mean(values: list) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _defined(found: dict, rows: list[dict], finite: bool = True) -> dict:
    """Return figures with None for those that are not finite, and `undefined`.

    Args:
        finite: whether all outputs are; otherwise they have no order.
    """
    why = {}
    for name, value in found.items():
        if value is None:  # the mean of no row
            why[name] = _REASONS[name] if finite else NOT_FINITE
        elif not isinstance(value, dict) and not np.isfinite(value):
            found[name], why[name] = None, NOT_FINITE
    for part in (*PARTS, "auc", "average_precision", "iou"):
        empty = [r for r in rows if part in r and r[part] is None]
        if empty and part not in why:
            ordered = finite or part in (*PARTS, "iou")
            text = _REASONS[part] if ordered else NOT_FINITE
            names = ", ".join(repr(row["name"]) for row in empty[:5])
            why[part] = f"{text}: {names}{', ...' * (len(empty) > 5)}"
    return {**found, "undefined": why}
