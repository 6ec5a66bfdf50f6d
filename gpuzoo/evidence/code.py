"""The code that a run was made with, as one digest: gpuzoo's, and the user's own."""

import ast
import functools
import hashlib
import importlib.machinery
import importlib.resources
import importlib.util
import json
import pathlib
import sys

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.registry import file_of, paths_added

_KNOWN = {"gpuzoo", "__main__", *sys.stdlib_module_names}


def code_sha256(recipe: dict | None = None) -> str:
    """One digest over the sources of gpuzoo, its models and its recipes, and over the
    user's own: the files that the model and its teacher stand in, and the modules that
    these import from anywhere but the standard library and installed packages.

    Args:
        recipe: as it is recorded; without one only gpuzoo's part.

    Raises:
        GpuzooError: a file that a model stands in cannot be read.
    """
    digest = _ours().copy()
    for model in _models(recipe) if recipe else ():
        if own := file_of(model):
            for name, content in _sources(own):
                digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@functools.cache
def _ours():
    """Read once: a process goes on with what it has imported."""
    digest = hashlib.sha256()
    for package in ("gpuzoo", "gpuzoo.models", "gpuzoo.recipes"):
        top = importlib.resources.files(package)
        for path in sorted(pathlib.Path(str(top)).rglob("*.py")):
            relative = f"{package}/{path.relative_to(str(top))}"
            digest.update(f"{relative} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest


def _models(recipe: dict) -> list[str]:
    """The recipe's model, and the one of the teacher that it learns from."""
    models = [recipe["model"]]
    if recipe["task"] == "distill" and recipe["imitation"] and recipe["teacher"]:
        try:
            file = expand(recipe["teacher"]) / "run.json"
            models.append(json.loads(file.read_text("utf-8"))["recipe"]["model"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # lenet5, which is gpuzoo's, or what tasks/distill.py refuses
    return models


def check_found(recipe: dict) -> None:
    """After the model was built: that the digest saw all that its file has imported.

    Raises:
        GpuzooError: a module of the user's was found only because the file, or what it
            imports, extended sys.path.
    """
    for own in filter(None, map(file_of, _models(recipe))):
        names, files = _walk(own)
        for name in sorted(names - _KNOWN):
            spec = getattr(sys.modules.get(name), "__spec__", None)
            for top, path in _parts(spec) if spec and spec.origin != "built-in" else ():
                if _is_installed(top) or path.resolve() in files:
                    continue
                raise GpuzooError(
                    f"model file {own}: imports {name} from {path}, where a change "
                    f"would not be noticed; put it beside {own.name}, into a folder "
                    "there, or name its folder in PYTHONPATH"
                )


def _sources(own: pathlib.Path) -> list[tuple[str, bytes]]:
    """The user's file and all that it imports of the user's, each by a name."""
    files = _walk(own)[1]
    return sorted({(label, path.read_bytes()) for path, label in files.items()})


def _walk(own: pathlib.Path) -> tuple[set[str], dict[pathlib.Path, str]]:
    """All names that the user's file, and what it imports of the user's, import; and
    these files, each with a name that tells nothing of where the project lies."""
    try:
        own.read_bytes()
    except OSError as error:
        raise GpuzooError(
            f"model file {own}: {error.strerror}; the code of a run is needed: put the "
            "file back, or go to the folder that the run was started in"
        ) from None
    found, seen, waiting = {own.resolve(): ""}, set(), [own]
    while waiting:
        for name in _imported(waiting.pop().read_bytes()) - seen:
            seen.add(name)
            files = _files(name, own)
            found = files | found
            waiting += [path for path in files if path.suffix == ".py"]
    return seen, found


def _imported(source: bytes) -> set[str]:
    """The first parts of all names that a source imports, wherever in it."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return set()  # it cannot be imported itself
    names = [
        a.name for node in nodes if isinstance(node, ast.Import) for a in node.names
    ]
    names += [
        node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and not node.level
    ]
    return {name.partition(".")[0] for name in names}


def _files(name: str, own: pathlib.Path) -> dict[pathlib.Path, str]:
    """The files of a module or a package of the user's, each with its place in it; none
    of any other.

    It is looked for as Python does, and beside the user's file and in the folders
    there, which the file may put into sys.path, wherever a link to it may lie.
    """
    if name in _KNOWN:
        return {}
    found, tops = {}, dict.fromkeys([own.parent, own.resolve().parent])
    for top in list(tops):
        tops |= dict.fromkeys(sorted(path for path in top.glob("*/") if path.is_dir()))
    find = importlib.machinery.PathFinder.find_spec
    for spec in (_spec(name), *(find(name, [str(top)]) for top in tops)):
        if spec is None or spec.origin in ("built-in", "frozen"):
            continue
        for top, path in _parts(spec):
            if not _is_installed(top):
                found[path.resolve()] = str(path.relative_to(top))
    return found


def _parts(spec: importlib.machinery.ModuleSpec):
    """The files of a module or a package, each with the folder that it was found in."""
    if spec.submodule_search_locations is None:
        yield pathlib.Path(spec.origin).parent, pathlib.Path(spec.origin)
    for place in map(pathlib.Path, spec.submodule_search_locations or ()):
        yield from ((place.parent, path) for path in sorted(place.rglob("*.py")))


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where Python would find a module if no user's file had extended sys.path."""
    known = [place for place in sys.path if place not in paths_added]
    for finder in sys.meta_path:
        path = known if finder is importlib.machinery.PathFinder else None
        if find := getattr(finder, "find_spec", None):
            if spec := find(name, path):
                return spec
    return None


def _is_installed(folder: pathlib.Path) -> bool:
    """Whether a folder is one that packages are installed into; the record has their
    versions."""
    named = {"site-packages", "dist-packages"} & set(folder.parts)
    return bool(named) or any(folder.glob("*.dist-info"))
