"""The classes of masks: numbers or colours in the files, and the names of
classes.txt or classes.csv."""

import collections
import csv
import dataclasses
import pathlib

import numpy as np

from gpuzoo.data.folders import reason
from gpuzoo.data.masks import VOID
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular

NAMES = ("classes.txt", "classes.csv")
"""Files in the data folder that name the classes."""
_VOID_NAMES = ("void", "ignore")
_VOC_VOID = 0xE0E0C0
"""The colour in which Pascal VOC draws the pixels to be ignored."""
_MOST_UNNAMED = 64
"""Classes without names: more are mostly those of smooth edges, or of a JPEG."""


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


# --- numbers and colours ------------------------------------------------------------


def as_numbers(what: str, found: dict, names: Names | None):
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


def packed(colours: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as 0xRRGGBB."""
    parts = colours.astype(np.uint32)
    return parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]


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
