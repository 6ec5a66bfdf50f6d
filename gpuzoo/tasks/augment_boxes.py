"""Random augmentations of images with boxes: what moves the pixels of an image moves
its boxes in the same way, and what changes colours leaves them.

A box is cut at the border of the image. One whose middle leaves the image is to be
ignored: what is left of it is neither to be found nor a mistake.
"""

import keras

from gpuzoo.data.boxes import IGNORED, OBJECT
from gpuzoo.errors import GpuzooError
from gpuzoo.tasks import augment
from gpuzoo.tasks.augment import Augmentation

_FLIPS = (augment.flip, augment.alternating_flip)
_FITS = ("flip", "alternating_flip", "translate", "color_jitter")


def check(texts: tuple[str, ...]) -> None:
    """Raise GpuzooError for an augmentation that is not for boxes."""
    for change, text in zip(augment.parse(texts), texts, strict=True):
        if change.apply not in (*_FLIPS, augment.translate, augment.color_jitter):
            raise GpuzooError(
                f"augment {text} is not for boxes: after it the smallest box around an "
                f"object is not known; use {', '.join(_FITS)}"
            )


def apply(changes: list[Augmentation], images, objects, draws) -> tuple:
    """Apply all augmentations in order to images and objects.

    Args:
        images: (batch, height, width, channels).
        objects: (batch, most, 6), float32, see gpuzoo/data/boxes.py.
        draws: as for `augment.apply`.
    """
    column, size = 0, images.shape[1:3]
    for change in changes:
        mine = draws[:, column : column + change.draws]
        objects = _moved(change, objects, mine, size)
        images = change.apply(images, mine, change.amount)
        column += change.draws
    return images, objects


def _moved(change: Augmentation, objects, draws, size: tuple[int, int]):
    """Return objects as an augmentation moves them."""
    if change.apply is augment.translate:
        return _translated(objects, draws, int(change.amount), size)
    if change.apply in _FLIPS:
        top, left, bottom, right, *rest = (objects[..., i] for i in range(6))
        sides = [top, size[1] - right, bottom, size[1] - left, *rest]
        mirrored = keras.ops.stack(sides, axis=-1)
        mirrored = keras.ops.where(objects[..., 5:] == 0.0, objects, mirrored)
        turned = draws[:, 0, None, None] < change.amount
        return keras.ops.where(turned, mirrored, objects)
    return objects


def _translated(objects, draws, most: int, size: tuple[int, int]):
    """Return objects moved as `augment.translate` moves the pixels."""
    offsets = keras.ops.floor(draws * (2 * most + 1))
    across, down = (most - offsets[:, i, None] for i in (0, 1))
    kind, sides = objects[..., 5], [None] * 4
    there = keras.ops.not_equal(kind, 0.0)
    outside = keras.ops.zeros_like(kind) > 0
    for axis, by in enumerate((down, across)):
        low, high = objects[..., axis] + by, objects[..., axis + 2] + by
        middle = (low + high) / 2
        gone = keras.ops.logical_or(middle <= 0, middle >= size[axis])
        outside = keras.ops.logical_or(outside, gone)
        for place, side in ((axis, low), (axis + 2, high)):
            cut = keras.ops.clip(side, 0, size[axis])
            sides[place] = keras.ops.where(there, cut, objects[..., place])
    lost = keras.ops.logical_and(outside, kind == OBJECT)
    kind = keras.ops.where(lost, IGNORED, kind)
    return keras.ops.stack([*sides, objects[..., 4], kind], axis=-1)
