"""A user's own file with models, and the modules that it imports, as they are now."""

import importlib.util
import pathlib
import sys

from gpuzoo import user_code

_first: set[str] = set()
"""Places in sys.path that `execute` has put there."""


def execute(module: str, path: pathlib.Path) -> None:
    """A user's own file, anew each time, with the modules of the user's that it
    imports: they may have been edited since."""
    folder = str(path.resolve().parent)
    if folder in _first and folder in sys.path:
        sys.path.remove(folder)
    if folder not in sys.path:  # first, as for a script that stands there
        sys.path.insert(0, folder)
        _first.add(folder)
    spec = importlib.util.spec_from_file_location(module, path)
    # Dataclasses look for the module that they stand in.
    sys.modules[module] = importlib.util.module_from_spec(spec)
    user_code.note_executed(module, path)
    with user_code.fresh_imports(path):
        spec.loader.exec_module(sys.modules[module])
