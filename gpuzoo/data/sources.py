"""Where examples come from: TFDS, the user's own files, or what comes with gpuzoo."""

import collections
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Callable

import numpy as np

from gpuzoo import randomness
from gpuzoo.data import audio, folders, series
from gpuzoo.data.dataset import Dataset, clean_images, label_examples, make_dataset
from gpuzoo.data.tfds import NotToBeHad, from_tfds
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.recipe import Recipe

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# Part of the examples held out for testing where the source has no test split.
HELD_OUT = 0.2


def load_data(
    name: str,
    *,
    data_dir: str | None = None,
    fallback: str = "",
    image_size: int = 0,
    audio_seconds: float = 0.0,
    fingerprint: str | None = None,
    note: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Dataset:
    """Load a dataset by name or path.

    Args:
        name: a TFDS image set (mnist, cifar10, ...), `digits`, a .npz file with
            x_train, y_train, x_test, y_test (or x, y), or a folder with one sub-folder
            of images or of .wav files per class (or such folders under train/ and
            test/ or val/); computed sounds, `tones`; to forecast `mackey_glass` or a
            .csv file.
        data_dir: a prepared TFDS folder; nothing is downloaded then.
        fallback: name of the dataset to load when `name` is not to be had.
        image_size: side in pixels that the images of a folder are resized to; 0: as
            they are.
        audio_seconds: length that the sounds of a folder are cut or filled up to; 0:
            that of the longest.
        fingerprint: of a TFDS set that is taken from the cache if it is there, whatever
            else is; not beside `data_dir`.
        note: called with a line for the user when something is worth telling.

    Raises:
        GpuzooError: the data are not to be had, damaged or not fit for training.
    """
    path = expand(name)
    made = name in ("digits", "mackey_glass", "tones")
    own_file = path.suffix.lower() in (".csv", ".npz")
    # The name of a recipe's dataset is never taken for a folder that happens to be
    # called the same.
    like_a_path = name.endswith("/") or name.startswith((".", "~", "/"))
    if data_dir is not None and (made or own_file or like_a_path):
        raise GpuzooError(
            f"data_dir is for a TFDS set, and data {name!r} is none; leave one of the "
            "two out"
        )
    if not made and not own_file:
        by_name = fallback or data_dir is not None
        if like_a_path or (not by_name and folders.is_folder(path)):
            return _from_folder(path, image_size, audio_seconds, note)
    _refuse_sizes(f"data {name!r}", image_size, audio_seconds)
    if name == "digits":
        return _digits()
    if name == "mackey_glass":
        return series.mackey_glass()
    if name == "tones":
        return audio.tones()
    if path.suffix.lower() == ".csv":
        return series.from_csv(path)
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    try:
        return from_tfds(name, data_dir, note, fingerprint)
    except NotToBeHad as reason:
        if not fallback:
            raise
        note(f"{reason}. Training on {fallback} instead.")
        return load_data(fallback, note=note)


def of_recipe(
    recipe: Recipe, note: Callable[[str], None], fingerprint: str | None = None
) -> Dataset:
    """The dataset that a recipe names, as `load_data` gives it."""
    return load_data(
        recipe.data,
        data_dir=recipe.data_dir,
        fallback=recipe.fallback,
        image_size=recipe.image_size,
        audio_seconds=recipe.audio_seconds,
        fingerprint=fingerprint,
        note=note,
    )


# --- the user's own files -----------------------------------------------------------


def _refuse_sizes(what: str, image_size: int, audio_seconds: float) -> None:
    """What would be asked for in vain."""
    for option, asked, kind in (
        ("image_size", image_size, "images"),
        ("audio_seconds", audio_seconds, ".wav files"),
    ):
        if asked:
            raise GpuzooError(
                f"{option} is for a folder of {kind}, and {what} is none; check the "
                "path, or leave it out"
            )


def _from_npz(path: pathlib.Path) -> Dataset:
    what = f"data {path.name!r}"
    parts, whole = ("x_train", "y_train", "x_test", "y_test"), ("x", "y")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            there, wanted = set(file.files), ()
            if there >= set(parts):
                wanted = parts
            elif there >= set(whole) and not there & set(parts):
                wanted = whole
            arrays = {name: file[name] for name in wanted}
    except FileNotFoundError:
        raise GpuzooError(f"{what}: there is no such file; check the path") from None
    except MemoryError as error:
        raise GpuzooError(
            f"{what}: too large for the memory ({error}); save fewer or smaller "
            "examples, images as uint8"
        ) from None
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen different ones
        text = str(error) or type(error).__name__
        if "allow_pickle" in text:
            text = "it holds Python objects; save plain arrays of numbers"
        raise GpuzooError(
            f"{what}: not a readable .npz file, or damaged or cut short: {text}"
        ) from None
    if wanted == parts:
        splits = {
            s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]}
            for s in ("train", "test")
        }
    elif wanted == whole:
        # Checked before they are shuffled, so that an error names the right example.
        clean_images(f"{what}, x", arrays["x"])
        splits = _hold_out(what, {"image": arrays["x"], "label": arrays["y"]})
    else:
        raise GpuzooError(
            f"{what}: needs the arrays {', '.join(parts)} (or only x, y); it has "
            f"{', '.join(sorted(there)) or 'none'}"
        )
    return make_dataset(path.stem, "npz file", splits)


