"""What a user's own model really imports and opens, from the execution of its file
until it is built: by this its run is known (gpuzoo/runs/code.py)."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import site
import sys
import sysconfig
import types

OWN = "gpuzoo_own_"
"""Begins the name of a user's own file, as a module."""
# Never imported a second time, even if one works on their sources.
_FRAMEWORKS = {
    "gpuzoo", "jax", "jaxlib", "keras", "keras_hub", "ml_dtypes", "numpy", "optree",
    "tensorflow", "tensorflow_datasets",
}  # fmt: skip
# Files that belong to the machine, not to the user.
_SYSTEM = ("/dev/", "/etc/", "/proc/", "/sys/")


@dataclasses.dataclass
class Watched:
    """What was seen from the beginning of `watch` to its end."""

    imported: dict[str, types.ModuleType] = dataclasses.field(default_factory=dict)
    """The user's own modules that were imported, by name."""
    executed: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    """Files that models stand in (`--model path.py:function`), by the module's name."""
    built: set[str] = dataclasses.field(default_factory=set)
    """Modules of the catalogue that models were built from."""
    opened: list[str] = dataclasses.field(default_factory=list)
    """Absolute paths of the files that the user's code has read."""
    written: set[str] = dataclasses.field(default_factory=set)


_watched: Watched | None = None
_fresh = False  # inside of `fresh_imports`
_listens = False
_earlier: set[str] = set()  # modules that users' files have imported


@contextlib.contextmanager
def watch(file: pathlib.Path | None):
    """Note what is imported, executed, built from and read until the end of the block.

    Args:
        file: the user's own file that the model stands in; without one nothing is read
            or imported that needs to be noted.
    """
    global _watched
    found, outer = Watched(), _watched
    if file is None:
        _watched = found
        try:
            yield found
        finally:
            _watched = outer
        return
    _listen()
    with fresh_imports(file):
        before = dict(sys.modules)
        _watched = found
        try:
            yield found
        finally:
            _watched = outer
            found.imported = {
                name: module
                for name, module in list(sys.modules.items())
                if before.get(name) is not module and is_users(name, module)
            }
            _leave_out_code(found)


@contextlib.contextmanager
def fresh_imports(file: pathlib.Path):
    """Until the end of the block the user's own modules are imported anew: they may
    have been edited since, and what a process imported before must not matter."""
    global _fresh
    if _fresh:
        yield  # they are already
        return
    hidden = _hide(file.resolve().parent)
    before, _fresh = set(sys.modules), True
    try:
        yield
    finally:
        _fresh, new = False, set(sys.modules) - before
        _earlier.update(name for name in new if is_users(name, sys.modules[name]))
        tops = {name.partition(".")[0] for name in new}
        for name, module in hidden.items():
            # Beside a new package its old parts would not be found as its attributes.
            if name.partition(".")[0] not in tops:
                sys.modules[name] = module


def note_executed(module: str, file: pathlib.Path) -> None:
    """A user's file is executed as a module."""
    if _watched is not None:
        _watched.executed[module] = file


def note_built(module: str) -> None:
    """A model is built from a module of the catalogue."""
    if _watched is not None:
        _watched.built.add(module)


def is_users(name: str, module) -> bool:
    """Whether a module is not Python's, gpuzoo's, or of an installed package."""
    if name == "__main__" or name.startswith(OWN):
        return False
    if name == "gpuzoo" or name.startswith("gpuzoo."):
        return False
    places = places_of(module)
    return bool(places) and not any(is_installed(place, name) for place in places)


def places_of(module) -> list[str]:
    """The file of a module, or the folders of a package that has none."""
    try:
        # Not getattr: what stands for a module may import it when it is asked.
        told = object.__getattribute__(module, "__dict__")
        if isinstance(told.get("__file__"), str):
            return [told["__file__"]]
        return [str(place) for place in told.get("__path__") or ()]
    except Exception:  # whatever stands in the place of a module
        return []


@functools.cache
def is_installed(place: str, name: str) -> bool:
    """Whether the file or the folder of a module came with Python or with a package.

    A package lists in its RECORD the files that it has installed: a module that only
    lies among packages, or beside the *.dist-info of one, is the user's.
    """
    path = os.path.abspath(place)
    if path.startswith(_python_folders()) and not _among_packages(path):
        return True
    top = pathlib.Path(path)
    for _ in range(len(name.split(".")) + (top.stem == "__init__")):
        top = top.parent
    relative = os.path.relpath(path, top)
    listed, unlisted = _records(str(top))
    folder = relative + os.sep
    if relative in listed or any(entry.startswith(folder) for entry in listed):
        return True
    # As a system's own packages are, and eggs: without a list of files.
    return path.startswith(_site_folders()) and (unlisted or f".egg{os.sep}" in path)


