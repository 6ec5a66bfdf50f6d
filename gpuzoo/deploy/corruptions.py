"""Fifteen corruptions of images in five severities, after ImageNet-C.

The kinds, and most severities, are those of Hendrycks and Dietterich, arXiv 1903.12261.
The bits are not: their code lays photographs of frost over the images and needs
ImageMagick, OpenCV and scikit-image; here all is computed with NumPy, SciPy and Pillow.
Their images have 224 pixels a side: lengths are scaled by the side of the image, plus
half a pixel, so that small images change, too.

A corrupted image is a function of (seed, index of the image, kind, severity) and of its
pixels: neither of the other images nor of their order. The random numbers of an image
are the same at all severities. `jpeg_compression` depends on the version of Pillow.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
import PIL.Image
from scipy import ndimage, signal

from gpuzoo import randomness
from gpuzoo.errors import GpuzooError

SEVERITIES = (1, 2, 3, 4, 5)
LEAST = 8
"""Pixels a side, at least."""
_REFERENCE = 224  # pixels a side of ImageNet-C


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers of one corrupted image, each array at an address of its own."""

    address: tuple

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        return randomness.uniform(shape, *self.address, name)

    def normal(self, name: str, *shape: int) -> np.ndarray:
        return randomness.normal(shape, *self.address, name)


def check(shape: tuple[int, ...]) -> None:
    """Raise GpuzooError for images that cannot be corrupted; `shape`: of an image."""
    if shape[-1] not in (1, 3) or min(shape[:2]) < LEAST:
        raise GpuzooError(
            "corruptions need images of 1 or 3 channels and at least "
            f"{LEAST}x{LEAST} pixels; these are (height, width, channels) = "
            f"{tuple(shape)}"
        )


def corrupt(
    images: np.ndarray, indices: np.ndarray, kind: str, severity: int, seed: int
) -> np.ndarray:
    """Return corrupted images.

    Args:
        images: (examples, height, width, channels), uint8 or float32 in [0, 1].
        indices: (examples,), the places of the images in their dataset.
        kind: a name in KINDS.
        severity: 1..5.
        seed: see above.

    Returns:
        Images of the same shape and dtype; uint8 rounded to whole values.

    Raises:
        GpuzooError: unknown kind or severity, or images of an unsuited shape.
    """
    if kind not in KINDS or severity not in SEVERITIES:
        raise GpuzooError(
            f"corruption must be one of {', '.join(KINDS)}, severity in 1..5: "
            f"{kind!r}, {severity!r}"
        )
    check(images.shape[1:])
    changed = np.empty_like(images)
    whole = images.dtype == np.uint8
    amount = _AMOUNTS[kind][severity - 1]
    # One by one: the last bits of sums over a batch could depend on its size.
    for place, (image, index) in enumerate(zip(images, indices, strict=True)):
        values = image.astype(np.float64) / (255 if whole else 1)
        # Without the severity: it is the only thing that differs between two of them.
        draws = Draws((seed, "corruption", kind, int(index)))
        values = np.clip(KINDS[kind](values, amount, draws), 0, 1)
        changed[place] = np.rint(255 * values) if whole else values
    return changed


# --- noise --------------------------------------------------------------------------


def gaussian_noise(image, amount, draws):
    return image + amount * draws.normal("noise", *image.shape)


def shot_noise(image, amount, draws):
    """Poisson noise of `amount` photons per unit of light."""
    expected, u = amount * image, draws.uniform("noise", *image.shape)
    # By inversion: the count is the number of terms of the distribution below u.
    term = np.exp(-expected)
    total, counts = term.copy(), np.zeros_like(expected)
    for count in range(1, 200):
        above = u > total
        if not above.any():
            break
        counts += above
        term = term * expected / count
        total += term
    return counts / amount


def impulse_noise(image, amount, draws):
    """A part of the values becomes 0 or 1."""
    u = draws.uniform("noise", *image.shape)
    return np.where(u < amount / 2, 0, np.where(u >= 1 - amount / 2, 1, image))


# --- blur ---------------------------------------------------------------------------


def defocus_blur(image, amount, draws):
    """Blur by a disk of this radius."""
    radius = _pixels(image, amount)
    reach = int(np.ceil(radius))
    places = np.arange(-reach, reach + 1)
    distance = np.hypot(places[:, None], places[None, :])
    return _convolved(image, np.clip(radius + 0.5 - distance, 0, 1))


