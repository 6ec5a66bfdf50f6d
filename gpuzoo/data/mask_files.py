"""Folders of images with a folder of masks: images/ and masks/ with files of the same
names, perhaps in train/, val/ and test/."""

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from gpuzoo.data import folders, images, masks
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.folders import IMAGE_SUFFIXES, all_bad, content_of, reason
from gpuzoo.data.masks import VOID
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular

Note = Callable[[str], None]
NAMES = ("classes.txt", "classes.csv")
"""Files in the data folder that name the classes."""
_VOID_NAMES = ("void", "ignore")
_VOC_VOID = 0xE0E0C0
"""The colour in which Pascal VOC draws the pixels to be ignored."""
_MOST_UNNAMED = 64
"""Classes without names: more are mostly those of smooth edges, or of a JPEG."""
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask as it is in its file."""

    values: np.ndarray
    """(height, width): numbers, uint8, or colours, 0xRRGGBB as uint32."""
    kind: str
    """numbers (of a grey file), palette or colours."""
    palette: np.ndarray | None = None
    """(256,) colours of a palette."""


@dataclasses.dataclass(frozen=True)
class Names:
    """What classes.txt or classes.csv says.

    Attributes:
        classes: the names, without those of pixels to be ignored.
        numbers: of each line the number of its class, or VOID.
        colours: of each line 0xRRGGBB; empty: the lines are those of the numbers.
    """

    file: str
    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    colours: tuple[int, ...] = ()


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
    what, names = f"data folder {path.name!r}", names_of(path)
    places = {"": path}
    if both(what, path) is None:
        places = folders.find_splits(what, path, note)
    pairs = {split: _pairs(what, folder, note) for split, folder in places.items()}
    splits, found = {}, {}
    for split, mine in pairs.items():
        splits[split], found[split] = _read_part(what, path, mine, size, note)
    how, classes = _as_numbers(what, found, names)
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
        found.append(_by_stem(what, place, mine))
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


def _by_stem(what: str, place: pathlib.Path, files: list) -> dict:
    found: dict[str, pathlib.Path] = {}
    for file in files:
        stem = str(file.relative_to(place).with_suffix(""))
        if stem in found:
            raise GpuzooError(
                f"{what}: {found[stem].name} and {file.name} in {place.name}/ have the "
                "same name but for the suffix; remove one"
            )
        found[stem] = file
    return found


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
        return Mask(np.asarray(image), "palette", _packed(palette))
    if mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema()[0] < 255:
            raise ValueError(
                "it has transparent pixels, whose class is not clear; save it without "
                "transparency"
            )
        image = image.convert(mode[:-1])
        mode = image.mode
    if mode == "RGB" and depth == 8:
        return Mask(_packed(np.asarray(image)), "colours")
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


def _packed(colours: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as 0xRRGGBB."""
    parts = colours.astype(np.uint32)
    return parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]


# --- numbers and colours ------------------------------------------------------------


def _as_numbers(what: str, found: dict, names: Names | None):
    """Turn the values of all masks to numbers of classes, in place; return how they
    hold their classes, and the names of these, or None.

    Args:
        found: split -> name -> Mask.
    """
    kinds: dict[str, str] = {}
    for read in found.values():
        for name, mask in read.items():
            kinds.setdefault(mask.kind, name)
    if names and names.colours:
        how, known = f", by the colours of {names.file},", names
    elif "colours" in kinds and len(kinds) > 1:
        other = next(kind for kind in kinds if kind != "colours")
        raise GpuzooError(
            f"{what}: {kinds['colours']} holds colours and {kinds[other]} numbers of "
            "classes; save all masks in one form, or name the colours in classes.csv: "
            "name,r,g,b"
        )
    elif "colours" in kinds and not _grey_numbers(found):
        if names:
            raise GpuzooError(
                f"{what}: the masks hold colours, and {names.file} has no colours; "
                "write lines of name,r,g,b"
            )
        how, known = ", by their colours in order,", _names_of_colours(what, found)
    else:
        _same_palettes(what, found)
        _refuse_many(what, found, names)
        how = " (the numbers in the files)"
        if "colours" in kinds:
            how = " (grey values 0, 1, ...)"
        if "palette" in kinds:
            how = " (the numbers in the palette)"
        known = names
    for read in found.values():
        for name, mask in read.items():
            values = _numbered(f"{what}: {name}", mask, known)
            read[name] = dataclasses.replace(mask, values=values)
    return how, known and known.classes


def _numbered(what: str, mask: Mask, names: Names | None) -> np.ndarray:
    """Return the numbers of the classes of a mask, uint8."""
    values = mask.values
    if names is None:
        return (values & VOID).astype(np.uint8)
    if names.colours:
        table = dict(zip(names.colours, names.numbers, strict=True))
        if mask.kind == "palette":
            colours = mask.palette[values]
        elif mask.kind == "numbers":
            colours = values.astype(np.uint32) * 0x010101
        else:
            colours = values
        there, places = np.unique(colours, return_inverse=True)
        free = {VOID * 0x010101} if mask.kind == "numbers" else {_VOC_VOID}
        if unknown := [c for c in there.tolist() if c not in table and c not in free]:
            raise GpuzooError(
                f"{what}: the colour {_hex(unknown[0])} is not in {names.file}; add "
                "name,r,g,b, of pixels to be ignored with the name void"
            )
        numbers = np.array([table.get(c, VOID) for c in there.tolist()], np.uint8)
        return numbers[places.reshape(values.shape)]
    values = values & VOID
    table = np.full(256, VOID, np.uint8)
    table[: len(names.numbers)] = names.numbers
    if (beyond := values[(values >= len(names.numbers)) & (values != VOID)]).size:
        raise GpuzooError(
            f"{what}: the class {beyond.max()}, and {names.file} names "
            f"{len(names.numbers)}, from 0 on; add its name"
        )
    return table[values]


