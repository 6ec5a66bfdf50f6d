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

# Where modules are looked for, before a user's file may extend it.
_PATH = tuple(sys.path)
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


def check_found(recipe: dict) -> None:
    """After the model was built: that the digest saw all that its file has imported.

    Raises:
        GpuzooError: a module of the user's was found only because the file, or what it
            imports, extended sys.path.
    """
    for own in filter(None, map(file_of, _models(recipe))):
        names, files = _walk(own)
        for name in sorted(names - _KNOWN):
            file = getattr(sys.modules.get(name), "__file__", None)
            path = pathlib.Path(file or own).resolve()
            installed = any(map(_is_installed, path.parents[:2]))
            if path not in files.values() and not installed:
                raise GpuzooError(
                    f"model file {own}: imports {name} from {path}, where a change "
                    f"would not be noticed; put it beside {own.name}, into a folder "
                    "there, or name its folder in PYTHONPATH"
                )


def _sources(own: pathlib.Path) -> dict[str, bytes]:
    """The user's file and all that it imports of the user's: a name -> its bytes."""
    return {label: path.read_bytes() for label, path in sorted(_walk(own)[1].items())}


def _walk(own: pathlib.Path) -> tuple[set[str], dict[str, pathlib.Path]]:
    """All names that the user's file, and what it imports of the user's, import; and
    these files, the first under an empty label."""
    try:
        own.read_bytes()
    except OSError as error:
        raise GpuzooError(
            f"model file {own}: {error.strerror}; the code of a run is needed: put the "
            "file back, or go to the folder that the run was started in"
        ) from None
    found, seen, waiting = {"": own.resolve()}, set(), [own]
    while waiting:
        for name in _imported(waiting.pop().read_bytes()) - seen:
            seen.add(name)
            files = _files(name, own.parent)
            found |= {label: path.resolve() for label, path in files.items()}
            waiting += [path for path in files.values() if path.suffix == ".py"]
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


def _files(name: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a module or a package of the user's; none of any other.

    It is looked for as Python does, then beside the user's file and in the folders
    there, which the file may put into sys.path.
    """
    if name in _KNOWN:
        return {}
    beside = [folder, *sorted(path for path in folder.glob("*/") if path.is_dir())]
    spec = _spec(name) or importlib.machinery.PathFinder.find_spec(
        name, list(map(str, beside))
    )
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


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where Python would find a module if no file had extended sys.path."""
    for finder in sys.meta_path:
        path = list(_PATH) if finder is importlib.machinery.PathFinder else None
        if find := getattr(finder, "find_spec", None):
            if spec := find(name, path):
                return spec
    return None


def _is_installed(folder: pathlib.Path) -> bool:
    """Whether a folder is one that packages are installed into; the record has their
    versions."""
    named = {"site-packages", "dist-packages"} & set(folder.parts)
    return bool(named) or any(folder.glob("*.dist-info"))
