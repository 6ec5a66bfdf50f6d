"""Figures of a trained model on all test examples: F1, AUC, calibration, R2, ...

They are computed once, at the end, by scikit-learn in float64 on the host; training,
`verify`, `evaluate` and the report use these functions alone. A figure that is not
defined is None, and `undefined` says why.
"""

import numpy as np

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
FORECAST = (Metric("mae"), Metric("rmse"), Metric("r2", greater_is_better=True))
NOT_FINITE = "an output of the model is not finite"
_NO_EXAMPLE, _NEVER = "no test example", "never predicted"


def classification(
    labels: np.ndarray, predicted: np.ndarray, logits: np.ndarray, names
) -> dict:
    """Return the figures of a classifier.

    Args:
        labels: true classes (examples,), whole numbers.
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
    sure, finite = probabilities.max(axis=1), np.isfinite(probabilities).all()
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
    return {**_defined(found, rows), "per_class": rows, "confusion": confusion.tolist()}


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
    defined = _defined(found, [])
    if not spread:
        defined["undefined"]["r2"] = "all target values are equal"
    return defined


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


def _defined(found: dict, rows: list[dict]) -> dict:
    """Return figures with None for those that are not finite, and `undefined`."""
    why = {}
    for name, value in found.items():
        if value is not None and not isinstance(value, dict) and not np.isfinite(value):
            found[name], why[name] = None, NOT_FINITE
    if "auc" in found and found["auc"] is None:
        one = sum(row["examples"] > 0 for row in rows) < 2
        text = "all test examples are of one class"
        why["auc"] = text if one else NOT_FINITE
    for part in (*PARTS, "auc"):
        empty = [r for r in rows if part in r and r[part] is None]
        if empty and part not in why:
            names = ", ".join(repr(row["name"]) for row in empty[:5])
            dots = ", ..." * (len(empty) > 5)
            text = _NEVER if part == "precision" else _NO_EXAMPLE
            why[part] = f"{text}: {names}{dots}"
    return {**found, "undefined": why}
