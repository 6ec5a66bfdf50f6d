"""Folders of the user's files, one sub-folder for each class."""

import os
import pathlib
from collections.abc import Callable

from gpuzoo.errors import GpuzooError

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")  # the first that is there


def is_folder(path: pathlib.Path) -> bool:
    """Whether it is one, or GpuzooError where that may not be known."""
    try:
        return path.is_dir()
    except OSError as error:
        raise _unreadable(f"data {path.name!r}", error) from None


def find_splits(
    what: str, path: pathlib.Path, note: Callable[[str], None]
) -> dict[str, pathlib.Path]:
    """The folders of the training and the test classes; {} if there is one for both.

    Raises:
        GpuzooError: one of the two is missing.
    """
    names = sub_folders(what, path)
    lower = {name.lower(): name for name in names}
    first = [next((n for n in part if n in lower), None) for part in (_TRAIN, _TEST)]
    if None not in first:
        taken = [lower[name] for name in first]
        if left := sorted(set(names) - set(taken)):
            note(f"{what}: {'/ and '.join(taken)}/ are read, {', '.join(left)} not")
        return dict(zip(("train", "test"), (path / n for n in taken), strict=True))
    if alone := first[0] or first[1]:
        raise GpuzooError(
            f"{what}: {lower[alone]}/ stands alone; needs train/ and test/ (or val/), "
            "one sub-folder per class in each; a class of that name must be renamed"
        )
    return {}


def sub_folders(what: str, folder: pathlib.Path) -> list[str]:
    """The names of those that are not hidden, sorted."""
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    except OSError as error:
        raise _unreadable(what, error) from None
    return [name for name in names if not name.startswith(".")]


def find_files(
    what: str, folder: pathlib.Path, classes: list[str]
) -> list[tuple[int, pathlib.Path]]:
    """Every file at any depth below the sub-folders that are named, in their order and
    that of the paths, with the place of its sub-folder among them; no hidden ones.

    Raises:
        GpuzooError: a folder that cannot be read, or a link to one.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(what, error) from None

    found, there = [], sub_folders(what, folder)
    for label, name in enumerate(classes):
        if name not in there:  # of the test examples
            continue
        files = []
        for place, below, names in os.walk(folder / name, onerror=refuse):
            below[:] = [n for n in below if not n.startswith(".")]
            for path in (pathlib.Path(place, n) for n in below):
                if path.is_symlink():
                    raise GpuzooError(
                        f"{what}: {path.relative_to(folder)} is a link to a folder, "
                        "which is not followed; put the files in its place"
                    )
            files += [pathlib.Path(place, n) for n in names if not n.startswith(".")]
        found += [(label, file) for file in sorted(files)]
    return found


def _unreadable(what: str, error: OSError) -> GpuzooError:
    return GpuzooError(
        f"{what}: {error.filename} cannot be read: {error.strerror}; check the path "
        "and its permissions"
    )
