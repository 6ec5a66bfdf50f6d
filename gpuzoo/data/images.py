"""Folders of image files."""

import pathlib
import re

import numpy as np

from gpuzoo.data.folders import IMAGE_SUFFIXES, all_bad, content_of
from gpuzoo.errors import GpuzooError

# Formats that Pillow may decode: others run programs (EPS) or are not images.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF",
            "WEBP")  # fmt: skip


def read_folder(
    what: str, folder: pathlib.Path, found: list[tuple[int, pathlib.Path]], size: int
) -> dict:
    """Read the images among the files of a folder.

    Returns:
        `image` (examples, height, width, 1 or 3), uint8, and `label`, the class index
        of each file.

    Raises:
        GpuzooError: unreadable images, of which five are listed, or images of several
            sizes without `size`.
    """
    from PIL import Image

    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    images, labels, bad, sizes = [], [], [], {}
    for label, file in found:
        if file.suffix.lower() not in IMAGE_SUFFIXES and content_of(file) != "image":
            continue
        name = str(file.relative_to(folder))
        try:
            with Image.open(file, formats=formats) as image:
                pixels = _pixels(image, size)
        except Exception as error:  # Pillow raises many types
            bad.append((name, _reason(error, file)))
            continue
        images.append(pixels)
        labels.append(label)
        sizes.setdefault(pixels.shape[:2], []).append(name)
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
    channels = max(image.shape[2] for image in images)
    images = [np.broadcast_to(i, (*i.shape[:2], channels)) for i in images]
    return {"image": np.stack(images), "label": np.array(labels)}


def _reason(error: Exception, file: pathlib.Path) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "its content is not an image" if file.stat().st_size else "it is empty"
    text = " ".join(str(error).replace(str(file), file.name).split())
    return text[:120] or type(error).__name__


def _pixels(image, size: int) -> np.ndarray:
    """Return an image (height, width, 1 or 3), uint8, as a viewer shows it: upright, on
    white, and the first of several frames."""
    from PIL import Image, ImageOps

    wide = re.search(r"^[IF]|[A-Z];16[A-Z]", f"{image.mode} {image.tile}")
    if image.format == "PPM" and not wide:  # the brightest value, if it is not 255
        wide = any(isinstance(t.args, tuple) and t.args[1] > 255 for t in image.tile)
    if wide:
        raise ValueError(
            "it has more than 8 bits per channel, which would be lost; convert it, or "
            "save floats in [0, 1] as .npz"
        )
    ImageOps.exif_transpose(image, in_place=True)
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert(mode)
    if size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.atleast_3d(image)
