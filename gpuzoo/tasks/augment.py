"""Random augmentations of training images: pure functions of (images, draws).

`draws` are uniform numbers in [0, 1), a few per image, generated on the host as a
function of (seed, "augment", epoch, step). The device only applies them: the results
are the same on every backend, with and without XLA, whatever ran before; exactly if
pixels are only moved, else up to rounding.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from gpuzoo.errors import GpuzooError, nearest


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An augmentation with its amount in the recipe."""

    apply: Callable
    """(images (batch, height, width, channels), draws (batch, draws), amount) ->
    images of the same shape and dtype."""
    draws: int
    """Uniform numbers per image."""
    amount: float

    @property
    def mixes(self) -> bool:
        """Whether an image and its label are mixed with another's."""
        return self.apply in (mixup, cutmix)


def pixels(images, dtype: str = "float32"):
    """Return uint8 or floats in [0, 1] as values in [0, 1] of that dtype."""
    values = keras.ops.cast(images, dtype)
    return values * (1 / 255) if _whole(images) else values


def bytes_of(images):
    """Return values in [0, 1] as uint8."""
    return keras.ops.cast(keras.ops.round(255 * images), "uint8")


def translate(images, draws, amount: float):
    """Shift each image by up to `amount` whole pixels along both axes; pad with 0."""
    size = int(amount)
    batch, height, width, channels = images.shape
    padded = keras.ops.pad(images, [[0, 0], [size, size], [size, size], [0, 0]])
    offsets = keras.ops.cast(keras.ops.floor(draws * (2 * size + 1)), "int32")
    # One copy per horizontal shift, so that every row of every result is one contiguous
    # row of a copy: a gather of rows is several times faster than one of
    # pixels. (copies * batch * (height + 2 size), width, channels)
    copies = [padded[:, :, x : x + width] for x in range(2 * size + 1)]
    rows = keras.ops.reshape(keras.ops.stack(copies), (-1, width, channels))
    image = offsets[:, 0] * batch + keras.ops.arange(batch)
    first = image * (height + 2 * size) + offsets[:, 1]
    index = first[:, None] + keras.ops.arange(height)[None]
    return keras.ops.reshape(keras.ops.take(rows, index, axis=0), images.shape)


def flip(images, draws, amount: float):
    """Mirror each image left to right with probability `amount`."""
    mirrored = keras.ops.flip(images, axis=2)
    return keras.ops.where(draws[:, 0, None, None, None] < amount, mirrored, images)


def alternating_flip(images, draws, amount: float):
    """Mirror half of the images, the other half in the next epoch, and so on (Jordan,
    arXiv 2404.00498): each example has its own random number, to which the plan of a
    run adds 1/2 (modulo 1) from epoch to epoch."""
    return flip(images, draws, amount)


def rotate(images, draws, amount: float):
    """Rotate each image by up to `amount` degrees either way; pad with 0."""
    return sampled(images, *turned(images, draws, amount))


def turned(images, draws, amount: float) -> tuple:
    """Return the positions that `rotate` looks at, rows and columns, (batch, height,
    width)."""
    angle = (2 * draws[:, 0, None, None] - 1) * (amount * math.pi / 180)
    height, width = images.shape[1:3]
    down = np.arange(height, dtype="f4")[None, :, None] - (height - 1) / 2
    right = np.arange(width, dtype="f4")[None, None, :] - (width - 1) / 2
    cos, sin = keras.ops.cos(angle), keras.ops.sin(angle)
    rows = cos * down - sin * right + (height - 1) / 2
    return rows, sin * down + cos * right + (width - 1) / 2


def random_resized_crop(images, draws, amount: float):
    """Crop a random part of each image, at least `amount` of its sides; resize it."""
    return sampled(images, *cropped(images, draws, amount))


