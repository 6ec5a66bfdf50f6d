"""A cache of programs that XLA compiled for JAX, for later processes.

JAX keeps programs in a folder, writes them in place and trusts what it finds there.
Here that folder belongs to one process: it starts with the programs of the cache whose
name ends with the digest of their place, JAX name and content, and new programs are
written to the cache atomically. So a kill, a full disk, a damaged or a renamed file
costs a compilation, never a bit. Level strict and `verify` do not use the cache: they
always compile.
"""

import atexit
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable

from gpuzoo.errors import GpuzooError
from gpuzoo.files import (
    MARKER,
    make_temporary_folder,
    read_inside,
    remove_abandoned,
    remove_own_folder,
    root,
    write_atomically,
)
from gpuzoo.runtime.environment import environment

# Bytes; the most recently used places are kept.
LIMIT = 1_000_000_000
_HIT = "/jax/compilation_cache/cache_hits"
# Programs depend on these, besides environment and runtime.
_RECIPE = ("task", "model", "model_options", "batch_size")

# Names of files that JAX writes, of programs in the cache, of places with programs.
_OF_JAX = re.compile(r".+-(cache|atime)|\.lockfile")
_PROGRAM = re.compile(r"(.+-cache)\.([0-9a-f]{64})")
_PLACE = re.compile(r"[0-9a-f]{32}")

_folder: pathlib.Path | None = None  # JAX's; one per process
_hits = 0


@dataclasses.dataclass
class Programs:
    """The programs of one run."""

    place: pathlib.Path
    """Where they are in the cache."""
    given: set[str]
    """Programs in JAX's folder before the run compiled."""
    hits: int
    say: Callable[[str, str], None]
    warned: warnings.catch_warnings | None
    """Catches JAX's warnings while it loads programs."""

    def keep(self) -> None:
        """Add new programs to the cache, once all is compiled."""
        self.end()
        try:
            self._keep()
        except (OSError, ImportError) as error:  # JAX may have moved its decompression
            _refused(self.say, error)
        if (found := _hits - self.hits) > 0:
            several = "s" * (found != 1)
            self.say(f"{found} program{several} had been compiled before.", None)

    def end(self) -> None:
        """Stop catching JAX's warnings."""
        if self.warned:
            self.warned.__exit__(None, None, None)
            self.warned = None

    def _keep(self) -> None:
        new = [path for path in _entries() if path.name not in self.given]
        for path in new:
            content = path.read_bytes()
            if _is_whole(content):
                digest = _digest(self.place, path.name, content)
                write_atomically(self.place / f"{path.name}.{digest}", content)
        forget()
        if new:
            with contextlib.suppress(FileNotFoundError):  # two processes at once
                _prune(self.place.parent)


def lend(record: dict, say: Callable[[str, str], None]) -> Programs | None:
    """Give JAX the programs compiled before for such a run, before it compiles.

    Args:
        record: of the run (run.json) with its recipe and runtime.
        say: called with a line for the user, and a style.

    Returns:
        None if there is no cache: on TensorFlow, at level strict, if the user has
        configured or disabled JAX's cache, and if ours cannot be written.
    """
    runtime = dict(record["runtime"], seed=0, reasons={})
    if runtime["backend"] != "jax" or runtime["level"] == "strict":
        return None
    import jax

    ours = jax.config.jax_compilation_cache_dir in (None, str(_folder))
    if not ours or not jax.config.jax_enable_compilation_cache:
        return None
    recipe = {name: record["recipe"][name] for name in _RECIPE}
    # Not the record's environment: a run may be resumed in another.
    kind = json.dumps(["2", environment(), runtime, recipe], sort_keys=True)
    name = hashlib.sha256(kind.encode()).hexdigest()[:32]
    try:
        place = root() / "compiled" / name
        place.mkdir(parents=True, exist_ok=True)
        _claim(place)
        _open(jax, place.parent)
        remove_abandoned(place, _OF_JAX)
        refused = [name for name in sorted(os.listdir(place)) if not _give(place, name)]
        if refused:
            say(
                f"Recompiled: {len(refused)} of the programs in {place} have been "
                "changed since they were written, or put under another name.", "yellow",
            )  # fmt: skip
        given = {path.name for path in _entries()}
        return Programs(place, given, _hits, say, _listen(say))
    except (OSError, GpuzooError) as error:
        _refused(say, error)
        return None


