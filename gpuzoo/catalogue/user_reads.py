"""Record what a user's code reads besides its modules: files and environment variables;
and other inputs of which no digest can be taken."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
import sys

from gpuzoo.catalogue import owners

UNSET = "\0"
"""Value of an environment variable that is not set."""
# Variables of the machine, and prefixes of those that configure libraries.
_MACHINES = {
    "HOME", "HOSTNAME", "LANG", "LOGNAME", "PATH", "PWD", "SHELL", "TEMP", "TERM",
    "TMP", "TMPDIR", "USER", "VIRTUAL_ENV",
}  # fmt: skip
_LIBRARIES = (
    "CUDA_", "GPUZOO_", "JAX_", "KERAS_", "LC_", "MKL_", "NVIDIA_", "OMP_", "PYTHON",
    "TF_", "TFDS_", "XDG_", "XLA_",
)  # fmt: skip
# Audit events of Python that are reported, but cannot be recorded.
_STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
_LISTED = ("os.listdir", "os.scandir")


@dataclasses.dataclass
class Reads:
    """What was read inside a `listen` block."""

    opened: list[str] = dataclasses.field(default_factory=list)
    """Absolute paths of the files that the user's code has read."""
    written: set[str] = dataclasses.field(default_factory=set)
    """Files that it created or truncated."""
    updated: dict[str, str] = dataclasses.field(default_factory=dict)
    """Files opened for reading and writing -> digest of their previous content."""
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables -> value."""
    listed: list[str] = dataclasses.field(default_factory=list)
    """Folders that were listed."""
    others: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """What cannot be recorded: the action, and its path or ""."""
    whole_environment: bool = False

    def settle(self, code: set[str]) -> None:
        """Drop files that are code, temporary or written to.

        Args:
            code: paths of modules.
        """
        changed = {p for p, before in self.updated.items() if _digest(p) != before}
        kept = []
        for path in dict.fromkeys(self.opened):
            if path in code:
                continue
            if path in self.written or path in changed:
                self.others.append(("reads and then changes", path))
            elif os.path.exists(path):
                kept.append(path)
            else:
                self.others.append(("reads and then removes", path))
        self.opened = kept
        self.others += [("lists", path) for path in self.listed if os.path.isdir(path)]
        self.others = list(dict.fromkeys(self.others))


_reads: Reads | None = None
_busy = False  # files that the hook itself opens are ignored
_installed = False


@contextlib.contextmanager
def listen(reads: Reads):
    """Record in `reads` what the user's code reads inside the block."""
    global _reads
    _install_hook()
    outer, _reads = _reads, reads
    try:
        with _wrap_libraries(), _wrap_environment():
            yield
    finally:
        _reads = outer


def by_user(frame) -> bool:
    """Whether the user's code opens a file, and not gpuzoo, Keras or a package that is
    being imported, which may read its own settings and caches."""
    ours = False
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
        # gpuzoo.runs.code builds and traces the model.
        if name == "gpuzoo.runs.code" or name.startswith("jax._src.compil"):
            return False
        if not file.startswith("<") and not owners.is_no_users(os.path.abspath(file)):
            return True
        if frame.f_code.co_name == "<module>":
            return False
        ours = ours or (name.startswith("gpuzoo.") and name != __name__)
        frame = frame.f_back
    return not ours  # a thread


# -------------------------------------------------------- files, by Python's audit hook


def _install_hook() -> None:
    """Install the audit hook, once; it stays until the process ends."""
    global _installed
    if not _installed:
        _installed = True
        owners.folders_of_gpuzoo()  # cached now: the hook may be called anywhere
        sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple) -> None:
    if _reads is None or _busy:
        return
    if event == "open":
        path, mode, flags = arguments
        flags = flags or 0
        if set(mode or "") & set("wx"):
            flags |= os.O_RDWR | os.O_TRUNC
        elif set(mode or "") & set("a+"):
            flags |= os.O_RDWR
        _note_opened(path, flags)
    elif event == "sqlite3.connect":
        _note_opened(arguments[0], os.O_RDWR)
    elif event == "ctypes.dlopen":
        if isinstance(arguments[0], str | bytes) and os.path.isfile(arguments[0]):
            _note_opened(arguments[0], os.O_RDONLY)
    elif event in _LISTED and not isinstance(arguments[0], int):
        path = os.path.abspath(os.fsdecode(arguments[0] or os.curdir))
        # Python looks for modules in folders.
        if not owners.is_no_users(path + os.sep) and not _by_import(sys._getframe(1)):
            if by_user(sys._getframe(1)):
                _reads.listed.append(path)
    elif event in _STARTED or event in _NETWORK:
        if by_user(sys._getframe(1)):
            does = "starts a program" if event in _STARTED else "uses the network"
            _reads.others.append((does, ""))


