"""Line charts as numbers for an inline SVG: the templates of the pages draw them."""

import dataclasses
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 10, 40
_MOST = 300  # points of a line: more cannot be seen
_LARGEST = 1e300  # of a value; NaN and infinity are left out, too
_DOTS = 30  # lines of fewer points have dots

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart, in pixels."""

    name: str
    tone: int
    """Its colour and dashes: the place of its series, empty ones included."""
    points: list[Point]
    dots: bool
    last: str
    """The last value, as text."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart: its lines, and the places and texts of its ticks."""

    title: str
    lines: list[Line]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    about: str
    """What it shows, for those who cannot see it."""


def number(value: float) -> str:
    """Return a value as text, with four digits."""
    if isinstance(value, float) and math.isfinite(value) and 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def chart(title: str, series: dict[str, Sequence[Point]]) -> Chart | None:
    """Return a chart of lines, name -> (step, value); None if no value is finite."""
    finite = {
        name: [(x, y) for x, y in points if abs(y) < _LARGEST]
        for name, points in series.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    every = [point for points in finite.values() for point in points]
    across, up = (_ticks([point[axis] for point in every]) for axis in (0, 1))

    def place(point: Point) -> Point:
        x = _part(point[0], across) * (WIDTH - LEFT - RIGHT) + LEFT
        y = (1 - _part(point[1], up)) * (HEIGHT - TOP - BOTTOM) + TOP
        return round(x, 1), round(y, 1)

    lines = [
        Line(
            name, [*series].index(name), [place(one) for one in _thin(points)],
            len(points) < _DOTS, number(points[-1][1]),
        )
        for name, points in finite.items()
    ]  # fmt: skip
    texts = [
        f"{name} from {number(points[0][1])} at step {points[0][0]:,} to "
        f"{number(points[-1][1])} at step {points[-1][0]:,}"
        for name, points in finite.items()
    ]
    return Chart(
        title,
        lines,
        [(place((x, up[0]))[0], f"{x:,.10g}") for x in across],
        [(place((across[0], y))[1], f"{y:.10g}") for y in up],
        f"{title} over the steps: {'; '.join(texts)}.",
    )


def _thin(points: Sequence[Point]) -> list[Point]:
    every = math.ceil(len(points) / _MOST)
    return [*points[:-1:every], points[-1]]


def _part(value: float, ticks: list[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _ticks(values: list[float]) -> list[float]:
    """Return three to seven round numbers around all values."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= max(largest * 1e-9, 1e-300):  # one value
        half = largest / 2 if largest > 1e-300 else 1.0
        low, high = low - half, high + half
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    size *= next(one for one in (1, 2, 5, 10) if one * size >= rough * 0.999)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{n * size:.10g}") for n in range(first, last + 1)]
