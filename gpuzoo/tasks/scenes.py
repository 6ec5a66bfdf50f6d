"""Scenes for object detection: several images on one canvas, with exact boxes."""

import keras
import numpy as np

PLACES = 4  # images per canvas at most, one around the centre of each quarter
DRAWS = 4 * PLACES
_SCALES = (0.6, 1.1)
_STRAY = 4  # pixels by which an image may leave its quarter
_PRESENT = 0.75  # probability of an image in a quarter
_INK = 0.2  # brighter pixels belong to the object


def any_object(images: np.ndarray) -> bool:
    """Return whether any image, uint8 or floats in [0, 1], shows part of an object."""
    ink = _INK * (255 if images.dtype == np.uint8 else 1)
    parts = range(0, len(images), 4096)
    return any(images[first : first + 4096].max() > ink for first in parts)


def canvas(dataset) -> tuple[int, int, int]:
    """Return height, width, channels: 2.25 times the sides, multiples of 8."""
    height, width, channels = dataset.input_shape
    return (*(-(-round(2.25 * side) // 8) * 8 for side in (height, width)), channels)


def make(images, labels, draws, size: tuple[int, int, int]) -> dict:
    """Put each image of a batch and those after it on a canvas.

    Args:
        images: (batch, height, width, channels), float32 in [0, 1], light on dark.
        labels: (batch,), int32.
        draws: (batch, DRAWS) numbers in [0, 1): of each place the presence, the size,
            and the offsets down and right.
        size: height, width and channels of the canvas.

    Returns:
        `image` (batch, *size); `boxes` (batch, PLACES, 4): top, left, bottom and right
        of pixels brighter than 0.2, in pixels, edges counting from 0; `label` and
        `present` (batch, PLACES), the latter 1.0 or 0.0.
    """
    scene, boxes, classes, presents = 0, [], [], []
    for place in range(PLACES):
        there, scale, *moves = (draws[:, 4 * place + i] for i in range(4))
        source = keras.ops.roll(images, -place, axis=0)
        scale = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * scale
        extents, matrices = [], []
        light = keras.ops.max(source, axis=-1) > _INK
        for axis, move in enumerate(moves):
            quarter, side = size[axis] / 2, images.shape[1 + axis]
            first = quarter * (place // 2, place % 2)[axis] - _STRAY
            first = first + move * (quarter + 2 * _STRAY - side * scale)
            first = keras.ops.clip(first, 0, size[axis] - side * scale)
            matrices.append(_stretched(first, scale, side, size[axis]))
            low, high = _extent(keras.ops.any(light, axis=2 - axis))
            extents.append((first + scale * low, first + scale * high))
        present = there < _PRESENT if place else there >= 0
        present = keras.ops.logical_and(present, keras.ops.any(light, axis=(1, 2)))
        present = keras.ops.cast(present, "float32")
        (top, bottom), (left, right) = extents
        rows, columns = matrices
        one = keras.ops.einsum("byi,bijc,bxj->byxc", rows, source, columns)
        scene = keras.ops.maximum(scene, one * present[:, None, None, None])
        boxes.append(keras.ops.stack([top, left, bottom, right], axis=-1))
        classes.append(keras.ops.roll(labels, -place, axis=0))
        presents.append(present)
    return {
        "image": keras.ops.clip(scene, 0, 1),
        "boxes": keras.ops.stack(boxes, axis=1),
        "label": keras.ops.stack(classes, axis=1),
        "present": keras.ops.stack(presents, axis=1),
    }


def _stretched(first, scale, side: int, length: int):
    """Return (batch, length, side): weights of linear interpolation from the pixels of
    an image that starts at `first`, scaled by `scale`, to those of the canvas."""
    places = np.arange(length, dtype="f4")[None] + 0.5
    places = (places - first[:, None]) / scale[:, None] - 0.5
    apart = keras.ops.abs(places[:, :, None] - np.arange(side, dtype="f4"))
    return keras.ops.maximum(0.0, 1 - apart)


def _extent(mask):
    """Return the first and the last edge of true values of (batch, side), (batch,),
    float32; side and 0 if none is true."""
    side = mask.shape[1]
    edges = np.arange(side, dtype="f4")[None]
    low = keras.ops.min(keras.ops.where(mask, edges, float(side)), axis=1)
    return low, keras.ops.max(keras.ops.where(mask, edges + 1, 0.0), axis=1)
