"""The examples of a prepared TFDS folder, decoded as TFDS does, some at a time."""

import concurrent.futures
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from gpuzoo.data.on_disk import Source
from gpuzoo.data.records import AT_ONCE, ArrayRecords, TFRecords
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.environment import available_cores, is_installed

ARRAY_RECORD, TFRECORD = "array_record", "tfrecord"


def sources_of(name: str, info, unreadable: Callable) -> dict[str, Source]:
    """Return where the examples of train and test are.

    Args:
        info: of a TFDS builder, with its features and the files of its splits.
        unreadable: name and error -> the error for the user.

    Raises:
        GpuzooError: the files are of another format, or a package is missing.
        ValueError: a file is damaged.
    """
    form = info.file_format.value
    if form not in (ARRAY_RECORD, TFRECORD):
        raise GpuzooError(
            f"data {name!r} is stored as {form}, whose records cannot be read one by "
            f"one; prepare it with TFDS as {ARRAY_RECORD} or {TFRECORD}"
        )
    decode = _decoder(info.features)
    return {
        split: _source_of(name, info.splits[split], form, decode, unreadable)
        for split in ("train", "test")
    }


def _source_of(name: str, told, form: str, decode: Callable, unreadable) -> Source:
    paths = [pathlib.Path(path) for path in told.filepaths]

    def blocks() -> Iterator[tuple[list, list, np.ndarray | None]]:
        if form == ARRAY_RECORD:
            for records in ArrayRecords(paths, told.shard_lengths).walk():
                yield *decode(records), None
        else:
            for records, places in TFRecords(paths).walk():
                yield *decode(records), places

    def reader(kept: pathlib.Path | None) -> Callable:
        if form == ARRAY_RECORD:
            records = ArrayRecords(paths, told.shard_lengths)
        else:
            records = TFRecords(paths, kept)

        def read(places: np.ndarray) -> np.ndarray:
            found = []
            try:
                for start in range(0, len(places), AT_ONCE):
                    some = records.read(places[start : start + AT_ONCE])
                    found.append(np.stack(decode(some)[0]))
            except (ValueError, OSError) as error:
                raise unreadable(name, error) from error
            return np.concatenate(found)

        return read

    return Source(blocks, told.num_examples, reader)


def _decoder(features) -> Callable[[list[bytes]], tuple[list, list]]:
    """Return a function of records: their images and labels. With TensorFlow, as TFDS
    then decodes with it: JPEG has other bits elsewhere."""
    if is_installed("tensorflow"):
        from gpuzoo.data.tensorflow import decoder

        return decoder(features)

    def one(record: bytes) -> tuple:
        example = features.deserialize_example_np(record)
        return example["image"], int(example["label"])

    pool = concurrent.futures.ThreadPoolExecutor(available_cores())

    def decode(records: list[bytes]) -> tuple[list, list]:
        images, labels = zip(*pool.map(one, records), strict=True)
        return list(images), list(labels)

    return decode