def _from_folder(path: pathlib.Path, size: int, seconds: float, note) -> Dataset:
    what = f"data folder {path.name!r}"
    if not folders.is_folder(path):
        raise GpuzooError(f"{what}: there is no such folder; check the path")

    def read(folder: pathlib.Path) -> dict:
        files = folders.find_files(what, folder, classes)
        counts = collections.Counter(file.suffix.lower() for _, file in files)
        sounds = ".wav" in counts and not counts.keys() & IMAGE_SUFFIXES
        left = counts.keys() - ({".wav"} if sounds else IMAGE_SUFFIXES)
        if left:
            note(
                f"{what}: {sum(counts[s] for s in left)} files in {folder.name}/ are "
                f"left out, by their suffix: {', '.join(sorted(left))}"
            )
        known = {".wav", *IMAGE_SUFFIXES}
        loose = [
            path.name
            for path in folder.iterdir()
            if path.suffix.lower() in known and path.is_file()
            if not path.name.startswith(".")
        ]
        if loose:
            note(
                f"{what}: {min(loose)} ({len(loose)} in all) lies in no sub-folder of "
                f"{folder.name}/ and is left out"
            )
        if sounds:
            _refuse_sizes(what, size, 0)
            return audio.read_folder(what, folder, classes, seconds)
        _refuse_sizes(what, 0, seconds)
        return _read_images(what, folder, classes, size)

    parts = folders.find_splits(what, path, note)
    classes = _class_names(what, parts.get("train", path))
    if parts:
        extra = set(_class_names(what, parts["test"])) - set(classes)
        if extra:
            raise GpuzooError(
                f"{what}: test has a class that train lacks: {min(extra)}"
            )
        splits = {split: read(folder) for split, folder in parts.items()}
    else:
        splits = _hold_out(what, read(path))
    kinds = {s: next(iter(arrays)) for s, arrays in splits.items()}
    if len(set(kinds.values())) > 1:
        raise GpuzooError(f"{what}: images and sounds in one set: {kinds}")
    # Of a name that is no UTF-8 the odd bytes are shown as \xe4.
    names = tuple(
        os.fsencode(name).decode("utf-8", "backslashreplace") for name in classes
    )
    if kinds["train"] == "image":  # grey ones in one part, coloured in the other
        channels = max(arrays["image"].shape[3] for arrays in splits.values())
        for arrays in splits.values():
            shape = (*arrays["image"].shape[:3], channels)
            arrays["image"] = np.ascontiguousarray(
                np.broadcast_to(arrays["image"], shape)
            )
    if kinds["train"] == "audio":
        audio.check_lengths(what, splits)
        return label_examples(path.name, "folder of WAV files", splits, names)
    return make_dataset(path.name, "image folder", splits, names)


