"""The preprocessing of a table: fitted on the training rows, kept in the record of a
run, and applied to all rows in one way.

Each row becomes float32 numbers, in this order:

- of each column of numbers its place among the training values, in [0, 1]: piecewise
  linear between KNOTS quantiles at most, so that outliers and long tails do no harm;
- of each its distance from the training mean in standard deviations, at most FARTHEST;
- of each that had missing values in the training 1 if it is missing, else 0. A missing
  number has the middle place and the mean;
- of each column of categories an index into one vocabulary of all columns, in which a
  column has one entry for unknown categories, one for a missing one, and its own.

Categories beyond the MOST most frequent ones of a column, and those of a single
training row, count as unknown, as one does that the training has not seen. If no
training row was unknown, or missing, nothing was learned for that entry, and the most
frequent category is taken.
"""

import collections
import dataclasses
import json
import math

import numpy as np

from gpuzoo.data import column_kinds, numbers
from gpuzoo.data.column_kinds import Reading
from gpuzoo.data.columns import Column, Columns
from gpuzoo.errors import GpuzooError

KNOTS = 65
FARTHEST = 10.0
MOST = 1_000
UNKNOWN, ABSENT = 0, 1
_LARGEST = 1e150  # whose square is finite


@dataclasses.dataclass(frozen=True)
class Numeric:
    """A column of numbers or dates."""

    name: str
    mean: float
    deviation: float
    knots: tuple[float, ...]
    """Different training values at even steps of the rank, the smallest first."""
    gaps: bool
    """Whether values were missing in the training."""
    form: tuple[str, ...] = ("", ".")
    """What separates thousands, and decimals; the unit, if there is one."""
    order: str = ""
    """Of dates, which are days since 1970-01-01: of day, month and year."""

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return places in [0, 1]; every step is a correctly rounded operation, so that
        the result is that of any processor."""
        knots = np.array(self.knots)
        if len(knots) == 1:
            return np.full(len(values), 0.5)
        values = np.clip(values, knots[0], knots[-1])
        left = np.searchsorted(knots, values, side="right") - 1
        left = np.clip(left, 0, len(knots) - 2)
        part = (values - knots[left]) / (knots[left + 1] - knots[left])
        return (left + part) / (len(knots) - 1)


@dataclasses.dataclass(frozen=True)
class Categorical:
    """A column of categories."""

    name: str
    categories: tuple[str, ...]
    """Those with an entry of their own, the most frequent first."""
    gaps: bool
    """Whether values were missing in the training."""
    rare: bool
    """Whether the training had categories without an entry of their own."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The column that is predicted."""

    name: str
    kind: str
    """number: predicted itself, or category: a class."""
    form: tuple[str, ...] = ("", ".")


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How rows of a table become what a model takes."""

    target: Target
    numeric: tuple[Numeric, ...]
    categorical: tuple[Categorical, ...]
    unused: tuple[tuple[str, str], ...]
    """Names of other columns of the training data, and why they are not used."""

    @property
    def used(self) -> list[str]:
        """Names of the columns that are used."""
        numeric = [one.name for one in self.numeric]
        return [*numeric, *(one.name for one in self.categorical)]

    @property
    def width(self) -> int:
        """Numbers per row."""
        gaps = sum(one.gaps for one in self.numeric)
        return 2 * len(self.numeric) + gaps + len(self.categorical)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Of each column of categories the number of entries."""
        return tuple(2 + len(one.categories) for one in self.categorical)

    def as_record(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(self)))  # lists, no tuples

    @classmethod
    def from_record(cls, record: dict) -> "Preparation":
        """Raises GpuzooError: not what `as_record` returns."""
        try:
            numeric = tuple(
                Numeric(**{**one, "knots": tuple(one["knots"]),
                           "form": tuple(one["form"])})
                for one in record["numeric"]
            )  # fmt: skip
            categorical = tuple(
                Categorical(**{**one, "categories": tuple(one["categories"])})
                for one in record["categorical"]
            )
            target = dict(record["target"])
            target["form"] = tuple(target["form"])
            unused = tuple((name, why) for name, why in record["unused"])
            return cls(Target(**target), numeric, categorical, unused)
        except (KeyError, TypeError, ValueError) as error:
            raise GpuzooError(f"run.json is not valid: data.table: {error}") from None


