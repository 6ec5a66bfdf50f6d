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
from gpuzoo.registry import file_of


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
            for name, content in _sources(own).items():
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


def _sources(own: pathlib.Path) -> dict[str, bytes]:
    """The user's file and all that it imports of the user's: a name -> its bytes."""
    try:
        found = {"": own.read_bytes()}
    except OSError as error:
        raise GpuzooError(
            f"model file {own}: {error.strerror}; the code of a run is needed: put the "
            "file back, or go to the folder that the run was started in"
        ) from None
    seen, waiting = set(), [found[""]]
    while waiting:
        for name in _imported(waiting.pop()) - seen:
            seen.add(name)
            files = _files(name, own.parent)
            found.update({label: path.read_bytes() for label, path in files.items()})
            waiting += [found[label] for label in files if label.endswith(".py")]
    return dict(sorted(found.items()))


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


def _files(name: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a module or a package of the user's; none of any other.

    It is looked for as Python does, and beside the user's file, which may put its
    folder into sys.path.
    """
    if name in sys.stdlib_module_names or name == "gpuzoo":
        return {}
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # __main__
        return {}
    spec = spec or importlib.machinery.PathFinder.find_spec(name, [str(folder)])
    if spec is None or spec.origin in ("built-in", "frozen"):
        return {}
    if spec.submodule_search_locations is None:
        path = pathlib.Path(spec.origin)
        return {} if _is_installed(path.parent) else {path.name: path}
    return {
        f"{name}/{path.relative_to(top)}": path
        for top in spec.submodule_search_locations
        if not _is_installed(pathlib.Path(top).parent)
        for path in sorted(pathlib.Path(top).rglob("*.py"))
    }


def _is_installed(folder: pathlib.Path) -> bool:
    """Whether a folder is one that packages are installed into; the record has their
    versions."""
    named = {"site-packages", "dist-packages"} & set(folder.parts)
    return bool(named) or any(folder.glob("*.dist-info"))
