"""A user's own keras.Model, as text from which a later process builds it again."""

import json
import re

from gpuzoo.errors import GpuzooError

REMEDY = (
    "put a function that returns it into a file, under @gpuzoo.register, and train "
    "--model path.py:function"
)


def describe(model: "keras.Model") -> str:  # noqa: F821
    """The architecture as JSON, without weights: the name of the model in a recipe.

    Raises:
        GpuzooError: it is no built model, or holds something that is not Keras's own,
            or that its description leaves out.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise GpuzooError(
            "train() takes a Recipe, the name of one, or a keras.Model, not "
            f"{type(model).__name__}"
        )
    if not model.built:
        raise GpuzooError(
            f"model {model.name!r} is not built yet; begin it with keras.Input(shape)"
        )
    try:
        text = model.to_json()
    except Exception as error:  # whatever a user's get_config() raises
        raise GpuzooError(
            f"model {model.name!r} cannot be described: {error}; {REMEDY}"
        ) from None
    for name in _foreign(json.loads(text)):
        raise GpuzooError(
            f"model {model.name!r} holds {name}, which is no part of Keras; {REMEDY}"
        )
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            raise GpuzooError(
                f"layer {layer.name!r} has what adapt() found, which is no part of the "
                "model's description; give it the numbers themselves: "
                "keras.layers.Normalization(mean=..., variance=...)"
            )
    rebuild(text)
    return text


def rebuild(text: str) -> "keras.Model":  # noqa: F821
    """An untrained model of an architecture; no code of a user is run."""
    import keras

    if foreign := next(_foreign(json.loads(text)), None):
        raise GpuzooError(f"model: {foreign} is no part of Keras; {REMEDY}")
    try:
        return keras.models.model_from_json(text)
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise GpuzooError(f"model cannot be built again: {line}; {REMEDY}") from None


def name_of(text: str) -> str:
    """The name that the model has for Keras."""
    return json.loads(text)["config"]["name"]


def recipe_for(model: "keras.Model"):  # noqa: F821
    """A recipe with the defaults of all fields but the model and the name."""
    from gpuzoo.recipe import Recipe

    text = describe(model)
    name = re.sub(r"[^A-Za-z0-9_-]+", "", name_of(text)).lstrip("_-")
    return Recipe(name=name or "own", model=text)


def give_weights(model: "keras.Model", run, text: str) -> None:  # noqa: F821
    """Put the weights of a run into the model that was described for it."""
    from gpuzoo.deploy.artifact import load_weights

    trained = rebuild(text)
    load_weights(trained, run)
    for one, other in zip(model.weights, trained.weights, strict=True):
        one.assign(other)


def _foreign(part):
    """Classes and functions of an architecture that are not Keras's."""
    if isinstance(part, list):
        for one in part:
            yield from _foreign(one)
    elif isinstance(part, dict):
        module = part.get("module")
        name = part.get("class_name")
        if name and "module" in part:
            ours = module in ("builtins", "keras") or str(module).startswith("keras.")
            if not ours or name in ("Lambda", "__lambda__"):
                yield name
        for one in part.values():
            yield from _foreign(one)