def cropped(images, draws, amount: float) -> tuple:
    """Return the positions that `random_resized_crop` looks at, as `turned` does."""
    part = amount + (1 - amount) * draws[:, 0, None]
    places = []
    for axis, side in enumerate(images.shape[1:3], start=1):
        first = draws[:, axis, None] * (1 - part) * side
        places.append(first + (np.arange(side, dtype="f4") + 0.5) * part - 0.5)
        places[-1] = keras.ops.clip(places[-1], 0, side - 1)
    rows, columns = places
    across = keras.ops.zeros_like(columns[:, None, :])
    return rows[:, :, None] + across, columns[:, None, :] + 0 * rows[:, :, None]


def cutout(images, draws, amount: float):
    """Put a square of zeros, `amount` pixels a side, anywhere on each image (DeVries
    and Taylor, arXiv 1708.04552)."""
    return keras.ops.where(_square(images, draws, amount), 0, images)


def color_jitter(images, draws, amount: float):
    """Change brightness, contrast and saturation by factors of 1 +- `amount`."""
    values, factors = pixels(images), 1 + amount * (2 * draws - 1)
    light, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    values = values * light
    grey = keras.ops.mean(values, axis=-1, keepdims=True)
    if images.shape[-1] == 3:
        values = grey + saturation * (values - grey)
    middle = keras.ops.mean(grey, axis=(1, 2), keepdims=True)
    return _as_before(middle + contrast * (values - middle), images)


def mixup(images, draws, amount: float):
    """Blend each image, with probability `amount`, with another of the batch, in any
    proportion (Zhang et al., arXiv 1710.09412, with Beta(1, 1)).

    Returns:
        The images, and how much of each is its own, (batch,).
    """
    own = keras.ops.where(draws[:, 0] < amount, draws[:, 1], 1.0)
    part, values = own[:, None, None, None], pixels(images)
    mixed = part * values + (1 - part) * keras.ops.flip(values, axis=0)
    return _as_before(mixed, images), own


def cutmix(images, draws, amount: float):
    """Paste, with probability `amount`, a part of another image of the batch on each
    (Yun et al., arXiv 1905.04899).

    Returns:
        The images, and how much of each is its own, (batch,).
    """
    height, width = images.shape[1:3]
    size = keras.ops.sqrt(1 - draws[:, 1, None, None])
    other = _square(images, draws[:, 2:], size * height, size * width)
    other = keras.ops.logical_and(draws[:, 0, None, None, None] < amount, other)
    share = keras.ops.mean(keras.ops.cast(other, "float32"), axis=(1, 2, 3))
    return keras.ops.where(other, keras.ops.flip(images, axis=0), images), 1 - share


def _square(images, draws, rows, columns=None):
    """Return (batch, height, width, 1): whether a pixel is in a rectangle of `rows` by
    `columns` (default: `rows`) around a random pixel."""
    columns = rows if columns is None else columns
    inside = []
    for axis, size in enumerate((rows, columns)):
        side = images.shape[1 + axis]
        middle = keras.ops.floor(draws[:, axis, None, None] * side)
        shape = (1, -1, 1) if axis == 0 else (1, 1, -1)
        place = np.arange(side, dtype="f4").reshape(shape)
        inside.append(keras.ops.abs(place - middle + 0.25) < size / 2)
    return keras.ops.logical_and(*inside)[..., None]


def sampled(images, rows, columns):
    """Return the images at positions (batch, height, width), interpolated bilinearly;
    0 outside."""
    batch, height, width, channels = images.shape
    flat = keras.ops.reshape(pixels(images), (-1, channels))
    first = keras.ops.arange(batch, dtype="int32")[:, None, None] * (height * width)
    top, left = keras.ops.floor(rows), keras.ops.floor(columns)
    total = 0
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            weight = (1 - keras.ops.abs(rows - row)) * (
                1 - keras.ops.abs(columns - column)
            )
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            row = keras.ops.cast(keras.ops.clip(row, 0, height - 1), "int32")
            column = keras.ops.cast(keras.ops.clip(column, 0, width - 1), "int32")
            found = keras.ops.take(flat, first + row * width + column, axis=0)
            weight = keras.ops.where(inside, weight, 0.0)[..., None]
            total = total + weight * found
    return _as_before(total, images)


