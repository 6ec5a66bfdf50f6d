"""The modules that a source may import, and where they lie; nothing is imported."""

import ast
import importlib.machinery
import pathlib
import sys

from gpuzoo.errors import GpuzooError


def named(source: bytes, package: str) -> set[str]:
    """The full names of all modules that a source may import, wherever in it.

    Args:
        package: the one that the source is part of, for relative imports.
    """
    names = set()
    for node in _nodes(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.rsplit(".", node.level - 1)[0] if package else ""
                base = f"{parent}.{base}".strip(".")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    whole = {name.strip(".") for name in names if name.strip(".")}
    return whole | {
        ".".join(name.split(".")[:count])
        for name in whole
        for count in range(1, name.count(".") + 1)
    }


def words(source: bytes) -> set[str]:
    """The texts in a source that could be a module's name, as in
    `importlib.import_module("aid")`."""
    texts = (n.value for n in _nodes(source) if isinstance(n, ast.Constant))
    return {
        text
        for text in texts
        if isinstance(text, str) and text.replace(".", "").isidentifier()
    }


def locate(name: str) -> importlib.machinery.ModuleSpec | None:
    """What would be imported under a full name. Unlike importlib's find_spec this does
    not import the packages around it."""
    path, spec, parts = None, None, name.split(".")
    for count in range(1, len(parts) + 1):
        if count > 1 and path is None:
            return None
        spec = _find(".".join(parts[:count]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        # A package without a file looks its parent up in sys.modules.
        path = getattr(path, "_path", path)
    return spec


def source_of(place: str) -> bytes:
    """The content of a module's file, be it a source, compiled, or in an archive."""
    path = pathlib.Path(place)
    while not path.exists() and path != path.parent:
        path = path.parent  # what lies in an archive is known by the archive
    try:
        return path.read_bytes()
    except OSError as error:
        raise GpuzooError(
            f"module {path}: {error.strerror}; the code of a run is needed: put the "
            "file back, or go to the folder that the run was started in"
        ) from None


def _nodes(source: bytes) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _find(name: str, path) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            if spec := finder.find_spec(name, path):
                return spec
        except Exception:  # whatever a finder of somebody's makes of the name
            continue
    return None
