"""A user's keras.Model as JSON, from which a later process rebuilds it."""

import dataclasses
import json
import re
import types
import warnings
from typing import TYPE_CHECKING

from gpuzoo.catalogue.model_info import ARCHITECTURE
from gpuzoo.errors import GpuzooError
from gpuzoo.files import parse_json
from gpuzoo.keras_layers import (
    added_as_trainable,
    layers_of,
    set_trainable_itself,
    snake_case,
)

if TYPE_CHECKING:
    import keras

    from gpuzoo.catalogue.recipe import Recipe

# Methods that Keras's training loop calls, and gpuzoo's does not.
_TRAINING = (
    "train_step", "test_step", "compute_loss", "compute_metrics", "metrics",
    "stateless_compute_loss", "make_train_function", "make_test_function",
    "train_on_batch", "fit",
)  # fmt: skip

REMEDY = (
    "put a function that returns it into a file, under @gpuzoo.register, and train "
    "--model path.py:function"
)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The layers of a model object, as the JSON that `describe` returns."""

    text: str

    def rebuild(self) -> "keras.Model":
        return rebuild(self.text)

    def with_policy(self, policy: str, wanted: str) -> "Architecture":
        """Return it with another dtype policy; `policy`: the one it was built for.

        Raises:
            GpuzooError: it was built for float32, in which nothing marks the layers
                that another policy would be for.
        """
        if policy == "float32" and wanted != policy:
            raise GpuzooError(
                f"the model object was built for float32 and cannot compute in {wanted}"
                "; use precision float32"
            )
        return Architecture(self.text.replace(f'"{policy}"', f'"{wanted}"'))


def describe(model: "keras.Model") -> str:
    """Return the architecture as JSON, without weights.

    Raises:
        GpuzooError: it is not a built functional or Sequential model, overrides its
            training, or contains something that is not part of Keras or that its
            config does not hold.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise GpuzooError(
            "train() takes a Recipe, the name of one, or a keras.Model, not "
            f"{type(model).__name__}"
        )
    called = f"model {model.name!r}"
    check_form(model, called)
    if not isinstance(model, keras.Function | keras.Sequential):
        raise GpuzooError(
            f"{called} is a subclassed keras.Model ({type(model).__name__}), whose "
            f"layers only its code connects; {REMEDY}"
        )
    if not model.built:
        raise GpuzooError(
            f"model {model.name!r} is not built yet; start it with keras.Input(shape)"
        )
    if model.weights and not model.trainable_weights:
        raise GpuzooError(
            f"model {model.name!r} has no trainable weights, so that training would "
            "change nothing; set trainable = True on a layer"
        )
    # Optimizer and loss are not part of the architecture: see
    # gpuzoo/engine/compile_config.py.
    compiled, model.compiled = model.compiled, False
    try:
        with warnings.catch_warnings(action="ignore"):  # lambdas are refused below
            text = model.to_json()
    except Exception as error:  # a user's get_config() may raise anything
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
            f"model {model.name!r} holds {name}, which is not part of Keras; {REMEDY}"
        )
    parts = _numbered_anew(parts)
    twin = rebuild(json.dumps(parts))
    for layer, other in zip(layers_of(model), layers_of(twin), strict=True):
        if fault := _lost(layer, other):
            raise GpuzooError(f"model {model.name!r} holds {fault}; {REMEDY}")
    if flags := _trainable_flags(model, twin):
        parts["trainable"] = flags
    return json.dumps(parts)


def rebuild(text: str) -> "keras.Model":
    """Build an untrained model from its architecture; no user code is executed."""
    import keras

    from gpuzoo.runtime.keras_state import orthogonal_in_any_precision

    parts = _parts(text)
    if foreign := next(foreign_parts(parts), None):
        raise GpuzooError(f"model: {foreign} is not part of Keras; {REMEDY}")
    try:
        with orthogonal_in_any_precision():
            model = keras.models.model_from_json(text)
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise GpuzooError(f"model cannot be rebuilt: {line}; {REMEDY}") from None
    _set_trainable(model, parts.get("trainable", {}))
    return model


def refuse_name() -> None:
    """The builder of a model that only has this name."""
    raise GpuzooError(
        f"{ARCHITECTURE} is not the name of a model, it is that of a model object; "
        "pass the object itself to gpuzoo.train()"
    )


def check_precision(model: "keras.Model", wanted: str) -> None:
    """Check that the dtype policies of the layers fit the run's precision, `wanted`;
    some may differ on purpose, as a last layer in float32.

    Raises:
        GpuzooError: no layer with weights has the run's dtype policy.
    """
    import keras

    layers = [
        layer
        for layer in layers_of(model)
        if not isinstance(layer, keras.layers.InputLayer | keras.Model)
    ]
    # Where all weights are float32 on purpose, layers without weights show the policy.
    every = {layer.dtype_policy.name for layer in layers}
    found = {one.dtype_policy.name for one in layers if added_as_trainable(one)}
    if found == {"float32"} and wanted in every:
        return
    if found and wanted not in found:
        raise GpuzooError(
            f"model {model.name!r} was built for {' and '.join(sorted(found))}, the "
            f"run is {wanted}; call gpuzoo.configure() before building it, or pass "
            "precision= to train()"
        )


def _parts(text: str) -> dict:
    try:
        parts = parse_json(text)
        if isinstance(parts["config"]["name"], str):
            return parts
        why = ""
    except ValueError as error:
        why = f": {error}"
    except (LookupError, TypeError):
        why = ""
    raise GpuzooError(
        f"{ARCHITECTURE} is not the JSON of a keras.Model{why}: {text[:40]!r}"
    )