def _as_before(values, images):
    """Return values, clipped to [0, 1], in the dtype of the images."""
    values = keras.ops.clip(values, 0, 1)
    return bytes_of(values) if _whole(images) else keras.ops.cast(values, images.dtype)


def _whole(images) -> bool:
    return keras.backend.standardize_dtype(images.dtype) == "uint8"


# name -> (function, draws per image, default amount, rule, test of the amount)
_KNOWN = {
    "translate": (
        translate, 2, None, "an integer number of pixels, 1 or more",
        lambda amount: amount >= 1 and amount == int(amount),
    ),
    "flip": (flip, 1, 0.5, "a probability", lambda amount: 0 < amount <= 1),
    "alternating_flip": (alternating_flip, 1, 0.5, "0.5", lambda amount: amount == 0.5),
    "rotate": (rotate, 1, None, "degrees up to 180", lambda amount: 0 < amount <= 180),
    "random_resized_crop": (
        random_resized_crop, 3, None, "a part of the sides",
        lambda amount: 0 < amount < 1,
    ),
    "cutout": (
        cutout, 2, None, "an integer number of pixels, 1 or more",
        lambda amount: amount >= 1 and amount == int(amount),
    ),
    "color_jitter": (
        color_jitter, 3, None, "a part of 1", lambda amount: 0 < amount <= 1,
    ),
    "mixup": (mixup, 2, 1.0, "a probability", lambda amount: 0 < amount <= 1),
    "cutmix": (cutmix, 4, 1.0, "a probability", lambda amount: 0 < amount <= 1),
}  # fmt: skip


def parse(texts: tuple[str, ...]) -> list[Augmentation]:
    """Parse `("translate:2", "flip")`; return the augmentations in that order.

    Raises:
        GpuzooError: unknown name, or an amount that is missing or out of range.
    """
    found = []
    for text in texts:
        name, _, written = text.partition(":")
        if name not in _KNOWN:
            raise GpuzooError(
                f"augment: unknown augmentation {name!r}; {nearest(name, _KNOWN)}"
            )
        function, draws, default, rule, test = _KNOWN[name]
        try:
            amount = float(written) if written else default
        except ValueError:
            amount = math.nan
        if amount is None or not (math.isfinite(amount) and test(amount)):
            example = 1 if default is None and test(1.0) else 0.5
            raise GpuzooError(
                f"augment {name} needs {rule}, e.g. {name}:{example}; got {text!r}"
            )
        found.append(Augmentation(function, draws, amount))
    if sum(change.mixes for change in found) > 1:
        raise GpuzooError("augment takes at most one of mixup and cutmix, once")
    return found


def alternating(texts: tuple[str, ...]) -> list[int]:
    """Return the columns of the draws, from the last one (-1), that belong to an
    example, not to a step: see `alternating_flip`."""
    found, column = [], 0
    for change in reversed(parse(texts)):
        column -= change.draws
        if change.apply is alternating_flip:
            found.append(column)
    return found


def check(texts: tuple[str, ...], input_shape: tuple[int, ...]) -> None:
    """Raise GpuzooError for an amount too large for images of this shape."""
    for change, text in zip(parse(texts), texts, strict=True):
        pixels_of_size = change.apply in (translate, cutout)
        if pixels_of_size and change.amount >= min(input_shape[:2]):
            raise GpuzooError(
                f"augment {text} leaves nothing of images of {input_shape[0]}x"
                f"{input_shape[1]} pixels; use a smaller amount"
            )


def apply(changes: list[Augmentation], images, draws):
    """Apply all augmentations in order, each with its own columns of `draws`.

    Returns:
        The images, and how much of each is its own, (batch,), the rest being of the
        image at its place from the end of the batch; None if nothing is mixed.
    """
    column, own = 0, None
    for change in changes:
        mine = draws[:, column : column + change.draws]
        images = change.apply(images, mine, change.amount)
        if change.mixes:
            images, own = images
        column += change.draws
    return images, own
