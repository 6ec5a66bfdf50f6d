"""Films in files: animations, videos, and folders of numbered frames."""

import collections
import dataclasses
import pathlib
import re
import struct
from collections.abc import Callable

import numpy as np

from gpuzoo.data import films, folders, images, validate, videos
from gpuzoo.data.dataset import Dataset
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular

FRAMES = 16
"""Taken from each film, unless the user names another number."""
ANIMATIONS = {".apng", ".gif", ".png", ".webp"}
SUFFIXES = ANIMATIONS | videos.SUFFIXES
_FORMATS = ["GIF", "PNG", "WEBP"]
_MOST_BYTES = 1 << 30  # of a file


@dataclasses.dataclass(frozen=True)
class Clip:
    """The frames that are taken from a film."""

    pixels: np.ndarray
    """(frames, height, width, 1 or 3), uint8"""
    count: int
    """Frames of the film."""
    shape: tuple[int, int]
    """Height and width, upright, before the frames were resized."""
    channels: int
    """1 or 3, before they were converted."""


def places(count: int, frames: int) -> list[int]:
    """Return which of the `count` frames of a film are taken: each is in the middle of
    one of as many equal parts; of a shorter film some are taken twice."""
    return [(2 * place + 1) * count // (2 * frames) for place in range(frames)]


def read(
    what: str, path: pathlib.Path, size: int, frames: int, note: Callable[[str], None]
) -> Dataset:
    """Read a folder with one sub-folder of films for each class, or such folders under
    train/, val/ and test/.

    Args:
        size: side in pixels to which frames are resized; 0: no resizing.
        frames: to take from each film; 0: FRAMES.

    Raises:
        GpuzooError: films that cannot be read, of which five are listed, or of several
            sizes without `size`, or no classes.
    """
    parts = folders.find_splits(what, path, note)
    classes = folders.classes_of(what, parts, path)
    if not classes:
        raise GpuzooError(
            f"{what}: needs one sub-folder of films for each of at least two classes; "
            f"it has {len(folders.sub_folders(what, parts.get('train', path)))}"
        )
    given = {part: _read_part(what, folder, classes, size, frames or FRAMES, note)
             for part, folder in (parts or {"": path}).items()}  # fmt: skip
    if not parts:
        given = validate.hold_out(what, given[""])
    channels = max(arrays["image"].shape[-1] for arrays in given.values())
    for arrays in given.values():
        shape = (*arrays["image"].shape[:-1], channels)
        arrays["image"] = np.ascontiguousarray(np.broadcast_to(arrays["image"], shape))
    return films.make_dataset(
        path.name, "folder of films", given, folders.shown(classes)
    )


def _read_part(what: str, folder, classes: list[str], size: int, frames: int, note):
    """Return the films of a split as `image`, and `label`."""
    clips, labels, bad, shapes = [], [], [], {}
    for label, file in _found(what, folder, classes, note):
        name = str(file.relative_to(folder))
        try:
            clip = read_clip(file, frames, (size, size) if size else None)
        except GpuzooError:  # a package is missing
            raise
        except Exception as error:  # the decoders raise many types
            bad.append((name, folders.reason(error, file)[:120]))
            continue
        clips.append(clip)
        labels.append(label)
        shapes.setdefault(clip.pixels.shape[1:3], []).append(name)
    if bad:
        raise folders.all_bad(
            what, bad, len(clips), "films", "; remove or replace them"
        )
    if not clips:
        raise GpuzooError(
            f"{what}: no films found ({', '.join(sorted(SUFFIXES))}, or sub-folders of "
            "numbered frames)"
        )
    if len(shapes) > 1:
        first, other = list(shapes)[:2]
        raise GpuzooError(
            f"{what}: {shapes[other][0]}: {other} pixels where the first film has "
            f"{first} (as {len(shapes[first])} of {len(clips)} films); set one size, "
            "e.g. --image-size 64"
        )
    counts = [clip.count for clip in clips]
    note(
        f"{what}: {frames} frames are taken from each of {len(clips)} films of "
        f"{min(counts)} to {max(counts)} frames"
    )
    if short := sum(count < frames for count in counts):
        note(
            f"{what}: {short} films have fewer than {frames} frames: some are repeated"
        )
    channels = max(clip.pixels.shape[-1] for clip in clips)
    pixels = [np.broadcast_to(c.pixels, (*c.pixels.shape[:3], channels)) for c in clips]
    return {"image": np.stack(pixels), "label": np.array(labels)}


def _found(what: str, folder: pathlib.Path, classes: list[str], note) -> list:
    """Return (class index, file or folder of frames) of all films, sorted.

    Raises:
        GpuzooError: a class that holds files and no films, or still images outside a
            folder of their own.
    """
    found, left = [], collections.Counter()
    there = folders.sub_folders(what, folder)
    for label, name in enumerate(classes):
        if name not in there:
            continue
        mine = []
        for path in sorted((folder / name).iterdir()):
            suffix = path.suffix.lower()
            if folders.is_litter(path.name):
                continue
            if path.is_dir() or is_film(path):
                mine.append(path)
            elif suffix in images.IMAGE_SUFFIXES:
                raise GpuzooError(
                    f"{what}: {path.relative_to(folder)} is a still image; put the "
                    "frames of each film into a sub-folder of the class, or save them "
                    "as .gif"
                )
            else:
                left[suffix or "without a suffix"] += 1
        if not mine and left:
            raise GpuzooError(
                f"{what}: {name}/ has no films ({', '.join(sorted(SUFFIXES))}, or "
                "sub-folders of numbered frames), but other files: "
                f"{', '.join(sorted(left))}"
            )
        found += [(label, path) for path in mine]
    if left:
        note(
            f"{what}: {left.total()} files in {folder.name}/ are ignored by suffix: "
            f"{', '.join(sorted(left))}"
        )
    loose = [p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES]
    if loose:
        note(
            f"{what}: {min(loose)} ({len(loose)} in all) is ignored: it is not in a "
            f"sub-folder of {folder.name}/"
        )
    return found


def is_film(file: pathlib.Path) -> bool:
    """Whether a file has the suffix of a film, or of a kind that may be one, or the
    content of a video."""
    return file.suffix.lower() in SUFFIXES or folders.content_of(file) == "video"


def holds_frames(folder: pathlib.Path) -> bool:
    """Whether a folder holds the frames of one film: still images, and nothing else but
    hidden files."""
    inside = [path for path in folder.iterdir() if not folders.is_litter(path.name)]
    suffixes = {path.suffix.lower() for path in inside}
    if not suffixes or not suffixes <= images.IMAGE_SUFFIXES - {".gif"}:
        return False
    return all(path.is_file() for path in inside) and not any(map(_moves, inside))


def _moves(file: pathlib.Path) -> bool:
    """Whether an image has several frames."""
    try:
        return images.FIRST in images.read_image(file).changes
    except Exception:  # Pillow raises many types; reading the film will say which
        return False


def with_folders(files: list[pathlib.Path]) -> list[pathlib.Path]:
    """Return the same files, but for those that are frames the folder of their film."""
    frames = {folder for folder in {file.parent for file in files}
              if holds_frames(folder)}  # fmt: skip
    return [*dict.fromkeys(f.parent if f.parent in frames else f for f in files)]


def frame_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the images of a folder by the numbers in their names, 2 before 10.

    Raises:
        ValueError: two have the same number, or the folder holds something else.
    """
    found: dict[tuple, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if folders.is_litter(path.name):
            continue
        if path.suffix.lower() == ".gif":
            raise ValueError(
                f"{path.name} in it may have several frames itself; put films directly "
                "into the folder of their class"
            )
        if path.is_dir() or path.suffix.lower() not in images.IMAGE_SUFFIXES:
            raise ValueError(
                f"{path.name} in it is no image; a folder of a film holds its frames "
                "alone"
            )
        parts = re.split(r"(\d+)", path.stem)
        key = tuple(int(p) if p.isdigit() else p.lower() for p in parts)
        if key in found:
            raise ValueError(
                f"{found[key].name} and {path.name} have the same number; remove one"
            )
        found[key] = path
    return [found[key] for key in sorted(found)]


def read_clip(
    file: pathlib.Path | bytes,
    frames: int,
    size: tuple[int, int] | None = None,
    channels: int = 0,
) -> Clip:
    """Decode frames of a film, upright and on white, at the places of `places`.

    Args:
        file: the path of an animation, a video or a folder of frames, or the content of
            a file.
        size: height and width to resize to, bilinear, without keeping the proportions.
        channels: 1 or 3 to convert to grey or colour; 0: grey if all frames are.

    Raises:
        GpuzooError: a package for videos is missing.
        Exception: it cannot be read; `folders.reason` returns the reason.
    """
    if isinstance(file, pathlib.Path) and file.is_dir():
        count, decoded = _of_folder(file, frames)
    else:
        content = file if isinstance(file, bytes) else read_regular(file, _MOST_BYTES)
        if folders.content_of(content) == "video":
            count, decoded = videos.decode(content, lambda n: places(n, frames))
        else:
            count, decoded = _of_animation(content, frames)
    shapes = [one.shape[:2] for one in decoded]
    if len(set(shapes)) > 1:
        other = next(shape for shape in shapes if shape != shapes[0])
        raise ValueError(f"its frames have several sizes, {shapes[0]} and {other}")
    # Of an animation each frame is decoded as colour.
    found = 3 if any((one != one[..., :1]).any() for one in decoded) else 1
    pixels = np.stack([_made(one, size, channels or found) for one in decoded])
    return Clip(pixels, count, shapes[0], found)


def _of_folder(folder: pathlib.Path, frames: int) -> tuple[int, list[np.ndarray]]:
    files = frame_files(folder)
    _check_count(len(files))
    read = {place: _still(files[place]) for place in {*places(len(files), frames)}}
    return len(files), [read[place] for place in places(len(files), frames)]


def _still(file: pathlib.Path) -> np.ndarray:
    """Return a frame that is an image of its own."""
    picture = images.read_image(file, None, 3)
    if images.FIRST in picture.changes:
        raise ValueError(
            f"{file.name} in it has several frames itself; put films directly into the "
            "folder of their class"
        )
    return picture.pixels


def _of_animation(content: bytes, frames: int) -> tuple[int, list[np.ndarray]]:
    from PIL import Image, ImageOps

    def make(image):
        videos.check_size(*image.size)
        # Of a PNG, a still for programs that show no animation.
        hidden = bool(getattr(image, "default_image", False))
        count = getattr(image, "n_frames", 1) - hidden
        _check_count(count)
        found = []
        if image.format == "GIF" and content.rstrip(b"\0")[-1:] != b";":
            raise ValueError("it is cut off: its end is missing")
        for place in places(count, frames):
            image.seek(place + hidden)
            frame = ImageOps.exif_transpose(image.convert("RGBA"))
            white = Image.new("RGBA", frame.size, "white")
            found.append(np.asarray(Image.alpha_composite(white, frame).convert("RGB")))
        return count, found

    Image.init()
    try:
        return images.decoded(content, [f for f in _FORMATS if f in Image.OPEN], make)
    except (IndexError, struct.error):  # of Pillow's plugin for GIF
        raise ValueError("its frames are damaged") from None


def _check_count(count: int) -> None:
    if count < 2:
        raise ValueError(f"it has {count} frame, and a film at least 2")


def _made(frame: np.ndarray, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Return a frame (height, width, 3) resized and converted."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame))
    image = image.convert("L") if channels == 1 else image
    if size and size != frame.shape[:2]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(image))
