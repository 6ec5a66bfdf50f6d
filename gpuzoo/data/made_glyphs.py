"""Generated identities: glyphs of a few strokes, each drawn by many hands.

They are computed by correctly rounded operations from `gpuzoo.randomness` alone, so
that every processor makes the same bits.
"""

import numpy as np

from gpuzoo import randomness
from gpuzoo.data import identities
from gpuzoo.data.dataset import Arrays, Dataset

NAME = "glyphs"
SIDE = 32
IDENTITIES = {"train": 200, "test": 50}
PICTURES = 20
_STROKES, _LEAST = 4, 2  # of a glyph, at most and at least
_PARTS = 5  # straight parts that a curved stroke is drawn with


def make() -> Dataset:
    """Draw 5,000 pictures of 32x32 pixels, grey: 20 of each of 250 glyphs, of which 50
    are for testing alone.

    A glyph is two to four curved strokes. Each picture of it has its own jitter of the
    points of the strokes, rotation (up to 14 degrees), size, place, width of the pen,
    brightness and noise.
    """
    splits, first = {}, 0
    for split, count in IDENTITIES.items():
        splits[split] = draw(count, PICTURES, first)
        first += count
    return identities.make_dataset(NAME, "computed by gpuzoo", splits)


def draw(count: int, pictures: int, first: int = 0) -> Arrays:
    """Return `image` (count * pictures, SIDE, SIDE, 1), uint8, and `label`, the names
    of the glyphs, of those numbered from `first` on."""
    parts = [_pictures(number, pictures) for number in range(first, first + count)]
    names = [f"glyph_{number:03d}" for number in range(first, first + count)]
    label = np.repeat(np.array(names), pictures)
    return {"image": np.concatenate(parts), "label": label}


def _pictures(number: int, count: int) -> np.ndarray:
    """Return pictures of one glyph, (count, SIDE, SIDE, 1), uint8."""
    drawn = randomness.uniform((_STROKES, 3, 2), 0, NAME, "points", number)
    kinds = randomness.uniform((2,), 0, NAME, "strokes", number)
    strokes = _LEAST + int(kinds[0] * (_STROKES - _LEAST + 1))
    points = 0.12 + 0.76 * drawn[:strokes]
    own = randomness.uniform((count, strokes, 3, 2), 0, NAME, "jitter", number) - 0.5
    hand = randomness.uniform((count, 7), 0, NAME, "hand", number)
    points = _moved(points + 0.14 * own, hand)
    starts, ends = _lines(points)
    width = 0.9 + 0.7 * hand[:, 5]
    ink = np.clip(width[:, None] + 0.5 - _distance(starts, ends), 0, 1)
    noise = randomness.uniform((count, SIDE * SIDE), 0, NAME, "noise", number)
    image = (0.6 + 0.4 * hand[:, 6:]) * ink + 0.25 * (noise - 0.5)
    pixels = np.floor(255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)
    return pixels.reshape(count, SIDE, SIDE, 1)


def _moved(points: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """Return points (count, strokes, 3, 2) in pixels, turned, scaled and moved as each
    hand (count, 7) does it."""
    # A rotation whose sine is a rounded root: no function of the processor's own.
    sine = 0.5 * (hand[:, 0] - 0.5)
    cosine = np.sqrt(1 - sine * sine)
    size = 0.8 + 0.3 * hand[:, 1]
    x, y = (points[..., axis] - 0.5 for axis in (0, 1))
    sine, cosine = (one[:, None, None] * size[:, None, None] for one in (sine, cosine))
    move = 0.14 * (hand[:, 2:4, None, None] - 0.5) + 0.5
    turned = x * cosine - y * sine + move[:, 0], x * sine + y * cosine + move[:, 1]
    return SIDE * np.stack(turned, axis=-1)


def _lines(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends, (count, lines, 2), of the straight parts of quadratic
    Bezier curves (count, strokes, 3, 2)."""
    at = (np.arange(_PARTS + 1) / _PARTS)[:, None]
    a, b, c = (points[:, :, None, place] for place in range(3))
    curve = (1 - at) * (1 - at) * a + 2 * at * (1 - at) * b + at * at * c
    starts, ends = curve[:, :, :-1], curve[:, :, 1:]
    return tuple(one.reshape(len(points), -1, 2) for one in (starts, ends))


def _distance(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel, (count, SIDE * SIDE), from the nearest of the
    lines of a picture (count, lines, 2), in pixels."""
    places = np.arange(SIDE) + 0.5
    x, y = np.tile(places, SIDE), np.repeat(places, SIDE)
    nearest = np.full((len(starts), SIDE * SIDE), float(SIDE * SIDE))
    for line in range(starts.shape[1]):
        fx, fy = (starts[:, line, axis, None] for axis in (0, 1))
        dx, dy = (ends[:, line, axis, None] for axis in (0, 1))
        dx, dy = dx - fx, dy - fy
        length = dx * dx + dy * dy + 1e-9
        along = np.clip(((x - fx) * dx + (y - fy) * dy) / length, 0, 1)
        away, up = x - fx - along * dx, y - fy - along * dy
        nearest = np.minimum(nearest, away * away + up * up)
    return np.sqrt(nearest)
