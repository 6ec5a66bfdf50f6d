"""Image files, and folders of them."""

import collections
import dataclasses
import io
import pathlib
import re
import warnings
from collections.abc import Callable

import numpy as np

from gpuzoo.data.folders import IMAGE_SUFFIXES, all_bad, content_of, reason
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular, too_large

# Formats that Pillow may decode: others run programs (EPS) or are not images.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF",
            "WEBP")  # fmt: skip
_LIGHT_ON_DARK = {"digits", "emnist", "fashion_mnist", "kmnist", "mnist"}
MOST_BYTES = 1 << 29
DARK = 32
"""Of 255: if its brightest pixel is darker, an image probably holds 0 to 1."""
_ORIENTATION = 0x0112  # the tag of EXIF and TIFF
# Tags of TIFF, and how many channels of colour each interpretation has.
_INTERPRETATION, _SAMPLES, _EXTRA, _FORMAT = 262, 277, 338, 339
_OF_COLOUR = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
TURNED, ON_WHITE, FIRST = (
    "turned upright (EXIF)", "drawn on white (transparency)",
    "only the first frame is read",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image."""

    pixels: np.ndarray
    """(height, width, 1 or 3), uint8"""
    shape: tuple[int, int]
    """Height and width, upright, before it was resized."""
    channels: int
    """1 or 3, before it was converted."""
    changes: tuple[str, ...]
    """What else was done: TURNED, ON_WHITE, FIRST."""


def read_folder(
    what: str,
    folder: pathlib.Path,
    found: list[tuple[int, pathlib.Path]],
    size: int,
    note: Callable[[str], None] = lambda text: None,
    seen: Callable[[pathlib.Path, "Picture"], None] = lambda file, picture: None,
) -> dict:
    """Read the images among the files of a folder.

    Args:
        seen: called with each image.

    Returns:
        `image` (examples, height, width, 1 or 3), uint8, and `label`, the class index
        of each file.

    Raises:
        GpuzooError: unreadable images, of which five are listed, or images of several
            sizes without `size`.
    """
    images, labels, bad, sizes = [], [], [], {}
    changes: collections.Counter = collections.Counter()
    for label, file in found:
        if file.suffix.lower() not in IMAGE_SUFFIXES and content_of(file) != "image":
            continue
        name = str(file.relative_to(folder))
        try:
            picture = read_image(file, (size, size) if size else None)
        except Exception as error:  # Pillow raises many types
            bad.append((name, reason(error, file)[:120]))
            continue
        seen(file, picture)
        images.append(picture.pixels)
        labels.append(label)
        sizes.setdefault(picture.pixels.shape[:2], []).append(name)
        changes.update(picture.changes)
    if len(bad) == 1:
        raise GpuzooError(
            f"{what}: {bad[0][0]}: not a readable image ({bad[0][1]}); remove or "
            "replace it"
        )
    if bad:
        raise all_bad(what, bad, len(images), "images", "; remove or replace them")
    if not images:
        raise GpuzooError(
            f"{what}: no images found ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    if len(sizes) > 1:
        first, other = list(sizes)[:2]
        raise GpuzooError(
            f"{what}: {sizes[other][0]}: {other} pixels where the first image has "
            f"{first} (as {len(sizes[first])} of {len(images)} images); set one size, "
            "e.g. --image-size 64"
        )
    if changes:
        counts = ", ".join(f"{count} {change}" for change, count in changes.items())
        note(f"{what}: of {len(images)} images: {counts}")
    channels = max(image.shape[2] for image in images)
    images = [np.broadcast_to(i, (*i.shape[:2], channels)) for i in images]
    return {"image": np.stack(images), "label": np.array(labels)}


def read_image(
    file: pathlib.Path | bytes,
    size: tuple[int, int] | None = None,
    channels: int = 0,
) -> Picture:
    """Decode an image as a viewer shows it: upright, on white, and the first of several
    frames.

    Args:
        file: the path of a regular file, or its content.
        size: height and width to resize to, bilinear, without keeping the proportions.
        channels: 1 or 3 to convert to grey or colour; 0: as in the file.

    Raises:
        Exception: it is not a readable image of 8 bits per channel, or too large; the
            types are Pillow's. `folders.reason` returns the reason.
    """
    from PIL import Image

    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    content = file if isinstance(file, bytes) else read_regular(file, MOST_BYTES)

    def make(image) -> Picture:
        several = _is_animated(content, image.format, formats, image)
        return _picture(image, size, channels, several)

    return decoded(content, formats, make)


def decoded(content: bytes, formats: list[str], make: Callable):
    """Return `make` of an open Pillow image, whose size and checksums hold.

    Args:
        formats: Pillow's names of the formats that are allowed.

    Raises:
        Exception: see `read_image`.
    """
    from PIL import Image, UnidentifiedImageError

    if len(content) > MOST_BYTES:
        raise ValueError(too_large(len(content), MOST_BYTES))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # More than Image.MAX_IMAGE_PIXELS: a small file can need all memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=formats) as image:
                if image.format == "PNG":  # checksums that decoding leaves out
                    with Image.open(io.BytesIO(content), formats=["PNG"]) as other:
                        other.verify()
                return make(image)
    except UnidentifiedImageError:
        why = "its content is not an image" if content else "it is empty"
        raise ValueError(why) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\d+", str(error))
        raise ValueError(
            f"it has {int(pixels[0]):,} pixels, and at most "
            f"{Image.MAX_IMAGE_PIXELS:,} are read; make it smaller"
            if pixels
            else str(error)
        ) from None


def _is_animated(content: bytes, form: str, formats: list[str], image) -> bool:
    """Whether a file has several frames."""
    from PIL import Image

    if form == "MPO":  # photographs of phones, with a small or a brighter second one
        return False
    if form != "GIF":
        return bool(getattr(image, "is_animated", False))
    # A GIF must be searched for its second frame: in another object.
    try:
        with Image.open(io.BytesIO(content), formats=formats) as other:
            return bool(getattr(other, "is_animated", False))
    except Exception:  # the frame is damaged, and not used
        return False


def _picture(image, size, channels: int, several: bool) -> Picture:
    from PIL import Image, ImageOps

    wide = re.search(r"^[IF]|[A-Z];16[A-Z]", f"{image.mode} {image.tile}")
    if image.format == "PPM" and not wide:  # the brightest value, if it is not 255
        wide = any(isinstance(t.args, tuple) and t.args[1] > 255 for t in image.tile)
    if wide:
        raise ValueError(
            "it has more than 8 bits per channel, which would be lost; convert it, or "
            "save floats in [0, 1] as .npz"
        )
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF":
        _check_samples(tags)
    # Pillow turns TIFF images while loading them.
    turned = tags.get(_ORIENTATION, 1)
    image.load()
    turned = turned if turned != 1 else image.getexif().get(_ORIENTATION, 1)
    ImageOps.exif_transpose(image, in_place=True)
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    transparent = image.has_transparency_data
    if transparent:
        white, image = Image.new("RGBA", image.size, "white"), image.convert("RGBA")
        transparent = image.getextrema()[3][0] < 255
        image = Image.alpha_composite(white, image)
    image = image.convert(mode)
    shape = (image.height, image.width)
    if channels == 1:
        image = image.convert("L")
    if size and (size != shape):
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.atleast_3d(image)
    if channels:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], channels))
    said = ((TURNED, turned in range(2, 9)), (ON_WHITE, transparent), (FIRST, several))
    changes = tuple(change for change, done in said if done)
    return Picture(pixels, shape, 1 if mode == "L" else 3, changes)


def _check_samples(tags) -> None:
    """Refuse a TIFF image of which Pillow would take negative numbers for bright ones,
    or leave out channels, as the infrared one of a satellite."""
    if set(np.atleast_1d(tags.get(_FORMAT, 1)).tolist()) - {1, 4}:
        raise ValueError("its numbers are signed; save floats in [0, 1] as .npz")
    colours, channels = _OF_COLOUR.get(tags.get(_INTERPRETATION)), tags.get(_SAMPLES, 1)
    alpha = np.atleast_1d(tags.get(_EXTRA, ())).tolist() in ([1], [2])
    if colours and channels != colours and not (alpha and channels == colours + 1):
        raise ValueError(
            f"it has {channels} channels that are not all colours or transparency; "
            "save those that are meant, or all of them as an array in a .npz file"
        )


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Return images (n, height, width, 1 or 3), uint8 or floats in [0, 1], in grey or
    in colour, with the weights that files are converted by (ITU-R 601)."""
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    grey = images @ np.array([0.299, 0.587, 0.114])
    whole = images.dtype == np.uint8
    return (np.round(grey) if whole else grey).astype(images.dtype)[..., None]


def looks_inverted(pixels: np.ndarray, white: float, data: str) -> bool:
    """Whether an image is dark on light and those of a dataset are known to be light
    on dark: whether most pixels of its border are light.

    Args:
        pixels: (height, width, channels), from 0 to `white`.
        data: the name of the dataset.
    """
    if data not in _LIGHT_ON_DARK:
        return False
    grey = pixels.mean(axis=-1)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return bool(np.median(border) > white / 2)
