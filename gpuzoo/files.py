"""Files that are there whole or not at all, in folders that stay the same ones.

gpuzoo removes and overwrites only what it wrote itself. What it has not finished yet
has a name that nobody else gives (`.gpuzoo-tmp-` and 16 random digits), and a folder of
its own holds the file MARKER. CONTRIBUTING.md lists every place that removes.
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
except ImportError:  # Windows has no such locks
    fcntl = None

from gpuzoo.errors import GpuzooError

MARKER = ".gpuzoo-folder"
_TEMPORARY = re.compile(r"\.gpuzoo-tmp-[0-9a-f]{16}")
_DAY = 86_400
# Elsewhere (Windows) a folder cannot be held open, and is found by its name each time.
_HOLDS = os.name == "posix"
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | (_READ & ~os.O_RDONLY)


def expand(path: str | pathlib.Path) -> pathlib.Path:
    """A path with `~` made the home it stands for."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise GpuzooError(
            f"path {str(path)!r}: there is no such user's home; write it out"
        ) from None


def redact(text: str) -> str:
    """A path, alone, after an option (`--data=`), in quotes, a list or a URL, with `~`
    for the user's home, by any of its names: $HOME, the system's, and where links of
    these lead. So is a relative path that leads into the home from outside of it.

    Only where it begins with the whole of it, and unchanged where there is no home.
    """
    text = _BEFORE_RELATIVE.sub(lambda found: found[1] + _absolute(found[2]), text)
    for home in _homes():
        text = _exchange(home, "~", text)
    return text


def unredact(text: str) -> str:
    """The path that `redact` was given, on a machine with the same home."""
    return _exchange("~", _home(), text)


def without_home(text: str) -> str:
    """A message with `~` for the user's home wherever a path in it begins with that;
    it cannot be read back."""
    for home in _homes():
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w-])", "~", text)
    return text


def _home() -> str:
    home = os.path.expanduser("~")  # unchanged where the system knows of none
    return home if len(home) > 1 else "~"


def _homes() -> list[str]:
    """Every name of the user's home, the longest first."""
    homes = {os.path.expanduser("~")}
    with contextlib.suppress(ImportError, KeyError):  # Windows; an unknown user
        import pwd

        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    homes = {home.rstrip("/") for home in homes if home.startswith("/")}
    homes |= {os.path.realpath(home) for home in homes}
    return sorted((home for home in homes if len(home) > 1), key=len, reverse=True)


def _absolute(path: str) -> str:
    """A relative path that goes through the home as `~/...`; any other as it is."""
    if "/" not in path:  # a plain word, of a recipe or a dataset
        return path
    try:
        place, homes, parts = os.getcwd(), _homes(), path.split("/")
    except OSError:  # the current folder has been removed
        return path
    for number, part in enumerate(parts, start=1):
        place = os.path.normpath(os.path.join(place, part))
        if part not in ("", ".", "..") and place in homes:
            return "/".join(["~", *parts[number:]])
    return path


# Where a path may begin: alone, after an option, in quotes, in a list, in a URL.
_URL = r"(?:[A-Za-z][\w+.-]*://[^/~\s'\"]*)?"
_BEGIN = rf"\A(?:[\w-]+=)?{_URL}|(?:['\"]|[\s,;:|(\[{{]){_URL}"
_BEFORE_RELATIVE = re.compile(
    r"(\A(?:[\w-]+=)?(?:file://)?|['\"(\[,]\s*)([^/~'\"()\[\],\s][^'\"()\[\],]*)"
)


def _exchange(head: str, other: str, text: str) -> str:
    begin = rf"({_BEGIN}){re.escape(head)}(?=[/'\",;:|)\]}}\s]|$)"
    return re.sub(begin, lambda found: found[1] + other, text)


