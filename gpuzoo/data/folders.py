"""Datasets in folders, one sub-folder per class."""

import collections
import os
import pathlib
import re
from collections.abc import Callable

from gpuzoo.data import videos
from gpuzoo.errors import GpuzooError
from gpuzoo.files import open_regular

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
SOUND_SUFFIXES = {
    ".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav",
    ".wave",
}  # fmt: skip
# Files that operating systems and programs create.
_LITTER = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "icon\r", "ehthumbs.db",
           "system volume information", "$recycle.bin", "#recycle", "lost+found",
           "__pycache__"}  # fmt: skip
# Hidden folders that they create.
_OF_PROGRAMS = {".ipynb_checkpoints", ".git", ".thumbnails", ".appledouble"}
_UNFINISHED = (".bak", ".crdownload", ".old", ".orig", ".part", ".tmp")
# Formats that are not supported.
_FOREIGN = {
    ".aac": "AAC sound", ".amr": "AMR sound", ".heic": "HEIC images",
    ".m4a": "AAC sound", ".wma": "Windows Media sound",
    **dict.fromkeys(videos.SUFFIXES, "video"),
}  # fmt: skip
_NOT_OPENED = {*_UNFINISHED, *_FOREIGN} - videos.SUFFIXES
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image"), (b"\xff\xd8\xff", "image"), (b"GIF8", "image"),
    (b"BM", "image"), (b"II*\0", "image"), (b"MM\0*", "image"), (b"fLaC", "sound"),
    (b"OggS", "sound"), (b"ID3", "sound"), (b"\xff\xfb", "sound"),
)  # fmt: skip

_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VAL = ("val", "valid", "validation")


def is_folder(path: pathlib.Path) -> bool:
    """Whether a path is a folder; GpuzooError if that cannot be checked."""
    try:
        return path.is_dir()
    except OSError as error:
        raise _unreadable(f"data {path.name!r}", error) from None


def find_splits(
    what: str, path: pathlib.Path, note: Callable[[str], None]
) -> dict[str, pathlib.Path]:
    """Return the folders of the splits; {} if there are none.

    Validation examples are for testing if there are no others.

    Raises:
        GpuzooError: the folder for training or testing is missing.
    """
    names = sub_folders(what, path)
    lower = {name.lower(): name for name in names}
    known = {"train": _TRAIN, "val": _VAL, "test": _TEST}
    found = {s: next((lower[n] for n in known[s] if n in lower), "") for s in known}
    found = {split: name for split, name in found.items() if name}
    if len(found) == 1 or ("train" not in found and found):
        alone = "/ and ".join(found.values()) + ("/ is" if len(found) == 1 else "/ are")
        raise GpuzooError(
            f"{what}: {alone} alone; needs train/ and test/ (and val/ for validation), "
            "with one sub-folder per class in each; rename it if it is a class"
        )
    if not found:
        _refuse_parts(what, names)
        return {}
    taken = list(found.values())
    if left := sorted(set(names) - set(taken)):
        note(f"{what}: {'/ and '.join(taken)}/ are read, {', '.join(left)} ignored")
    if "test" not in found:
        note(f"{what}: no test/, so {found['val']}/ is used for testing")
        found["test"] = found.pop("val")
    return {split: path / name for split, name in found.items()}


def _refuse_parts(what: str, names: list[str]) -> None:
    """Raise if sub-folders are called train_set and test_set, or images and labels,
    which would be taken for classes."""
    words = {name: set(re.findall("[a-z]+", name.lower())) for name in names}
    train, test = (
        next((name for name in names if words[name] & set(kind)), "")
        for kind in (_TRAIN, _TEST + _VAL)
    )
    if train and test:
        raise GpuzooError(
            f"{what}: {train}/ and {test}/ look like parts of the data, not like "
            "classes; rename them to train/ and test/"
        )
    if {name.lower() for name in names} in (
        {"images", "labels"},
        {"images", "annotations"},
    ):
        raise GpuzooError(
            f"{what}: {' and '.join(names)} are no classes; needs one sub-folder per "
            "class, or for --task segment the folders images/ and masks/"
        )


