"""What XLA compiled for JAX, kept for the next process that trains the same.

JAX keeps programs in a folder, writes them in place and trusts what it finds there.
Here that folder is one process's own: it begins with those programs of the cache that
still have the digest in their name, and what is new in it goes into the cache whole or
not at all. So a kill, a full disk or a damaged file costs a compilation, and never a
bit. Level strict and `verify` take nothing from the cache: they compile anew.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable

from gpuzoo.data.cache import root
from gpuzoo.errors import GpuzooError
from gpuzoo.files import WRITING, remove_abandoned, write_atomically
from gpuzoo.machine import environment

# Bytes; the places that were used last are kept.
LIMIT = 1_000_000_000
_HIT = "/jax/compilation_cache/cache_hits"
# What the programs of a run depend on, besides its environment and runtime.
_RECIPE = ("task", "model", "model_options", "batch_size")

_folder: pathlib.Path | None = None  # JAX's; it takes one a process
_hits = 0


@dataclasses.dataclass
class Programs:
    """Those of one run."""

    place: pathlib.Path
    """Where they are in the cache."""
    given: set[str]
    """What JAX's folder held before the run compiled."""
    hits: int
    say: Callable[[str, str], None]

    def keep(self) -> None:
        """Take what is new into the cache, when all is compiled."""
        try:
            self._keep()
        except (OSError, ImportError) as error:  # JAX may have moved what unpacks
            _refused(self.say, error)
        if (found := _hits - self.hits) > 0:
            several = "s" * (found != 1)
            self.say(f"{found} program{several} had been compiled before.", None)

    def _keep(self) -> None:
        new = [path for path in _entries() if path.name not in self.given]
        for path in new:
            content = path.read_bytes()
            if _is_whole(content):
                digest = hashlib.sha256(content).hexdigest()
                write_atomically(self.place / f"{path.name}.{digest}", content)
        forget()
        if new:
            with contextlib.suppress(FileNotFoundError):  # two processes at once
                _prune(self.place.parent)


def lend(record: dict, say: Callable[[str, str], None]) -> Programs | None:
    """Give JAX what was compiled before for such a run, before it compiles anything.

    Args:
        record: of the run (run.json) with its recipe and runtime.
        say: tells a person a line, in a style.

    Returns:
        None where nothing is kept: on TensorFlow, at level strict, where JAX has a
        cache of the user's or is told to have none, and where ours cannot be written.
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
    kind = json.dumps([environment(), runtime, recipe], sort_keys=True)
    name = hashlib.sha256(kind.encode()).hexdigest()[:32]
    try:
        place = root() / "compiled" / name
        place.mkdir(parents=True, exist_ok=True)
        place.touch()  # used now
        _open(jax, place.parent)
        remove_abandoned(place)
        for path in place.glob("[!.]*"):
            _give(path)
        return Programs(place, {path.name for path in _entries()}, _hits, say)
    except (OSError, GpuzooError) as error:
        _refused(say, error)
        return None


def _open(jax, parent: pathlib.Path) -> None:
    """Make JAX's folder, once a process, and count what it takes from there."""
    global _folder
    if _folder:
        _folder.mkdir(mode=0o700, exist_ok=True)  # it may have looked abandoned
        return
    remove_abandoned(parent)
    parent = parent.absolute()
    _folder = pathlib.Path(tempfile.mkdtemp(prefix=WRITING, dir=parent))
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", str(_folder))
    # JAX keeps what took it a second; a start has many programs that take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # A second cache, of tuned kernels, which would hide behind the first.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

    def count(event: str, **_) -> None:
        global _hits
        _hits += event == _HIT

    jax.monitoring.register_event_listener(count)


def _give(path: pathlib.Path) -> None:
    """A program of the cache, if it is whole; otherwise it goes."""
    name, _, digest = path.name.rpartition(".")
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # another process has removed it
        return
    if hashlib.sha256(content).hexdigest() != digest:
        path.unlink(missing_ok=True)
        return
    try:
        (_folder / name).write_bytes(content)
    except OSError:
        (_folder / name).unlink(missing_ok=True)
        raise


def forget() -> None:
    """Take away from JAX whatever it could find: what comes is compiled anew."""
    for path in _folder.iterdir() if _folder else ():
        path.unlink(missing_ok=True)


def _is_whole(content: bytes) -> bool:
    """Whether JAX wrote all of it: on a full disk it warns and leaves a part."""
    from jax._src.compilation_cache import decompress_executable

    try:
        return bool(decompress_executable(content))
    except Exception:  # of whichever library packs it
        return False


def _entries() -> list[pathlib.Path]:
    return sorted(_folder.glob("*-cache"))


def _prune(parent: pathlib.Path) -> None:
    """Remove the places that were not used for longest, beyond the limit."""
    places = [path for path in parent.iterdir() if not path.name.startswith(WRITING)]
    total = 0
    for place in sorted(places, key=lambda path: path.stat().st_mtime, reverse=True):
        total += sum(path.stat().st_size for path in place.iterdir())
        if total > LIMIT:
            shutil.rmtree(place, ignore_errors=True)


def _refused(say: Callable[[str, str], None], error: Exception) -> None:
    reason = getattr(error, "strerror", None) or error
    say(
        f"What XLA compiles could not be kept ({reason}): the next "
        "run compiles it again. GPUZOO_CACHE names another folder.",
        "yellow",
    )
