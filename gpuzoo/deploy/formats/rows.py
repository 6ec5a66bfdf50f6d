"""The preprocessing of a table inside the function that is exported: raw numbers and
indices of categories -> rows as the model takes them (gpuzoo/data/preparation.py)."""

from collections.abc import Callable

import keras
import numpy as np

from gpuzoo.data.preparation import ABSENT, FARTHEST, UNKNOWN, Preparation

MEANINGS = {
    "numbers": (
        "numbers of the columns of `table`.numeric, not prepared, dates as days since "
        "1970-01-01; NaN: missing"
    ),
    "categories": (
        "for each column of `table`.categorical 0: unknown, 1: missing, from 2 on the "
        "place in its list of categories"
    ),
}


def preparing(prepared: Preparation) -> Callable[[dict], object]:
    """Return a function of `numbers` (batch, columns), float32, and `categories`
    (batch, columns), int32, that returns the rows (batch, width), float32."""
    ops = keras.ops
    places = _Places(prepared)
    categories = _Categories(prepared)

    def prepare(batch: dict):
        parts = []
        if prepared.numeric:
            numbers = batch["numbers"]
            # NaN is the number that is not itself; LiteRT has no test for it.
            absent = ops.not_equal(numbers, numbers)
            known = ops.where(absent, places.means, numbers)
            distance = (known - places.means) / places.deviations
            parts += [
                ops.where(absent, np.float32(0.5), places(known)),
                ops.clip(distance, -FARTHEST, FARTHEST),
            ]
            if places.gaps:
                flags = ops.cast(absent, "float32")
                parts += [flags[:, place : place + 1] for place in places.gaps]
        if prepared.categorical:
            parts.append(ops.cast(categories(batch["categories"]), "float32"))
        return ops.concatenate(parts, axis=1) if parts[1:] else parts[0]

    return prepare


class _Places:
    """Places of numbers among the training values, as `Numeric.place`."""

    def __init__(self, prepared: Preparation):
        columns = prepared.numeric
        knots = [np.array(one.knots) for one in columns]
        parts = max((len(one) for one in knots), default=1) - 1
        shape = (len(columns), max(parts, 1))
        # A part that a column does not have: of no weight.
        self.low, self.width = np.zeros(shape), np.ones(shape)
        self.weight, self.rest = np.zeros(shape), np.zeros(len(columns))
        for row, one in enumerate(knots):
            count = len(one) - 1
            self.low[row, :count], self.width[row, :count] = one[:-1], np.diff(one)
            self.weight[row, :count] = 1 / max(count, 1)
            self.rest[row] = 0.0 if count else 0.5
        with np.errstate(over="ignore", under="ignore"):
            for name in ("low", "width", "weight", "rest"):
                setattr(self, name, getattr(self, name).astype(np.float32))
        self.width = np.maximum(self.width, np.finfo(np.float32).tiny)
        self.means = np.array([one.mean for one in columns], np.float32)
        self.deviations = np.array([one.deviation for one in columns], np.float32)
        self.gaps = [place for place, one in enumerate(columns) if one.gaps]

    def __call__(self, known):
        part = (keras.ops.expand_dims(known, -1) - self.low) / self.width
        part = keras.ops.clip(part, 0.0, 1.0) * self.weight
        return keras.ops.sum(part, axis=-1) + self.rest


class _Categories:
    """Indices into one vocabulary of all columns, as `encode`."""

    def __init__(self, prepared: Preparation):
        columns, self.counts = prepared.categorical, np.array(prepared.vocabulary)
        self.counts = self.counts.astype(np.int32)
        self.first = np.cumsum([0, *self.counts])[:-1].astype(np.int32)
        frequent = [2 if one.categories else UNKNOWN for one in columns]
        pairs = list(zip(columns, frequent, strict=True))
        self.unknown = np.array(
            [UNKNOWN if one.rare else most for one, most in pairs], np.int32
        )
        self.absent = np.array(
            [ABSENT if one.gaps else most for one, most in pairs], np.int32
        )

    def __call__(self, given):
        ops = keras.ops
        outside = ops.logical_or(given < 0, given >= self.counts)
        found = ops.where(outside, UNKNOWN, given)
        mapped = ops.where(found == ABSENT, self.absent, found)
        mapped = ops.where(found == UNKNOWN, self.unknown, mapped)
        return self.first + mapped