def classes_of(what: str, parts: dict, path: pathlib.Path) -> list[str]:
    """Return the names of the classes: of the sub-folders, if there are at least two.

    Args:
        parts: split -> its folder, if the data folder has splits.

    Raises:
        GpuzooError: there is nothing to read, or a split has other classes.
    """
    first = parts.get("train", path)
    classes = sub_folders(what, first)
    if len(classes) < 2:
        refuse_wrapped(what, first, classes)
        if not find_files(what, first, None):
            raise GpuzooError(
                f"{what}: needs one sub-folder of images or of .wav files for each of "
                f"at least two classes, or only images; it has {len(classes)}"
            )
        return []
    for split, folder in parts.items():
        if extra := set(sub_folders(what, folder)) - set(classes):
            raise GpuzooError(
                f"{what}: {split} has a class that is missing in train: {min(extra)}"
            )
    return classes


def shown(names: list[str]) -> tuple[str, ...]:
    """Return names of folders as text; bytes that are not UTF-8 as \\xe4."""
    return tuple(
        os.fsencode(name).decode("utf-8", "backslashreplace") for name in names
    )


def sub_folders(what: str, folder: pathlib.Path) -> list[str]:
    """Return the sorted names of sub-folders that are not hidden."""
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    except OSError as error:
        raise _unreadable(what, error) from None
    return [name for name in names if not is_litter(name)]


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden or belongs to the operating system."""
    return name.startswith(".") or name.lower() in _LITTER


def content_of(file: pathlib.Path | bytes) -> str:
    """Return "image", "sound", "video" or "" by the first bytes of a file, or of its
    content."""
    if isinstance(file, bytes):
        head = file[:16]
    elif file.suffix.lower() in _NOT_OPENED:
        return ""
    else:
        try:
            with open(open_regular(file), "rb") as opened:  # pipes would block
                head = opened.read(16)
        except OSError:
            return ""
    if videos.format_of(head):
        return "video"
    if head[:4] == b"RIFF":
        return {b"WAVE": "sound", b"WEBP": "image"}.get(head[8:12], "")
    if head[:1] < b"\x80" and min(head, default=0) >= ord("\t"):
        return ""  # text, as a table whose first column is called BMI
    if head[:2] == b"BM" and len(head) < 16:
        return ""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def choose(what: str, folder: pathlib.Path, found: list, note) -> bool:
    """Return whether a folder holds mostly audio, not images; `note` reports ignored
    files.

    Raises:
        GpuzooError: it holds both kinds, or only unsupported formats.
    """
    kinds: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    of_class: dict = collections.defaultdict(lambda: collections.defaultdict(list))
    for label, file in found:
        suffix = file.suffix.lower()
        kind = "image" if suffix in IMAGE_SUFFIXES else ""
        kind = "sound" if suffix in SOUND_SUFFIXES else kind
        if not kind and (kind := content_of(file).replace("video", "")):
            suffix = suffix or "no suffix"
            kinds["by content"][suffix] += 1
        kinds[kind or "left"][suffix] += 1
        of_class[label][kind].append(file)
    images, sounds = kinds["image"].total(), kinds["sound"].total()
    if min(images, sounds) * 2 > max(images, sounds):
        raise GpuzooError(
            f"{what}: {images} images and {sounds} sounds in {folder.name}/; keep only "
            "one kind"
        )
    left = kinds["left"] + kinds["image" if sounds > images else "sound"]
    foreign = sorted({_FOREIGN[suffix] for suffix in left if suffix in _FOREIGN})
    if not images and not sounds and foreign:
        raise GpuzooError(
            f"{what}: {left.total()} files in {folder.name}/ are {', '.join(foreign)}, "
            "which is not supported; convert them, e.g. ffmpeg -i a.m4a a.wav, or to "
            ".png; films are read by --task classify_film"
        )
    _refuse_lost_classes(
        what, folder, of_class, "sound" if sounds > images else "image"
    )
    if left:
        note(
            f"{what}: {left.total()} files in {folder.name}/ are ignored by suffix: "
            f"{', '.join(sorted(left))}"
        )
    if odd := kinds["by content"]:
        note(
            f"{what}: {odd.total()} files in {folder.name}/ are read by their content, "
            f"not their suffix: {', '.join(sorted(odd))}"
        )
    return sounds > images


def _refuse_lost_classes(what: str, folder: pathlib.Path, of_class, kept: str) -> None:
    """Raise if all files of a class are ignored, and those of another are not.

    Args:
        of_class: class index -> kind -> files.
        kept: the kind that is read.
    """
    if not any(kinds[kept] for kinds in of_class.values()):
        return
    for kinds in of_class.values():
        if not kinds[kept]:
            files = [file for some in kinds.values() for file in some]
            suffixes = {file.suffix.lower() for file in files}
            listed = sorted(_FOREIGN.get(s, s or "without a suffix") for s in suffixes)
            raise GpuzooError(
                f"{what}: all files of the class of {files[0].relative_to(folder)} are "
                f"{', '.join(listed)}, which is not supported; convert them "
                "(ffmpeg -i a.m4a a.wav, or to .png), or remove the folder"
            )


def note_hidden(what: str, folder: pathlib.Path, note) -> None:
    """Report images and sounds that are hidden, or in hidden folders, but for what
    programs leave behind."""
    known = IMAGE_SUFFIXES | SOUND_SUFFIXES
    hidden = []
    for path in folder.rglob(".*"):
        if path.name.startswith("._") or path.name.lower() in _OF_PROGRAMS:
            continue
        inside = path.rglob("*") if path.is_dir() else [path]
        hidden += [one for one in inside if one.suffix.lower() in known]
    if hidden:
        note(
            f"{what}: {min(hidden).relative_to(folder)} ({len(hidden)} in all) is "
            "ignored: it is hidden"
        )


def note_places(what: str, folder: pathlib.Path, found: list, note) -> None:
    """Report files outside the sub-folders of classes, and those deeper in them."""
    deep = {file.parent for _, file in found if file.parent.parent != folder}
    if deep:
        note(
            f"{what}: {min(deep).relative_to(folder)}/ ({len(deep)} in all) is read as "
            "part of the class above it"
        )
    known = IMAGE_SUFFIXES | SOUND_SUFFIXES
    loose = [
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in known and path.is_file() and not is_litter(path.name)
    ]
    if loose:
        note(
            f"{what}: {min(loose)} ({len(loose)} in all) is ignored: it is not in a "
            f"sub-folder of {folder.name}/"
        )


def refuse_wrapped(what: str, folder: pathlib.Path, names: list[str]) -> None:
    """Raise if a folder holds nothing but another one with the classes, as a .zip file
    unpacks."""
    known = IMAGE_SUFFIXES | SOUND_SUFFIXES
    for name in names[:1]:
        inner = sub_folders(what, folder / name)
        loose = any(path.suffix.lower() in known for path in folder.iterdir())
        if len(inner) > 1 and not loose:
            raise GpuzooError(
                f"{what}: holds only {name}/, which has the sub-folders "
                f"{', '.join(inner[:5])}; name that folder: --data .../{name}/"
            )


def by_stem(what: str, place: pathlib.Path, files: list) -> dict[str, pathlib.Path]:
    """Return the files of a folder by their names without suffix.

    Raises:
        GpuzooError: two have the same one.
    """
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


def find_files(
    what: str, folder: pathlib.Path, classes: list[str] | None
) -> list[tuple[int, pathlib.Path]]:
    """Return (class index, file) for all files in the sub-folders of classes, at any
    depth, without hidden ones, sorted by class and path; without classes (0, file) for
    all files.

    Raises:
        GpuzooError: a folder that cannot be read, or a link to one.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(what, error) from None

    found, there = [], sub_folders(what, folder)
    for label, name in enumerate(["."] if classes is None else classes):
        if classes is not None and name not in there:  # without test examples
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


def reason(error: Exception, file: pathlib.Path | None = None) -> str:
    """Return in one line why a file cannot be read, from an error of a decoder."""
    text = getattr(error, "strerror", None) or str(error)
    if file is not None:
        text = text.replace(str(file), file.name)
    return " ".join(text.split())[:160] or type(error).__name__


def all_bad(what: str, bad: list, good: int, kinds: str, end: str) -> GpuzooError:
    """Return one error for all unreadable files, (name, reason) each, of which five are
    listed; `kinds`: images or sounds, `end`: the remedy."""
    listed = "; ".join(f"{name} ({reason})" for name, reason in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return GpuzooError(
        f"{what}: {len(bad)} of {len(bad) + good} {kinds} are not readable: "
        f"{listed}{more}{end}"
    )


def _unreadable(what: str, error: OSError) -> GpuzooError:
    return GpuzooError(
        f"{what}: {error.filename} cannot be read: {error.strerror}; check the path "
        "and its permissions"
    )
