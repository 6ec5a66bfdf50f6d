"""Random changes of training images: pure functions of (images, draws).

`draws` are uniform numbers in [0, 1), a few for each image, made on the host at the
address (seed, "augment", epoch, step). The device only applies them: the same images
come out on every backend, with and without XLA, whatever ran before.
"""

import dataclasses
import math
from collections.abc import Callable

import keras

from gpuzoo.errors import GpuzooError
from gpuzoo.registry import nearest


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One kind of change, with the amount that the recipe asks for."""

    apply: Callable
    """(images (batch, height, width, channels), draws (batch, draws), amount) ->
    images of the same shape and dtype."""
    draws: int
    """Uniform numbers needed for each image."""
    amount: float


def shift(images, draws, amount: float):
    """Move each image by up to `amount` whole pixels along both axes; zeros move in."""
    size = int(amount)
    batch, height, width, channels = images.shape
    padded = keras.ops.pad(images, [[0, 0], [size, size], [size, size], [0, 0]])
    offsets = keras.ops.cast(keras.ops.floor(draws * (2 * size + 1)), "int32")
    # One copy for each way to move sideways, so that every row of every result is one
    # contiguous row of a copy: a gather of rows is several times faster than one of
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


# name -> (function, draws per image, default amount, rule, test of the amount)
_KNOWN = {
    "shift": (
        shift, 2, None, "a whole number of pixels, 1 or more",
        lambda amount: amount >= 1 and amount == int(amount),
    ),
    "flip": (flip, 1, 0.5, "a probability", lambda amount: 0 < amount <= 1),
}  # fmt: skip


def parse(texts: tuple[str, ...]) -> list[Augmentation]:
    """`("shift:2", "flip")` -> the changes, in that order.

    Raises:
        GpuzooError: unknown name, or an amount that is missing or out of range.
    """
    found = []
    for text in texts:
        name, _, written = text.partition(":")
        if name not in _KNOWN:
            raise GpuzooError(
                f"augment knows no change named {name!r}; {nearest(name, _KNOWN)}"
            )
        function, draws, default, rule, test = _KNOWN[name]
        try:
            amount = float(written) if written else default
        except ValueError:
            amount = math.nan
        if amount is None or not (math.isfinite(amount) and test(amount)):
            raise GpuzooError(f"augment {name} needs {rule}, as {name}:1; got {text!r}")
        found.append(Augmentation(function, draws, amount))
    return found


def check(texts: tuple[str, ...], input_shape: tuple[int, ...]) -> None:
    """Raises GpuzooError for a change that images of this shape cannot bear."""
    for change, text in zip(parse(texts), texts, strict=True):
        if change.apply is shift and change.amount >= min(input_shape[:2]):
            raise GpuzooError(
                f"augment {text} moves images of {input_shape[0]}x{input_shape[1]} "
                "pixels out of sight; use a smaller amount"
            )


def apply(changes: list[Augmentation], images, draws):
    """All changes one after another, each with its own columns of `draws`."""
    column = 0
    for change in changes:
        own = draws[:, column : column + change.draws]
        images = change.apply(images, own, change.amount)
        column += change.draws
    return images
