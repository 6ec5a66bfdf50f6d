"""Generated images with boxes: shapes of several sizes on textures.

They are computed by correctly rounded operations from `gpuzoo.randomness` alone, so
that every processor makes the same bits.
"""

import numpy as np

from gpuzoo import randomness
from gpuzoo.data import boxes, made_masks
from gpuzoo.data.dataset import Arrays, Dataset

NAME = "textured_shapes"
SIDE = made_masks.SIDE
COUNTS = {"train": 3_000, "test": 500}
CLASSES = ("disc", "ring", "square", "triangle", "cross")
_PLACES = 5  # shapes in an image at most
_SIDES = (9.0, 30.0)  # pixels of a shape
_APART = 2.0  # pixels between two shapes
_CHUNK = 250  # images made at once


def textured_shapes() -> Dataset:
    """Make 3,500 images of 64x64 pixels, each with one to five discs, rings, squares,
    triangles and crosses of 9 to 30 pixels, which have a texture of their own and do
    not overlap, on another texture. Boxes are those of the pixels that can be seen."""
    splits = {}
    for split, count in COUNTS.items():
        parts = [
            _made(min(_CHUNK, count - first), (split, first))
            for first in range(0, count, _CHUNK)
        ]
        splits[split] = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return boxes.make_dataset(NAME, "computed by gpuzoo", splits, CLASSES)


def _made(count: int, address: tuple) -> Arrays:
    """Return a chunk of images and their objects."""
    inks, objects = _placed(count, address)
    draws = randomness.uniform((count, 3), 0, NAME, "paper", *address)
    paper = 0.15 + 0.7 * draws
    image = made_masks.texture(paper, "paper", address, NAME)
    # Each channel moves to its farther end, so that shapes can be seen.
    away = np.where(paper < 0.5, 1.0, -1.0)
    field = made_masks.texture(np.zeros((count, 3)), "ink", address, NAME)
    for place, seen in enumerate(inks):
        draws = randomness.uniform((count, 3), 0, NAME, "ink", place, *address)
        ink = paper + away * (0.25 + 0.25 * draws)
        image = np.where(seen[..., None], ink[:, None, None, :] + field, image)
    noise = randomness.uniform(image.shape, 0, NAME, "noise", *address)
    image = np.clip(image + 0.1 * (noise - 0.5), 0, 1)
    image = np.floor(255 * image + 0.5).astype(np.uint8)
    return {"image": image, "objects": objects}


def _placed(count: int, address: tuple) -> tuple[list, np.ndarray]:
    """Return of each place the pixels of its shapes, (count, SIDE, SIDE), bool, and the
    objects. A shape that would come too near to an earlier one is left out."""
    inks, objects = [], np.zeros((count, _PLACES, 6), np.float32)
    corners = np.zeros((count, 0, 4))
    for place in range(_PLACES):
        draws = randomness.uniform((count, 4), 0, NAME, "place", place, *address)
        # The square of a uniform number: small shapes are more frequent.
        side = _SIDES[0] + (_SIDES[1] - _SIDES[0]) * draws[:, 0] * draws[:, 0]
        kind = np.floor(draws[:, 1] * len(CLASSES)).astype(int)
        first = draws[:, 2:] * (SIDE - side[:, None])
        box = np.concatenate([first, first + side[:, None]], axis=1)
        free = _free(box, corners)
        seen = _shape(kind, first, side) & free[:, None, None]
        corners = np.concatenate(
            [corners, np.where(free[:, None], box, -9.0)[:, None]], axis=1
        )
        inks.append(seen)
        extent = np.concatenate([_extent(seen, axis) for axis in (2, 1)], axis=1)
        rows = extent[:, [0, 2, 1, 3]]
        there = np.stack([kind, np.ones(count)], axis=1)
        objects[:, place] = np.concatenate([rows, there], axis=1) * free[:, None]
    order = np.argsort(objects[..., 5] == 0, axis=1, kind="stable")
    return inks, np.take_along_axis(objects, order[..., None], axis=1)


def _free(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (count,): whether a box (count, 4) is away from others (count, n, 4)."""
    low = np.maximum(box[:, None, :2] - _APART, others[..., :2])
    high = np.minimum(box[:, None, 2:] + _APART, others[..., 2:])
    return ~np.any(np.all(high > low, axis=-1), axis=-1)


def _shape(kind: np.ndarray, first: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return the pixels of shapes, (count, SIDE, SIDE), bool: those whose middle is
    inside."""
    middles = np.arange(SIDE) + 0.5
    # From -1 to 1 inside of the box.
    y, x = (2 * (middles - first[:, axis, None]) / side[:, None] - 1 for axis in (0, 1))
    y, x = y[:, :, None], x[:, None, :]
    box = (np.abs(y) < 1) & (np.abs(x) < 1)
    far = y * y + x * x
    forms = [
        far < 1,
        (far < 1) & (far > 0.3),
        box,
        box & (2 * np.abs(x) < 1 + y),
        box & ((np.abs(x) < 0.36) | (np.abs(y) < 0.36)),
    ]
    return np.choose(kind[:, None, None], forms)


def _extent(seen: np.ndarray, axis: int) -> np.ndarray:
    """Return (count, 2): first and last edge of the true pixels along the other axis
    than `axis`."""
    line = np.asarray(seen.any(axis=axis))
    last = line.shape[1] - line[:, ::-1].argmax(axis=1)
    return np.stack([line.argmax(axis=1), last], axis=1)
