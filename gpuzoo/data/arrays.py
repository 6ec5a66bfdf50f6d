"""Datasets in .npz files."""

import pathlib
import re
from collections.abc import Callable

import numpy as np

from gpuzoo.data.dataset import ORDER
from gpuzoo.data.npy import NPY, check_members, memory
from gpuzoo.errors import GpuzooError
from gpuzoo.files import open_regular

_TRAIN, _TEST = ("train", "training"), ("test", "testing")
_VAL = ("val", "valid", "validation", "dev")
_FIELDS = {
    "image": ("x", "image", "images", "img", "imgs", "data", "features", "inputs"),
    "label": ("y", "label", "labels", "target", "targets"),
    "boxes": ("boxes", "bboxes"),
}
WANTED = (
    "x_train, y_train, x_test, y_test, for validation x_val, y_val (or only x, y; "
    "without labels x alone; boxes with their labels for detection)"
)


def read(
    path: pathlib.Path, note: Callable[[str], None]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of a file by split ("" without splits) and field, `image`,
    `label` and `boxes`; the array names of Keras, MedMNIST and scikit-learn are
    understood.

    Raises:
        GpuzooError: the file is damaged, or required arrays are missing.
    """
    what = f"data {path.name!r}"
    try:
        with open(open_regular(path), "rb") as raw:
            if raw.read(len(NPY)) == NPY:
                raise ValueError("it is a .npy file; save it with np.savez(path, x=x)")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                there = list(file.files)
                places = _places(what, there, note)
                check_members(file, list(places.values()), memory())
                arrays = {place: file[name] for place, name in places.items()}
    except FileNotFoundError:
        raise GpuzooError(f"{what}: there is no such file; check the path") from None
    except GpuzooError:
        raise
    except MemoryError as error:
        raise GpuzooError(
            f"{what}: too large for memory ({error}); save fewer or smaller examples, "
            "images as uint8"
        ) from None
    except Exception as error:  # zipfile, zlib and NumPy raise many types
        text = " ".join(str(error).split())[:200] or type(error).__name__
        if "allow_pickle" in text:
            text = "it holds Python objects; save plain arrays of numbers"
        raise GpuzooError(
            f"{what}: not a readable .npz file, or damaged or cut short: {text}"
        ) from None
    splits: dict = {}
    for (split, field), array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy returns the bytes of other files
            raise GpuzooError(
                f"{what}: {places[split, field]!r} is not an array, or damaged; save "
                "it with np.savez"
            )
        splits.setdefault(split, {})[field] = array
    return splits


def only_images(names: list[str]) -> str | None:
    """Return which of the arrays of a file holds examples to predict: those for
    testing, or those without a split; None if there is none, or not a single one."""
    for split in ("test", ""):
        found = [name for name in names if _place(name) == (split, "image")]
        if len(found) == 1:
            return found[0]
    return None


def _places(what: str, there: list[str], note) -> dict[tuple[str, str], str]:
    """Map (split, field) to the names of the arrays that are used."""
    found: dict = {}
    for name in there:
        if place := _place(name):
            found.setdefault(place, []).append(name)
    for names in found.values():
        if len(names) > 1:
            raise GpuzooError(
                f"{what}: {names[0]!r} and {names[1]!r} have the same meaning; remove "
                "one"
            )
    places = {place: names[0] for place, names in found.items()}
    splits = {split for split, field in places if field == "image"}
    if {"train", "test"} <= splits:
        used = {name: name for name in ORDER if name in splits}
    elif {"train", "val"} <= splits:
        used = {"train": "train", "val": "test"}
    elif splits == {""} and {split for split, _ in places} == {""}:
        used = {"": ""}
    else:
        used = {}
    there_in = [
        {(split, field) in places for split in used} for field in ("label", "boxes")
    ]
    if any(len(one) != 1 for one in there_in):
        raise GpuzooError(
            f"{what}: needs the arrays {WANTED}; it has "
            f"{', '.join(sorted(there)) or 'none'}"
        )
    taken = [name for (split, _), name in places.items() if split in used]
    if left := sorted(set(there) - set(taken)):
        note(f"{what}: {', '.join(taken)} are read, {', '.join(left)} ignored")
    if used.get("val") == "test":
        note(f"{what}: no test arrays, so {places['val', 'image']} is used for testing")
    return {(used[s], field): name for (s, field), name in places.items() if s in used}


def _place(name: str) -> tuple[str, str] | None:
    """Return (split, field) of an array by its name, or None."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    split, field = "", None
    for word in words:
        if word in _TRAIN + _TEST + _VAL and not split:
            kinds = {"train": _TRAIN, "test": _TEST, "val": _VAL}
            split = next(kind for kind, names in kinds.items() if word in names)
        elif fields := [f for f, names in _FIELDS.items() if word in names]:
            if field not in (None, fields[0]):
                return None
            field = fields[0]
        else:
            return None
    return (split, field) if field and "".join(words) else None
