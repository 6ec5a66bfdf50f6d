"""Atomic file writes, in folders that are held open by descriptor.

gpuzoo removes and overwrites only what it wrote itself. Unfinished files have a unique
name (`.gpuzoo-tmp-` and 16 random digits), and gpuzoo's own folders hold the file
MARKER. CONTRIBUTING.md lists every place that removes.
"""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import re
import secrets
import stat
import time

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None

from gpuzoo.errors import GpuzooError

MARKER = ".gpuzoo-folder"
_TEMPORARY = re.compile(r"\.gpuzoo-tmp-[0-9a-f]{16}")
_DAY = 86_400
# On Windows a folder cannot be held open; it is found by its name each time.
_HOLDS = os.name == "posix"
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | (_READ & ~os.O_RDONLY)


def expand(path: str | pathlib.Path) -> pathlib.Path:
    """Return a path with `~` expanded to the home folder."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise GpuzooError(
            f"path {str(path)!r}: no home folder for that user; write the path in full"
        ) from None


def temporary_name() -> str:
    """Return a new name for a file that is being written."""
    return f".gpuzoo-tmp-{secrets.token_hex(8)}"


def is_temporary(name: str) -> bool:
    """Whether a name is one from `temporary_name`."""
    return bool(_TEMPORARY.fullmatch(name))


class Folder:
    """A folder that is held open, so that it stays the same one if it is renamed.

    Everything is written into a temporary file, flushed to the disk, renamed into its
    place, and the rename flushed too: a kill or a power cut at any instant leaves the
    new file or the one before it. An existing link is replaced, never followed.
    """

    def __init__(self, path: str | pathlib.Path):
        """Raise OSError if the folder does not exist or is not a folder."""
        self.path = pathlib.Path(path)
        self.descriptor: int | None = None
        if _HOLDS:
            self.descriptor = os.open(self.path, _READ | _DIRECTORY)

    def close(self) -> None:
        """Close the folder and release the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def check(self) -> None:
        """Raise if nothing may be written; called before every write."""

    def lock(self) -> None:
        """Lock the folder until it is closed or the process ends.

        Without effect on a file system that does not support locks.

        Raises:
            GpuzooError: another process holds it.
        """
        # `is_locked` of another process holds a lock for an instant: try again.
        for wait in (0.1, 0.2, 0):
            if self._flock("LOCK_EX") is not False:
                return
            time.sleep(wait)
        raise GpuzooError(
            f"{self.path} is locked by another process; wait for it or end it"
        )

    def is_locked(self) -> bool | None:
        """Whether another process holds the folder; None: it cannot be known."""
        free = self._flock("LOCK_SH")
        if free:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return None if free is None else not free

    def _flock(self, kind: str) -> bool | None:
        """Lock the folder, if no other process has locked it; return whether, or None
        without support of locks."""
        if not fcntl or self.descriptor is None:
            return None
        try:
            fcntl.flock(self.descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
        except OSError as error:
            busy = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
            return False if busy else None
        return True

    def locate(self) -> pathlib.Path:
        """Return the current path, also after a rename."""
        if self.descriptor is None:
            return self.path
        own = os.fstat(self.descriptor)
        try:
            if os.path.samestat(own, os.stat(self.path)):
                return self.path
        except OSError:
            pass
        with contextlib.suppress(OSError):  # only available on Linux
            found = pathlib.Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            if os.path.samestat(own, os.stat(found)):
                self.path = found
        return self.path

    def is_gone(self) -> bool:
        """Whether the folder has been removed."""
        if self.descriptor is None:
            return not self.path.exists()
        return os.fstat(self.descriptor).st_nlink == 0

    def sub(self, name: str) -> "SubFolder":
        """Return a sub-folder, which is created on the first write into it."""
        return SubFolder(self, name)

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file atomically: after a crash it has the old or the new content.

        Args:
            name: of a file in the folder, or `folder/file`.

        Raises:
            OSError: the file cannot be written; no partial file is left.
        """
        folder, _, name = name.rpartition("/")
        if folder:
            return self.sub(folder).write_file(name, content)
        self.check()
        os.close(self._replace(name, content))

    def read_file(self, name: str) -> bytes:
        """Return the content of a regular file, `folder/file` too; links are refused.

        Raises:
            OSError: the file cannot be read or is not a regular file.
        """
        folder, _, name = name.rpartition("/")
        if folder:
            return self.sub(folder).read_file(name)
        with self._errors(name), open(self.open_file(name), "rb") as file:
            return file.read()

    def open_file(self, name: str) -> int:
        """Return a descriptor of a regular file, to read; links are refused."""
        with self._errors(name):
            return _open_regular(*self._at(name))

    def names(self) -> list[str]:
        """Return the sorted names of all entries."""
        return sorted(os.listdir(self._top()))

    def find(self, name: str) -> os.stat_result | None:
        """Return the status of an entry, of a link itself, or None if missing."""
        where, at = self._at(name)
        try:
            return os.stat(where, follow_symlinks=False, **at)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove_file(self, name: str) -> None:
        """Remove a file, or a link and not its target."""
        where, at = self._at(name)
        with self._errors(name), contextlib.suppress(FileNotFoundError):
            os.unlink(where, **at)

    def set_aside(self, name: str) -> str:
        """Rename an entry, also a link, to a free name.

        Returns:
            The new name: `curves.kept-1.png`.
        """
        folder, _, name = name.rpartition("/")
        if folder:
            with self.sub(folder).opened() as inner:
                return f"{folder}/{inner.set_aside(name)}"
        stem, dot, suffix = name.partition(".")
        numbers = (f"{stem}.kept-{n}{dot}{suffix}" for n in itertools.count(1))
        new = next(one for one in numbers if not self.find(one))
        (where, at), (goal, _) = self._at(name), self._at(new)
        top = at.get("dir_fd")
        with self._errors(name):
            os.rename(where, goal, src_dir_fd=top, dst_dir_fd=top)
        return new

    @contextlib.contextmanager
    def new_file(self, name: str, mode: int = 0o666):
        """Open a binary file to write, which appears under its name when it is complete
        and never replaces another.

        Raises:
            FileExistsError: there is one by now.
        """
        temporary = temporary_name()
        (where, at), (goal, _) = self._at(temporary), self._at(name)
        top = at.get("dir_fd")
        with self._errors(name):
            descriptor = os.open(where, _NEW, mode, **at)
            try:
                with open(descriptor, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(descriptor)
                try:
                    os.link(where, goal, src_dir_fd=top, dst_dir_fd=top)
                except FileExistsError:
                    raise
                except OSError:  # a file system without hard links
                    if self.find(name):
                        raise FileExistsError(errno.EEXIST, "it exists") from None
                    os.rename(where, goal, src_dir_fd=top, dst_dir_fd=top)
            finally:
                self.remove_file(temporary)
            if self.descriptor is not None:
                os.fsync(self.descriptor)

    def remove_temporary(self, older: float = 0) -> None:
        """Remove partial files of killed processes that are at least `older` seconds
        old."""
        for name in self.names():
            found = is_temporary(name) and self.find(name)
            if found and stat.S_ISREG(found.st_mode):
                if time.time() - found.st_mtime >= older:
                    self.remove_file(name)

    def _top(self):
        return self.path if self.descriptor is None else self.descriptor

    def _at(self, name: str) -> tuple:
        """Return the arguments of `os` functions for an entry: name and dir_fd."""
        if self.descriptor is None:
            return self.path / name, {}
        return name, {"dir_fd": self.descriptor}

    def _replace(self, name: str, content: bytes) -> int:
        """Replace a file; return its descriptor, positioned at the end."""
        temporary = temporary_name()
        (where, at), (goal, _) = self._at(temporary), self._at(name)
        with self._errors(name):
            descriptor = os.open(where, _NEW, 0o666, **at)
            try:
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(content)
                os.fsync(descriptor)
                top = at.get("dir_fd")
                ends = {"src_dir_fd": top, "dst_dir_fd": top} if at else {}
                os.replace(where, goal, **ends)
            except BaseException:
                os.close(descriptor)
                self.remove_file(temporary)
                raise
            if self.descriptor is not None:
                os.fsync(self.descriptor)
        return descriptor

    @contextlib.contextmanager
    def _errors(self, name: str):
        """Make errors name the whole path."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path / name)
            if error.filename2 is not None:
                del error.filename2  # None would be printed as "-> None"
            raise


class SubFolder:
    """A sub-folder, opened for each use and never through a link."""

    def __init__(self, parent: Folder, name: str):
        self.parent, self.name = parent, name

    @property
    def path(self) -> pathlib.Path:
        return self.parent.path / self.name

    def is_link(self) -> bool:
        """Whether the path exists and is not a folder, or is a link to one."""
        found = self.parent.find(self.name)
        return found is not None and not stat.S_ISDIR(found.st_mode)

    @contextlib.contextmanager
    def opened(self, *, make: bool = False):
        """Open the folder.

        Raises:
            OSError: it does not exist, or is a link or a file.
        """
        where, at = self.parent._at(self.name)
        if make and self.is_link():
            raise NotADirectoryError(
                errno.ENOTDIR,
                "it is a link or a file; gpuzoo does not write through links",
                str(self.path),
            )
        folder = Folder.__new__(Folder)
        folder.path, folder.descriptor = self.path, None
        with self.parent._errors(self.name):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(where, **at)
            if self.is_link():
                raise NotADirectoryError(errno.ENOTDIR, "it is a link or a file")
            if _HOLDS:
                flags = _READ | _DIRECTORY | _NOFOLLOW
                folder.descriptor = os.open(where, flags, **at)
        try:
            yield folder
        finally:
            folder.close()

    def write_file(self, name: str, content: bytes) -> None:
        self.parent.check()
        with self.opened(make=True) as folder:
            folder.write_file(name, content)

    def read_file(self, name: str) -> bytes:
        with self.opened() as folder:
            return folder.read_file(name)

    def remove_temporary(self) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with self.opened() as folder:
                folder.remove_temporary()

    def remove_if_empty(self) -> None:
        where, at = self.parent._at(self.name)
        with contextlib.suppress(OSError):  # it holds something that is not ours
            os.rmdir(where, **at)


def as_folder(folder) -> Folder:
    """A folder that is held, of one or of its path."""
    return Folder(folder) if isinstance(folder, str | pathlib.Path) else folder


def write_atomically(path: pathlib.Path, content: bytes, *, replace=True) -> None:
    """Write a file atomically: after a crash it has the old or the new content.

    An existing link is replaced, never followed.

    Args:
        replace: overwrite an existing file; if False it is kept.
    """
    folder = Folder(path.parent)
    try:
        if not replace and os.path.lexists(path):
            return
        folder.write_file(path.name, content)
    finally:
        folder.close()


@contextlib.contextmanager
def new_file(path: pathlib.Path, mode: int = 0o666):
    """Open a file as `Folder.new_file` does."""
    folder = Folder(path.parent)
    try:
        with folder.new_file(path.name, mode) as file:
            yield file
    finally:
        folder.close()


def read_inside(top: str | pathlib.Path, name: str, most: int | None = None) -> bytes:
    """Return the content of a regular file in a folder or its sub-folders.

    Links, pipes, devices and paths that lead out of the folder are refused.

    Args:
        most: bytes that the file may have.

    Raises:
        OSError: there is no such file, or it is too large.
        ValueError: the name contains a null character.
    """
    return _content(open_inside(top, name), most)


def read_regular(path: str | pathlib.Path, most: int | None = None) -> bytes:
    """Return the content of a regular file that the user has named, through links.

    Args:
        most: bytes that the file may have.

    Raises:
        OSError: there is no such file, or it is a folder, pipe, device or socket, or
            too large.
    """
    return _content(open_regular(path), most)


def _content(descriptor: int, most: int | None) -> bytes:
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, too_large(size, most))
        return file.read()


