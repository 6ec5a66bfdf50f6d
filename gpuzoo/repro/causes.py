"""Likely causes of differences between a run and its re-run, for `verify`."""

import ast
import pathlib
import random
import stat

from gpuzoo.catalogue.user_files import file_of
from gpuzoo.errors import GpuzooError
from gpuzoo.keras_layers import layers_of

# Random sources of a model's function that the seed of the run does not fix.
_DRAWS = (
    "np.random", "numpy.random", "random", "time", "datetime", "secrets", "uuid",
    "os.urandom", "os.getpid",
)  # fmt: skip


def of_changed_files(path: pathlib.Path, names: list[str]) -> list[str]:
    """Describe what happened to files of a run that have changed since it ended."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_happened(path / name), []).append(name)
    return [f"{what}: {', '.join(files)}" for what, files in found.items()]


def _happened(file: pathlib.Path) -> str:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return "no longer a regular file"
        with open(file, "rb"):
            return "changed since the run ended"
    except (FileNotFoundError, NotADirectoryError):
        return "missing since the run ended"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def of_other_environments(record: dict) -> list[str]:
    """Return in which other environments a run was gone on with."""
    return [
        f"resumed after step {one['step']} where the environment was another: "
        f"{'; '.join(one['drift'])}"
        for one in record.get("resumed", [])
        if one["drift"]
    ]


def of_the_model(session) -> list[str]:
    """Return whether a user function returns a different model at each call, and where
    it draws numbers that the seed does not fix."""
    file = file_of(session.recipe.model)
    if file is None:
        return []
    places = draws_of(file)
    where = f" ({', '.join(places)})" if places else ""
    if what := _differs_when_built_again(session):
        return [
            f"the model's function does not return the same model twice: {what}; does "
            f"it use np.random, random or the time{where}? Take the seed from the run"
        ]
    if places:
        return [f"the model's file draws numbers that the seed does not fix{where}"]
    return []


def _differs_when_built_again(session) -> str:
    """Describe how two models built from one seed differ; empty if they do not."""
    import numpy as np

    from gpuzoo.engine import initializers
    from gpuzoo.training.build import build_model
    from gpuzoo.weights import by_name

    sides = []
    for number in range(2):
        random.seed(number)  # as in two processes
        np.random.seed(number)
        try:
            model = build_model(
                session.recipe, session.dataset, session.given.architecture
            )
            initializers.initialise(model, session.recipe.seed)
        except GpuzooError as error:
            return f"the second time {error}"
        weights = by_name(model.weights)
        layers = layers_of(model, include_self=False)
        sides.append((
            {name: np.asarray(value).tobytes() for name, value in weights.items()},
            {layer.name: _config_of(layer) for layer in layers},
        ))  # fmt: skip
    for one, other in zip(*sides, strict=True):
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                return f"{name} differs"
    return ""


def _config_of(layer) -> str:
    try:
        return repr(layer.get_config())
    except Exception:  # a user layer without a config
        return ""


def draws_of(file: pathlib.Path) -> list[str]:
    """Return calls in a file that no seed fixes: own.py, line 3: np.random."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    lines = {}
    for node in nodes:
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.startswith(tuple(f"{draw}." for draw in _DRAWS)) or name in _DRAWS:
                lines.setdefault(
                    node.lineno, f"{file.name}, line {node.lineno}: {name}"
                )
    return [lines[number] for number in sorted(lines)][:3]
