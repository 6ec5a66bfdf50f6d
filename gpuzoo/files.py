"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import time

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

from gpuzoo.errors import GpuzooError

# How the name of a folder begins that is being filled under a temporary name.
WRITING = ".writing-"
_DAY = 86_400


def expand(path: str | pathlib.Path) -> pathlib.Path:
    """A path with `~` made the home it stands for."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise GpuzooError(
            f"path {str(path)!r}: there is no such user's home; write it out"
        ) from None


def redact(text: str) -> str:
    """A path, alone or after an option (`--data=`), with `~` for the user's home.

    Only where it begins with the whole of it, and unchanged where there is no home.
    """
    return _exchange(_home(), "~", text)


def unredact(text: str) -> str:
    """The path that `redact` was given, on a machine with the same home."""
    return _exchange("~", _home(), text)


def _home() -> str:
    home = os.path.expanduser("~")  # unchanged where the system knows of none
    return home if len(home) > 1 else "~"


def _exchange(head: str, other: str, text: str) -> str:
    begin = rf"((?:[\w-]+=)?['\"]?){re.escape(head)}(?=/|['\"]?$)"
    return re.sub(rf"\A{begin}", lambda found: found[1] + other, text)


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """The whole new file, or the one that was there before; never a half.

    Written beside its place, flushed to the disk, renamed into its place, and the
    rename flushed too: a kill or a power cut at any instant leaves one of the two.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def held(path: pathlib.Path):
    """A run folder is this process's alone until the end of the block.

    The system gives it back when the process ends, however it ends. A folder that is
    not there, or whose file system knows no locks, is not held.

    Raises:
        GpuzooError: another process holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise GpuzooError(
                f"{path} is in the hands of another process; wait for it, or end it"
            ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def sync_folder(path: pathlib.Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: pathlib.Path) -> None:
    """Remove what a killed process had begun to write into a folder or one in it."""
    for file in path.rglob(".*"):
        if is_leftover(file):
            file.unlink(missing_ok=True)


def is_leftover(path: pathlib.Path) -> bool:
    """Whether it is a file that `write_atomically` has not renamed yet."""
    hidden = path.name.startswith(".")
    return hidden and path.suffix.removeprefix(".").isdigit() and path.is_file()


def remove_abandoned(parent: pathlib.Path) -> None:
    """What killed processes were writing into a folder that many share, once nobody can
    be at it any more: folders under a temporary name, and files."""
    left = [path for path in parent.glob(".*") if is_leftover(path)]
    for path in [*parent.glob(f"{WRITING}*"), *left]:
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - path.stat().st_mtime < _DAY:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
