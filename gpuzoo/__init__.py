"""gpuzoo: Keras 3 models and training recipes, fast and repeatable to the bit.

>>> import gpuzoo
>>> model = gpuzoo.build("cnn", input_shape=(28, 28, 1))   # a plain keras.Model

The public names below are loaded on first use, so that `import gpuzoo` costs
milliseconds and imports neither TensorFlow nor Keras.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that editors and type checkers know the names; tests compare
    from gpuzoo.data.dataset import Dataset as Dataset
    from gpuzoo.data.sources import load_data as load_data
    from gpuzoo.deploy.artifact import load_weights as load_weights
    from gpuzoo.errors import Diverged as Diverged
    from gpuzoo.errors import GpuzooError as GpuzooError
    from gpuzoo.evidence.difference import diff as diff
    from gpuzoo.evidence.verify import verify as verify
    from gpuzoo.recipe import Recipe as Recipe
    from gpuzoo.recipe import list_recipes as list_recipes
    from gpuzoo.recipe import load_recipe as load_recipe
    from gpuzoo.registry import build as build
    from gpuzoo.registry import list_models as list_models
    from gpuzoo.registry import model_info as model_info
    from gpuzoo.registry import register as register
    from gpuzoo.runtime import Runtime as Runtime
    from gpuzoo.runtime import configure as configure
    from gpuzoo.training import resume as resume
    from gpuzoo.training import train as train

__version__ = "0.1.0"

_WHERE = {
    "Dataset": "gpuzoo.data.dataset",
    "Diverged": "gpuzoo.errors",
    "GpuzooError": "gpuzoo.errors",
    "Recipe": "gpuzoo.recipe",
    "Runtime": "gpuzoo.runtime",
    "build": "gpuzoo.registry",
    "configure": "gpuzoo.runtime",
    "list_models": "gpuzoo.registry",
    "list_recipes": "gpuzoo.recipe",
    "load_data": "gpuzoo.data.sources",
    "load_recipe": "gpuzoo.recipe",
    "load_weights": "gpuzoo.deploy.artifact",
    "model_info": "gpuzoo.registry",
    "register": "gpuzoo.registry",
    "resume": "gpuzoo.training",
    "diff": "gpuzoo.evidence.difference",
    "train": "gpuzoo.training",
    "verify": "gpuzoo.evidence.verify",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'gpuzoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
