"""Check the header of an array file before memory is allocated for it."""

import io
import math
import os
import pathlib
from typing import IO

import numpy as np

from gpuzoo.files import open_regular, too_large

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAPPED = 1 << 28  # bytes; larger files are read while they are used
_MOST_IN_ZIP = 1 << 31  # bytes, after decompression


def memory() -> int:
    """Return the bytes of main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_members(file: np.lib.npyio.NpzFile, names: list[str], most: int) -> None:
    """Check the arrays of a .npz file before they are decompressed.

    Args:
        most: bytes that they may have together.

    Raises:
        MemoryError: they have more.
        ValueError: an array announces more than the file holds.
    """
    total = 0
    for name in names:
        member = name if name in file.zip.namelist() else f"{name}.npy"
        info = file.zip.getinfo(member)
        with file.zip.open(info) as opened:
            if opened.read(len(NPY)) != NPY:  # not an array
                total += info.file_size
                continue
        with file.zip.open(info) as opened:
            stated = _stated(opened)
            there = info.file_size - opened.tell()
        total += max(stated, info.file_size)
        if total > most:
            raise MemoryError(f"{total:,} bytes, and at most {most:,} are read")
        if stated > there:
            raise ValueError(f"{name} announces {stated:,} bytes and holds {there:,}")


def read_array(file: pathlib.Path | bytes, prefer=lambda names: None) -> np.ndarray:
    """Return the array of a .npy file, mapped if it is large, or one of a .npz file.

    Args:
        file: the path of a regular file, or its content.
        prefer: names in a .npz file -> the name to read; None: the only one.

    Raises:
        Exception: it is damaged, or announces more than it holds, or holds Python
            objects, or no or several arrays; `folders.reason` returns the reason.
    """
    if isinstance(file, bytes):
        return _read(io.BytesIO(file), len(file), prefer)
    with open(open_regular(file), "rb") as opened:
        return _read(opened, os.fstat(opened.fileno()).st_size, prefer)


def _read(opened: IO[bytes], size: int, prefer) -> np.ndarray:
    head = opened.read(len(NPY))
    opened.seek(0)
    if head == NPY:
        stated, begin = _stated(opened), opened.tell()
        if stated != size - begin:
            raise ValueError(
                f"damaged: it announces {stated:,} bytes and holds {size - begin:,}"
            )
        opened.seek(0)
        if isinstance(opened, io.BytesIO) or size <= _MAPPED:
            return np.lib.format.read_array(opened, allow_pickle=False)
        return _mapped(opened)
    if not head.startswith(ZIP):
        raise ValueError("neither a .npy nor a .npz file" if size else "it is empty")
    if size > _MOST_IN_ZIP:
        raise ValueError(too_large(size, _MOST_IN_ZIP))
    with np.load(opened, allow_pickle=False) as file:
        names = list(file.files)
        name = prefer(names) or (names[0] if len(names) == 1 else None)
        if name is None:
            raise ValueError(
                "expected an array x or x_test, or a single one; it has "
                f"{', '.join(sorted(names)[:10]) or 'none'}"
            )
        check_members(file, [name], min(_MOST_IN_ZIP, memory()))
        array = file[name]
    if not isinstance(array, np.ndarray):  # NumPy returns the bytes of other files
        raise ValueError(f"{name!r} is not an array; save it with np.savez")
    return array


def _mapped(opened) -> np.ndarray:
    shape, fortran, dtype = _header(opened)
    place = opened.tell()
    return np.memmap(opened, dtype, "r", place, shape, "F" if fortran else "C")


def _stated(opened: IO[bytes]) -> int:
    """Return the bytes that an array announces; it is positioned behind the header."""
    shape, _, dtype = _header(opened)
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save plain arrays of numbers")
    if any(side < 0 for side in shape):
        raise ValueError(f"damaged: its shape is {shape}")
    return math.prod(shape) * dtype.itemsize


def _header(opened: IO[bytes]) -> tuple:
    version = np.lib.format.read_magic(opened)
    if version not in _HEADERS:
        raise ValueError(
            f"damaged, or a table: version {version}; save plain arrays of numbers"
        )
    return _HEADERS[version](opened)
