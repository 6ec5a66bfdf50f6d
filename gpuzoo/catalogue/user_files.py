"""Models in a user's file, `--model path.py:function`."""

import dataclasses
import importlib
import importlib.util
import os
import pathlib
import sys

from gpuzoo.catalogue import user_code
from gpuzoo.catalogue.model_info import ModelInfo, read_models
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, open_regular


def execute(module: str, path: pathlib.Path) -> None:
    """Execute a user's file, each time with new imports of the user's modules, as they
    may have been edited."""
    user_code.begin_path_with(str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(module, path)
    # Dataclasses look up their module.
    sys.modules[module] = importlib.util.module_from_spec(spec)
    user_code.note_executed(module, path)
    with user_code.fresh_imports(path):
        spec.loader.exec_module(sys.modules[module])


def file_of(name: str) -> pathlib.Path | None:
    """Return the user's file that defines a model; None for models of the catalogue."""
    return expand(name.rpartition(":")[0]) if ":" in name else None


def model_in_file(name: str) -> ModelInfo:
    path, function = file_of(name), name.rpartition(":")[2]
    try:
        os.close(open_regular(path))  # reading a pipe may block forever
        infos = {
            info.name: info for info in read_models(path, user_code.OWN + path.stem)
        }
    except OSError as error:
        raise GpuzooError(
            f"model file {path}: {error.strerror or error}; check its path or restore "
            "the file"
        ) from None
    except (SyntaxError, ValueError, KeyError) as error:
        raise GpuzooError(f"model {name!r}: {path} cannot be read: {error}") from None
    if function not in infos:
        known = ", ".join(infos) or "none; put @gpuzoo.register(...) above its function"
        raise GpuzooError(f"{path} has no model {function!r}; it has {known}")
    return dataclasses.replace(infos[function], name=name)