def _grey_numbers(found: dict) -> bool:
    """Whether all colours are greys of which some are so dark that they must be
    numbers, as 0, 1 and 2 saved as colours."""
    for colour in (colours := _colours(found)):
        red = colour >> 16
        if colour != red * 0x010101:
            return False
    return any(0 < colour & VOID < 32 for colour in colours)


def _colours(found: dict) -> set[int]:
    return {
        colour
        for read in found.values()
        for mask in read.values()
        for colour in np.unique(mask.values).tolist()
    }


def _names_of_colours(what: str, found: dict) -> Names:
    """Return the colours of the training masks, in order, as classes."""
    first = found.get("train", found.get("", {}))
    places: dict[int, str] = {}
    for read in found.values():
        for name, mask in read.items():
            for colour in np.unique(mask.values).tolist():
                places.setdefault(colour, name)
        if len(places) > _MOST_UNNAMED:
            raise GpuzooError(
                f"{what}: the masks have more than {_MOST_UNNAMED} colours; each "
                "colour is a class, and smooth edges or a JPEG on the way make new "
                "ones: save them without, or name the colours in classes.csv: "
                "name,r,g,b"
            )
    mine = sorted(_colours({"": first}) - {_VOC_VOID})
    if other := sorted(set(places) - set(mine) - {_VOC_VOID}):
        raise GpuzooError(
            f"{what}: the colour {_hex(other[0])} is in {places[other[0]]} and in no "
            "training mask; move its image to the training part, or name the colours "
            "in classes.csv: name,r,g,b"
        )
    classes = tuple(map(_hex, mine))
    return Names("the training masks", classes, tuple(range(len(mine))), tuple(mine))


def _refuse_many(what: str, found: dict, names: Names | None) -> None:
    """Raise if so many numbers occur that they are no classes, unless these are
    named."""
    count = len({value & VOID for value in _colours(found)} - {VOID})
    if names is None and count > _MOST_UNNAMED:
        raise GpuzooError(
            f"{what}: {count} different values in the masks; each is a class, and "
            "smooth edges or a JPEG on the way make new ones: save them without, or "
            "name all classes in classes.txt"
        )


def _hex(colour: int) -> str:
    return f"#{colour:06x}"


def _same_palettes(what: str, found: dict) -> None:
    """Raise if a number has two colours: programs that choose a palette for each image
    number its colours anew."""
    known: dict[int, tuple[int, str]] = {}
    for read in found.values():
        for name, mask in read.items():
            if mask.palette is None:
                continue
            for value in np.unique(mask.values).tolist():
                colour = int(mask.palette[value])
                before, other = known.setdefault(value, (colour, name))
                if before != colour:
                    raise GpuzooError(
                        f"{what}: number {value} is {_hex(before)} in the palette of "
                        f"{other} and {_hex(colour)} in that of {name}; save all masks "
                        "with one palette, or as colours"
                    )


# --- names --------------------------------------------------------------------------


def names_of(path: pathlib.Path) -> Names | None:
    """Return what classes.txt or classes.csv in a folder says; None if there is none.

    Raises:
        GpuzooError: both, or one that cannot be understood.
    """
    there = [name for name in NAMES if (path / name).is_file()]
    if not there:
        return None
    if len(there) > 1:
        raise GpuzooError(f"data folder {path.name!r}: {' and '.join(there)}: keep one")
    what = f"data folder {path.name!r}: {there[0]}"
    try:
        text = read_regular(path / there[0], 1 << 20).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise GpuzooError(f"{what} cannot be read: {reason(error)}") from None
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    while rows and not any(rows[-1]):
        rows.pop()
    if rows and [cell.lower() for cell in rows[0]] == ["name", "r", "g", "b"]:
        rows = rows[1:]
    lengths = {len(row) for row in rows}
    if lengths not in ({1}, {4}) or not all(row[0] for row in rows):
        raise GpuzooError(
            f"{what}: each line must be the name of a class, or name,r,g,b; in all "
            "lines alike"
        )
    return _names(what, there[0], rows)


def _names(what: str, file: str, rows: list[list[str]]) -> Names:
    classes, numbers, colours = [], [], []
    for row in rows:
        void = row[0].lower() in _VOID_NAMES
        numbers.append(VOID if void else len(classes))
        classes += [] if void else [row[0]]
        if len(row) == 4:
            parts = [int(one) if one.isdecimal() else 256 for one in row[1:]]
            if max(parts) > 255:
                raise GpuzooError(
                    f"{what}: {','.join(row)}: r, g and b must be in 0..255"
                )
            colours.append(parts[0] << 16 | parts[1] << 8 | parts[2])
    for kind, values in (("class", classes), ("colour", colours)):
        twice = [v for v, count in collections.Counter(values).items() if count > 1]
        if twice:
            one = _hex(twice[0]) if kind == "colour" else repr(twice[0])
            raise GpuzooError(f"{what} has the {kind} {one} twice")
    if not 2 <= len(classes) < VOID:
        raise GpuzooError(
            f"{what} names {len(classes)} classes; from 2 to {VOID - 1} can be told "
            "apart"
        )
    return Names(file, tuple(classes), tuple(numbers), tuple(colours))
