"""Folders of the user's files, one sub-folder for each class."""

import collections
import os
import pathlib
from collections.abc import Callable

from gpuzoo.errors import GpuzooError

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
SOUND_SUFFIXES = {
    ".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav",
    ".wave",
}  # fmt: skip
# What systems and programs leave beside the user's files.
_LITTER = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "icon\r",
           "system volume information"}  # fmt: skip
_UNFINISHED = (".bak", ".crdownload", ".old", ".orig", ".part", ".tmp")
# Formats that are not read, and what they are.
_FOREIGN = {
    ".aac": "AAC sound", ".amr": "AMR sound", ".heic": "HEIC images",
    ".m4a": "AAC sound", ".mp4": "video", ".wma": "Windows Media sound",
}  # fmt: skip
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image"), (b"\xff\xd8\xff", "image"), (b"GIF8", "image"),
    (b"BM", "image"), (b"II*\0", "image"), (b"MM\0*", "image"), (b"fLaC", "sound"),
    (b"OggS", "sound"), (b"ID3", "sound"), (b"\xff\xfb", "sound"),
)  # fmt: skip

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
    return [name for name in names if not is_litter(name)]


def is_litter(name: str) -> bool:
    """Whether a file or a folder is hidden, or a system's own."""
    return name.startswith(".") or name.lower() in _LITTER


def content_of(file: pathlib.Path) -> str:
    """image, sound or nothing, by the first bytes of a file, whatever its suffix."""
    if file.suffix.lower() in _UNFINISHED or file.suffix.lower() in _FOREIGN:
        return ""
    try:
        with open(file, "rb") as opened:
            head = opened.read(16)
    except OSError:
        return ""
    if head[:4] == b"RIFF":
        return {b"WAVE": "sound", b"WEBP": "image"}.get(head[8:12], "")
    if head[:2] == b"BM" and len(head) < 16:
        return ""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def choose(what: str, folder: pathlib.Path, found: list, note) -> bool:
    """Whether a folder holds sounds and not images, as most of its files are; `note` is
    told what is left out.

    Raises GpuzooError where it holds both, or nothing that can be read.
    """
    kinds: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for _, file in found:
        suffix = file.suffix.lower()
        kind = "image" if suffix in IMAGE_SUFFIXES else ""
        kind = "sound" if suffix in SOUND_SUFFIXES else kind
        if not kind and (kind := content_of(file)):
            suffix = suffix or "no suffix"
            kinds["by content"][suffix] += 1
        kinds[kind or "left"][suffix] += 1
    images, sounds = kinds["image"].total(), kinds["sound"].total()
    if min(images, sounds) * 2 > max(images, sounds):
        raise GpuzooError(
            f"{what}: {images} images and {sounds} sounds in {folder.name}/; keep one "
            "kind"
        )
    left = kinds["left"] + kinds["image" if sounds > images else "sound"]
    foreign = sorted({_FOREIGN[suffix] for suffix in left if suffix in _FOREIGN})
    if not images and not sounds and foreign:
        raise GpuzooError(
            f"{what}: {left.total()} files in {folder.name}/ are {', '.join(foreign)}, "
            "which is not read; convert them, e.g. ffmpeg -i a.m4a a.wav, or to .png"
        )
    if left:
        note(
            f"{what}: {left.total()} files in {folder.name}/ are left out, by their "
            f"suffix: {', '.join(sorted(left))}"
        )
    if odd := kinds["by content"]:
        note(
            f"{what}: {odd.total()} files in {folder.name}/ are read by their content, "
            f"not their suffix: {', '.join(sorted(odd))}"
        )
    return sounds > images


def note_loose(what: str, folder: pathlib.Path, note) -> None:
    """Say which files lie beside the classes."""
    known = IMAGE_SUFFIXES | SOUND_SUFFIXES
    loose = [
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in known and path.is_file() and not is_litter(path.name)
    ]
    if loose:
        note(
            f"{what}: {min(loose)} ({len(loose)} in all) lies in no sub-folder of "
            f"{folder.name}/ and is left out"
        )


def find_files(
    what: str, folder: pathlib.Path, classes: list[str] | None
) -> list[tuple[int, pathlib.Path]]:
    """Every file at any depth below the sub-folders that are named, in their order and
    that of the paths, with the place of its sub-folder among them; no hidden ones.
    Without names every file of the folder, with 0.

    Raises:
        GpuzooError: a folder that cannot be read, or a link to one.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(what, error) from None

    found, there = [], sub_folders(what, folder)
    for label, name in enumerate(["."] if classes is None else classes):
        if classes is not None and name not in there:  # of the test examples
            continue
        files = []
        for place, below, names in os.walk(folder / name, onerror=refuse):
            below[:] = [n for n in below if not is_litter(n)]
            for path in (pathlib.Path(place, n) for n in below):
                if path.is_symlink():
                    raise GpuzooError(
                        f"{what}: {path.relative_to(folder)} is a link to a folder, "
                        "which is not followed; put the files in its place"
                    )
            files += [pathlib.Path(place, n) for n in names if not is_litter(n)]
        found += [(label, file) for file in sorted(files)]
    return found


def _unreadable(what: str, error: OSError) -> GpuzooError:
    return GpuzooError(
        f"{what}: {error.filename} cannot be read: {error.strerror}; check the path "
        "and its permissions"
    )
