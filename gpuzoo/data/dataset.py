"""The Dataset class: checked examples in memory."""

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gpuzoo.data.preparation import Preparation
    from gpuzoo.data.series_form import Series
    from gpuzoo.data.vocabulary import Vocabulary

Arrays = dict[str, np.ndarray]
FIELDS = ("image", "audio", "series", "table", "text", "film")
ORDER = ("train", "val", "test")
"""The splits, of which every dataset has the first and the last."""
LONG = {"train": "training", "val": "validation", "test": "test"}
"""The splits in messages."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples, and validation examples if there are any.

    Each split of an image dataset holds `image`, (examples, height, width, channels),
    uint8 or float32 in [0, 1], and `label`, (examples,), int32 in [0, len(classes));
    with several labels per example `labels`, (examples, len(classes)), uint8, 0 or 1;
    with masks `mask`, (examples, height, width), uint8, the class of each pixel, or 255
    (gpuzoo/data/masks.py); with boxes `objects`, (examples, most, 6), float32
    (gpuzoo/data/boxes.py); of audio `audio`, (examples, samples), int16, and `label`;
    of a time series `series`, and `target` (gpuzoo/data/series.py) or `label`
    (gpuzoo/data/series_table.py); of a table `table`, and `label` or `target`
    (gpuzoo/data/tabular.py); of texts `text`, and `label` (gpuzoo/data/texts.py); of
    films `film`, (examples, frames, height, width, channels), as images, and `label`.
    """

    name: str
    source: str
    """Source of the examples, for the user; contains no path."""
    splits: dict[str, Arrays]
    classes: tuple[str, ...]
    fingerprint: str
    """sha256 over names, dtypes, shapes and bytes of all arrays, and classes; before
    `with_validation` takes a part of them."""
    findings: tuple[str, ...] = ()
    """Warnings about the data, for the user."""
    scale: tuple[float, float] | None = None
    """Mean and deviation that a time series, or the target of a table, was standardized
    by."""
    table: "Preparation | None" = None
    """How the rows of a table were made what a model takes."""
    unprepared: Arrays | None = None
    """The test rows of a table before that (gpuzoo/data/preparation.py)."""
    series: "Series | None" = None
    """How the rows of a series with named columns were made windows."""
    text: "Vocabulary | None" = None
    """How texts were made numbers of words."""

    @property
    def train(self) -> Arrays:
        return self.splits["train"]

    @property
    def test(self) -> Arrays:
        return self.splits["test"]

    @property
    def counts(self) -> dict[str, int]:
        """Split -> examples: train, val if there is one, test."""
        return {name: self.count(name) for name in ORDER if name in self.splits}

    @property
    def field(self) -> str:
        """Name of the model's input: image, audio, series, table, text or
        film."""
        return next(name for name in FIELDS if name in self.train)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(height, width, channels), of audio (samples,), of a series (time,
        channels), of a table (numbers,), of texts (words,), of films (frames, height,
        width, channels)."""
        return self.train[self.field].shape[1:]

    def count(self, split: str) -> int:
        """Return the number of examples of a split."""
        return len(self.splits[split][self.field])

    def as_record(self) -> dict:
        return {
            "name": self.name,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "input_shape": list(self.input_shape),
            **{f"{name}_examples": count for name, count in self.counts.items()},
            "findings": list(self.findings),
            **({"scale": list(self.scale)} if self.scale else {}),
            **self._most_objects(),
            **({"table": self.table.as_record()} if self.table else {}),
            **({"series": self.series.as_record()} if self.series else {}),
            **({"text": self.text.as_record()} if self.text else {}),
        }

    def _most_objects(self) -> dict:
        objects = self.train.get("objects")
        return {} if objects is None else {"most_objects": objects.shape[1]}


def fingerprint(splits: dict[str, Arrays], classes: tuple[str, ...] = ()) -> str:
    """Return the sha256 over all arrays of all splits and the names of the classes.

    A class without examples changes no array, but the number of a model's outputs.
    """
    digest = hashlib.sha256()
    for split in sorted(splits):
        for name, array in sorted(splits[split].items()):
            digest.update(f"{split}/{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    if classes:
        digest.update(json.dumps(list(classes)).encode())
    return digest.hexdigest()
