"""gpuzoo: Keras 3 models and training recipes, fast and repeatable to the bit.

>>> import gpuzoo
>>> model = gpuzoo.build("cnn", input_shape=(28, 28, 1))   # a plain keras.Model

The public names below are loaded on first use, so that `import gpuzoo` costs
milliseconds and imports neither TensorFlow nor Keras.
"""

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING

from gpuzoo import events as events

if TYPE_CHECKING:  # so that editors and type checkers know the names; tests compare
    from gpuzoo.catalogue.recipe import Recipe as Recipe
    from gpuzoo.catalogue.recipes import list_recipes as list_recipes
    from gpuzoo.catalogue.recipes import load_recipe as load_recipe
    from gpuzoo.catalogue.registry import build as build
    from gpuzoo.catalogue.registry import list_models as list_models
    from gpuzoo.catalogue.registry import model_info as model_info
    from gpuzoo.catalogue.registry import register as register
    from gpuzoo.data.dataset import Dataset as Dataset
    from gpuzoo.data.sources import load_data as load_data
    from gpuzoo.deploy.compress import compress as compress
    from gpuzoo.deploy.evaluate import evaluate as evaluate
    from gpuzoo.deploy.export import export as export
    from gpuzoo.deploy.robustness import robustness as robustness
    from gpuzoo.deploy.trained import Trained as Trained
    from gpuzoo.deploy.trained import load as load
    from gpuzoo.engine.fit import repeatable as repeatable
    from gpuzoo.errors import Diverged as Diverged
    from gpuzoo.errors import GpuzooError as GpuzooError
    from gpuzoo.repro.audit import audit as audit
    from gpuzoo.repro.check import check as check
    from gpuzoo.repro.diff import diff as diff
    from gpuzoo.repro.verify import verify as verify
    from gpuzoo.runtime.configure import configure as configure
    from gpuzoo.runtime.options import Runtime as Runtime
    from gpuzoo.training.resume import resume as resume
    from gpuzoo.training.sweep import sweep as sweep
    from gpuzoo.training.train import train as train
    from gpuzoo.weights import load_weights as load_weights

__version__ = "0.1.0"


def _is_there(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a plain folder has none


# Keras defaults to TensorFlow: choose JAX where only that is installed.
if not _is_there("tensorflow") and _is_there("jax"):
    os.environ.setdefault("KERAS_BACKEND", "jax")

_WHERE = {
    name: f"gpuzoo.{module}"
    for module, names in {
        "catalogue.recipe": "Recipe",
        "catalogue.recipes": "list_recipes load_recipe",
        "catalogue.registry": "build list_models model_info register",
        "data.dataset": "Dataset",
        "data.sources": "load_data",
        "deploy.compress": "compress",
        "deploy.evaluate": "evaluate",
        "deploy.export": "export",
        "deploy.robustness": "robustness",
        "deploy.trained": "Trained load",
        "engine.fit": "repeatable",
        "errors": "Diverged GpuzooError",
        "repro.audit": "audit",
        "repro.check": "check",
        "repro.diff": "diff",
        "repro.verify": "verify",
        "runtime.configure": "configure",
        "runtime.options": "Runtime",
        "training.resume": "resume",
        "training.sweep": "sweep",
        "training.train": "train",
        "weights": "load_weights",
    }.items()
    for name in names.split()
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'gpuzoo' has no attribute {name!r}")
    # By name, on first use: import statements at the top of this file would load Keras
    # and a backend with every `import gpuzoo`.
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
