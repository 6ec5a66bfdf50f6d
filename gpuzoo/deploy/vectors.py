"""Vectors that a model of identities gives: how similar they are."""

import io

import numpy as np

from gpuzoo.tasks import pairs

MOST = 1_000
"""Vectors that are compared with each other at most."""


def nearest(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each of at least two vectors (vectors, numbers) of length 1 the place
    of the most similar other one, the first of equal ones, and that similarity."""
    values = pairs.exact(vectors)
    likeness = values @ values.T
    np.fill_diagonal(likeness, -np.inf)
    places = likeness.argmax(axis=1)
    return places, likeness[np.arange(len(places)), places]


def threshold_of(record: dict) -> float | None:
    """Return the similarity from which a run takes two images for one identity: that of
    the equal error rate on its test images; None if it has none."""
    return record.get("evaluation", {}).get("threshold")


def npz(names: list[str], vectors: np.ndarray) -> bytes:
    """Return the content of a .npz file with `name`, the files, and `embedding`."""
    content = io.BytesIO()
    np.savez(content, name=np.array(names), embedding=vectors)
    return content.getvalue()
