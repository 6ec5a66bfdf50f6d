"""A user's own file with models, and the modules beside it, as they are now."""

import importlib.util
import pathlib
import sys

paths_added: set[str] = set()
"""Places in sys.path that users' own files, or `execute` for them, have put there."""
_beside: dict[str, set[str]] = {}  # a user's own file -> the modules it imported


def execute(module: str, path: pathlib.Path) -> None:
    """A user's own file, anew each time, with the modules beside it that it imported:
    they may have been edited since."""
    for name in set().union(*_beside.values()):
        sys.modules.pop(name, None)
    _beside.clear()
    before, folder = set(sys.modules), path.resolve().parent
    if str(folder) in paths_added:
        sys.path.remove(str(folder))
    places = set(sys.path)
    if str(folder) not in places:  # first, as for a script that stands there
        sys.path.insert(0, str(folder))
        paths_added.add(str(folder))
    spec = importlib.util.spec_from_file_location(module, path)
    # Dataclasses look for the module that they stand in.
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])
    paths_added.update(set(sys.path) - places)
    _beside[module] = {
        name
        for name in sys.modules.keys() - before
        if (file := getattr(sys.modules[name], "__file__", None))
        and folder in pathlib.Path(file).resolve().parents
    }
