"""Folders of images with a folder of masks: images/ and masks/ with files of the same
names, perhaps in train/, val/ and test/."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from gpuzoo.data import folders, images, mask_classes, masks
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.folders import IMAGE_SUFFIXES, all_bad, content_of, reason
from gpuzoo.data.mask_classes import Mask, packed
from gpuzoo.data.masks import VOID
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular

Note = Callable[[str], None]
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


# --- the folder ---------------------------------------------------------------------


def is_masked(what: str, path: pathlib.Path) -> bool:
    """Whether a folder, or its part for training, has images/ and masks/."""
    below = folders.sub_folders(what, path)
    train = next((n for n in below if n.lower() in ("train", "training")), None)
    return both(what, path) is not None or (
        train is not None and both(what, path / train) is not None
    )


def both(what: str, folder: pathlib.Path) -> tuple[pathlib.Path, ...] | None:
    """Return the folders of the images and of the masks; None if one is missing."""
    lower = {name.lower(): name for name in folders.sub_folders(what, folder)}
    if {"images", "masks"} <= set(lower):
        return tuple(folder / lower[name] for name in ("images", "masks"))
    return None


def read(path: pathlib.Path, size: int, note: Note) -> Dataset:
    """Read a folder for which `is_masked`.

    Args:
        size: side in pixels to which images and masks are resized; 0: as they are.

    Raises:
        GpuzooError: what is wrong, with the files and the remedy.
    """
    what, names = f"data folder {path.name!r}", mask_classes.names_of(path)
    places = {"": path}
    if both(what, path) is None:
        places = folders.find_splits(what, path, note)
    pairs = {split: _pairs(what, folder, note) for split, folder in places.items()}
    splits, found = {}, {}
    for split, mine in pairs.items():
        splits[split], found[split] = _read_part(what, path, mine, size, note)
    how, classes = mask_classes.as_numbers(what, found, names)
    for split, read in found.items():
        splits[split]["label"] = np.stack([one.values for one in read.values()])
    if "" in splits:
        splits = masks.hold_out(what, splits[""])
    channels = max(fields["image"].shape[3] for fields in splits.values())
    for fields in splits.values():
        shape = (*fields["image"].shape[:3], channels)
        fields["image"] = np.ascontiguousarray(np.broadcast_to(fields["image"], shape))
    dataset = masks.make_dataset(path.name, "images with masks", splits, classes)
    note(masks.said(dataset, how))
    return dataset


def missing(what: str, path: pathlib.Path) -> GpuzooError:
    """Return the error for a folder without images/ and masks/."""
    text = f"{what}: for segmentation it needs the folders images/ and masks/, with a "
    text += "PNG mask of the same name for each image, perhaps in train/ and test/"
    if any(path.rglob("*.json")):
        text += (
            "; annotations in .json (COCO) are not read: write a mask of each image, "
            "with pycocotools: mask[coco.annToMask(one) > 0] = one['category_id']"
        )
    return GpuzooError(text)


def _pairs(
    what: str, folder: pathlib.Path, note: Note
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Return image and mask of each example, sorted by name.

    Raises:
        GpuzooError: there are none, or some lack the other.
    """
    places = both(what, folder)
    if places is None:
        raise missing(f"{what}, {folder.name}/", folder)
    found = []
    for place in places:
        files = [file for _, file in folders.find_files(what, place, None)]
        mine = [
            file
            for file in files
            if file.suffix.lower() in IMAGE_SUFFIXES or content_of(file) == "image"
        ]
        if left := sorted({f.suffix.lower() for f in set(files) - set(mine)}):
            count = len(files) - len(mine)
            note(
                f"{what}: {count} files in {place.name}/ are ignored by suffix: "
                f"{', '.join(left)}"
            )
        found.append(folders.by_stem(what, place, mine))
    pictures, drawn = found
    if not pictures and not drawn:
        raise GpuzooError(f"{what}: {folder.name}/images/ and masks/ have no images")
    lines = [
        f"{len(alone)} {kind}: {_listed(alone)}"
        for kind, alone in (
            ("images without a mask", sorted(set(pictures) - set(drawn))),
            ("masks without an image", sorted(set(drawn) - set(pictures))),
        )
        if alone
    ]
    if lines:
        raise GpuzooError(
            f"{what}: {'; '.join(lines)}; give an image and its mask the same name but "
            "for the suffix, and remove what has no other"
        )
    return [(pictures[stem], drawn[stem]) for stem in sorted(pictures)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _read_part(what: str, path: pathlib.Path, pairs: list, size: int, note: Note):
    """Return the images of a split, and name -> mask."""
    seen: dict[pathlib.Path, images.Picture] = {}
    found = [(0, image) for image, _ in pairs]
    part = images.read_folder(what, path, found, size, note, seen.__setitem__)
    read, bad = {}, []
    for image, file in pairs:
        name = str(file.relative_to(path))
        try:
            mask = read_mask(file)
            _check_pair(seen[image], mask)
        except Exception as error:  # Pillow raises many types
            bad.append((name, reason(error, file)))
            continue
        if size:
            values = nearest(mask.values, (size, size))
            mask = dataclasses.replace(mask, values=values)
        read[name] = mask
    if len(bad) == 1:
        raise GpuzooError(f"{what}: {bad[0][0]}: {bad[0][1]}")
    if bad:
        raise all_bad(what, bad, len(read), "masks", "")
    moved = sum(one.shape != (size, size) for one in seen.values())
    if size and moved:
        note(
            f"{what}: {moved} of {len(seen)} images are resized to {size}x{size}, and "
            "their masks to the nearest pixel"
        )
    return {"image": part["image"]}, read


def _check_pair(picture: images.Picture, mask: Mask) -> None:
    """Raise ValueError if a mask is not of the pixels of its image."""
    if images.TURNED in picture.changes:
        raise ValueError(
            "its image is turned by its EXIF data, and the mask may be of either "
            "form; save the image upright and without them"
        )
    if picture.shape != mask.values.shape:
        theirs, mine = (f"{s[1]}x{s[0]}" for s in (picture.shape, mask.values.shape))
        raise ValueError(
            f"it is {mine} pixels, and its image {theirs}; make them equal"
        )


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an array (height, width) resized to the value of the nearest pixel."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


# --- one file -----------------------------------------------------------------------


def read_mask(file: pathlib.Path | bytes) -> Mask:
    """Decode a PNG mask; nothing is converted or smoothed.

    Raises:
        Exception: it is not a PNG file, or its pixels are not clearly classes.
    """
    content = file if isinstance(file, bytes) else read_regular(file, images.MOST_BYTES)
    if not content.startswith(_PNG):
        if content.startswith(_JPEG):
            raise ValueError(
                "it is a JPEG file, which changes the values of pixels at every edge; "
                "save the mask as PNG where it was drawn (a converted JPEG stays wrong)"
            )
        raise ValueError("masks are PNG files, and this is another format; convert it")
    return images.decoded(content, ["PNG"], lambda image: _mask(image, content[24]))


def _mask(image, depth: int) -> Mask:
    """Return the mask in an open image; `depth`: bits per channel."""
    if getattr(image, "is_animated", False):
        raise ValueError("it is animated; save one frame")
    image.load()
    if image.getexif().get(0x0112, 1) != 1:
        raise ValueError("it is turned by its EXIF data; save it upright")
    mode = image.mode
    if mode == "P":
        palette = np.zeros((256, 3), np.uint32)
        colours = np.array(image.getpalette("RGB"), np.uint32).reshape(-1, 3)
        palette[: len(colours)] = colours
        return Mask(np.asarray(image), "palette", packed(palette))
    if mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema()[0] < 255:
            raise ValueError(
                "it has transparent pixels, whose class is not clear; save it without "
                "transparency"
            )
        image = image.convert(mode[:-1])
        mode = image.mode
    if mode == "RGB" and depth == 8:
        return Mask(packed(np.asarray(image)), "colours")
    values = np.asarray(image)
    if mode == "1":
        return Mask(values.astype(np.uint8), "numbers")
    if mode == "L" and depth <= 8:
        # Pillow spreads 2 and 4 bits over 0 to 255.
        return Mask(values // {2: 85, 4: 17}.get(depth, 1), "numbers")
    if mode.startswith("I") and values.max() <= VOID:
        return Mask(values.astype(np.uint8), "numbers")
    if mode.startswith("I"):
        raise ValueError(
            f"values up to {values.max()}; classes are 0 to {VOID - 1}, and {VOID} "
            "stands for pixels to be ignored"
        )
    raise ValueError(
        f"it has {depth} bits per channel ({mode}); save it with 8 bits, as classes or "
        "as colours"
    )
