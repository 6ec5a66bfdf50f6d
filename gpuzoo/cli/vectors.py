"""What `gpuzoo predict` shows and writes of vectors."""

from collections.abc import Iterable

import numpy as np

from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.deploy import vectors


class Vectors:
    """The vectors of all examples of a call.

    Args:
        record: run.json of the run.
    """

    def __init__(self, record: dict):
        self.names: list[str] = []
        self.found: list[np.ndarray] = []
        self.threshold = vectors.threshold_of(record)

    def add(self, rows: Iterable[tuple[str, dict]]) -> None:
        """Add rows of predictions with their names."""
        for name, row in rows:
            self.names.append(name)
            self.found.append(np.array(row["embedding"], np.float32))

    def npz(self) -> bytes:
        """Return the content of a .npz file."""
        return vectors.npz(self.names, np.stack(self.found))

    def similarity(self) -> dict:
        """Return the similarity of two examples, and whether they are taken for the
        `same` identity; {} of more or fewer."""
        if len(self.found) != 2:
            return {}
        value = float(vectors.nearest(np.stack(self.found))[1][0])
        if self.threshold is None:
            return {"similarity": value}
        same = value >= self.threshold
        return {"similarity": value, "threshold": self.threshold, "same": same}

    def show(self, note) -> None:
        """Print each file with the most similar other one; `note`: called with what is
        said about two files."""
        if len(self.found) > vectors.MOST:
            note(
                f"{len(self.found):,} vectors: only {vectors.MOST:,} are compared with "
                "each other; --out FILE.npz writes them"
            )
            return
        if len(self.found) == 1:
            numbers = self.found[0]
            begin = " ".join(f"{one:.3f}" for one in numbers[:4])
            made = table("file", "vector")
            add_row(made, self.names[0], f"{begin} ... ({len(numbers)} numbers)")
        else:
            places, values = vectors.nearest(np.stack(self.found))
            made = table(
                "file", "nearest of these files", "similarity", right=["similarity"]
            )
            for name, place, value in zip(self.names, places, values, strict=True):
                add_row(made, name, self.names[place], f"{value:.4f}")
        show(made)
        if told := self.similarity():
            note(_told(told))


def _told(found: dict) -> str:
    """Return what is said about two files."""
    text = f"similarity {found['similarity']:.4f}"
    if "threshold" not in found:
        return text
    what = "the same identity" if found["same"] else "different identities"
    return (
        f"{text}: taken for {what} (threshold {found['threshold']:.4f}, that of the "
        "equal error rate on the run's test images)"
    )
