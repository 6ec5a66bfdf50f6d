"""TFDS datasets by name: from a prepared folder, the cache, or a download.

TFDS decodes a dataset once; afterwards it is loaded from the cache, without importing
TFDS, which takes seconds.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import urllib.error
import urllib.request
import warnings

import numpy as np

from gpuzoo.data import cache, on_disk, tfds_records, tfrecord
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.validate import make_dataset
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.runtime.environment import is_installed


class DatasetUnavailable(GpuzooError):
    """The dataset is not on this machine and cannot be downloaded."""


def from_tfds(
    name: str, data_dir: str | None, note, fingerprint: str | None = None,
    stay: bool = False,
) -> Dataset:  # fmt: skip
    """Load a dataset from the user's folder, the cache or a download, in this order.

    TFDS_DATA_DIR is the user's folder if it holds the dataset, else where TFDS
    downloads to. A cached dataset with the given fingerprint has priority over it.

    Args:
        stay: leave the images in TFDS's files (gpuzoo/data/on_disk.py); the cache of
            decoded datasets is not used.
    """
    if stay:
        folder = data_dir or os.environ.get("TFDS_DATA_DIR", "")
        given = data_dir or _is_prepared(name, folder)
        prepared = _prepared_folder(name, expand(folder)) if given else None
        return _in_files(name, prepared, note)
    if fingerprint and not data_dir:
        if dataset := cache.load(name, fingerprint=fingerprint):
            return dataset
    folder = data_dir or os.environ.get("TFDS_DATA_DIR", "")
    if data_dir or _is_prepared(name, folder):
        prepared = _prepared_folder(name, expand(folder))
        key = f"folder-{_hash_files(prepared)[:16]}"
        if dataset := cache.load(name, key):
            return dataset
        dataset = _decode(name, prepared, note)
    else:
        key = "download"
        if dataset := cache.load(name, key) or cache.load(name):
            return dataset
        dataset = _decode(name, None, note)
    try:
        cache.store(dataset, key)
    except OSError as error:
        note(
            f"The decoded {name} could not be cached ({error.strerror}): the next run "
            "decodes it again. Set GPUZOO_CACHE to another folder."
        )
    return dataset


def _is_prepared(name: str, folder: str) -> bool:
    found = expand(folder).glob(f"{name}/**/dataset_info.json")
    return bool(folder) and any(found)


def _prepared_folder(name: str, folder: pathlib.Path) -> pathlib.Path:
    what = f"--data-dir {str(folder)!r}"
    if not folder.is_dir():
        raise GpuzooError(f"{what}: there is no such folder; check the path")
    if not any(folder.iterdir()):
        raise GpuzooError(f"{what}: the folder is empty")
    found = [path.parent for path in folder.glob(f"{name}/**/dataset_info.json")]
    if not found:
        raise GpuzooError(
            f"{what}: holds no prepared TFDS dataset {name!r} "
            f"({name}/<version>/dataset_info.json); pass the parent folder of {name}/"
        )
    if len({path.parent for path in found}) > 1:
        configs = sorted(path.parent.name for path in found)
        raise GpuzooError(
            f"{what}: {name!r} has several configurations there; name one as "
            f"{name}/{configs[0]} (found: {', '.join(configs)})"
        )
    return max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])


def _hash_files(folder: pathlib.Path) -> str:
    """Return the sha256 over names and contents of all files in a folder."""
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(
                f"{path.relative_to(folder)} {path.stat().st_size}\n".encode()
            )
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise GpuzooError(
            f"data folder {folder.name!r}: cannot be read: {error.strerror}"
        ) from None
    return digest.hexdigest()


def _decode(name: str, prepared: pathlib.Path | None, note) -> Dataset:
    """Read a prepared folder, or the dataset that TFDS has prepared or downloads."""
    with _opened(name, prepared, note) as builder:
        classes = _class_feature(name, builder.info)
        splits = {s: _read_split(name, builder, s) for s in ("train", "test")}
    return make_dataset(name, _source(builder), splits, classes)


def _in_files(name: str, prepared: pathlib.Path | None, note) -> Dataset:
    """Do the same without decoding; the images stay in TFDS's files."""
    with _opened(name, prepared, note) as builder:
        classes, info = _class_feature(name, builder.info), builder.info
        splits = tfds_records.sources_of(name, info, _unreadable)
        folder = pathlib.Path(builder.data_path)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        by = "tensorflow" if is_installed("tensorflow") else "numpy"
        key = on_disk.key_of(files, folder, by, *classes)
        return on_disk.open_dataset(name, _source(builder), key, classes, splits, note)


