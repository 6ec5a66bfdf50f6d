"""Find the modules that a source file may import, without importing anything."""

import ast
import importlib.machinery
import pathlib
import sys

from gpuzoo.errors import GpuzooError


def named(source: bytes, package: str) -> set[str]:
    """Return the full names of all modules that a source may import.

    Args:
        package: the package of the source, for relative imports.
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
    """Return the string literals in a source that could be a module's name, as in
    `importlib.import_module("aid")`."""
    texts = (n.value for n in _nodes(source) if isinstance(n, ast.Constant))
    return {
        text
        for text in texts
        if isinstance(text, str) and text.replace(".", "").isidentifier()
    }


def locate(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module, without importing its parent packages as importlib's
    find_spec does."""
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
    """Return the content of a module's file: source, compiled, or its archive."""
    path = pathlib.Path(place)
    while not path.exists() and path != path.parent:
        path = path.parent  # for a file in an archive, the archive
    try:
        return path.read_bytes()
    except OSError as error:
        raise GpuzooError(
            f"module {path}: {error.strerror}; the run's code is needed: restore the "
            "file, or change to the folder that the run was started in"
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
        except Exception:  # third-party finders may raise anything
            continue
    return None
