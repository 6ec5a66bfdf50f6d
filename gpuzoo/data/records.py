"""Records of TFDS's files by their place in the order in which TFDS reads them, so that
no more than those of a step need be in memory."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np

from gpuzoo.data import tfrecord
from gpuzoo.errors import GpuzooError
from gpuzoo.files import open_regular
from gpuzoo.runtime.environment import is_installed

AT_ONCE = 256
"""Records that are read in a turn."""
PLACE = np.dtype([("file", "<u4"), ("length", "<u4"), ("start", "<u8")])
"""Where a record of a TFRecord file is."""
# Of many records, those at any place; the index of a file stays on the disk.
_ANYWHERE = (
    "readahead_buffer_size:0,max_parallelism:0,index_storage_option:offloaded,"
    "footer_prefetch_bytes:0"
)


class ArrayRecords:
    """Records of ArrayRecord files, one file after the other.

    Args:
        paths: of the files, in order.
        counts: records that each should have.

    Raises:
        GpuzooError: array_record is missing.
        ValueError: a file is damaged, cut off or has another number of records.
    """

    def __init__(self, paths: list[pathlib.Path], counts: list[int]):
        if not is_installed("array_record"):
            raise GpuzooError(
                "reading ArrayRecord files needs array_record, which is not installed; "
                "run: pip install 'gpuzoo[disk]'"
            )
        self.paths, self.ends = paths, np.cumsum(counts)
        self._readers: dict = {}
        for number, count in enumerate(counts):
            found = self._of(number, "num_records")
            if found != count:
                raise ValueError(
                    f"{paths[number].name} has {found} records instead of {count}"
                )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, places: np.ndarray) -> list[bytes]:
        """Return the records at some places, (n,)."""
        found: list = [None] * len(places)
        files = np.searchsorted(self.ends, places, side="right")
        for number in np.unique(files):
            rows = np.flatnonzero(files == number)
            first = self.ends[number - 1] if number else 0
            wanted = [int(place) for place in places[rows] - first]
            for row, record in zip(
                rows, self._of(int(number), "read", wanted), strict=True
            ):
                found[row] = record
        return found

    def walk(self) -> Iterator[list[bytes]]:
        """Yield all records in order, some at a time."""
        for start in range(0, len(self), AT_ONCE):
            yield self.read(np.arange(start, min(start + AT_ONCE, len(self))))

    def _of(self, number: int, method: str, *arguments):
        """Call a method of the reader of a file; name the file if it is damaged."""
        from array_record.python.array_record_module import ArrayRecordReader

        name = self.paths[number].name
        try:
            if number not in self._readers:
                path = str(self.paths[number])
                reader = ArrayRecordReader(
                    path, _ANYWHERE, file_reader_buffer_size=2**16
                )
                self._readers[number] = reader
            return getattr(self._readers[number], method)(*arguments)
        except Exception as error:  # those of the library are of several types
            line = " ".join(str(error).split())[:120]
            raise ValueError(f"{name} is damaged or cut off ({line})") from error


class TFRecords:
    """Records of TFRecord files, whose places were written down by `walk`.

    Args:
        paths: of the files, in TFDS's order.
        places: file of a `PLACE` for each record; None: only `walk` is called.
    """

    def __init__(self, paths: list[pathlib.Path], places: pathlib.Path | None = None):
        if not is_installed("google_crc32c"):
            raise GpuzooError(
                "reading TFRecord files by place needs google-crc32c, which is not "
                "installed; run: pip install 'gpuzoo[disk]'"
            )
        self.paths, self._files = paths, {}
        self._places = open_regular(places) if places else None

    def read(self, places: np.ndarray) -> list[bytes]:
        """Return the records at some places, (n,)."""
        return [self._read(int(place)) for place in places]

    def _read(self, place: int) -> bytes:
        size = PLACE.itemsize
        entry = os.pread(self._places, size, place * size)
        (file, length, start) = np.frombuffer(entry, PLACE)[0].item()
        if file not in self._files:
            self._files[file] = open_regular(self.paths[file])
        name = self.paths[file].name
        content = os.pread(self._files[file], 12 + length + 4, start)
        return tfrecord.checked(content, length, name)

    def walk(self) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Yield all records in order and their `PLACE`s, some at a time."""
        records, places = [], []
        for number, start, record in tfrecord.in_turns(
            [tfrecord.records(path, n) for n, path in enumerate(self.paths)]
        ):
            records.append(record)
            places.append((number, len(record), start))
            if len(records) == AT_ONCE:
                yield records, np.array(places, PLACE)
                records, places = [], []
        if records:
            yield records, np.array(places, PLACE)