def too_large(size: int, most: int) -> str:
    """Return the reason why a file is not read."""
    return f"it has {size:,} bytes, and at most {most:,} are read"


def open_regular(path: str | pathlib.Path) -> int:
    """Open a file as `read_regular` does and return its descriptor."""
    return _open_regular(os.path.realpath(path), {})


def open_inside(top: str | pathlib.Path, name: str) -> int:
    """Open a file as `read_inside` does and return its descriptor."""
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or os.path.isabs(name):
        raise OSError(errno.EINVAL, "it is not a path inside the folder", name)
    folder = Folder(top)
    try:
        for part in parts[:-1]:
            with folder.sub(part).opened() as inner:
                folder.close()
                folder.path, folder.descriptor = inner.path, inner.descriptor
                inner.descriptor = None
        return folder.open_file(parts[-1])
    finally:
        folder.close()


def _open_regular(where, at) -> int:
    # Opening a pipe may block forever, and opening a device may have side effects:
    # check first, open without blocking, check again.
    flags = _READ | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
    if not stat.S_ISREG(os.stat(where, follow_symlinks=False, **at).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    descriptor = os.open(where, flags, **at)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file")


def make_temporary_folder(parent: pathlib.Path) -> pathlib.Path:
    """Create a private folder that `remove_abandoned` recognizes as gpuzoo's."""
    folder = parent / temporary_name()
    folder.mkdir(mode=0o700)
    (folder / MARKER).touch()
    return folder


def remove_own_folder(path: pathlib.Path, ours: re.Pattern) -> None:
    """Remove from a folder with MARKER the files whose names match and partial files,
    then the folder if it is empty."""
    with contextlib.suppress(OSError):  # another process was first, or it is a link
        if path.is_symlink():
            return
        marker = path / MARKER
        if marker.is_file() and not marker.is_symlink():
            rest = False
            for file in path.iterdir():
                known = ours.fullmatch(file.name) or is_temporary(file.name)
                if known and stat.S_ISREG(file.lstat().st_mode):
                    file.unlink(missing_ok=True)
                else:
                    rest |= file.name != MARKER
            if not rest:
                marker.unlink(missing_ok=True)
        path.rmdir()


def remove_abandoned(parent: pathlib.Path, ours: re.Pattern) -> None:
    """Remove from a shared folder what killed processes left there at least a day ago:
    partial files, and temporary folders with their files."""
    folder = Folder(parent)
    try:
        folder.remove_temporary(_DAY)
        for name in filter(is_temporary, folder.names()):
            found = folder.find(name)
            if found and stat.S_ISDIR(found.st_mode):
                if time.time() - found.st_mtime >= _DAY:
                    remove_own_folder(parent / name, ours)
    finally:
        folder.close()


LARGEST_JSON = 100_000_000


def parse_json(text: str):
    """Parse JSON; duplicate keys are refused, as readers disagree on which one counts.

    Raises:
        ValueError: the text is damaged; the message says how.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"it is longer than {LARGEST_JSON:,} characters")
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once_each(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"it has the key {key[:80]!r} twice")
            seen.add(key)
    return found


def root() -> pathlib.Path:
    """Return the cache folder: GPUZOO_CACHE, or gpuzoo's in the user's cache folder."""
    if named := os.environ.get("GPUZOO_CACHE"):
        return expand(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(base) / "gpuzoo"