def glass_blur(image, amount, draws):
    """Move each pixel at random by up to `reach`, a few times, between two blurs."""
    sigma, reach, rounds = amount
    sigma, reach = _pixels(image, sigma) - 0.25, _pixels(image, reach)
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    sides = image.shape[:2]
    for step in range(rounds):
        moves = np.rint(reach * (2 * draws.uniform(f"moves {step}", 2, *sides) - 1))
        places = np.indices(sides) + moves.astype(int)
        rows, columns = (np.clip(places[axis], 0, sides[axis] - 1) for axis in (0, 1))
        image = image[rows, columns]
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def motion_blur(image, amount, draws):
    """Blur along a line within 45 degrees of the horizontal."""
    reach, sigma = (_pixels(image, one) for one in amount)
    angle = np.pi / 4 * (2 * draws.uniform("angle", 1)[0] - 1)
    return _convolved(image, _line(reach, sigma, angle))


def zoom_blur(image, amount, draws):
    """The mean of zooms into the middle, from 1 to 1 + amount."""
    zooms = 1 + amount * np.arange(12) / 11
    return sum(_zoomed(image, zoom) for zoom in zooms) / len(zooms)


# --- weather ------------------------------------------------------------------------


def snow(image, amount, draws):
    """Flakes, drawn out along the wind, over a whiter image."""
    least, reach, own = amount
    flakes = _upsampled(draws.normal("flakes", *_cells(image, 3)), image.shape)
    flakes = np.clip((flakes - least) / 2, 0, 1)[..., None]
    angle = np.pi * (0.25 + 0.5 * draws.uniform("angle", 1)[0])
    reach = _pixels(image, reach)
    flakes = _convolved(flakes, _line(reach, reach, angle))
    white = np.maximum(image, 1.5 * _grey(image) + 0.5)
    return own * image + (1 - own) * white + flakes + flakes[::-1, ::-1]


def frost(image, amount, draws):
    """Ridges of ice over a darker image, denser at the edges."""
    own, ice = amount
    ridges = 1 - np.abs(2 * _plasma(image.shape, 1.6, draws) - 1)
    rows, columns = (np.abs(np.linspace(-1, 1, side)) for side in image.shape[:2])
    edge = np.maximum(rows[:, None], columns[None, :])
    return own * image + ice * (ridges**3 * (0.5 + 0.5 * edge))[..., None]


def fog(image, amount, draws):
    """A cloud of this thickness; the smaller the decay, the finer it is."""
    thickness, decay = amount
    brightest = image.max()
    cloud = thickness * _plasma(image.shape, decay, draws)[..., None]
    return (image + cloud) * brightest / (brightest + thickness)


def brightness(image, amount, draws):
    """Raise the value (of hue, saturation, value)."""
    value = image.max(axis=-1, keepdims=True)
    factor = np.minimum(value + amount, 1) / np.where(value > 0, value, 1)
    return np.where(value > 0, image * factor, amount)


# --- digital ------------------------------------------------------------------------


def contrast(image, amount, draws):
    """Leave this part of the difference from the mean."""
    mean = image.mean(axis=(0, 1))
    return amount * (image - mean) + mean