def _among_packages(path: str) -> bool:
    named = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
    return path.startswith(_site_folders()) or any(name in path for name in named)


@functools.cache
def _folders_of_gpuzoo() -> tuple[str, ...]:
    """In a checkout its models and recipes stand beside the package."""
    specs = map(importlib.util.find_spec, ("gpuzoo", "gpuzoo.models", "gpuzoo.recipes"))
    return _with_ends([
        folder for spec in specs if spec for folder in spec.submodule_search_locations
    ])  # fmt: skip


@functools.cache
def _python_folders() -> tuple[str, ...]:
    paths = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")]
    return _with_ends([*paths, os.path.dirname(os.__file__)])


@functools.cache
def _site_folders() -> tuple[str, ...]:
    paths = [sysconfig.get_paths()[name] for name in ("purelib", "platlib")]
    return _with_ends([*paths, *site.getsitepackages(), site.getusersitepackages()])


def _with_ends(folders) -> tuple[str, ...]:
    each = [*map(os.path.abspath, folders), *map(os.path.realpath, folders)]
    return tuple(dict.fromkeys(folder + os.sep for folder in each))


@functools.cache
def _records(folder: str) -> tuple[frozenset[str], bool]:
    """The files that the packages in a folder list as theirs, and whether one lists
    none."""
    found, unlisted = set(), False
    for info in pathlib.Path(folder).glob("*.*-info"):
        try:
            lines = (info / "RECORD").read_text("utf-8", "replace").splitlines()
        except OSError:
            unlisted = True
            continue
        found.update(line.rsplit(",", 2)[0].strip('"') for line in lines)
    return frozenset(found), unlisted


def _hide(folder: pathlib.Path) -> dict[str, types.ModuleType]:
    """Take the user's modules that can be imported anew out of sys.modules."""
    near = tuple(f"{os.path.realpath(place)}{os.sep}" for place in (folder, os.curdir))
    hidden = {}
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if top in _FRAMEWORKS or not is_users(name, module):
            continue
        places = places_of(module)
        if any(place.endswith((".so", ".pyd")) for place in places):
            continue  # most can be loaded only once
        if name in _earlier or all(
            os.path.realpath(place).startswith(near) for place in places
        ):
            hidden[name] = sys.modules.pop(name)
    return hidden


# ------------------------------------------------------------------------ files read


def _listen() -> None:
    """Python tells of every file that is opened from now on, until the process ends."""
    global _listens
    if not _listens:
        _listens = True
        _folders_of_gpuzoo()  # not in the hook, which may be called anywhere
        sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple) -> None:
    if event != "open" or _watched is None or not isinstance(arguments[0], str | bytes):
        return
    path, mode, flags = arguments
    path = os.path.abspath(os.fsdecode(path))
    if (flags or 0) & os.O_ACCMODE or set(mode or "") & set("wax+"):
        _watched.written.add(path)
    elif path not in _watched.written and not path.endswith(".pyc"):
        if not _is_no_users(path) and _by_user(sys._getframe(1)):
            _watched.opened.append(path)


def _is_no_users(path: str) -> bool:
    """Whether a file is the machine's, Python's, gpuzoo's or a package's."""
    known = (*_SYSTEM, *_folders_of_gpuzoo(), *_python_folders())
    return path.startswith(known) or _among_packages(path)


def _by_user(frame) -> bool:
    """Whether the user's code is what opens a file: not a package that is being
    imported, which may read settings and caches of its own, nor gpuzoo or Keras."""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
        if name == "gpuzoo.runs.code":
            return False  # which has the model built
        if not file.startswith("<") and not _is_no_users(os.path.abspath(file)):
            return True
        if frame.f_code.co_name == "<module>":
            return False
        frame = frame.f_back
    return True  # a thread, and gpuzoo has none meanwhile


def _leave_out_code(found: Watched) -> None:
    """Of what was read leave out what is code, was a temporary file, or is written."""
    code = {
        os.path.abspath(place)
        for module in [*sys.modules.values()]
        for place in places_of(module)
    }
    code |= {os.path.abspath(file) for file in found.executed.values()}
    code |= {os.path.realpath(path) for path in code}
    code |= {os.path.abspath(place) for place in sys.path}
    found.opened = [
        path
        for path in dict.fromkeys(found.opened)
        if path not in code and path not in found.written and os.path.exists(path)
    ]