def _note_opened(path, flags: int) -> None:
    """Record a file that is about to be opened."""
    global _busy
    path = _text(path)
    if path is None:
        return
    path, access = os.path.abspath(path), flags & os.O_ACCMODE
    if path.endswith(".pyc"):
        with contextlib.suppress(ValueError):
            path = importlib.util.source_from_cache(path)
        if access:
            return  # Python writes its bytecode cache
    if access:
        if flags & os.O_TRUNC or not os.path.exists(path):
            _reads.written.add(path)
            return
        if path not in _reads.written and path not in _reads.updated:
            _busy = True
            try:
                _reads.updated[path] = _digest(path)
            finally:
                _busy = False
        if access == os.O_WRONLY:
            return
    if path not in _reads.written and not owners.is_no_users(path):
        if by_user(sys._getframe(1)):
            _reads.opened.append(path)


def _text(path) -> str | None:
    """Return a path as text; None for a file descriptor."""
    if isinstance(path, str | bytes | os.PathLike):
        return os.fsdecode(path)
    return None


def _by_import(frame) -> bool:
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if "importlib" in frame.f_code.co_filename or name.startswith("importlib"):
            return True
        if name not in ("os", "pathlib", "zipimport"):
            return False
        frame = frame.f_back
    return False


def _digest(path: str) -> str:
    """Return the sha256 of a regular file; "" if it is not one or cannot be read."""
    try:
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


# ---------------------------------------- files opened by C and Rust code of libraries


@contextlib.contextmanager
def _wrap_libraries():
    """Wrap the functions by which h5py, safetensors and TensorFlow open files: their C
    and Rust code raises no audit events."""
    import h5py
    import safetensors.numpy  # noqa: F401

    places = [(h5py.File, "__init__", 1)]
    places += [
        (module, "safe_open", 0)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "safetensors" and "safe_open" in vars(module)
    ]
    if "tensorflow" in sys.modules:
        from gpuzoo.runtime.tensorflow import file_openers

        places += file_openers()
    kept = [(place, name, vars(place)[name]) for place, name, _ in places]
    for place, name, position in places:
        setattr(place, name, _noted(vars(place)[name], position))
    try:
        yield
    finally:
        for place, name, function in kept:
            setattr(place, name, function)


def _noted(function, position: int):
    """Wrap a function whose argument at a position, or first keyword, is a path; a mode
    may follow."""

    @functools.wraps(function, updated=())
    def opens(*args, **named):
        given = [*args, *named.values()][position:]
        path = given[0] if given else None
        if hasattr(path, "numpy") and not isinstance(path, str | bytes):
            with contextlib.suppress(Exception):  # a symbolic tensor has no value
                path = path.numpy()
        mode = named.get("mode", given[1] if len(given) > 1 else "r")
        if _reads is not None and not _busy and _text(path) is not None:
            flags = os.O_RDONLY
            if isinstance(mode, str) and set(mode) & set("wxa+"):
                new = mode.startswith(("w", "x"))
                flags = os.O_RDWR | (os.O_TRUNC if new else 0)
            _note_opened(path, flags)
        return function(*args, **named)

    return opens


# ------------------------------------------------------------- environment variables


@contextlib.contextmanager
def _wrap_environment():
    kind = type(os.environ)
    get, each = kind.__getitem__, kind.__iter__

    def __getitem__(self, key):  # noqa: N807
        if _reads is not None and _reads_itself(sys._getframe(1)):
            name = os.fsdecode(key) if isinstance(key, bytes) else key
            # setdefault of an unset variable is not a read.
            if sys._getframe(2).f_code.co_name != "setdefault" or name in _names(self):
                _note_variable(name)
        return get(self, key)

    def __iter__(self):  # noqa: N807
        if _reads is not None and _reads_itself(sys._getframe(1)):
            _reads.whole_environment = True
            _reads.others.append(("reads all environment variables", ""))
        return each(self)

    kind.__getitem__, kind.__iter__ = __getitem__, __iter__
    try:
        yield
    finally:
        kind.__getitem__, kind.__iter__ = get, each


def _names(environment) -> set[str]:
    return set(map(os.fsdecode, environment._data))


def _note_variable(name) -> None:
    if not isinstance(name, str) or _reads.whole_environment:
        return
    if name.startswith(_LIBRARIES):
        return
    if name in _MACHINES:
        _reads.others.append((f"reads the environment variable {name}", ""))
    else:
        _reads.variables.setdefault(name, value_of_variable(name))


def value_of_variable(name: str) -> str:
    held = os.environ._data  # type: ignore[attr-defined]
    value = held.get(os.environ.encodekey(name))
    return UNSET if value is None else os.environ.decodevalue(value)


def _reads_itself(frame) -> bool:
    """Whether the user's code itself reads, and not a library on its behalf."""
    while frame.f_globals.get("__name__") in ("os", "collections.abc"):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return not file.startswith("<") and not owners.is_no_users(os.path.abspath(file))
