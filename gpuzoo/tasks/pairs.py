"""Vectors of identities: which pairs of pictures are taken for the same one.

Similarities are cosines, sums of products of numbers with 24 bits behind the point: a
sum is exact in float64 in any order, so that no library or processor changes a figure.
"""

import dataclasses

import numpy as np

from gpuzoo import randomness

MOST = 1_000_000
"""Pairs of each kind at most; of more pairs so many are drawn, always the same."""
_ROWS = 500  # of a matrix of similarities at once


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of test pictures: their places, similarity, and whether they are of one
    identity."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    same: np.ndarray


def exact(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (pictures, numbers) of length 1, float32, as float64 with 24 bits
    behind the point."""
    return np.rint(vectors.astype(np.float64) * 2**24) / 2**24


def pairs(vectors: np.ndarray, labels: np.ndarray, most: int = MOST) -> Pairs:
    """Return all pairs of pictures (pictures, numbers), or of more than `most` of a
    kind so many of them; the vectors have length 1."""
    count = len(vectors)
    same, total = _same(labels, most), count * (count - 1) // 2
    if total <= 2 * most:
        first, second = np.triu_indices(count, 1)
    else:  # few of them are of one identity
        first, second = _of_number(np.unique(_drawn(total, most, "different")), count)
    apart = labels[first] != labels[second]
    first = np.concatenate([same[0], first[apart]])
    second = np.concatenate([same[1], second[apart]])
    values, found = exact(vectors), []
    for start in range(0, len(first), 100_000):
        part = slice(start, start + 100_000)
        products = values[first[part]] * values[second[part]]
        found.append(products.sum(axis=1))
    kinds = np.arange(len(first)) < len(same[0])
    return Pairs(first, second, np.concatenate(found), kinds)


def _same(labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of all pairs of one identity, or of `most` of them."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    groups = np.split(order, starts[1:])
    ends = np.cumsum([len(group) * (len(group) - 1) // 2 for group in groups])
    total = int(ends[-1])
    # By their numbers: all pairs of a large identity may not fit into memory.
    drawn = np.sort(_drawn(total, most, "same")) if total > most else None
    each = [(order[:0], order[:0])]
    for group, end in zip(groups, ends, strict=True):
        begin = end - len(group) * (len(group) - 1) // 2
        if drawn is None:
            one, other = np.triu_indices(len(group), 1)
        else:
            part = drawn[slice(*np.searchsorted(drawn, (begin, end)))] - begin
            one, other = _of_number(part, len(group))
        each.append((group[one], group[other]))
    first, second = (np.concatenate([pair[k] for pair in each]) for k in (0, 1))
    return first, second


def _drawn(total: int, count: int, kind: str) -> np.ndarray:
    draws = randomness.uniform((count,), 0, "pairs", kind)
    return (draws * total).astype(np.int64)


def _of_number(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs with these numbers in the order of `np.triu_indices`."""
    begins = np.cumsum(np.arange(count - 1, 0, -1)) - np.arange(count - 1, 0, -1)
    first = np.searchsorted(begins, numbers, side="right") - 1
    return first, first + 1 + numbers - begins[first]


def verification(found: Pairs) -> dict[str, float]:
    """Return `eer`, the equal error rate: where as large a part of the pairs of one
    identity is below the threshold as of the others is above it; the `threshold`; and
    `auc`, the area under the ROC curve. Between two thresholds they are interpolated.

    Raises:
        ValueError: there are no pairs of one kind, or similarities that are not finite.
    """
    from sklearn import metrics

    # All points: on a straight part of the curve the thresholds are not evenly spaced.
    wrong, right, thresholds = metrics.roc_curve(
        found.same, found.similarity, drop_intermediate=False
    )
    missed = 1 - right
    after = int(np.argmax(wrong >= missed))  # of the last one it holds
    before = max(after - 1, 0)
    gap = (missed - wrong)[[before, after]]
    part = gap[0] / (gap[0] - gap[1]) if gap[0] != gap[1] else 0.0
    thresholds = np.minimum(thresholds, 1.0)  # scikit-learn's first one is infinite
    return {
        "eer": float(wrong[before] + part * (wrong[after] - wrong[before])),
        "threshold": float(
            thresholds[before] + part * (thresholds[after] - thresholds[before])
        ),
        "auc": float(metrics.auc(wrong, right)),
    }


def retrieval(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return of each picture that has another one of its identity, on average:
    `recall_at_1`, whether the most similar of the other pictures is of its identity;
    and `mean_average_precision` of all others, in the order of their similarity (of
    equal ones with the worst rank)."""
    values, hits, precisions = exact(vectors), [], []
    for start in range(0, len(values), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(values)))
        likeness = values[rows] @ values.T
        same = labels[rows][:, None] == labels
        places = np.arange(len(rows))
        likeness[places, rows], same[places, rows] = -np.inf, False
        asked = same.any(axis=1)
        likeness, same = likeness[asked], same[asked]
        # Equal similarities: those of another identity first.
        order = np.lexsort((same, -likeness), axis=1)
        ranked = np.take_along_axis(same, order, axis=1)
        hits.append(ranked[:, 0])
        precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
        precisions.append((precision * ranked).sum(axis=1) / ranked.sum(axis=1))
    return {
        "recall_at_1": float(np.concatenate(hits).mean()),
        "mean_average_precision": float(np.concatenate(precisions).mean()),
    }
