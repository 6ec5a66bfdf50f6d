"""The recipes that ship with gpuzoo, and their measured results."""

import functools
import importlib
import importlib.resources
import importlib.util
import json
import pathlib

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.registry import list_models
from gpuzoo.errors import GpuzooError, nearest


def list_recipes() -> list[str]:
    """Return the names of the recipes that ship with gpuzoo."""
    spec = importlib.util.find_spec("gpuzoo.recipes")
    if spec is None:
        raise GpuzooError("gpuzoo.recipes is missing; run: pip install -e .")
    return sorted(
        path.stem.removeprefix("train_")
        for folder in spec.submodule_search_locations
        for path in pathlib.Path(folder).glob("[!_]*.py")
    )


def figures_of(name: str) -> dict[str, str]:
    """Return the measured results of a recipe from recipes/results.json: metric ("test
    accuracy", ...) -> value with its deviation, and "data", "training" and "on", the
    machine and the date; empty if nothing was measured yet."""
    found = _results().get(name)
    if found is None:
        return {}
    return {
        **{k: v for k, v in found["figures"].items() if k != "by epoch"},
        **({} if found["data"] == load_recipe(name).data else {"data": found["data"]}),
        "training": f"{found['train_seconds']:.1f} s",
        "on": f"{found['on']}, {found['date']}",
    }


def rating_of(name: str) -> float | None:
    """The metric that a recipe is judged by, negative where less is better; None if it
    was not measured yet."""
    if (found := _results().get(name)) is None:
        return None
    metric = found["metric"]
    return metric["mean"] if metric["greater_is_better"] else -metric["mean"]


@functools.cache
def _results() -> dict:
    """Read the results, written by benchmarks/tables/tables.py from the records."""
    file = importlib.resources.files("gpuzoo.recipes").joinpath("results.json")
    return json.loads(file.read_text("utf-8"))


def load_recipe(name: str) -> Recipe:
    """Return a recipe by name: `load_recipe("mnist")` is in recipes/train_mnist.py."""
    known = list_recipes()
    if name not in known:
        why = f"; {nearest(name, known)}"
        if name in list_models():
            trained = [each for each in known if module_of(each).RECIPE.model == name]
            why = (
                ", which is a model; recipes that train it: "
                f"{', '.join(trained) or 'none'}; or use a recipe of its task with "
                "--model"
            )
        raise GpuzooError(f"no recipe named {name!r}{why}")
    return module_of(name).RECIPE


def module_of(name: str):
    prefixed = f"gpuzoo.recipes.train_{name}"
    found = importlib.util.find_spec(prefixed) is not None
    return importlib.import_module(prefixed if found else f"gpuzoo.recipes.{name}")
