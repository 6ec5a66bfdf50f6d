"""Where examples come from: TFDS, the user's own files, or what comes with gpuzoo."""

import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np

from gpuzoo.data import arrays, audio, folders, images, series
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.synthetic import digits, mackey_glass, tones
from gpuzoo.data.tfds import DatasetUnavailable, from_tfds
from gpuzoo.data.validate import (
    clean_images,
    hold_out,
    label_examples,
    make_dataset,
    squeeze_labels,
)
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand


def load_data(
    name: str,
    *,
    data_dir: str | None = None,
    fallback_data: str = "",
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
        fallback_data: name of the dataset to load when `name` is not to be had.
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
    if not name.strip():
        raise GpuzooError(
            "data: the name is empty; expected a dataset's name (mnist, digits, ...), "
            "a .npz or .csv file or a folder (./ is the current one)"
        )
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
        by_name = fallback_data or data_dir is not None
        if like_a_path or (not by_name and folders.is_folder(path)):
            return _from_folder(path, image_size, audio_seconds, note)
    _refuse_sizes(f"data {name!r}", image_size, audio_seconds)
    if name == "digits":
        return digits()
    if name == "mackey_glass":
        return mackey_glass()
    if name == "tones":
        return tones()
    if path.suffix.lower() == ".csv":
        return series.from_csv(path)
    if path.suffix.lower() == ".npz":
        return _from_npz(path, note)
    try:
        return from_tfds(name, data_dir, note, fingerprint)
    except DatasetUnavailable as reason:
        if not fallback_data:
            raise
        note(f"{reason}. Training on {fallback_data} instead.")
        return load_data(fallback_data, note=note)


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


def _from_npz(path: pathlib.Path, note) -> Dataset:
    what = f"data {path.name!r}"
    splits = arrays.read(path, note)
    if whole := splits.get(""):
        # Checked before they are shuffled, so that an error names the right example.
        clean_images(f"{what}, x", whole["image"])
        if "label" in whole:
            squeeze_labels(f"{what}, y", whole["label"])
        splits = hold_out(what, whole)
    return make_dataset(path.stem, "npz file", splits)


def _from_folder(path: pathlib.Path, size: int, seconds: float, note) -> Dataset:
    what = f"data folder {path.name!r}"
    if not folders.is_folder(path):
        raise GpuzooError(f"{what}: there is no such folder; check the path")

    parts = folders.find_splits(what, path, note)
    first = parts.get("train", path)
    classes = folders.sub_folders(what, first)
    whole = len(classes) < 2
    if whole and not folders.find_files(what, first, None):
        raise GpuzooError(
            f"{what}: needs one sub-folder of images or of .wav files for each of at "
            f"least two classes, or images alone; it has {len(classes)}"
        )

    def read(folder: pathlib.Path) -> dict:
        found = folders.find_files(what, folder, None if whole else classes)
        sounds = folders.choose(what, folder, found, note)
        if not whole:
            folders.note_loose(what, folder, note)
        if sounds:
            if whole:
                raise GpuzooError(
                    f"{what}: needs one sub-folder of sounds for each of at least two "
                    f"classes; it has {len(classes)}"
                )
            _refuse_sizes(what, size, 0)
            return audio.read_folder(what, folder, classes, seconds)
        _refuse_sizes(what, 0, seconds)
        return images.read_folder(what, folder, found, size)

    if parts:
        extra = set(folders.sub_folders(what, parts["test"])) - set(classes)
        if extra and not whole:
            raise GpuzooError(
                f"{what}: test has a class that train lacks: {min(extra)}"
            )
        splits = {split: read(folder) for split, folder in parts.items()}
    else:
        splits = read(path)
    if whole:
        note(
            f"{what}: {'one sub-folder' if classes else 'no sub-folders'}, so its "
            "images have no classes"
        )
        for one in splits.values() if parts else [splits]:
            del one["label"]
    if not parts:
        splits = hold_out(what, splits)
    kinds = {s: next(iter(fields)) for s, fields in splits.items()}
    if len(set(kinds.values())) > 1:
        raise GpuzooError(f"{what}: images and sounds in one set: {kinds}")
    # Of a name that is no UTF-8 the odd bytes are shown as \xe4.
    names = tuple(
        os.fsencode(name).decode("utf-8", "backslashreplace") for name in classes
    )
    if kinds["train"] == "image":  # grey ones in one part, coloured in the other
        channels = max(fields["image"].shape[3] for fields in splits.values())
        for fields in splits.values():
            shape = (*fields["image"].shape[:3], channels)
            fields["image"] = np.ascontiguousarray(
                np.broadcast_to(fields["image"], shape)
            )
    if kinds["train"] == "audio":
        audio.check_lengths(what, splits)
        return label_examples(path.name, audio.source(path), splits, names)
    return make_dataset(path.name, "image folder", splits, None if whole else names)


# --- the embedded digits ------------------------------------------------------------