def elastic_transform(image, amount, draws):
    """Move pixels along a smooth random field, by this part of the side (root mean
    square)."""
    side = min(image.shape[:2])
    noise = 2 * draws.uniform("field", 2, *image.shape[:2]) - 1
    width = 0.08 * side
    field = ndimage.gaussian_filter(noise, (0, width, width))
    field *= amount * side / np.sqrt(np.mean(field**2, axis=(1, 2), keepdims=True))
    places = np.indices(image.shape[:2]) + field
    channels = [
        ndimage.map_coordinates(channel, places, order=1, mode="reflect")
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def pixelate(image, amount, draws):
    """Average over squares of this side; between two whole sides, mix both."""
    side = int(amount)
    part = amount - side
    return (1 - part) * _squares(image, side) + part * _squares(image, side + 1)


def jpeg_compression(image, amount, draws):
    """Compress with this quality."""
    whole = np.rint(255 * image).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(whole if whole.shape[-1] == 3 else whole[..., 0]).save(
        file, "jpeg", quality=amount
    )
    return np.asarray(PIL.Image.open(file)).reshape(image.shape) / 255


# --- parts of them ------------------------------------------------------------------


def _pixels(image, length: float) -> float:
    """Return a length in pixels of ImageNet-C as one in pixels of this image."""
    return 0.5 + length * min(image.shape[:2]) / _REFERENCE


def _cells(image, size: float) -> tuple[int, ...]:
    """Return how many cells of `size` pixels of ImageNet-C the image has."""
    size = max(1.0, size * min(image.shape[:2]) / _REFERENCE)
    return tuple(max(2, round(side / size)) for side in image.shape[:2])


def _grey(image):
    weights = [0.299, 0.587, 0.114] if image.shape[-1] == 3 else [1.0]
    return (image * weights).sum(axis=-1, keepdims=True)


def _convolved(image, kernel):
    """Return the image convolved with a kernel of odd sides, mirrored at its edges."""
    reach = [(side // 2, side // 2) for side in kernel.shape]
    padded = np.pad(image, [*reach, (0, 0)], mode="symmetric")
    kernel = (kernel / kernel.sum())[..., None]
    return signal.fftconvolve(padded, kernel, mode="valid", axes=(0, 1))


def _line(reach: float, sigma: float, angle: float):
    """Return the kernel of a line of this half-length, weighted by a Gaussian."""
    size = int(np.ceil(reach))
    steps = np.linspace(-reach, reach, 8 * size + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    places = np.arange(-size, size + 1)
    # Each point is shared by its four neighbours, by distance.
    rows, columns = (
        np.clip(1 - np.abs(places[:, None] - points), 0, 1)
        for points in (steps * np.sin(angle), steps * np.cos(angle))
    )
    # Not a matrix product, whose bits depend on the number of threads.
    return (weights * rows[:, None, :] * columns[None, :, :]).sum(axis=-1)


def _zoomed(image, zoom: float):
    """Return the image, enlarged around its middle."""
    first = [(side - 1) / 2 * (1 - 1 / zoom) for side in image.shape[:2]]
    return ndimage.affine_transform(
        image, np.array([1 / zoom, 1 / zoom, 1]), [*first, 0], order=1, mode="nearest"
    )


def _upsampled(field, shape: tuple[int, ...]):
    """Return a field (rows, columns), interpolated to the sides of an image."""
    scales = [
        (there - 1) / max(1, side - 1)
        for there, side in zip(field.shape, shape, strict=False)
    ]
    return ndimage.affine_transform(
        field, np.array(scales), output_shape=shape[:2], order=1, mode="nearest"
    )


def _plasma(shape: tuple[int, ...], decay: float, draws):
    """Return a fractal (height, width) in [0, 1]: noise on finer and finer grids, each
    weaker by `decay`."""
    total, weight = np.zeros(shape[:2]), 1.0
    for octave in range(1, max(2, int(np.log2(min(shape[:2]))))):
        side = 2**octave + 1
        grid = draws.uniform(f"octave {octave}", side, side)
        total += weight * _upsampled(grid, shape)
        weight /= decay
    return (total - total.min()) / (total.max() - total.min())


def _squares(image, side: int):
    """Return the image with each square of pixels replaced by its mean."""
    for axis in (0, 1):
        starts = np.arange(0, image.shape[axis], side)
        counts = np.diff(np.append(starts, image.shape[axis]))
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        means = np.add.reduceat(image, starts, axis=axis) / counts.reshape(shape)
        image = np.repeat(means, counts, axis=axis)
    return image


KINDS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur,
        motion_blur, zoom_blur, snow, frost, fog, brightness, contrast,
        elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip
"""Name -> (image (height, width, channels), float64 in [0, 1]; amount; draws) ->
values of the same shape."""

# By severity. Those of glass blur, snow, frost, fog, elastic transform and
# pixelate are our own.
_AMOUNTS: dict[str, tuple] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "shot_noise": (60, 25, 12, 5, 3),  # photons
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # part of the values
    "defocus_blur": (3, 4, 6, 8, 10),  # radius, pixels of 224
    "glass_blur": ((0.7, 1, 1), (0.9, 2, 1), (1, 2, 2), (1.1, 3, 2), (1.5, 4, 3)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # reach, deviation
    "zoom_blur": (0.11, 0.16, 0.21, 0.26, 0.31),
    "snow": ((1.6, 10, 0.85), (1.3, 11, 0.75), (1.0, 12, 0.7), (0.8, 12, 0.65),
             (0.6, 12, 0.6)),  # least normal number of a flake, reach, own part
    "frost": ((0.9, 0.4), (0.8, 0.55), (0.7, 0.7), (0.65, 0.8), (0.6, 0.9)),
    "fog": ((0.75, 1.8), (1.2, 1.8), (1.8, 1.8), (2.8, 1.8), (4.5, 1.8)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (0.01, 0.02, 0.03, 0.04, 0.055),
    "pixelate": (1.5, 2, 2.75, 3.5, 4.5),  # pixels
    "jpeg_compression": (25, 18, 15, 10, 7),
}  # fmt: skip