def _open(jax, parent: pathlib.Path) -> None:
    """Create JAX's folder, once per process, and count cache hits."""
    global _folder
    if _folder:
        _folder.mkdir(mode=0o700, exist_ok=True)  # it may have looked abandoned
        (_folder / MARKER).touch()
        return
    remove_abandoned(parent, _OF_JAX)
    _folder = make_temporary_folder(parent.absolute())
    atexit.register(remove_own_folder, _folder, _OF_JAX)
    jax.config.update("jax_compilation_cache_dir", str(_folder))
    # JAX keeps programs that took a second; most at start-up take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # Compile a program that cannot be loaded, whatever the user's setting.
    jax.config.update("jax_raise_persistent_cache_errors", False)
    # Off: a second cache, of tuned kernels, inside the first.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

    def count(event: str, **_) -> None:
        global _hits
        _hits += event == _HIT

    jax.monitoring.register_event_listener(count)


def _claim(place: pathlib.Path) -> None:
    """Check that a place belongs to gpuzoo, or mark it as such if it is empty.

    Raises:
        OSError: it is a link or holds files without gpuzoo's marker.
    """
    if place.is_symlink() or (os.listdir(place) and not (place / MARKER).is_file()):
        raise FileExistsError(errno.EEXIST, f"{place} is not gpuzoo's")
    if not (place / MARKER).is_file():
        (place / MARKER).touch()
    os.utime(place)  # used now


def _digest(place: pathlib.Path, name: str, content: bytes) -> str:
    """Return the sha256 of a program and its name, which detects renamed files."""
    return hashlib.sha256(f"{place.name}/{name}\0".encode() + content).hexdigest()


def _give(place: pathlib.Path, file: str) -> bool:
    """Give JAX a program of the cache. Return False if it has changed since it was
    written; it is then removed, or left alone if it is a link."""
    match = _PROGRAM.fullmatch(file)
    if not match:
        return True  # not ours
    try:
        content = read_inside(place, file)
    except FileNotFoundError:  # another process has removed it
        return True
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ELOOP):  # a link, a pipe, a folder
            return False
        raise
    if _digest(place, match[1], content) != match[2]:
        (place / file).unlink(missing_ok=True)
        return False
    try:
        (_folder / match[1]).write_bytes(content)
    except OSError:
        (_folder / match[1]).unlink(missing_ok=True)
        raise
    return True


def _listen(say: Callable[[str, str], None]) -> warnings.catch_warnings:
    """Print one line for each JAX warning that a program cannot be loaded."""
    warned = warnings.catch_warnings()
    warned.__enter__()
    show = warnings.showwarning

    def print_line(message, *words, **more) -> None:
        if "persistent compilation cache" not in str(message):
            return show(message, *words, **more)
        first = str(message).partition("\n")[0][:150]
        say(f"A program is recompiled, since JAX cannot load it ({first}).", "yellow")

    warnings.showwarning = print_line
    warnings.filterwarnings("always", message=".*persistent compilation cache")
    return warned


def forget() -> None:
    """Empty JAX's folder: later programs are compiled."""
    for path in _folder.iterdir() if _folder and _folder.is_dir() else ():
        if _OF_JAX.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _is_whole(content: bytes) -> bool:
    """Return whether a program is complete: on a full disk JAX leaves a part."""
    from jax._src.compilation_cache import decompress_executable

    try:
        return bool(decompress_executable(content))
    except Exception:  # depends on the compression library
        return False


def _entries() -> list[pathlib.Path]:
    return sorted(_folder.glob("*-cache"))


def _prune(parent: pathlib.Path) -> None:
    """Remove the least recently used programs beyond the limit."""
    places, total = [], 0
    for place in parent.iterdir():
        ours = _PLACE.fullmatch(place.name) and not place.is_symlink()
        if ours and (place / MARKER).is_file():
            places.append(place)
    for place in sorted(places, key=lambda path: path.stat().st_mtime, reverse=True):
        programs = [path for path in place.iterdir() if _PROGRAM.fullmatch(path.name)]
        total += sum(path.lstat().st_size for path in programs)
        if total > LIMIT:
            remove_own_folder(place, _PROGRAM)


def _refused(say: Callable[[str, str], None], error: Exception) -> None:
    reason = getattr(error, "strerror", None) or error
    say(
        f"Compiled programs could not be kept ({reason}): the next run "
        "compiles them again. Set GPUZOO_CACHE to another folder.",
        "yellow",
    )
