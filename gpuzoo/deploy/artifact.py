"""Weights as data: a safetensors file, loaded strictly by name, shape and dtype."""

import hashlib
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand


def weights_bytes(weights: dict[str, np.ndarray]) -> bytes:
    """The content of weights.safetensors: the same bytes for the same weights."""
    return safetensors.numpy.save(
        {k: np.asarray(v, order="C") for k, v in weights.items()}
    )


def load_weights(
    model: "keras.Model",  # noqa: F821 - keras stays unloaded
    path: str | pathlib.Path,
    *,
    sha256: str | None = None,
) -> None:
    """Load the weights of a run into a model built with the same options.

    Args:
        model: for example `gpuzoo.build("cnn")`.
        path: a weights.safetensors file or the run folder that holds it.
        sha256: if given, the digest that the file must have (`weights_sha256` of the
            run).

    Raises:
        GpuzooError: the file is damaged, is not the one that was named, or does not fit
            the model weight by weight.
    """
    from gpuzoo.engine.state import by_name

    path, content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        raise GpuzooError(f"weights {path.name}: sha256 is {found}, not {sha256}")
    try:
        weights = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise GpuzooError(f"weights {path.name}: damaged: {error}") from None
    variables = by_name(model.weights)
    if set(weights) != set(variables):
        odd = sorted(set(weights) ^ set(variables))[0]
        where = "file" if odd in weights else "model"
        raise GpuzooError(
            f"weights {path.name}: {odd!r} is only in the {where}; build the model "
            "with the options of the run"
        )
    for name, variable in variables.items():
        value = weights[name]
        if value.shape != tuple(variable.shape) or str(value.dtype) != variable.dtype:
            raise GpuzooError(
                f"weights {path.name}: {name!r} is {value.dtype} {value.shape} in the "
                f"file but {variable.dtype} {tuple(variable.shape)} in the model"
            )
    for name, variable in variables.items():
        variable.assign(weights[name])


def digest_of(path: str | pathlib.Path) -> str:
    """sha256 of a weights.safetensors file, or of that of a run folder."""
    return hashlib.sha256(_read(path)[1]).hexdigest()


def _read(path: str | pathlib.Path) -> tuple[pathlib.Path, bytes]:
    path = expand(path)
    if path.is_dir():
        path = path / "weights.safetensors"
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise GpuzooError(
            f"weights {path.name}: cannot be read: {error.strerror}"
        ) from None