def _source(builder) -> str:
    return f"TFDS {builder.info.full_name}"


@contextlib.contextmanager
def _opened(name: str, prepared: pathlib.Path | None, note):
    """Yield TFDS's builder of a prepared folder, or of the dataset that TFDS has
    prepared or downloads; an error in the block says that it cannot be read."""
    with_tensorflow = is_installed("tensorflow")
    needed = {"tensorflow_datasets": "tensorflow-datasets"}
    if not with_tensorflow:
        needed["google_crc32c"] = "google-crc32c"
    if missing := [needed[package] for package in needed if not is_installed(package)]:
        raise DatasetUnavailable(
            f"data {name!r} is not in the cache, and reading it needs packages that "
            f"are not installed; run: pip install {' '.join(missing)}, or name a .npz "
            "file with --data"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from TFDS
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        try:
            if prepared:
                # Not tfds.builder(name): it would use the shapes of the registered
                # dataset instead of those of the files, and pad with zeros.
                builder = tfds.builder_from_directory(prepared)
            else:
                builder = tfds.builder(name)
        except Exception as error:  # names and damaged metadata raise many types
            if prepared:
                raise _unreadable(name, error) from error
            if expand(name).is_file():
                raise GpuzooError(
                    f"data {name!r}: it is a file; expected a .npz or .csv file, or a "
                    "folder of images or sounds"
                ) from None
            raise DatasetUnavailable(
                f"no dataset named {name!r}: TFDS does not have it; for your own files "
                "pass a path (data.npz, or folder/)"
            ) from None
        try:
            if not prepared and not builder.data_path.exists():
                if not with_tensorflow:
                    raise DatasetUnavailable(
                        f"data {name!r} is not on this machine, and TFDS needs "
                        "TensorFlow to prepare it; run: pip install tensorflow, or "
                        "name a prepared folder with --data-dir, or a .npz file with "
                        "--data"
                    )
                _check_network(name)
                note(f"Downloading {name} with TFDS (once) ...")
                builder.download_and_prepare()
            yield builder
        except GpuzooError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and not prepared:
                raise DatasetUnavailable(
                    f"data {name!r} cannot be downloaded: {_first_line(error)}"
                ) from None
            raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> GpuzooError:
    return GpuzooError(
        f"data {name!r} cannot be read: {_first_line(error)}; files in its TFDS "
        "folder are damaged or incomplete, prepare it again with TFDS"
    )


def _first_line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return re.sub(r"\{\{.*?\}\}\s*", "", first)[:200] or type(error).__name__


def _read_split(name: str, builder, split: str) -> dict[str, np.ndarray]:
    if builder.info.file_format.value == tfds_records.ARRAY_RECORD:
        source = tfds_records.sources_of(name, builder.info, _unreadable)[split]
        examples = [
            {"image": image, "label": label}
            for images, labels, _ in source.blocks()
            for image, label in zip(images, labels, strict=True)
        ]
    elif not is_installed("tensorflow"):
        examples = list(tfrecord.read_examples(builder.info, split))
    elif None not in builder.info.features["image"].shape:
        whole = builder.as_dataset(split=split, batch_size=-1)
        return {field: whole[field].numpy() for field in ("image", "label")}
    else:
        # A batch of images of several sizes would be padded with zeros.
        examples = list(builder.as_dataset(split=split).as_numpy_iterator())
    shapes = sorted({example["image"].shape for example in examples})
    if len(shapes) > 1:
        raise GpuzooError(
            f"data {name!r}: the {split} images have several sizes, from {shapes[0]} "
            f"to {shapes[-1]}; save them as an image folder and use --image-size"
        )
    return {
        field: np.stack([example[field] for example in examples])
        for field in ("image", "label")
    }


def _class_feature(name: str, info) -> tuple[str, ...]:
    features = info.features or {}
    missing = {"image", "label"} - set(features)
    if missing or not {"train", "test"} <= set(info.splits):
        raise GpuzooError(
            f"data {name!r} is not a labelled image dataset with train and test "
            f"splits: it has {sorted(features)} and the splits {sorted(info.splits)}"
        )
    return tuple(features["label"].names)


def _check_network(name: str) -> None:
    """Check for a network with a short timeout, as TFDS would retry for minutes."""
    try:
        urllib.request.urlopen("https://storage.googleapis.com", timeout=5).close()
    except urllib.error.HTTPError:
        pass  # any answer shows that there is a network
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise DatasetUnavailable(
            f"data {name!r} is not on this machine and there is no network to download "
            f"it ({reason}); name a prepared TFDS folder with --data-dir, or your own "
            "file with --data"
        ) from None