def recipe_for(model: "keras.Model") -> "tuple[Recipe, Architecture]":
    """Return a recipe for a model, with the defaults of all other fields."""
    from gpuzoo.catalogue.recipe import Recipe

    described = Architecture(describe(model))
    name = _parts(described.text)["config"]["name"]  # numbered anew
    name = re.sub(r"[^A-Za-z0-9_-]+", "", name).lstrip("_-")
    return Recipe(name=name or "own", model=ARCHITECTURE), described


def check_form(model, called: str) -> None:
    """Check that a keras.Model has no custom training methods.

    Args:
        called: its name in error messages.

    Raises:
        GpuzooError: it overrides a training method that gpuzoo would not call.
    """
    own = []
    for kind in type(model).__mro__:
        top = kind.__module__.partition(".")[0]
        if top in ("keras", "gpuzoo"):
            break  # gpuzoo's: GANs and diffusion models are trained by tasks
        own.append(kind)
    found = {name for kind in own for name in vars(kind)} | set(vars(model))
    if names := [name for name in _TRAINING if name in found]:
        raise GpuzooError(
            f"{called} ({type(model).__name__}) has {' and '.join(names)} of its own, "
            "which gpuzoo would not call; remove it, and add terms of the loss in a "
            "layer with add_loss()"
        )


def _lost(layer, other) -> str | None:
    """Return what a layer loses when it is rebuilt from its config: an activation
    function, of which Keras only saves the name."""
    for name in ("activation", "recurrent_activation"):
        function = getattr(layer, name, None)
        if isinstance(function, types.FunctionType):
            if not _alike(function, getattr(other, name)):
                return (
                    f"a function {function.__name__!r} that is not Keras's activation "
                    "of that name"
                )
    return None


def _trainable_flags(model, twin) -> dict[str, list]:
    """Return `trainable` flags that Keras's config does not hold: [index, flag] of
    layers, in the order of `layers_of`, and of weights, in that of `weights`.

    Keras saves `trainable` of layers only, not of an InputLayer, and applies that of a
    nested model to all its layers.
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
    """Apply the flags from `_trainable_flags`."""
    try:
        layers, weights = _freezable(model)
        for place, flag in flags.get("layers", ()):
            set_trainable_itself(layers[place], bool(flag))
        for place, flag in flags.get("weights", ()):
            weights[place].trainable = bool(flag)
    except (AttributeError, IndexError, TypeError, ValueError):
        raise GpuzooError(
            f"model: trainable must hold [index, true or false] of layers and weights "
            f"that the model has: {json.dumps(flags)[:80]}"
        ) from None


def _freezable(model) -> tuple[list, list]:
    return layers_of(model), model.weights


def _lambdas(parts: dict):
    """Yield lambdas in a config, which Keras does not rebuild."""
    for node in _nodes(parts):
        config, name = node["config"], node["config"]["name"]
        if node["class_name"] == "Lambda":
            yield f"a Lambda layer {name!r}, whose code is not saved in its config"
        for key, value in config.items():
            if not isinstance(value, dict):
                continue
            bare = "class_name" not in value and "value" in value  # an activation
            if bare or value.get("class_name") == "__lambda__":
                yield (
                    f"a lambda as {key} of its layer {name!r}, whose code is not saved "
                    "in its config"
                )


def _replaced_methods(model):
    """Yield methods that were replaced on a layer instance, which no config holds."""
    for layer in layers_of(model):
        for name, value in vars(layer).items():
            if name == "loss":  # that a compiled model was given
                continue
            if callable(getattr(type(layer), name, None)) and is_foreign(value):
                yield f"a layer {layer.name!r} with its own {name} set on it"


def is_foreign(value) -> bool:
    """Whether a callable is not part of Keras."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return callable(value) and not module.startswith("keras.")


def _alike(function, other) -> bool:
    """Whether two activations are the same function or give the same values."""
    import keras

    if function is other:
        return True
    numbers = keras.ops.linspace(-4.0, 4.0, 64)[None]
    values = [keras.ops.convert_to_numpy(each(numbers)) for each in (function, other)]
    return values[0].tobytes() == values[1].tobytes()


def foreign_parts(part):
    """Yield classes and functions of an architecture that are not part of Keras."""
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
    """Renumber the layers that Keras has named, as `dense_7`, in their order in the
    architecture, whatever else the process has built. A user's name that Keras could
    have given is treated as Keras's."""
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
    """Return `dense` for a layer that Keras has named dense or dense_7; else ""."""
    kind, name = snake_case(node["class_name"]), node["config"]["name"]
    if kind == "input_layer":  # in a clone called like the tensor
        name = re.sub(r"^keras_tensor(?=_\d+$|$)", kind, name)
    # The two layers of a Bidirectional are named after its wrapped layer.
    pattern = rf"((?:forward_|backward_)?{re.escape(kind)})(_\d+)?"
    match = re.fullmatch(pattern, name)
    return match[1] if match else ""


def _dicts(part):
    """Yield all dicts of a JSON value, outermost first."""
    if isinstance(part, dict):
        yield part
    for one in part.values() if isinstance(part, dict) else part:
        if isinstance(one, dict | list):
            yield from _dicts(one)


def _nodes(part, deep: bool = True):
    """Yield the layers in a part of an architecture; `deep`: nested layers too."""
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
    """Rename layers in the references of a graph, [name, node index, tensor index]."""
    if isinstance(part, dict):
        for one in part.values():
            _point(one, names)
    elif isinstance(part, list):
        place = [type(one) for one in part] == [str, int, int]
        if place and part[0] in names:
            part[0] = names[part[0]]
        for one in part:
            _point(one, names)
