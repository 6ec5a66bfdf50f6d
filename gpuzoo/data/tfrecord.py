"""Read prepared TFDS folders without TensorFlow: same examples, same order.

A TFRecord file is a sequence of records: the length in 8 bytes, its checksum in 4, the
bytes, their checksum in 4; numbers are little-endian.
"""

import collections
import itertools
import logging
import pathlib
import struct
from collections.abc import Iterator

from gpuzoo.errors import GpuzooError

# TFDS interleaves so many files, with so many records of each in a turn.
_FILES, _RECORDS = 16, 16


def read_examples(info, split: str) -> Iterator[dict]:
    """Yield the examples of a split, as NumPy arrays by feature.

    Args:
        info: of a TFDS builder, with its features and the files of its splits.

    Raises:
        GpuzooError: it is not stored as TFRecord files.
        ValueError: a file is damaged, truncated or not a TFRecord file.
        OSError: a file cannot be read.
    """
    if info.file_format.value != "tfrecord":
        raise GpuzooError(
            f"data {info.name!r} is stored as {info.file_format.value}, which needs "
            "TensorFlow; run: pip install tensorflow"
        )
    paths = [pathlib.Path(path) for path in info.splits[split].filepaths]
    # TFDS recommends OpenCV if it is not installed.
    logging.getLogger("absl").setLevel(logging.ERROR)
    count = 0
    for _, _, record in in_turns([records(path) for path in paths]):
        count += 1
        yield info.features.deserialize_example_np(record)
    if count != info.splits[split].num_examples:
        raise ValueError(
            f"expected {info.splits[split].num_examples} {split} examples, got {count}"
        )


def in_turns(files: list[Iterator]) -> Iterator:
    """Yield records in the order of tf.data's interleave: the next file replaces a
    finished one from the following turn on."""
    waiting, places = collections.deque(files), [None] * _FILES
    while waiting or any(places):
        for number, file in enumerate(places):
            if file is None and waiting:
                file = waiting.popleft()
            if file is not None:
                records = list(itertools.islice(file, _RECORDS))
                yield from records
                more = len(records) == _RECORDS
                places[number] = file if more else None  # type: ignore[call-overload]


def records(path: pathlib.Path, number: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Yield `number`, the place and the content of each record of a file."""
    with open(path, "rb") as file:
        left, place = path.stat().st_size, 0
        while head := file.read(12):
            length, check = struct.unpack("<QI", head) if len(head) == 12 else (0, 0)
            if len(head) < 12 or _checksum(head[:8]) != check or length > left:
                raise ValueError(f"a record of {path.name} is damaged or cut off")
            yield (
                number,
                place,
                checked(head + file.read(length + 4), length, path.name),
            )
            place += 12 + length + 4


def checked(content: bytes, length: int, name: str) -> bytes:
    """Return the record in its bytes in a file.

    Raises:
        ValueError: it has another length or checksum.
    """
    record, tail = content[12:-4], content[-4:]
    whole = len(record) == length and content[:8] == struct.pack("<Q", length)
    if not whole or tail != struct.pack("<I", _checksum(record)):
        raise ValueError(f"a record of {name} is damaged or cut off")
    return record


def _checksum(content: bytes) -> int:
    """Return the masked CRC-32C of TFRecord files."""
    import google_crc32c

    value = google_crc32c.value(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