def fit(
    readings: dict[str, Reading], train: np.ndarray, target: Target, forced: set[str]
) -> Preparation:
    """Fit the preprocessing on the training rows.

    Args:
        readings: column -> how it is read.
        train: the training rows.
        forced: columns that the user has said to be categories: those of a single row
            count, too.

    Raises:
        GpuzooError: numbers too large, or no column left.
    """
    numeric, categorical, unused = [], [], []
    for name, reading in readings.items():
        if reading.kind == "unused":
            unused.append((name, reading.reason))
        elif reading.kind == "category":
            counts = collections.Counter(reading.texts[row] for row in train)
            gaps = counts.pop("", 0) > 0
            least = 1 if name in forced else 2
            order = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            often = [one for one, count in order[:MOST] if count >= least]
            rare = len(often) < len(counts)
            categorical.append(Categorical(name, tuple(often), gaps, rare))
        else:
            numeric.append(_fitted(name, reading, train))
    if not numeric and not categorical:
        listed = "; ".join(f"{name!r}: {why}" for name, why in unused[:5])
        raise GpuzooError(
            f"no column is left to predict {target.name!r} from ({listed or 'no other'}"
            "); say what a column holds with --columns name:category"
        )
    return Preparation(target, tuple(numeric), tuple(categorical), tuple(unused))


def _fitted(name: str, reading: Reading, train: np.ndarray) -> Numeric:
    values = reading.values[train]
    gaps = bool(np.isnan(values).any())
    there = np.sort(values[~np.isnan(values)])
    if np.abs(there).max() > _LARGEST:
        raise GpuzooError(
            f"column {name!r}: values up to {np.abs(there).max():g} are too large; "
            "rescale them"
        )
    mean, deviation = moments_of(there)
    ranks = np.arange(KNOTS) * (len(there) - 1) // (KNOTS - 1)
    different = np.unique(there)
    knots = different if len(different) <= KNOTS else np.unique(there[ranks])
    return Numeric(
        name,
        mean,
        deviation,
        tuple(map(float, knots)),
        gaps,
        reading.form.record,
        reading.order,
    )


