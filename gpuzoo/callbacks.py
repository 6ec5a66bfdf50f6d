"""Callbacks for an ordinary Keras `fit`.

They are loaded on first use, so that importing this module imports no Keras.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuzoo.training.trail import Trail as Trail

__all__ = ["Trail"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'gpuzoo.callbacks' has no attribute {name!r}")
    from gpuzoo.training import trail

    return getattr(trail, name)
