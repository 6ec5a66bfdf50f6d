"""A user's own keras.Model, as text from which a later process builds it again."""

import json
import re
import types

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
    for layer, other in zip(
        model._flatten_layers(), rebuild(text)._flatten_layers(), strict=True
    ):
        if fault := _lost(layer, other):
            raise GpuzooError(f"model {model.name!r} holds {fault}; {REMEDY}")
    return text


def is_text(name: str) -> bool:
    """Whether a recipe's model is such a text, and no name."""
    return name.startswith("{")


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


def check_precision(model: "keras.Model") -> None:  # noqa: F821
    """Its layers say themselves what they compute in; some may differ on purpose from
    the run, as a last one in float32.

    Raises:
        GpuzooError: no layer with weights computes as the run does.
    """
    import keras

    layers = [
        layer
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.layers.InputLayer | keras.Model)
    ]
    # Where all weights are in float32 on purpose, the other layers tell what for.
    every = {layer.dtype_policy.name for layer in layers}
    found = {one.dtype_policy.name for one in layers if one._trainable_variables}
    wanted = keras.config.dtype_policy().name
    if found == {"float32"} and wanted in every:
        return
    if found and wanted not in found:
        raise GpuzooError(
            f"model {model.name!r} was built for {' and '.join(sorted(found))}, the "
            f"run is {wanted}; call gpuzoo.configure() before it is built, or name the "
            "precision to train()"
        )


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


def _lost(layer, other) -> str | None:
    """What of a layer is not in the one that is built from its description: a function,
    of which Keras writes down the name alone, or numbers that no training gives it."""
    import keras

    for name in ("activation", "recurrent_activation"):
        function = getattr(layer, name, None)
        if isinstance(function, types.FunctionType):
            if not _alike(function, getattr(other, name)):
                return (
                    f"a function {function.__name__!r}, not Keras's activation of that "
                    "name"
                )
    if layer.trainable and not isinstance(layer, keras.layers.Normalization):
        return None
    own, others = (
        [*one._trainable_variables, *one._non_trainable_variables]
        for one in (layer, other)
    )
    for one, its in zip(own, others, strict=True):
        if keras.ops.any(keras.ops.not_equal(one, its)):
            return f"numbers in its layer {layer.name!r} that would not be kept"
    return None


def _alike(function, other) -> bool:
    """Whether two activations are one function, or give the same numbers."""
    import keras

    if function is other:
        return True
    numbers = keras.ops.linspace(-4.0, 4.0, 64)[None]
    told = [keras.ops.convert_to_numpy(each(numbers)) for each in (function, other)]
    return told[0].tobytes() == told[1].tobytes()


def _foreign(part):
    """Classes and functions of an architecture that are not Keras's."""
    if isinstance(part, list):
        for one in part:
            yield from _foreign(one)
    elif isinstance(part, dict):
        module = part.get("module")
        name = part.get("class_name")
        if name and "module" in part:
            function = name == "function"
            ours = module == "keras" or str(module).startswith("keras.")
            ours = ours or (module == "builtins" and not function)
            if not ours or name in ("Lambda", "__lambda__"):
                yield part["config"] if function else name
        for one in part.values():
            yield from _foreign(one)