def temporary_name() -> str:
    """A new name for what is being written."""
    return f".gpuzoo-tmp-{secrets.token_hex(8)}"


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` gives such names."""
    return bool(_TEMPORARY.fullmatch(name))


class Folder:
    """A folder that is held open, so that it stays the same one whatever its name.

    Everything is written into a temporary file, flushed to the disk, renamed into its
    place, and the rename flushed too: a kill or a power cut at any instant leaves the
    new file or the one before it. A link in the way is replaced, never followed.
    """

    def __init__(self, path: str | pathlib.Path):
        """Raises OSError: it is not there, or no folder."""
        self.path = pathlib.Path(path)
        self.descriptor: int | None = None
        if _HOLDS:
            self.descriptor = os.open(self.path, _READ | _DIRECTORY)

    def close(self) -> None:
        """Let go of it, and of the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def check(self) -> None:
        """Called before every write; raises if nothing may be written."""

    def lock(self) -> None:
        """Make it this process's alone until it is closed or the process ends.

        A file system that knows no locks gives none.

        Raises:
            GpuzooError: another process holds it.
        """
        if not fcntl or self.descriptor is None:
            return
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise GpuzooError(
                    f"{self.path} is in the hands of another process; wait for it, or "
                    "end it"
                ) from None

    def locate(self) -> pathlib.Path:
        """Where it is now: `path`, which follows if it was renamed."""
        if self.descriptor is None:
            return self.path
        own = os.fstat(self.descriptor)
        try:
            if os.path.samestat(own, os.stat(self.path)):
                return self.path
        except OSError:
            pass
        with contextlib.suppress(OSError):  # only Linux tells
            found = pathlib.Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            if os.path.samestat(own, os.stat(found)):
                self.path = found
        return self.path

    def is_gone(self) -> bool:
        """Whether it has been removed."""
        if self.descriptor is None:
            return not self.path.exists()
        return os.fstat(self.descriptor).st_nlink == 0

    def sub(self, name: str) -> "SubFolder":
        """A folder in it, that is made when something is written into it."""
        return SubFolder(self, name)

    def write_file(self, name: str, content: bytes) -> None:
        """The whole new file, or the one that was there before; never a half.

        Args:
            name: of a file in it, or `folder/file`.

        Raises:
            OSError: it cannot be written; nothing half-written stays.
        """
        folder, _, name = name.rpartition("/")
        if folder:
            return self.sub(folder).write_file(name, content)
        self.check()
        os.close(self._replace(name, content))

    def read_file(self, name: str) -> bytes:
        """The content of a regular file, `folder/file` too; never through a link.

        Raises:
            OSError: it cannot be read, or is something else than a regular file.
        """
        folder, _, name = name.rpartition("/")
        if folder:
            return self.sub(folder).read_file(name)
        with self._errors(name), open(self.open_file(name), "rb") as file:
            return file.read()

    def open_file(self, name: str) -> int:
        """A descriptor of a regular file, to read; never through a link."""
        with self._errors(name):
            return _open_regular(*self._at(name))

    def names(self) -> list[str]:
        """What is in it, in order."""
        return sorted(os.listdir(self._top()))

    def find(self, name: str) -> os.stat_result | None:
        """What has that name, a link itself; None if nothing has."""
        where, at = self._at(name)
        try:
            return os.stat(where, follow_symlinks=False, **at)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove_file(self, name: str) -> None:
        """Remove a name, that of a link and not what it leads to."""
        where, at = self._at(name)
        with self._errors(name), contextlib.suppress(FileNotFoundError):
            os.unlink(where, **at)

    def set_aside(self, name: str) -> str:
        """Give what has a name, a link too, another name that nothing has.

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

    def remove_temporary(self, older: float = 0) -> None:
        """Remove what killed processes were writing here, `older` seconds ago."""
        for name in self.names():
            found = is_temporary(name) and self.find(name)
            if found and stat.S_ISREG(found.st_mode):
                if time.time() - found.st_mtime >= older:
                    self.remove_file(name)

    def _top(self):
        return self.path if self.descriptor is None else self.descriptor

    def _at(self, name: str) -> tuple:
        """What the functions of `os` take for a name in it."""
        if self.descriptor is None:
            return self.path / name, {}
        return name, {"dir_fd": self.descriptor}

    def _replace(self, name: str, content: bytes) -> int:
        """Put a new file in a place; its descriptor, at the end, to write on."""
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
        """Errors name the whole path."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path / name)
            if error.filename2 is not None:
                del error.filename2  # None would be told as "-> None"
            raise


class SubFolder:
    """A folder in another one, opened anew for each use and never through a link."""

    def __init__(self, parent: Folder, name: str):
        self.parent, self.name = parent, name

    @property
    def path(self) -> pathlib.Path:
        return self.parent.path / self.name

    def is_link(self) -> bool:
        """Whether something that is no folder, a link to one too, has its name."""
        found = self.parent.find(self.name)
        return found is not None and not stat.S_ISDIR(found.st_mode)

    @contextlib.contextmanager
    def opened(self, *, make: bool = False):
        """The folder, as it is now.

        Raises:
            OSError: it is not there, or a link or a file has its name.
        """
        where, at = self.parent._at(self.name)
        if make and self.is_link():
            raise NotADirectoryError(
                errno.ENOTDIR,
                "it is a link or a file; gpuzoo writes into no folder behind a link",
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
    """The whole new file, or the one that was there before; never a half.

    A link in its place is replaced, never followed.

    Args:
        replace: a file that is there already may be overwritten; else it stays.
    """
    folder = Folder(path.parent)
    try:
        if not replace and os.path.lexists(path):
            return
        folder.write_file(path.name, content)
    finally:
        folder.close()


def read_inside(top: str | pathlib.Path, name: str) -> bytes:
    """The content of a regular file that lies in a folder or in folders of that one.

    A link, a pipe, a device and a path that leads out of the folder are not followed.

    Raises:
        OSError: there is no such file.
        ValueError: the name has a null in it.
    """
    with open(open_inside(top, name), "rb") as file:
        return file.read()


def open_inside(top: str | pathlib.Path, name: str) -> int:
    """A descriptor of such a file, to read."""
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or os.path.isabs(name):
        raise OSError(errno.EINVAL, "it is not a path inside of the folder", name)
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
    # Opening a pipe may wait for ever, and opening a device may do something: look
    # first, open without waiting, look again.
    flags = _READ | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
    if not stat.S_ISREG(os.stat(where, follow_symlinks=False, **at).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    descriptor = os.open(where, flags, **at)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file")


def make_temporary_folder(parent: pathlib.Path) -> pathlib.Path:
    """A new folder, for this process alone, that `remove_abandoned` knows for ours."""
    folder = parent / temporary_name()
    folder.mkdir(mode=0o700)
    (folder / MARKER).touch()
    return folder


def remove_own_folder(path: pathlib.Path, ours: re.Pattern) -> None:
    """Remove what gpuzoo made: a folder with MARKER in it, of its files those with such
    names and what was half-written, and the folder if nothing is left in it."""
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
    """What killed processes were writing into a folder that many share, a day ago, so
    that nobody can be at it any more: files, and folders with such files in them."""
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


_LARGEST_JSON = 100_000_000


def parse_json(text: str):
    """A text of JSON; no key twice in one object, of which readers take either.

    Raises:
        ValueError: it is damaged; the message says how.
    """
    if len(text) > _LARGEST_JSON:
        raise ValueError(f"it is longer than {_LARGEST_JSON:,} characters")
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once_each(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {twice[:80]!r} twice")
    return found


def root() -> pathlib.Path:
    """GPUZOO_CACHE, or gpuzoo's folder in the user's cache folder."""
    if named := os.environ.get("GPUZOO_CACHE"):
        return expand(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(base) / "gpuzoo"
