"""Whose a module or a file is: the user's, or gpuzoo's, Python's, a package's."""

import functools
import importlib.util
import os
import pathlib
import site
import sysconfig

OWN = "gpuzoo_own_"
"""Begins the name of a user's own file, as a module."""
# Files that belong to the machine, not to the user.
_SYSTEM = ("/dev/", "/etc/", "/proc/", "/sys/")


def is_users(name: str, module) -> bool:
    """Whether a module is not Python's, gpuzoo's, or of an installed package."""
    return is_users_at(name, places_of(module))


def is_users_at(name: str, places: list[str]) -> bool:
    """The same of a module that may not be imported yet."""
    if name == "__main__" or name.startswith(OWN):
        return False
    if name == "gpuzoo" or name.startswith("gpuzoo."):
        return False
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


def is_no_users(path: str) -> bool:
    """Whether a file is the machine's, Python's, gpuzoo's or a package's."""
    known = (*_SYSTEM, *folders_of_gpuzoo(), *_python_folders())
    return path.startswith(known) or _among_packages(path)


@functools.cache
def folders_of_gpuzoo() -> tuple[str, ...]:
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
