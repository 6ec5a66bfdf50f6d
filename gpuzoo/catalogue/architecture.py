"""A user's own keras.Model, as text from which a later process builds it again."""

import json
import re
import types
import warnings

from gpuzoo.errors import GpuzooError

# What Keras's own training calls, and gpuzoo's does not.
_TRAINING = (
    "train_step", "test_step", "compute_loss", "compute_metrics", "metrics",
    "stateless_compute_loss", "make_train_function", "make_test_function",
    "train_on_batch", "fit",
)  # fmt: skip

REMEDY = (
    "put a function that returns it into a file, under @gpuzoo.register, and train "
    "--model path.py:function"
)


def describe(model: "keras.Model") -> str:  # noqa: F821
    """The architecture as JSON, without weights: the name of the model in a recipe.

    Raises:
        GpuzooError: it is no built functional or Sequential model, trains itself, or
            holds something that is not Keras's own, or that its description leaves out.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise GpuzooError(
            "train() takes a Recipe, the name of one, or a keras.Model, not "
            f"{type(model).__name__}"
        )
    check_form(model, f"model {model.name!r}")
    if not model.built:
        raise GpuzooError(
            f"model {model.name!r} is not built yet; begin it with keras.Input(shape)"
        )
    if model.weights and not model.trainable_weights:
        raise GpuzooError(
            f"every weight of model {model.name!r} is frozen, so that its training "
            "would change nothing; set trainable = True on a layer"
        )
    # An optimizer and a loss are no part of an architecture: see
    # gpuzoo/engine/model_objects.py.
    compiled, model.compiled = model.compiled, False
    try:
        with warnings.catch_warnings(action="ignore"):  # of a lambda: refused below
            text = model.to_json()
    except Exception as error:  # whatever a user's get_config() raises
        raise GpuzooError(
            f"model {model.name!r} cannot be described: {error}; {REMEDY}"
        ) from None
    finally:
        model.compiled = compiled
    parts = json.loads(text)
    for fault in (*_lambdas(parts), *_replaced_methods(model)):
        raise GpuzooError(f"model {model.name!r} holds {fault}; {REMEDY}")
    for name in foreign_parts(parts):
        raise GpuzooError(
            f"model {model.name!r} holds {name}, which is no part of Keras; {REMEDY}"
        )
    parts = _numbered_anew(parts)
    twin = rebuild(json.dumps(parts))
    for layer, other in zip(
        model._flatten_layers(), twin._flatten_layers(), strict=True
    ):
        if fault := _lost(layer, other):
            raise GpuzooError(f"model {model.name!r} holds {fault}; {REMEDY}")
    if flags := _trainable_flags(model, twin):
        parts["trainable"] = flags
    return json.dumps(parts)


def is_text(name: str) -> bool:
    """Whether a recipe's model is such a text, and no name."""
    return name.startswith("{")


def rebuild(text: str) -> "keras.Model":  # noqa: F821
    """An untrained model of an architecture; no code of a user is run."""
    import keras

    parts = json.loads(text)
    if foreign := next(foreign_parts(parts), None):
        raise GpuzooError(f"model: {foreign} is no part of Keras; {REMEDY}")
    try:
        model = keras.models.model_from_json(text)
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise GpuzooError(f"model cannot be built again: {line}; {REMEDY}") from None
    _set_trainable(model, parts.get("trainable", {}))
    return model


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
    from gpuzoo.catalogue.recipe import Recipe

    text = describe(model)
    name = re.sub(r"[^A-Za-z0-9_-]+", "", name_of(text)).lstrip("_-")
    return Recipe(name=name or "own", model=text)


def check_form(model, called: str) -> None:
    """That a keras.Model is a graph of layers, and trained as its task says.

    Args:
        called: what an error calls it.

    Raises:
        GpuzooError: it is a sub-classed model, or has a method of its own by which
            Keras would train it and gpuzoo would not.
    """
    import keras

    own, known = [], False
    for kind in type(model).__mro__:
        top = kind.__module__.partition(".")[0]
        if top in ("keras", "gpuzoo"):
            known = top == "gpuzoo"  # a GAN or a diffusion model: its task trains it
            break
        own.append(kind)
    if not known and not isinstance(model, keras.Function | keras.Sequential):
        raise GpuzooError(
            f"{called} is a sub-classed keras.Model ({type(model).__name__}), and "
            "gpuzoo trains functional and Sequential models: let a function return "
            "keras.Model(inputs, outputs); layers of your own classes may be in it"
        )
    found = {name for kind in own for name in vars(kind)} | set(vars(model))
    if names := [name for name in _TRAINING if name in found]:
        raise GpuzooError(
            f"{called} ({type(model).__name__}) has {' and '.join(names)} of its own, "
            "which gpuzoo would not call; take it out, and put what it adds to the "
            "loss into a layer with add_loss()"
        )


def _lost(layer, other) -> str | None:
    """What of a layer is not in the one that is built from its description: a function,
    of which Keras writes down the name alone."""
    for name in ("activation", "recurrent_activation"):
        function = getattr(layer, name, None)
        if isinstance(function, types.FunctionType):
            if not _alike(function, getattr(other, name)):
                return (
                    f"a function {function.__name__!r}, not Keras's activation of that "
                    "name"
                )
    return None


def _trainable_flags(model, twin) -> dict[str, list]:
    """What is frozen otherwise than Keras's description says: [place, flag] of layers,
    in the order of `_flatten_layers()`, and of weights, in that of `weights`.

    Keras writes down `trainable` of the layers alone, not of an InputLayer, and sets
    that of a model inside for all its layers.
    """
    flags = {}
    for kind, ours, theirs in zip(
        ("layers", "weights"), _freezable(model), _freezable(twin), strict=True
    ):
        pairs = enumerate(zip(ours, theirs, strict=True))
        if found := [
            [place, bool(one.trainable)]
            for place, (one, other) in pairs
            if one.trainable != other.trainable
        ]:
            flags[kind] = found
    return flags


