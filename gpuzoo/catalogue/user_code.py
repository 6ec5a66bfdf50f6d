"""Record what a user's model imports and reads while its file is executed and its step
is traced: this identifies the code of a run (gpuzoo/runs/code.py)."""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import sys
import types

from gpuzoo.catalogue import imports
from gpuzoo.catalogue.owners import OWN, is_users, is_users_at, places_of
from gpuzoo.catalogue.user_reads import Reads, listen

__all__ = ["OWN", "is_users", "places_of"]

# Never imported a second time, even if their sources are edited.
_FRAMEWORKS = {
    "gpuzoo", "jax", "jaxlib", "keras", "keras_hub", "ml_dtypes", "numpy", "optree",
    "tensorflow", "tensorflow_datasets",
}  # fmt: skip


@dataclasses.dataclass
class Watched:
    """What was recorded inside a `watch` block."""

    imported: dict[str, types.ModuleType] = dataclasses.field(default_factory=dict)
    """The user's imported modules, by name."""
    executed: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    """Files that define models (`--model path.py:function`), by module name."""
    built: set[str] = dataclasses.field(default_factory=set)
    """Modules of the catalogue that models were built from."""
    hidden: dict[str, types.ModuleType] = dataclasses.field(default_factory=dict)
    """Earlier modules, which are imported again if they are needed."""
    reads: Reads = dataclasses.field(default_factory=Reads)


_watched: Watched | None = None
_last: dict[pathlib.Path, Watched] = {}
"""What was recorded when the model of a file was last built."""
_fresh = False  # inside `fresh_imports`
_earlier: set[str] = set()  # modules that users' files have imported
_first: set[str] = set()
"""Entries of sys.path that `fresh_imports` has added."""


@contextlib.contextmanager
def watch(file: pathlib.Path | None, *, goes_on: bool = False):
    """Record what is imported, executed, built from and read inside the block.

    Args:
        file: the user's file that defines the model; without one imports and reads are
            not recorded.
        goes_on: continue from the record of when this file's model was built: modules
            imported then are not imported again.
    """
    global _watched
    before = _last.get(file, Watched()) if goes_on else Watched()
    found, outer = Watched(dict(before.imported), dict(before.executed)), _watched
    if file is None:
        _watched = found
        try:
            yield found
        finally:
            _watched = outer
        return
    with fresh_imports(file, before.imported) as found.hidden:
        loaded = dict(sys.modules)
        _watched = found
        try:
            with listen(found.reads):
                yield found
        finally:
            _watched = outer
            found.imported |= {
                name: module
                for name, module in list(sys.modules.items())
                if loaded.get(name) is not module and is_users(name, module)
            }
            found.reads.settle(_places_of_code(found))
            _last[file] = found


@contextlib.contextmanager
def fresh_imports(file: pathlib.Path, kept: dict[str, types.ModuleType] | None = None):
    """Import the user's modules again inside the block, except those in `kept`: they
    may have been edited, and earlier imports of the process must not matter."""
    global _fresh
    if _fresh:
        yield {}  # they are already
        return
    begin_path_with(str(file.resolve().parent))
    importlib.invalidate_caches()
    kept = kept or {}
    hidden = _hide(file, kept)
    before, _fresh = set(sys.modules), True
    try:
        yield hidden
    finally:
        _fresh, new = False, set(sys.modules) - before
        _earlier.update(name for name in new if is_users(name, sys.modules[name]))
        tops = {name.partition(".")[0] for name in (*new, *kept)}
        for name, module in hidden.items():
            # Old submodules would not be attributes of a package imported again.
            if name.partition(".")[0] not in tops:
                sys.modules[name] = module


def not_imported(name: str) -> types.ModuleType | None:
    """Return an empty stand-in for a user's module that is not imported; None if there
    is none, or it is not user code."""
    spec = imports.locate(name)
    if spec is None or not spec.has_location:
        return None
    if not is_users_at(name, [spec.origin]):
        return None
    module = types.ModuleType(name)
    module.__file__, module.__package__ = spec.origin, spec.parent
    return module


def note_executed(module: str, file: pathlib.Path) -> None:
    """Record that a user's file is executed as a module."""
    if _watched is not None:
        _watched.executed[module] = file


def note_built(module: str) -> None:
    """Record that a model is built from a module of the catalogue."""
    if _watched is not None:
        _watched.built.add(module)


def begin_path_with(folder: str) -> None:
    """Put a folder first in sys.path, as Python does for a script."""
    if folder in _first and folder in sys.path:
        sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
        _first.add(folder)


def _hide(file: pathlib.Path, kept: dict) -> dict[str, types.ModuleType]:
    """Remove user modules from sys.modules so that they are imported again: those named
    by the model's file or its imports, those beside it or in the current folder, and
    those that a user's file has imported before."""
    folder = file.resolve().parent
    near = tuple(f"{os.path.realpath(place)}{os.sep}" for place in (folder, os.curdir))
    wanted, hidden = _earlier | _named_from(file), {}
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if top in _FRAMEWORKS or not is_users(name, module):
            continue
        if name in kept and kept[name] is module:
            continue
        places = places_of(module)
        if any(place.endswith((".so", ".pyd")) for place in places):
            continue  # most extension modules can be loaded only once
        if name in wanted or all(
            os.path.realpath(place).startswith(near) for place in places
        ):
            hidden[name] = sys.modules.pop(name)
    return hidden


def _named_from(file: pathlib.Path) -> set[str]:
    """Return the user's modules that a file names, directly or indirectly."""
    found, waiting = set(), [(str(file), "")]
    while waiting:
        place, package = waiting.pop()
        try:
            source = pathlib.Path(place).read_bytes() if place.endswith(".py") else b""
        except OSError:
            continue  # reported where the module is needed
        quoted = {name for name in imports.words(source) if name in sys.modules}
        for name in imports.named(source, package) | quoted:
            if name in found or name.partition(".")[0] in _FRAMEWORKS:
                continue
            found.add(name)
            module = sys.modules.get(name) or not_imported(name)
            if module is not None and is_users(name, module):
                around = vars(module).get("__package__") or ""
                waiting += [(place, around) for place in places_of(module)]
    return found


def _places_of_code(found: Watched) -> set[str]:
    code = {
        os.path.abspath(place)
        for module in [*sys.modules.values()]
        for place in places_of(module)
    }
    code |= {os.path.abspath(file) for file in found.executed.values()}
    code |= {os.path.realpath(path) for path in code}
    return code | {os.path.abspath(place) for place in sys.path}
