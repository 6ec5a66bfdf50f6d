"""Random augmentations of images with masks: what moves the pixels of an image moves
those of its mask in the same way, to the value of the nearest pixel.

Pixels of a mask that come from outside are VOID: nothing is known of them. What changes
colours only leaves the mask as it is.
"""

import keras

from gpuzoo.data.masks import VOID
from gpuzoo.errors import GpuzooError
from gpuzoo.tasks import augment
from gpuzoo.tasks.augment import Augmentation

_COLOURS = (augment.color_jitter,)
_MOVES = (augment.flip, augment.alternating_flip)
_SAMPLES = {
    augment.rotate: augment.turned,
    augment.random_resized_crop: augment.cropped,
}
_FITS = ("flip", "alternating_flip", "translate", "rotate", "random_resized_crop",
         "color_jitter")  # fmt: skip


def check(texts: tuple[str, ...]) -> None:
    """Raise GpuzooError for an augmentation that says nothing clear of a mask."""
    known = (*_COLOURS, *_MOVES, *_SAMPLES, augment.translate)
    for change, text in zip(augment.parse(texts), texts, strict=True):
        if change.apply not in known and not change.mixes:
            raise GpuzooError(
                f"augment {text} is not for masks: it hides pixels, whose class could "
                f"then not be seen; use {', '.join(_FITS)}"
            )


def apply(changes: list[Augmentation], images, masks, draws) -> tuple:
    """Apply all augmentations in order to images and masks.

    Args:
        images: (batch, height, width, channels).
        masks: (batch, height, width), uint8.
        draws: as for `augment.apply`.
    """
    column = 0
    for change in changes:
        mine = draws[:, column : column + change.draws]
        masks = _moved(change, masks, mine)
        images = change.apply(images, mine, change.amount)
        column += change.draws
    return images, masks


def _moved(change: Augmentation, masks, draws):
    """Return masks as an augmentation moves them."""
    if change.apply in _COLOURS:
        return masks
    if change.apply in _SAMPLES:
        places = _SAMPLES[change.apply](masks[..., None], draws, change.amount)
        return nearest(masks, *places)
    # The padding with 0 becomes VOID.
    inverse = keras.ops.cast(VOID, "uint8") - masks[..., None]
    moved = change.apply(inverse, draws, change.amount)[..., 0]
    return keras.ops.cast(VOID, "uint8") - moved


def nearest(masks, rows, columns):
    """Return masks at positions (batch, height, width), the values of the nearest
    pixels; VOID outside."""
    batch, height, width = masks.shape
    first = keras.ops.arange(batch, dtype="int32")[:, None, None] * (height * width)
    row = keras.ops.cast(keras.ops.floor(rows + 0.5), "int32")
    column = keras.ops.cast(keras.ops.floor(columns + 0.5), "int32")
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = keras.ops.clip(row, 0, height - 1) * width
    place = first + place + keras.ops.clip(column, 0, width - 1)
    found = keras.ops.take(keras.ops.reshape(masks, (-1,)), place, axis=0)
    return keras.ops.where(inside, found, keras.ops.cast(VOID, found.dtype))
