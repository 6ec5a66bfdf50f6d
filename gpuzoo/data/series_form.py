"""How the columns of a series become what a model takes; in the record of a run."""

import dataclasses
import json

import numpy as np

from gpuzoo.errors import GpuzooError


@dataclasses.dataclass(frozen=True)
class Channel:
    """A column of values; it is standardized by its training rows."""

    name: str
    mean: float
    deviation: float
    form: tuple[str, str] = ("", ".")
    """What separates thousands, and decimals."""


@dataclasses.dataclass(frozen=True)
class Series:
    """How rows become windows (batch, window, channels), float32: of each row its
    values in standard deviations, the targets first, then sine and cosine of its place
    in each cycle of the calendar."""

    times: tuple[str, ...]
    """The columns of times."""
    order: str
    """Of dates: of day, month and year."""
    unit: str
    step: float
    """Units of time from row to row (gpuzoo/data/series_times.py)."""
    targets: int
    """How many of the channels, the first ones, are predicted."""
    channels: tuple[Channel, ...]
    calendar: tuple[str, ...]
    window: int
    horizon: int
    gaps: str
    unused: tuple[tuple[str, str], ...]
    """Names of other columns, and why they are not used."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(one.name for one in self.channels[: self.targets])

    @property
    def width(self) -> int:
        """Numbers per row."""
        return len(self.channels) + 2 * len(self.calendar)

    def as_record(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(self)))  # lists, no tuples

    @classmethod
    def from_record(cls, record: dict) -> "Series":
        """Raises GpuzooError: not what `as_record` returns."""
        try:
            channels = tuple(
                Channel(**{**one, "form": tuple(one["form"])})
                for one in record["channels"]
            )
            unused = tuple((name, why) for name, why in record["unused"])
            lists = {k: tuple(record[k]) for k in ("times", "calendar")}
            return cls(**{**record, "channels": channels, "unused": unused, **lists})
        except (KeyError, TypeError, ValueError) as error:
            raise GpuzooError(f"run.json is not valid: data.series: {error}") from None

    def scaled(self, what: str, values: np.ndarray) -> np.ndarray:
        """Return values (..., channels) in standard deviations of the training,
        float32.

        Raises:
            GpuzooError: one is not finite, or too far from the training values.
        """
        means = np.array([one.mean for one in self.channels])
        deviations = np.array([one.deviation for one in self.channels])
        with np.errstate(over="ignore", invalid="ignore"):
            found = ((values - means) / deviations).astype(np.float32)
        if not np.isfinite(found).all():
            *_, place = np.argwhere(~np.isfinite(found))[0]
            one = self.channels[place]
            wrong = values[~np.isfinite(found)][0]
            raise GpuzooError(
                f"{what}: {wrong:g} in column {one.name!r} is not finite or too far "
                f"from the training values, {one.mean:g} with a deviation of "
                f"{one.deviation:g}"
            )
        return found

    def unscaled(self, forecast: np.ndarray) -> np.ndarray:
        """Return a forecast (..., horizon), of several targets (..., horizon, targets),
        in the units of the targets, float64."""
        ours = self.channels[: self.targets]
        means = np.array([one.mean for one in ours])
        deviations = np.array([one.deviation for one in ours])
        if self.targets == 1:
            means, deviations = means[0], deviations[0]
        return np.asarray(forecast, np.float64) * deviations + means
