"""gpuzoo: Keras 3 models and training recipes, fast and repeatable to the bit.

>>> import gpuzoo
>>> model = gpuzoo.build("cnn", input_shape=(28, 28, 1))   # a plain keras.Model

The public names below are loaded on first use, so that `import gpuzoo` costs
milliseconds and imports neither TensorFlow nor Keras.
"""

import importlib

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
