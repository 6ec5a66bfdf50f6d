"""What is inside of an encrypted file: a manifest, and the files of a folder.

Manifest of a file: `{"kind": "file", "size": 5}`; of a folder: `{"kind": "folder",
"folders": ["a", "a/b"], "files": [["a/b/name", 5], ...]}`, parents before children.
"""

import contextlib
import errno
import json
import os
import pathlib
import stat
from collections.abc import Iterator

from gpuzoo.errors import CheckFailed, GpuzooError
from gpuzoo.files import (
    new_file,
    open_inside,
    open_regular,
    parse_json,
    temporary_name,
)

_LENGTH = 8  # bytes of the manifest's own length
_LARGEST_MANIFEST = 1 << 26
_BLOCK = 1 << 20


def is_inside(path: str | pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a path is, or would be, inside of a folder, links resolved."""
    real = pathlib.Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(folder))


class Source:
    """A file or a folder that is to be encrypted.

    Attributes:
        files: their names and sizes; of a single file the name is empty.
        size: bytes of all of them.
    """

    def __init__(self, path: pathlib.Path):
        """Raise GpuzooError if something in it is not a regular file or a folder."""
        self.path = path
        self.files: list[tuple[str, int]] = []
        folders: list[str] = []
        try:
            if path.is_dir():
                self._walk(folders)
                files = [[name, size] for name, size in self.files]
                made = {"kind": "folder", "folders": folders, "files": files}
            else:
                with open(open_regular(path), "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                self.files = [("", size)]
                made = {"kind": "file", "size": size}
        except (OSError, ValueError) as error:
            if isinstance(error, GpuzooError):
                raise
            why = getattr(error, "strerror", None) or error
            at = getattr(error, "filename", None) or path
            raise GpuzooError(f"{at} cannot be read: {why}") from None
        self.size = sum(size for _, size in self.files)
        self._manifest = json.dumps(made, separators=(",", ":")).encode()
        if len(self._manifest) > _LARGEST_MANIFEST:
            raise GpuzooError(
                f"{path} has too many files, {len(self.files):,}: their names fill "
                f"more than {_LARGEST_MANIFEST >> 20} MiB; encrypt its folders one by "
                "one"
            )

    def _walk(self, folders: list[str]) -> None:
        pending = [""]
        while pending:
            within = pending.pop()
            with os.scandir(self.path / within) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                name = f"{within}{entry.name}"
                try:
                    _check_name(name)
                except ValueError as error:
                    raise GpuzooError(f"{entry.path!r}: {error}") from None
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(name)
                    pending.append(f"{name}/")
                elif stat.S_ISREG(status.st_mode):
                    self.files.append((name, status.st_size))
                else:
                    raise GpuzooError(
                        f"{entry.path} is a link or a special file; only regular files "
                        "and folders can be encrypted: remove it, or put a copy in its "
                        "place"
                    )

    def blocks(self) -> Iterator[bytes]:
        """Return the plaintext in blocks of any size.

        Raises:
            GpuzooError: a file cannot be read, or its size has changed.
        """
        yield len(self._manifest).to_bytes(_LENGTH)
        yield self._manifest
        for name, size in self.files:
            at = self.path / name if name else self.path
            read = 0
            try:
                opened = open_inside(self.path, name) if name else open_regular(at)
                with open(opened, "rb") as file:
                    while block := file.read(_BLOCK):
                        read += len(block)
                        if read > size:
                            break
                        yield block
            except OSError as error:
                raise GpuzooError(
                    f"{at} cannot be read: {error.strerror or error}"
                ) from None
            if read != size:
                raise GpuzooError(f"{at} has changed while it was read; try again")


class Plaintext:
    """Reads authenticated chunks as one stream."""

    def __init__(self, chunks: Iterator[bytes], size: int, path: pathlib.Path):
        """Args: size: of all chunks together; path: for messages."""
        self._chunks, self.left, self.path = chunks, size, path
        self._rest = memoryview(b"")

    def blocks(self, size: int) -> Iterator[memoryview]:
        """Return the next `size` bytes, in blocks.

        Raises:
            CheckFailed: a chunk is not authentic, or there are fewer bytes.
        """
        while size:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
            block, self._rest = self._rest[:size], self._rest[size:]
            if not block:
                raise self.fault("it has fewer bytes than its manifest says")
            size -= len(block)
            self.left -= len(block)
            yield block

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        return b"".join(self.blocks(size))

    def end(self) -> None:
        """Raise CheckFailed if there is more. Only now the last chunk is known to be
        the last one."""
        if self._rest or next(self._chunks, None) is not None:
            raise self.fault("it has more bytes than its manifest says")

    def fault(self, why: str) -> CheckFailed:
        return CheckFailed(f"{self.path} cannot be unpacked: {why}")


def write(plain: Plaintext, out: pathlib.Path) -> tuple[int, int]:
    """Write the file or the folder of a plaintext; return the number of files and
    their size.

    Raises:
        CheckFailed: it is not authentic, or its manifest is not valid; nothing is left.
        OSError: `out` exists or cannot be written; nothing is left.
    """
    length = int.from_bytes(plain.take(_LENGTH))
    if length > min(_LARGEST_MANIFEST, plain.left):
        raise plain.fault("its manifest is too long")
    try:
        manifest = parse_json(plain.take(length).decode())
        folders, files = _read_manifest(manifest)
    except CheckFailed:
        raise
    except ValueError as error:
        raise plain.fault(f"its manifest is not valid: {error}") from None
    total = sum(size for _, size in files)
    if total != plain.left:
        raise plain.fault("its manifest has another size")
    if manifest["kind"] == "file":
        with new_file(out, 0o600) as file:
            file.writelines(plain.blocks(total))
            plain.end()
    else:
        _write_folder(plain, out, folders, files)
    return len(files), total


def _read_manifest(manifest) -> tuple[list[str], list[tuple[str, int]]]:
    """Return folders and files of a manifest.

    Raises:
        ValueError: it has another form, or a name that is not inside of the folder.
    """
    if not isinstance(manifest, dict):
        raise ValueError("it is not an object")
    if manifest.get("kind") == "file" and set(manifest) == {"kind", "size"}:
        _check_size(manifest["size"])
        return [], [("", manifest["size"])]
    if manifest.get("kind") != "folder" or set(manifest) != {
        "kind", "folders", "files",
    }:  # fmt: skip
        raise ValueError("it is neither of a file nor of a folder")
    folders, files = manifest["folders"], manifest["files"]
    if not isinstance(folders, list) or not isinstance(files, list):
        raise ValueError("it has no lists")
    if not all(isinstance(file, list) and len(file) == 2 for file in files):
        raise ValueError("a file is not a pair of name and size")
    seen = {""}  # the names of folders
    taken = set()
    for name, is_folder in [(f, True) for f in folders] + [
        (f[0], False) for f in files
    ]:
        _check_name(name)
        if name in taken:
            raise ValueError(f"the name {name[:80]!r} is there twice")
        if name.rpartition("/")[0] not in seen:
            raise ValueError(f"the folder of {name[:80]!r} is missing")
        taken.add(name)
        if is_folder:
            seen.add(name)
    for _, size in files:
        _check_size(size)
    return folders, [(name, size) for name, size in files]


def _check_name(name) -> None:
    """Raise ValueError for a name that is not inside of a folder on every system."""
    if not isinstance(name, str):
        raise ValueError("a name is not a text")
    if {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"the name {name[:80]!r} leads out of the folder")
    if "\0" in name or (os.name == "nt" and set(name) & set('\\:<>"|?*')):
        raise ValueError(f"the name {name[:80]!r} has a character that is not allowed")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {name[:80]!r} is not UTF-8") from None


def _check_size(size) -> None:
    if type(size) is not int or size < 0:
        raise ValueError("a size is not a number of bytes")


def _write_folder(plain: Plaintext, out: pathlib.Path, folders, files) -> None:
    """Write a folder under a temporary name that only this user can enter, and rename
    it."""
    top = out.parent / temporary_name()
    made = [(os.rmdir, top)]  # noted before it is made: a signal may come between
    try:
        top.mkdir(mode=0o700)
        for name in folders:
            made.append((os.rmdir, top / name))
            (top / name).mkdir(mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        for name, size in files:
            made.append((os.unlink, top / name))
            with open(os.open(top / name, flags, 0o600), "wb") as file:
                file.writelines(plain.blocks(size))
        plain.end()
        if hasattr(os, "sync"):
            os.sync()  # once: a flush of each of many small files takes minutes
        if os.path.lexists(out):
            raise FileExistsError(errno.EEXIST, "it exists", str(out))
        os.rename(top, out)
    except BaseException:
        for remove, path in reversed(made):
            with contextlib.suppress(OSError):
                remove(path)
        raise