def _set_trainable(model, flags: dict[str, list]) -> None:
    """Freeze a model as `_trainable_flags` has written it down."""
    try:
        layers, weights = _freezable(model)
        for place, flag in flags.get("layers", ()):
            layers[place]._trainable = bool(flag)  # not that of the layers inside, too
        for place, flag in flags.get("weights", ()):
            weights[place].trainable = bool(flag)
    except (AttributeError, IndexError, TypeError, ValueError):
        raise GpuzooError(
            f"model: trainable must hold [place, true or false] of layers and weights "
            f"that the model has: {json.dumps(flags)[:80]}"
        ) from None


def _freezable(model) -> tuple[list, list]:
    return list(model._flatten_layers()), model.weights


def _lambdas(parts: dict):
    """Functions without a name in a description, which Keras does not rebuild."""
    for node in _nodes(parts):
        config, name = node["config"], node["config"]["name"]
        if node["class_name"] == "Lambda":
            yield f"a Lambda layer {name!r}, whose code is not kept in a description"
        for key, value in config.items():
            if not isinstance(value, dict):
                continue
            bare = "class_name" not in value and "value" in value  # of an activation
            if bare or value.get("class_name") == "__lambda__":
                yield (
                    f"a lambda as {key} of its layer {name!r}, whose code is not kept "
                    "in a description"
                )


def _replaced_methods(model):
    """Methods that a user has set on a layer itself, which no description holds."""
    for layer in model._flatten_layers():
        for name, value in vars(layer).items():
            if name == "loss":  # of a compiled model: the one that it was given
                continue
            if callable(getattr(type(layer), name, None)) and is_foreign(value):
                yield f"a layer {layer.name!r} with its own {name} set on it"


def is_foreign(value) -> bool:
    """Whether something that can be called is not Keras's own."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return callable(value) and not module.startswith("keras.")


def _alike(function, other) -> bool:
    """Whether two activations are one function, or give the same numbers."""
    import keras

    if function is other:
        return True
    numbers = keras.ops.linspace(-4.0, 4.0, 64)[None]
    told = [keras.ops.convert_to_numpy(each(numbers)) for each in (function, other)]
    return told[0].tobytes() == told[1].tobytes()


def foreign_parts(part):
    """Classes and functions of an architecture that are not Keras's."""
    if isinstance(part, list):
        for one in part:
            yield from foreign_parts(one)
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
            yield from foreign_parts(one)


def _numbered_anew(model: dict) -> dict:
    """An architecture in which the layers that Keras has named, as `dense_7`, are
    numbered in the order in which they come, whatever else the process has built. A
    name that a user has written and Keras could have given is treated as Keras's."""
    fixed = {name for node in _nodes(model) if not _stem(node)
             for name in [node["config"]["name"]]}  # fmt: skip
    counted: dict[str, int] = {}

    def renumber(node: dict) -> None:
        config, stem = node["config"], _stem(node)
        while stem:
            number = counted[stem] = counted.get(stem, -1) + 1
            config["name"] = f"{stem}_{number}" if number else stem
            if config["name"] not in fixed:
                break
        inner = config.get("layers")
        if not isinstance(inner, list):
            inner = list(_nodes([*config.values()], deep=False))
        names = {}
        for layer in inner:
            before = layer["config"]["name"]
            renumber(layer)
            names[before] = layer["config"]["name"]
            if "name" in layer:
                layer["name"] = names[before]
        for layer in inner:
            _point(layer.get("inbound_nodes"), names)
        for ends in ("input_layers", "output_layers"):
            _point(config.get(ends), names)

    renumber(model)
    shared: dict = {}
    for part in _dicts(model):
        if "shared_object_id" in part:  # an address of the process
            number = part["shared_object_id"]
            part["shared_object_id"] = shared.setdefault(number, len(shared))
    return model


def _stem(node: dict) -> str:
    """`dense` of a layer that Keras has named dense or dense_7; else empty."""
    kind = re.sub(r"\W+", "", node["class_name"])
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
    kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
    name = node["config"]["name"]
    if kind == "input_layer":  # in a clone called like the tensor
        name = re.sub(r"^keras_tensor(?=_\d+$|$)", kind, name)
    # The two layers of a Bidirectional are named after the one that it was given.
    pattern = rf"((?:forward_|backward_)?{re.escape(kind)})(_\d+)?"
    match = re.fullmatch(pattern, name)
    return match[1] if match else ""


def _dicts(part):
    """All dicts of a JSON value, the outermost first."""
    if isinstance(part, dict):
        yield part
    for one in part.values() if isinstance(part, dict) else part:
        if isinstance(one, dict | list):
            yield from _dicts(one)


def _nodes(part, deep: bool = True):
    """The layers described in a part of an architecture; `deep`: those in them too."""
    if isinstance(part, dict) and isinstance(part.get("config"), dict):
        policy = "Policy" in str(part.get("class_name"))
        if isinstance(part["config"].get("name"), str) and not policy:
            yield part
            if not deep:
                return
    for one in part.values() if isinstance(part, dict) else part:
        if isinstance(one, dict | list):
            yield from _nodes(one, deep)


def _point(part, names: dict[str, str]) -> None:
    """Change the names by which a graph refers to its layers, [name, node, place]."""
    if isinstance(part, dict):
        for one in part.values():
            _point(one, names)
    elif isinstance(part, list):
        place = [type(one) for one in part] == [str, int, int]
        if place and part[0] in names:
            part[0] = names[part[0]]
        for one in part:
            _point(one, names)
