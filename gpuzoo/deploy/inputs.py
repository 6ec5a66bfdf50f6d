"""Read examples for a trained model from files, as the training would."""

import collections
import dataclasses
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from gpuzoo.data import (
    arrays,
    audio,
    columns,
    film_files,
    folders,
    images,
    npy,
    preparation,
    series_table,
    table,
    texts,
)
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand

if TYPE_CHECKING:
    from gpuzoo.deploy.trained import Trained

STDIN = "-"
_MOST_FROM_STDIN = 1 << 29  # bytes
_ARRAYS = {".npy", ".npz"}
_SUFFIXES = {
    "image": images.IMAGE_SUFFIXES, "audio": folders.SOUND_SUFFIXES,
    "series": set(columns.SUFFIXES), "table": set(columns.SUFFIXES),
    "text": set(columns.SUFFIXES), "film": film_files.SUFFIXES,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """A file with examples, or standard input."""

    name: str
    """As the user named it."""
    path: pathlib.Path | None
    """None: standard input."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One example."""

    file: str
    index: int | None
    """Its place, if the file holds several."""
    values: np.ndarray
    """What `Trained.predict` takes, series in their own units; of a table, and of a
    series with named columns, and of texts, what `Trained.infer` takes."""
    shape: tuple[int, int] | None
    """Height and width of an image before it was resized."""
    changes: tuple[str, ...]
    """What was done to it, for the user."""


class Unreadable(ValueError):
    """A file that cannot be predicted; the message is the reason."""


def find(
    words: tuple[str, ...], takes: str, note: Callable[[str], None]
) -> list[Source]:
    """Return the files that words name, those of folders at any depth.

    Hidden files and files of other kinds in a folder are left out, the latter with a
    note. In folders, links to files are followed and links to folders refused.

    Args:
        takes: image, audio, series, table, text or film.

    Raises:
        GpuzooError: a folder cannot be read or holds no such files; `-` twice.
    """
    if words.count(STDIN) > 1:
        raise GpuzooError("- (standard input) can be read only once")
    found: list[Source] = []
    for word in words:
        path = None if word == STDIN else expand(word)
        if path is None or not folders.is_folder(path):
            found.append(Source(word, path))
            continue
        if takes == "film" and film_files.holds_frames(path):
            found.append(Source(word, path))
            continue
        inside = [file for _, file in folders.find_files(word, path, None)]
        if takes == "film":
            inside = film_files.with_folders(inside)
        mine = [file for file in inside if _fits(file, takes)]
        if not mine:
            wanted = ", ".join(sorted(_SUFFIXES[takes] | _ARRAYS))
            raise GpuzooError(
                f"{word}: none of its {len(inside)} files is of a kind that the model "
                f"takes ({wanted})"
            )
        if left := len(inside) - len(mine):
            kinds = sorted({f.suffix.lower() for f in set(inside) - set(mine)})
            are = "file is" if left == 1 else "files are"
            note(f"{word}: {left} {are} ignored by suffix: {', '.join(kinds)}")
        found += [Source(str(file), file) for file in mine]
    return found


def _fits(file: pathlib.Path, takes: str) -> bool:
    suffix = file.suffix.lower()
    if takes == "film" and (file.is_dir() or film_files.is_film(file)):
        return True
    if suffix in _SUFFIXES[takes] | _ARRAYS:
        return True
    kinds = {"image": "image", "audio": "sound"}
    return takes in kinds and folders.content_of(file) == kinds[takes]


def read(source: Source, trained: "Trained", invert: bool = False) -> Iterator[Example]:
    """Read the examples of a file.

    Args:
        invert: exchange dark and light in images.

    Raises:
        Unreadable: the reason.
    """
    try:
        file = _from_stdin() if source.path is None else source.path
        _check_kind(file, trained.takes)
        is_array = (
            file[:6] == npy.NPY or file[:4] == npy.ZIP
            if isinstance(file, bytes)
            else file.suffix.lower() in _ARRAYS
        )
        named = trained.takes in ("table", "text") or trained.dataset.series is not None
        if is_array and named:
            raise ValueError("arrays have no names of columns; save them as .csv")
        how = _array if is_array else {
            "image": _image, "audio": _sound, "series": _series,
            "table": _table, "text": _texts, "film": _film,
        }[trained.takes]  # fmt: skip
        yield from how(source.name, file, trained, invert)
    except Exception as error:  # the decoders raise many types
        name = source.path.name if source.path else source.name
        text = folders.reason(error, source.path).removeprefix(f"data {name!r}: ")
        if source.path and _is_pipe(source.path):
            text = "it is a pipe; use standard input: COMMAND | gpuzoo predict RUN -"
        raise Unreadable(text) from error


def _check_kind(file, takes: str) -> None:
    """Refuse an image for a model of sounds, and so on, by its first bytes: what the
    decoder of the other kind says of them helps nobody."""
    kind = folders.content_of(file)
    wanted = {"image": ("image",), "audio": ("sound",), "film": ("image", "video")}
    if kind and kind not in wanted.get(takes, ()):
        taken = {
            "image": "images", "audio": "sounds", "table": "rows of a table",
            "series": "a series of numbers", "text": "texts of a table",
            "film": "films",
        }  # fmt: skip
        forms = ", ".join(sorted(_SUFFIXES[takes] | _ARRAYS))
        raise ValueError(f"{kind} file; the model takes {taken[takes]} ({forms})")


def _from_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("nothing is piped to standard input")
    content = bytearray()
    while part := sys.stdin.buffer.read(1 << 20):  # a larger part would be allocated
        content += part
        if len(content) > _MOST_FROM_STDIN:
            raise ValueError(f"more than {_MOST_FROM_STDIN:,} bytes")
    return bytes(content)


def _image(name: str, file, trained: "Trained", invert: bool) -> Iterator[Example]:
    shape = trained.input_shape
    if len(shape) != 3 or shape[2] not in (1, 3):
        kind = "films" if len(shape) == 4 else f"images of {shape[-1]} channels"
        raise ValueError(
            f"the model takes {kind}; save them as .npy, "
            f"(examples, {', '.join(map(str, shape))})"
        )
    picture = images.read_image(file, shape[:2], shape[2])
    changes = [*picture.changes]
    if picture.shape != shape[:2]:
        before, after = (f"{s[1]}x{s[0]}" for s in (picture.shape, shape))
        changes.append(f"resized from {before} to {after}")
    if picture.channels != shape[2]:
        changes.append("converted to " + ("grey" if shape[2] == 1 else "colour"))
    pixels = picture.pixels
    changes += _darkness(pixels)
    if invert:
        pixels = 255 - pixels
        changes.append("inverted")
    (values,) = trained.preprocess(pixels)
    yield Example(name, None, values, picture.shape, tuple(changes))


def _sound(name: str, file, trained: "Trained", invert: bool) -> Iterator[Example]:
    (length,) = trained.input_shape
    sound = audio.read_sound(file, length / audio.RATE)
    samples = np.zeros(length, np.int16)
    kept = sound.samples[:length]
    samples[: len(kept)] = kept
    changes = []
    if sound.rate != audio.RATE:
        changes.append(f"resampled from {sound.rate:,} to {audio.RATE:,} samples/s")
    if sound.channels > 1:
        changes.append(f"{sound.channels} channels averaged")
    if len(kept) < length:
        changes.append(f"padded with silence to {length / audio.RATE:g} s")
    elif sound.seconds > length / audio.RATE:
        changes.append(f"cut from {sound.seconds:.4g} s to {length / audio.RATE:g} s")
    yield Example(name, None, samples, None, tuple(changes))


def _film(name: str, file, trained: "Trained", invert: bool) -> Iterator[Example]:
    frames, *size, channels = trained.input_shape
    if channels not in (1, 3):
        raise ValueError(
            f"the model takes films of {channels} channels; save them as .npy, "
            f"(examples, {', '.join(map(str, trained.input_shape))})"
        )
    clip = film_files.read_clip(file, frames, tuple(size), channels)
    changes = [f"{frames} frames are taken from {clip.count:,}"]
    if clip.shape != tuple(size):
        before, after = (f"{s[1]}x{s[0]}" for s in (clip.shape, size))
        changes.append(f"resized from {before} to {after}")
    if clip.channels != channels:
        changes.append("converted to " + ("grey" if channels == 1 else "colour"))
    yield Example(name, None, clip.pixels, clip.shape, tuple(changes))


def _series(name: str, file, trained: "Trained", invert: bool) -> Iterator[Example]:
    path = pathlib.Path(name) if isinstance(file, bytes) else file
    content = file if isinstance(file, bytes) else None
    if (form := trained.dataset.series) is not None:
        rows = columns.from_file(path, content)
        window, said = series_table.last_window(rows, form)
        yield Example(name, None, window, None, tuple(said))
        return
    column = table.read_column(path, content)
    yield _last_window(name, column.values, trained, column.findings)


def _last_window(name: str, values: np.ndarray, trained, findings=()) -> Example:
    window = trained.input_shape[0]
    if len(values) < window:
        raise ValueError(f"{len(values)} values; the model takes the last {window}")
    last = np.asarray(values[-window:], np.float64)[:, None]
    trained.preprocess(last)  # checks them
    said = f"the last {window} of {len(values):,} values are read"
    return Example(name, None, last, None, (*findings, said))


def _table(name: str, file, trained: "Trained", invert: bool) -> Iterator[Example]:
    """Read the rows of a table; what is said of the whole file stands at the first."""
    path = pathlib.Path(name) if isinstance(file, bytes) else file
    content = file if isinstance(file, bytes) else None
    rows, prepared = columns.from_file(path, content), trained.dataset.table
    readings, said = preparation.read_again(rows, prepared)
    said = [*rows.findings, *said]
    if not len(rows):
        raise ValueError("no rows below the names of the columns")
    values = preparation.encode(prepared, readings, np.arange(len(rows)))
    strange = preparation.strange(rows, prepared, readings)
    for index, (one, changes) in enumerate(zip(values, strange, strict=True)):
        yield Example(name, index, one, None, (*said, *changes))
        said = []


def _texts(name: str, file, trained: "Trained", invert: bool) -> Iterator[Example]:
    """Read the texts of a table; what is said of the whole file stands at the first."""
    path = pathlib.Path(name) if isinstance(file, bytes) else file
    content = file if isinstance(file, bytes) else None
    if content is None and not file.exists():
        raise ValueError(
            "there is no such file; texts are read from a .csv or .parquet file, and "
            "from Python as they are: gpuzoo.load(run).predict([text, ...])"
        )
    known = trained.dataset.text
    found, said = texts.of_table(columns.from_file(path, content), known)
    for index, one in enumerate(found):
        (values,) = known.encode([one])
        yield Example(name, index, values, None, (*said, *known.strange(one)))
        said = []


def _array(name: str, file, trained: "Trained", invert: bool) -> Iterator[Example]:
    values = npy.read_array(file, arrays.only_images)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"must be numbers, not {values.dtype}")
    if trained.takes == "series":
        if values.ndim == 1 and len(values) > trained.input_shape[0]:
            yield _last_window(name, values, trained)
            return
        trained.preprocess(values)
        clean = values.reshape(-1, *trained.input_shape)
    else:
        clean = trained.preprocess(values)
    several, is_image = len(clean) > 1, trained.takes == "image"
    for index, one in enumerate(clean):
        changes = _darkness(one) if is_image else []
        if invert and is_image:
            one = (255 if one.dtype == np.uint8 else np.float32(1)) - one
            changes.append("inverted")
        yield Example(name, index if several else None, one, None, tuple(changes))


