"""Weights in safetensors files, loaded strictly by name, shape and dtype."""

import hashlib
import json
import pathlib
import re
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, read_regular
from gpuzoo.keras_layers import default_name, layers_of, own_variables

if TYPE_CHECKING:
    import keras


def weights_bytes(weights: dict[str, np.ndarray]) -> bytes:
    """Return the content of weights.safetensors: same weights, same bytes."""
    return safetensors.numpy.save(
        {k: np.asarray(v, order="C") for k, v in weights.items()}
    )


def load_weights(
    model: "keras.Model",
    path: str | pathlib.Path,
    *,
    sha256: str | None = None,
) -> None:
    """Load the weights of a run into a model built with the same options.

    Weights are matched by name. Where names differ, as those that Keras numbers, they
    are matched by their order in the run; shape, dtype and the layer's name without
    Keras's number must then agree.

    Args:
        model: for example `gpuzoo.build("cnn")`.
        path: a weights.safetensors file or the run folder that holds it.
        sha256: if given, the digest that the file must have (`weights_sha256` of the
            run).

    Raises:
        GpuzooError: the file is damaged, has another digest, or does not fit the model.
    """
    path, content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        raise GpuzooError(f"weights {path.name}: sha256 is {found}, not {sha256}")
    try:
        weights = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise GpuzooError(f"weights {path.name}: damaged: {error}") from None
    variables = by_name(model.weights)
    names = {name: name for name in variables}
    if set(weights) != set(variables):
        names = _in_order(path, weights, model, list(variables))
    for name, variable in variables.items():
        value = weights[names[name]]
        if value.shape != tuple(variable.shape) or str(value.dtype) != variable.dtype:
            raise GpuzooError(
                f"weights {path.name}: {names[name]!r} is {value.dtype} {value.shape} "
                f"in the file but {variable.dtype} {tuple(variable.shape)} in the model"
            )
    assign(model, [weights[names[name]] for name in variables])


def assign(model: "keras.Model", values: list[np.ndarray]) -> None:
    """Set all weights of a model, in the order of `model.weights`."""
    for variable, value in zip(model.weights, values, strict=True):
        variable.assign(value)
    for layer in layers_of(model):
        # Normalization computes with constants derived from its weights.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _in_order(path, weights: dict, model, wanted: list[str]) -> dict[str, str]:
    """Map names in the model to names in the file, by the order of the weights in the
    digests.jsonl beside the file.

    Raises:
        GpuzooError: the order is not known, or a weight of the model belongs to another
            layer than the one at the same position in the run.
    """
    odd = sorted(set(weights) ^ set(wanted))[0]
    where = "file" if odd in weights else "model"
    fault = f"weights {path.name}: {odd!r} is only in the {where}"
    if len(weights) != len(wanted):
        raise GpuzooError(
            f"{fault} (the file has {len(weights)} weights, the model {len(wanted)}); "
            "build the model with the options of the run"
        )
    ordered = _order(path)
    if sorted(ordered) != sorted(weights):
        raise GpuzooError(
            f"{fault}; pass the run folder, whose digests.jsonl has the order of the "
            "weights, or build the model with the options of the run"
        )
    for theirs, ours, automatic in zip(ordered, wanted, _automatic(model), strict=True):
        if not _agree(theirs, ours, automatic):
            raise GpuzooError(
                f"{fault}, and where the run has {theirs!r} the model has {ours!r}; "
                "build the model with the options of the run"
            )
    return dict(zip(wanted, ordered, strict=True))


def _order(path: pathlib.Path) -> list[str]:
    """Return the names of the weights in the order of the model, from digests.jsonl."""
    try:
        rows = read_regular(path.parent / "digests.jsonl").decode().splitlines()
        return list(json.loads(rows[0])["variables"])
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _automatic(model) -> list[bool]:
    """Return for each weight whether its layer was named by Keras."""
    owners = {
        id(variable): layer
        for layer in layers_of(model)
        for variable in own_variables(layer)
    }
    found = []
    for variable in model.weights:
        layer = owners.get(id(variable))
        stem = re.escape(default_name(layer))
        pattern = rf"(forward_|backward_)?{stem}(_\d+)?"
        found.append(bool(layer and re.fullmatch(pattern, layer.name)))
    return found


def _agree(theirs: str, ours: str, automatic: bool) -> bool:
    """Whether two names may belong to the same weight: equal names of layer and weight,
    apart from the numbers that Keras appends."""
    sides = [re.sub(r"#\d+$", "", name).split("/")[-2:] for name in (theirs, ours)]
    # A weight that a layer creates without a name is named by Keras, too.
    sides = [
        [*layer, re.sub(r"^variable(_\d+)?$", "variable", name)]
        for *layer, name in sides
    ]
    if automatic:
        sides = [[re.sub(r"_\d+$", "", part) for part in side[:-1]] + side[-1:]
                 for side in sides]  # fmt: skip
    return sides[0] == sides[1]


def digest_of(path: str | pathlib.Path) -> str:
    """Return the sha256 of a weights.safetensors file, or of that in a run folder."""
    return hashlib.sha256(_read(path)[1]).hexdigest()


def _read(path: str | pathlib.Path) -> tuple[pathlib.Path, bytes]:
    path = expand(path)
    if path.is_dir():
        path = path / "weights.safetensors"
    try:
        return path, read_regular(path)
    except OSError as error:
        raise GpuzooError(
            f"weights {path.name}: cannot be read: {error.strerror or error}"
        ) from None


def digest(array: np.ndarray) -> str:
    """Return a short digest of dtype, shape and bytes: 16 hexadecimal digits."""
    head = f"{array.dtype} {array.shape}\n".encode()
    body = np.ascontiguousarray(array).view(np.uint8).reshape(-1) if array.size else b""
    return hashlib.sha256(head + bytes(body)).hexdigest()[:16]


def digest_all(values: dict[str, np.ndarray]) -> str:
    """Return one short digest of many named arrays."""
    lines = "".join(f"{name} {digest(values[name])}\n" for name in sorted(values))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def by_name(variables: list) -> dict:
    """Return variables by path; a duplicate path gets the variable's index appended."""
    named = {}
    for place, variable in enumerate(variables):
        path = variable.path
        named[f"{path}#{place}" if path in named else path] = variable
    return named