def _class_names(what: str, folder: pathlib.Path) -> list[str]:
    names = folders.sub_folders(what, folder)
    if len(names) < 2:
        raise GpuzooError(
            f"{what}: needs one sub-folder of images or of .wav files for each of at "
            f"least two classes; it has {len(names)}"
        )
    return names


def _read_images(what, folder: pathlib.Path, classes: list[str], size: int) -> dict:
    from PIL import Image

    images, labels = [], []
    for label, file in folders.find_files(what, folder, classes):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        where = f"{what}: {file.relative_to(folder)}"
        try:
            with Image.open(file) as image:
                pixels = _pixels(image, size)
        except Exception as error:  # Pillow raises a dozen different ones
            raise GpuzooError(
                f"{where}: not a readable image ({error or type(error).__name__}); "
                "remove or replace it"
            ) from None
        images.append(pixels)
        labels.append(label)
        if images[-1].shape[:2] != images[0].shape[:2]:
            raise GpuzooError(
                f"{where}: {images[-1].shape[:2]} pixels where the first image has "
                f"{images[0].shape[:2]}; give one size, e.g. --image-size 64"
            )
    if not images:
        raise GpuzooError(
            f"{what}: no image in it ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    channels = max(image.shape[2] for image in images)
    images = [np.broadcast_to(i, (*i.shape[:2], channels)) for i in images]
    return {"image": np.stack(images), "label": np.array(labels)}


def _pixels(image, size: int) -> np.ndarray:
    """An image as a viewer shows it, upright and on white, (height, width, 1 or 3),
    uint8; of several frames the first."""
    from PIL import Image, ImageOps

    if re.search(r"^[IF]|[A-Z];16[A-Z]", f"{image.mode} {image.tile}"):
        raise ValueError(
            "it has more than 8 bits a channel, which would be lost; convert it, or "
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


def _hold_out(what: str, arrays: dict) -> dict:
    """Hold out a fifth for testing, the same one every time."""
    if any(np.ndim(array) == 0 for array in arrays.values()):
        raise GpuzooError(f"{what}: a single number where there should be examples")
    (field, count), (_, labels) = ((name, len(a)) for name, a in arrays.items())
    if count != labels:
        raise GpuzooError(f"{what}: {count} {field}s but {labels} labels")
    if count < 10:
        raise GpuzooError(f"{what}: {count} examples; at least 10 are needed")
    order = randomness.permutation(count, 0, "hold out")
    test, train = np.split(order, [round(count * HELD_OUT)])
    parts = {"train": train, "test": test}
    return {
        split: {name: array[part] for name, array in arrays.items()}
        for split, part in parts.items()
    }


# --- the embedded digits ------------------------------------------------------------


def _digits() -> Dataset:
    """1,797 handwritten digits, 8x8 scans enlarged to 28x28, that come with
    scikit-learn (E. Alpaydin and C. Kaynak, UCI, 1998)."""
    from PIL import Image

    rows = _digits_table()
    scans, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)
    images = np.zeros((len(scans), 28, 28), np.uint8)
    for image, scan in zip(images, scans, strict=True):
        small = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))
        # A margin of four pixels, as MNIST has it.
        image[4:24, 4:24] = np.asarray(small.resize((20, 20), Image.Resampling.BICUBIC))
    splits = _hold_out("digits", {"image": images, "label": labels})
    return make_dataset(
        "digits", "1,797 scans of handwritten digits from scikit-learn", splits
    )


def _digits_table() -> np.ndarray:
    """64 pixels and a label a row, read past scikit-learn where its file is where it
    was: importing it takes a second."""
    package = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
    file = package / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
