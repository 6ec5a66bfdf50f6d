"""Tell user code from the modules and files of gpuzoo, Python and packages."""

import functools
import importlib.util
import os
import pathlib
import site
import sysconfig

OWN = "gpuzoo_own_"
"""Prefix of the module name of a user's file."""
# Files that belong to the machine, not to the user.
_SYSTEM = ("/dev/", "/etc/", "/proc/", "/sys/")


def is_users(name: str, module) -> bool:
    """Whether a module is user code: not of Python, gpuzoo or an installed package."""
    return is_users_at(name, places_of(module))


def is_users_at(name: str, places: list[str]) -> bool:
    """The same for a module that may not be imported yet."""
    if name == "__main__" or name.startswith(OWN):
        return False
    if name == "gpuzoo" or name.startswith("gpuzoo."):
        return False
    return bool(places) and not any(is_installed(place, name) for place in places)


def places_of(module) -> list[str]:
    """Return the file of a module, or the folders of a namespace package."""
    try:
        # Not getattr: a lazy module would be imported by it.
        names = object.__getattribute__(module, "__dict__")
        if isinstance(names.get("__file__"), str):
            return [names["__file__"]]
        return [str(place) for place in names.get("__path__") or ()]
    except Exception:  # sys.modules may hold any object
        return []


@functools.cache
def is_installed(place: str, name: str) -> bool:
    """Whether a module's file or folder was installed with Python or a package.

    A package lists its installed files in RECORD: a module that is merely in
    site-packages, or beside a *.dist-info folder, is user code.
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
    # System packages and eggs have no list of files.
    return path.startswith(_site_folders()) and (unlisted or f".egg{os.sep}" in path)


def _among_packages(path: str) -> bool:
    named = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
    return path.startswith(_site_folders()) or any(name in path for name in named)


def is_no_users(path: str) -> bool:
    """Whether a file belongs to the system, Python, gpuzoo or a package."""
    known = (*_SYSTEM, *folders_of_gpuzoo(), *_python_folders())
    return path.startswith(known) or _among_packages(path)


@functools.cache
def folders_of_gpuzoo() -> tuple[str, ...]:
    """Return gpuzoo's folders; models and recipes have their own in a checkout."""
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
    """Return the files listed by the packages in a folder, and whether a list is
    missing."""
    found, unlisted = set(), False
    for info in pathlib.Path(folder).glob("*.*-info"):
        try:
            lines = (info / "RECORD").read_text("utf-8", "replace").splitlines()
        except OSError:
            unlisted = True
            continue
        found.update(line.rsplit(",", 2)[0].strip('"') for line in lines)
    return frozenset(found), unlisted