def _darkness(pixels: np.ndarray) -> list[str]:
    """Return a line on an image that is nearly black, as one of pixels 0 and 1 is."""
    if pixels.dtype != np.uint8 or (brightest := pixels.max()) >= images.DARK:
        return []
    return [f"the brightest pixel is {brightest} of 255"]


def batches(
    sources: list[Source],
    trained: "Trained",
    failed: Callable[[Source, str], None],
    done: Callable[[Source], None],
    invert: bool = False,
) -> Iterator[list[Example]]:
    """Read files and yield their examples in batches of at most `trained.batch`, all of
    one dtype; only one batch is in memory.

    Args:
        failed: called with an unreadable file and the reason.
        done: called after each file.
    """
    batch: list[Example] = []
    for source in sources:
        try:
            for example in read(source, trained, invert):
                if batch and batch[0].values.dtype != example.values.dtype:
                    yield batch
                    batch = []
                batch.append(example)
                if len(batch) == trained.batch:
                    yield batch
                    batch = []
        except Unreadable as error:
            failed(source, str(error))
        done(source)
    if batch:
        yield batch


class Changes:
    """Counts what was done to examples, and reports the first of each kind at once."""

    def __init__(self, note: Callable[[str], None]):
        self.note = note
        self.counts: collections.Counter = collections.Counter()

    def add(self, example: Example) -> None:
        for change in example.changes:
            kind = change.partition(" from ")[0]
            if not self.counts[kind]:
                self.note(f"{example.file}: {change}")
            self.counts[kind] += 1

    def report(self) -> None:
        """Report how often each was done, if more than once."""
        for kind, count in self.counts.items():
            if count > 1:
                self.note(f"{kind}: {count} examples in all")


def looks_inverted(example: Example, trained: "Trained") -> bool:
    """Whether an image is dark on light and the training images are known to be light
    on dark: whether most pixels of its border are light."""
    if trained.takes != "image" or len(trained.input_shape) != 3:
        return False
    white = 255 if example.values.dtype == np.uint8 else 1
    return images.looks_inverted(example.values, white, trained.record["data"]["name"])


def _is_pipe(path: pathlib.Path) -> bool:
    """Whether a path is a pipe, as of <(command) in a shell."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False