def moments_of(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation, correctly rounded sums; the deviation of
    equal values is 1."""
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum(np.square(values - mean)) / len(values))
    return mean, deviation if deviation > 1e-12 * np.abs(values).max() else 1.0


# --- rows ---------------------------------------------------------------------------


def read_again(
    table: Columns, prepared: Preparation
) -> tuple[dict[str, Reading], list[str]]:
    """Read the columns of other rows as in the training; return findings, too.

    Raises:
        GpuzooError: a column is missing, or a cell cannot be read.
    """
    used = prepared.used
    if missing := [name for name in used if name not in table.columns]:
        listed = ", ".join(map(repr, missing[:5])) + ", ..." * (len(missing) > 5)
        s = "s" * (len(missing) > 1)
        raise GpuzooError(
            f"{table.what}: without the column{s} {listed}, on which the model was "
            "trained"
        )
    known = {*used, prepared.target.name, *(name for name, _ in prepared.unused)}
    found, said = {}, []
    if other := [name for name in table.columns if name not in known]:
        listed = ", ".join(map(repr, other[:5])) + ", ..." * (len(other) > 5)
        said.append(f"not in the training data, and ignored: column {listed}")
    rows = np.arange(len(table))
    for one in prepared.numeric:
        column = table.columns[one.name]
        if one.order:
            reading = column_kinds.as_dates(table, column, rows, one.order)
        else:
            form = numbers.Form(*one.form)
            reading = column_kinds.as_numbers(table, column, rows, form)
        said += [f"column {one.name!r}: {line}" for line in reading.said]
        found[one.name] = reading
    for one in prepared.categorical:
        texts = column_kinds.as_categories(table.columns[one.name])
        found[one.name] = Reading("category", texts=texts)
    return found, said


def encode(
    prepared: Preparation, readings: dict[str, Reading], rows: np.ndarray
) -> np.ndarray:
    """Return rows as what a model takes, (rows, width), float32."""
    places, distances, gaps, indices = [], [], [], []
    for one in prepared.numeric:
        values = readings[one.name].values[rows]
        absent = np.isnan(values)
        known = np.where(absent, one.mean, values)
        with np.errstate(over="ignore"):
            distance = (known - one.mean) / one.deviation
        places.append(np.where(absent, 0.5, one.place(known)))
        distances.append(np.clip(distance, -FARTHEST, FARTHEST))
        if one.gaps:
            gaps.append(absent)
    first = 0
    for one, count in zip(prepared.categorical, prepared.vocabulary, strict=True):
        texts = readings[one.name].texts
        index = {text: n for n, text in enumerate(one.categories, start=2)}
        frequent = 2 if one.categories else UNKNOWN
        index[""] = ABSENT if one.gaps else frequent
        unknown = UNKNOWN if one.rare else frequent
        indices.append([first + index.get(texts[row], unknown) for row in rows])
        first += count
    made = np.empty((len(rows), prepared.width), np.float32)
    for place, array in enumerate([*places, *distances, *gaps, *indices]):
        made[:, place] = array
    return made


def unprepared(
    prepared: Preparation, readings: dict[str, Reading], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Return rows as an exported model takes them, which prepares them itself:
    `numbers` (rows, columns), float32, NaN where one is missing, and `categories`
    (rows, columns), int32: 0 unknown, 1 missing, from 2 on the place among the
    categories of the column. Without columns of a kind its array is left out."""
    found = {}
    if prepared.numeric:
        values = [readings[one.name].values[rows] for one in prepared.numeric]
        with np.errstate(over="ignore"):  # infinite is beyond every training value, too
            found["numbers"] = np.stack(values, axis=1).astype(np.float32)
    if prepared.categorical:
        columns = []
        for one in prepared.categorical:
            texts = readings[one.name].texts
            index = {text: n for n, text in enumerate(one.categories, start=2)}
            index[""] = ABSENT
            columns.append([index.get(texts[row], UNKNOWN) for row in rows])
        found["categories"] = np.array(columns, np.int32).T.reshape(len(rows), -1)
    return found


def strange(
    table: Columns, prepared: Preparation, readings: dict[str, Reading]
) -> list[list[str]]:
    """Return of each row what the training had not seen: categories, and gaps."""
    found: list[list[str]] = [[] for _ in range(len(table))]
    for one in prepared.numeric:
        if not one.gaps:
            for row in np.flatnonzero(np.isnan(readings[one.name].values)):
                found[row].append(
                    f"without a value, which the training always had, from column "
                    f"{one.name!r}: the mean is taken"
                )
    for one in prepared.categorical:
        known = {*one.categories, ""}
        for row, text in enumerate(readings[one.name].texts):
            if not text and not one.gaps:
                found[row].append(
                    "without a category, which the training always had, from column "
                    f"{one.name!r}: the most frequent one is taken"
                )
            if text not in known:
                taken = "" if one.rare else ": the most frequent one is taken"
                found[row].append(
                    f"unknown category from column {one.name!r}: {text[:60]!r}{taken}"
                )
    return found


def unseen(
    table: Columns, prepared: Preparation, readings: dict[str, Reading]
) -> list[str]:
    """Return lines on how many rows have what the training had not seen."""
    counts = collections.Counter(
        line.partition(":")[0]
        for lines in strange(table, prepared, readings)
        for line in lines
    )
    return [f"{count:,} rows: {line}" for line, count in counts.items()]


def column_of(name: str, table: Columns) -> Column:
    """Return a column by its name.

    Raises:
        GpuzooError: there is none.
    """
    if name not in table.columns:
        listed = ", ".join(map(repr, list(table.columns)[:30]))
        dots = ", ..." * (len(table.columns) > 30)
        raise GpuzooError(
            f"{table.what}: no column {name!r}; the columns are {listed}{dots}"
        )
    return table.columns[name]
