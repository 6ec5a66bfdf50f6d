"""Generated films: handwritten digits that move in one of eight ways.

They are computed by correctly rounded operations from `gpuzoo.randomness` alone, so
that every processor makes the same bits.
"""

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.synthetic import digits
from gpuzoo.data.validate import label_examples

NAME = "moving_digits"
WAYS = ("left", "right", "up", "down", "turning left", "turning right", "growing",
        "shrinking")  # fmt: skip
FRAMES, SIDE = 16, 24
COUNTS = {"train": 2_000, "test": 500}
_CHUNK = 250  # films made at once


def moving_digits() -> Dataset:
    """Make 2,500 films of 16 frames of 24x24 pixels, each of one digit of scikit-learn
    that moves in one of eight ways.

    The frame in the middle is alike in all ways: place, size and angle of the digit
    there are drawn independently of the class, so are the digit and the brightness. A
    digit also moves a little in the ways of the other classes. The films for testing
    have other scans than those for training.
    """
    scans, splits = digits(), {}
    for split, count in COUNTS.items():
        labels = np.arange(count) % len(WAYS)
        films = [
            _made(scans.splits[split], labels[first : first + _CHUNK], split, first)
            for first in range(0, count, _CHUNK)
        ]
        splits[split] = {"film": np.concatenate(films), "label": labels}
    return label_examples(NAME, "computed by gpuzoo", splits, WAYS)


def _made(scans: Arrays, labels: np.ndarray, split: str, first: int) -> np.ndarray:
    """Return a chunk of films, (count, FRAMES, SIDE, SIDE, 1), uint8."""
    count, address = len(labels), (split, first)
    u = randomness.uniform((11, count, 1, 1, 1), 0, NAME, "ways", *address)
    which = (u[0].ravel() * len(scans["image"])).astype(int)
    images = scans["image"][which, ..., 0].astype(np.float64)
    # Speeds along the four axes of motion: (right, down, turning left, growing). That
    # of the class has the sign of the class, the others are small, of either sign.
    speeds = 0.25 * (2 * u[1:5] - 1)
    axis, sign = labels // 2, np.where(labels % 2, 1.0, -1.0)
    sign = np.where(axis >= 2, -sign, sign)
    main = (0.6 + 0.4 * u[5, :, 0, 0, 0]) * sign
    for number in range(4):
        mine = (axis == number)[:, None, None, None]
        speeds[number] = np.where(mine, main[:, None, None, None], speeds[number])
    time = (2 * np.arange(FRAMES) - (FRAMES - 1)) / (FRAMES - 1)
    time = time[None, :, None, None]
    x = (SIDE - 1) / 2 + 4 * (u[6] - 0.5) + 6 * speeds[0] * time
    y = (SIDE - 1) / 2 + 4 * (u[7] - 0.5) + 6 * speeds[1] * time
    half = 0.4 * (u[8] - 0.5) + 0.5 * speeds[2] * time  # tangent of half the angle
    size = 0.5 + 0.1 * u[9] + 0.2 * speeds[3] * time
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    across = np.arange(SIDE)[None, None, None, :] - x
    down = np.arange(SIDE)[None, None, :, None] - y
    middle = (images.shape[1] - 1) / 2
    seen = _at(
        images,
        (sine * across + cosine * down) / size + middle,
        (cosine * across - sine * down) / size + middle,
    )
    noise = randomness.uniform(seen.shape, 0, NAME, "noise", *address)
    film = 40 * noise + seen * (0.5 + 0.3 * u[10])
    return np.floor(film + 0.5).astype(np.uint8)[..., None]


def _at(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return images (count, height, width) interpolated linearly at places (count,
    frames, height, width); 0 outside."""
    number = np.arange(len(images))[:, None, None, None]
    top, left = np.floor(rows), np.floor(columns)
    total = np.zeros(rows.shape)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - np.abs(rows - row)) * (1 - np.abs(columns - column))
            inside = (row >= 0) & (row < images.shape[1])
            inside &= (column >= 0) & (column < images.shape[2])
            places = (np.where(inside, one, 0).astype(int) for one in (row, column))
            total += np.where(inside, weight, 0.0) * images[number, *places]
    return total
