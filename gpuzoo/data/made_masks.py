"""Generated images with masks: handwritten digits on textures.

They are computed by correctly rounded operations from `gpuzoo.randomness` alone, so
that every processor makes the same bits.
"""

import numpy as np

from gpuzoo import randomness
from gpuzoo.data import masks
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.synthetic import digits

NAME = "textured_digits"
SIDE = 64
COUNTS = {"train": 2_000, "test": 400}
CLASSES = ("background", *map(str, range(10)))
_PLACES = 4  # one digit at most in each quarter
_PRESENT = 0.7  # probability of a digit in a quarter
_SCALES = (1.0, 1.3)
_INK = 110  # of 255: brighter pixels of a scan belong to the digit
_GRIDS = (4, 8, 16)  # cells of a texture along a side, of each of its layers
_CHUNK = 200  # images made at once


def textured_digits() -> Dataset:
    """Make 2,400 images of 64x64 pixels, each with one to four digits of scikit-learn
    in a texture of their own, on another one. The mask has class 0 where there is no
    digit, else that of the digit plus 1; the test images have other scans than the
    training images."""
    scans, splits = digits(), {}
    for split, count in COUNTS.items():
        parts = [
            _made(scans.splits[split], split, first, min(_CHUNK, count - first))
            for first in range(0, count, _CHUNK)
        ]
        splits[split] = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return masks.make_dataset(NAME, "computed by gpuzoo", splits, CLASSES)


def _made(scans: Arrays, split: str, first: int, count: int) -> Arrays:
    """Return a chunk of images and their masks, as `label`."""
    address = (split, first)
    label = _digits_at(scans, count, address)
    draws = randomness.uniform((count, 6), 0, NAME, "colours", *address)
    paper = 0.15 + 0.7 * draws[:, :3]
    # Each channel moves to its farther end, so that digits can be seen.
    away = np.where(paper < 0.5, 1.0, -1.0)
    ink = paper + away * (0.25 + 0.25 * draws[:, 3:])
    image = np.where(
        (label > 0)[..., None],
        texture(ink, "ink", address),
        texture(paper, "paper", address),
    )
    noise = randomness.uniform(image.shape, 0, NAME, "noise", *address)
    image = np.clip(image + 0.1 * (noise - 0.5), 0, 1)
    return {"image": np.floor(255 * image + 0.5).astype(np.uint8), "label": label}


def _digits_at(scans: Arrays, count: int, address: tuple) -> np.ndarray:
    """Return masks (count, SIDE, SIDE), uint8, of digits at random places."""
    label = np.zeros((count, SIDE, SIDE), np.uint8)
    for place in range(_PLACES):
        draws = randomness.uniform((count, 5), 0, NAME, "place", place, *address)
        which = (draws[:, 0] * len(scans["image"])).astype(int)
        scale = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * draws[:, 1]
        there = draws[:, 2] < _PRESENT if place else draws[:, 2] >= 0
        ink = scans["image"][which, ..., 0].astype(np.float64)
        for axis in (0, 1):
            side, half = ink.shape[1 + axis], SIDE / 2
            # A scan has a margin, so that its ink stays in the quarter.
            start = draws[:, 3 + axis] * (half - side * scale)
            start = start + half * (place // 2, place % 2)[axis]
            at = (np.arange(SIDE) + 0.5 - start[:, None]) / scale[:, None] - 0.5
            ink = _resampled(ink, at, axis)
        seen = (ink > _INK) & there[:, None, None]
        digit = scans["label"][which].astype(np.uint8) + 1
        label = np.where(seen, digit[:, None, None], label)
    return label


def _resampled(images: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Return images (count, height, width) interpolated linearly along an axis at
    places (count, length); 0 outside."""
    low = np.floor(at)
    total = np.zeros(1)
    for place in (low, low + 1):
        weight = 1 - np.abs(at - place)
        inside = (place >= 0) & (place < images.shape[1 + axis])
        index = np.where(inside, place, 0).astype(int)
        shape = (len(at), -1, 1) if axis == 0 else (len(at), 1, -1)
        found = np.take_along_axis(images, index.reshape(shape), axis=1 + axis)
        total = total + found * np.where(inside, weight, 0.0).reshape(shape)
    return total


def texture(
    colour: np.ndarray, purpose: str, address: tuple, name: str = NAME
) -> np.ndarray:
    """Return textures (count, SIDE, SIDE, 3) around colours (count, 3): the sum of
    smooth random fields, in one direction of the colours."""
    count, field = len(colour), np.zeros(1)
    for cells in _GRIDS:
        shape = (count, cells + 1, cells + 1)
        corners = randomness.uniform(shape, 0, name, purpose, cells, *address) - 0.5
        at = (np.arange(SIDE) + 0.5) * cells / SIDE
        low = np.floor(at).astype(int)
        part = (at - low)[:, None]
        rows = corners[:, low] * (1 - part) + corners[:, low + 1] * part
        part = part[:, 0]
        field = field + rows[..., low] * (1 - part) + rows[..., low + 1] * part
    way = randomness.uniform((count, 3), 0, name, purpose, "way", *address) - 0.5
    return colour[:, None, None, :] + 0.5 * field[..., None] * way[:, None, None, :]
