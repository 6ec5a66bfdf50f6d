"""Structured pruning: a narrower copy of a model, without its weakest channels.

Channels are followed through the graph of layers. Channels that are added, multiplied
or averaged element by element are removed together or not at all. The weight of a
channel is the L1 norm of the kernels that make it, times the scale of a batch
normalization directly behind them (Li et al., arXiv 1608.08710).
"""

import dataclasses
import json
import math
from collections import defaultdict

import keras
import numpy as np

from gpuzoo.catalogue import architecture
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import fresh_names
from gpuzoo.weights import assign

# Class -> the field of its config that holds the number of channels that it makes, and
# its kernels: name -> (axis of the inputs, axis of the outputs).
_MAKERS = {
    "Dense": ("units", {"kernel": (0, 1)}),
    **{f"Conv{n}D": ("filters", {"kernel": (-2, -1)}) for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": ("filters", {"kernel": (-1, -2)}) for n in (1, 2, 3)},
    **{
        f"SeparableConv{n}D": (
            "filters", {"pointwise_kernel": (-2, -1), "depthwise_kernel": (-2, None)},
        )
        for n in (1, 2)
    },
}  # fmt: skip
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
# A channel of zeros stays one of zeros, and each channel is computed by itself.
_ALONE = {
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    "GaussianDropout", "ReLU", "LeakyReLU", "ELU", "Identity", "Activation",
    "Rescaling", "Cropping1D", "Cropping2D", "Cropping3D", "ZeroPadding1D",
    "ZeroPadding2D", "ZeroPadding3D", "UpSampling1D", "UpSampling2D", "UpSampling3D",
    *(
        f"{kind}Pooling{n}D"
        for kind in ("Max", "Average", "GlobalMax", "GlobalAverage")
        for n in (1, 2, 3)
    ),
    # keras.ops
    "Relu", "Relu6", "Gelu", "Silu", "Elu", "Selu", "LeakyRelu", "Tanh", "HardSilu",
}  # fmt: skip
_TOGETHER = {"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"}
# Those that compute each channel by itself.
_ACTIVATIONS = {
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu",
    "swish", "mish", "tanh", "hard_tanh", "softsign", "sigmoid", "hard_sigmoid",
    "hard_silu", "hard_swish", "softplus", "exponential", "squareplus",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A narrower model.

    Attributes:
        model: its layers have the names of the wide model's, its weights are theirs.
        kept: layer -> [channels kept, channels before].
        whole: layer -> why it keeps all channels, of layers with weights.
    """

    model: keras.Model
    kept: dict[str, list[int]]
    whole: dict[str, str]


def narrowed(model: keras.Model, width: float) -> Narrowed:
    """Return a copy of a model with a part of its channels.

    The outputs are those of the wide model, up to rounding, if the removed channels are
    zero there; else the copy needs training.

    Args:
        model: functional or Sequential, built of Keras's layers.
        width: fraction of the channels to keep in each layer, rounded, at least one.
            The heaviest stay; of equal ones the first.

    Raises:
        GpuzooError: nothing can be removed, or the model is not of Keras's layers.
    """
    if not 0 < width < 1:
        raise GpuzooError(f"width must be above 0 and below 1: {width}")
    if isinstance(model, keras.Sequential):
        with fresh_names():
            model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    text = architecture.describe(model)
    with fresh_names():
        wide = architecture.rebuild(text)
    assign(wide, [np.array(weight) for weight in model.weights])
    parts = json.loads(text)
    graph = _Graph(parts["config"], wide)
    keep = graph.choose(width)
    kept = graph.kept(keep)
    if all(now == before for now, before in kept.values()):
        reasons = [f"{name} ({why})" for name, why in graph.whole().items()]
        raise GpuzooError(
            f"model {model.name!r} cannot be narrowed, as no layer has channels that "
            f"can be removed: {', '.join(reasons)[:300]}"
        )
    _without_shapes(parts)
    graph.configure(keep)
    with fresh_names():
        narrow = architecture.rebuild(json.dumps(parts))
    for layer in narrow.layers:
        graph.fill(layer, keep)
    return Narrowed(narrow, kept, graph.whole())


def _without_shapes(part) -> None:
    """Remove the shapes for which layers were built from an architecture."""
    if isinstance(part, list):
        for one in part:
            _without_shapes(one)
    elif isinstance(part, dict):
        part.pop("build_config", None)
        for one in part.values():
            _without_shapes(one)


class _Graph:
    """The channels of a functional model: a number for each.

    A tensor has an array of such numbers, one for each index of its last axis. Numbers
    that must stay or go together are united in a forest.
    """

    def __init__(self, config: dict, wide: keras.Model):
        self.config, self.wide = config, wide
        self.parent: list[int] = []
        self.frozen: set[int] = set()
        self.inputs: dict[str, list[np.ndarray]] = {}  # layer -> what it takes
        self.made: dict[str, np.ndarray] = {}  # layer -> the channels that it makes
        self.pads: dict[str, list[np.ndarray]] = {}  # the zeros before and behind
        self.operations = {one.name: one for one in wide.operations}
        self.reasons: dict[str, str] = {}
        self.norms: dict[str, np.ndarray] = {}
        self._walk()

    # --- the forest of channels ---------------------------------------------------

    def _new(self, count: int) -> np.ndarray:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count)

    def _root(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def _roots(self, channels: np.ndarray) -> np.ndarray:
        return np.array([self._root(int(one)) for one in channels], int)

    def _unite(self, one: np.ndarray, other: np.ndarray) -> None:
        for a, b in zip(self._roots(one), self._roots(other), strict=True):
            a, b = self._root(int(a)), self._root(int(b))
            self.parent[max(a, b)] = min(a, b)

    def _freeze(self, channels: np.ndarray) -> None:
        self.frozen.update(int(one) for one in channels)

    # --- the walk through the layers ----------------------------------------------

    def _walk(self) -> None:
        """Follow the channels from the inputs to the outputs."""
        tensors: dict[tuple, _Tensor] = {}
        waiting = [
            (node, place, inbound)
            for node in self.config["layers"]
            for place, inbound in enumerate(node["inbound_nodes"] or [None])
        ]
        while waiting:
            later = []
            for node, place, inbound in waiting:
                sources = list(_sources(inbound))
                if all(key in tensors for key, _ in sources):
                    given = [
                        dataclasses.replace(tensors[key], shape=shape)
                        for key, shape in sources
                    ]
                    for number, made in enumerate(self._through(node, inbound, given)):
                        tensors[node["name"], place, number] = made
                else:
                    later.append((node, place, inbound))
            if len(later) == len(waiting):
                raise GpuzooError(f"layers of {self.wide.name} have unknown inputs")
            waiting = later
        for key in _ends(self.config["output_layers"]):
            self._freeze(tensors[key].channels)

    def _through(self, node: dict, inbound, given: list["_Tensor"]) -> list["_Tensor"]:
        """Return the outputs of a layer."""
        kind, name, config = node["class_name"], node["name"], node["config"]
        channels = [one.channels for one in given]
        fault = _fault(node, inbound, given)
        earlier = self.inputs.setdefault(name, channels)
        if earlier is not channels and not fault:  # the layer is used in two places
            for one, other in zip(earlier, channels, strict=True):
                if len(one) != len(other):
                    fault = "is used with several shapes"
                    break
                self._unite(one, other)
        if fault:
            return self._opaque(node, given, fault)
        first = channels[0]
        if kind in _MAKERS:
            return [_Tensor(self._maker(node), name)]
        if kind in _TOGETHER:
            for other in channels[1:]:
                self._unite(first, other)
            return [_Tensor(first)]
        if kind == "BatchNormalization":
            self._scale(self.wide.get_layer(name), first, given[0].maker)
        elif kind in _DEPTHWISE:
            return [_Tensor(np.repeat(first, config["depth_multiplier"]))]
        elif _flattens(node):
            return [_Tensor(np.tile(first, math.prod(given[0].shape[1:-1])))]
        elif kind == "Concatenate":
            return [_Tensor(np.concatenate(channels))]
        elif kind == "Pad":
            ends = self.pads.setdefault(
                name, [*map(self._new, config["pad_width"][-1])]
            )
            return [_Tensor(np.concatenate([ends[0], first, ends[1]]))]
        alone = kind in _ALONE
        return [_Tensor(first, given[0].maker if alone else "")]

    def _opaque(self, node: dict, given: list, why: str) -> list["_Tensor"]:
        """Keep all channels before and behind a layer."""
        name, made = node["name"], []
        earlier = [*self.inputs[name], self.made.get(name, ())]
        for channels in [*earlier, *(one.channels for one in given)]:
            self._freeze(channels)
        self.reasons[name] = why
        for one in keras.tree.flatten(self.operations[name].output):
            size = one.shape[-1] if len(one.shape) > 1 else 1
            made.append(_Tensor(self._new(size or 1)))
            self._freeze(made[-1].channels)
        return made

    def _maker(self, node: dict) -> np.ndarray:
        name, config = node["name"], node["config"]
        if name not in self.made:
            size, kernels = _MAKERS[node["class_name"]]
            kernel, (_, axis) = next(iter(kernels.items()))
            self.made[name] = self._new(config[size])
            self.norms[name] = _norms(_weights(self.wide.get_layer(name))[kernel], axis)
            if not config["trainable"]:
                self._freeze(self.made[name])
                self.reasons[name] = "it is not trained"
            elif not _by_channel(config["activation"]):
                self._freeze(self.made[name])
        return self.made[name]

    def _scale(self, layer, channels: np.ndarray, maker: str) -> None:
        """Multiply the norms of a layer by the scale of the normalization behind it."""
        if not maker or len(channels) != len(self.norms[maker]):
            return
        weights = _weights(layer)
        scale = 1 / np.sqrt(weights["moving_variance"] + np.float64(layer.epsilon))
        self.norms[maker] = self.norms[maker] * scale * np.abs(weights.get("gamma", 1))

    # --- the choice ---------------------------------------------------------------

    def choose(self, width: float) -> np.ndarray:
        """Return for each channel whether it stays."""
        frozen = set(self._roots(np.array(sorted(self.frozen), int)).tolist())
        makers, norms = defaultdict(set), defaultdict(list)
        for name, channels in self.made.items():
            for root, norm in zip(self._roots(channels), self.norms[name], strict=True):
                makers[int(root)].add(name)
                norms[int(root)].append(float(norm))
        groups = defaultdict(list)  # channels made by the same layers
        for root in sorted(set(makers) - frozen):
            groups[tuple(sorted(makers[root]))].append(root)
        removed = set()
        for roots in groups.values():
            stay = max(1, int(width * len(roots) + 0.5))
            ranked = sorted(roots, key=lambda root: (-math.fsum(norms[root]), root))
            removed.update(ranked[stay:])
        return ~np.isin(self._roots(np.arange(len(self.parent))), sorted(removed))

    def kept(self, keep: np.ndarray) -> dict[str, list[int]]:
        """Return layer -> [channels kept, channels before]."""
        return {
            name: [int(keep[channels].sum()), len(channels)]
            for name, channels in self.made.items()
        }

    def whole(self) -> dict[str, str]:
        """Return the layers with weights that cannot be narrowed, and why."""
        layers = {layer.name for layer in self.wide.layers if layer.weights}
        return {name: why for name, why in self.reasons.items() if name in layers}

    # --- the narrow model ---------------------------------------------------------

    def configure(self, keep: np.ndarray) -> None:
        """Write the sizes of the narrow model into the config."""
        for node in self.config["layers"]:
            name, config, kind = node["name"], node["config"], node["class_name"]
            if name in self.made:
                config[_MAKERS[kind][0]] = int(keep[self.made[name]].sum())
            elif name in self.reasons:
                continue
            elif kind == "Reshape" and _flattens(node):
                config["target_shape"] = [-1]
            elif kind == "Reshape":
                config["target_shape"][-1] = int(keep[self.inputs[name][0]].sum())
            elif kind == "Pad":
                config["pad_width"][-1] = [int(keep[p].sum()) for p in self.pads[name]]

    def fill(self, layer, keep: np.ndarray) -> None:
        """Set the weights of a narrow layer from those of the wide one."""
        name, kind = layer.name, type(layer).__name__
        inputs = self.inputs[name]
        followed = kind in _MAKERS or kind in _DEPTHWISE or kind == "BatchNormalization"
        wide = self.wide.get_layer(name)
        if not followed or name in self.reasons and name not in self.made:
            for one, other in zip(layer.weights, wide.weights, strict=True):
                one.assign(np.array(other))
            return
        taken = keep[inputs[0]]
        many = np.repeat(taken, getattr(layer, "depth_multiplier", 1))
        made = keep[self.made[name]] if name in self.made else many
        kernels = _MAKERS[kind][1] if kind in _MAKERS else {"kernel": (-2, None)}
        values = _weights(wide)
        for weight in layer.weights:
            value = values[weight.name]
            if weight.name in kernels:
                inner, outer = kernels[weight.name]
                if outer is not None:
                    value = np.compress(made, value, outer)
                rows = many if weight.name == "pointwise_kernel" else taken
                value = np.compress(rows, value, inner)
            else:
                value = np.compress(made, value, 0)
            weight.assign(value)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of the graph.

    Attributes:
        channels: the number of each index of its last axis.
        maker: the layer with these outputs, unless something has mixed them since.
        shape: with the batch, None where it is not known.
    """

    channels: np.ndarray
    maker: str = ""
    shape: tuple = ()


def _fault(node: dict, inbound, given: list[_Tensor]) -> str:
    """Return why the channels cannot be followed through a layer, or ""."""
    kind, config = node["class_name"], node["config"]
    known = _ALONE | _TOGETHER | {*_MAKERS, *_DEPTHWISE} | {
        "BatchNormalization", "Flatten", "Reshape", "Concatenate", "GetItem", "Pad",
    }  # fmt: skip
    if kind not in known:
        return f"{kind} layers keep their units"
    several = kind in _TOGETHER or kind == "Concatenate"
    if not given or (len(given) < 2 if several else len(given) > 1):
        return f"{kind} of {len(given)} tensors"
    rank = len(given[0].shape)
    if kind == "Reshape" and "target_shape" not in config:
        return "it is keras.ops.reshape"
    if kind in _TOGETHER and "axis" in config:
        return f"it is keras.ops.{kind.lower()}"
    if kind == "Pad" and not _is_by_axis(config["pad_width"]):
        return "its padding is one for all axes"
    last = (-1, rank - 1)
    faults = {
        "the channels are the first axis": config.get("data_format")
        == "channels_first",
        "it has groups": config.get("groups", 1) != 1,
        "its activation mixes channels": kind in ("Activation", *_DEPTHWISE)
        and not _by_channel(config["activation"]),
        "its noise has a shape": config.get("noise_shape") is not None,
        "it shifts or scales by channel": kind == "Rescaling"
        and (config["offset"] != 0 or not isinstance(config["scale"], int | float)),
        "its axis is not the last": kind in ("BatchNormalization", "Concatenate")
        and config.get("axis") not in last,
        "its inputs have several sizes": kind in _TOGETHER
        and len({len(one.channels) for one in given}) > 1,
        "it reshapes the channels": kind == "Reshape"
        and not _flattens(node)
        and config["target_shape"][-1] != len(given[0].channels),
        "it takes a part": kind == "GetItem" and not _takes_all(inbound, rank),
        "it pads with other values than 0": kind == "Pad"
        and (config["mode"] != "constant" or bool(_constant(inbound))),
    }
    return next((why for why, there in faults.items() if there), "")


def _is_by_axis(width) -> bool:
    """Whether a padding, as in a config, has a pair of numbers for each axis."""
    pairs = isinstance(width, list | tuple) and len(width) > 0
    return pairs and isinstance(width[-1], list | tuple)


def _by_channel(activation) -> bool:
    """Whether an activation, as in a config, computes each channel by itself."""
    return isinstance(activation, str) and activation in _ACTIVATIONS


def _flattens(node: dict) -> bool:
    """Whether a layer makes one axis of all."""
    kind = node["class_name"]
    return kind == "Flatten" or (
        kind == "Reshape" and len(node["config"].get("target_shape", ())) == 1
    )


def _takes_all(inbound: dict, rank: int) -> bool:
    """Whether tensor[index] has all channels, in their order."""
    index = [*inbound["args"][1:], *inbound["kwargs"].values()]
    if len(index) != 1 or not isinstance(index[0], list) or len(index[0]) > rank:
        return False
    slices = [isinstance(one, dict) and one["class_name"] for one in index[0]]
    if {*slices} - {"__slice__"}:
        return False
    return len(slices) < rank or not any(
        value is not None for value in index[0][-1]["config"].values()
    )


def _constant(inbound: dict):
    return [*inbound["args"][1:], *inbound["kwargs"].values(), None][0]


def _sources(part):
    """Yield the tensors in the arguments of a call: their place and their shape."""
    if isinstance(part, list):
        for one in part:
            yield from _sources(one)
    elif isinstance(part, dict):
        if part.get("class_name") == "__keras_tensor__":
            config = part["config"]
            yield tuple(config["keras_history"]), tuple(config["shape"])
            return
        for one in part.values():
            yield from _sources(one)


def _ends(part):
    """Yield the places of the outputs of a model."""
    if isinstance(part, list) and [type(one) for one in part] == [str, int, int]:
        yield tuple(part)
    elif isinstance(part, list | dict):
        for one in part.values() if isinstance(part, dict) else part:
            yield from _ends(one)


def _weights(layer) -> dict[str, np.ndarray]:
    return {weight.name: np.array(weight) for weight in layer.weights}


def _norms(kernel: np.ndarray, axis: int) -> np.ndarray:
    """Return the L1 norm of each output of a kernel; the same on every machine."""
    rows = np.abs(np.moveaxis(kernel, axis, 0).astype(np.float64))
    return np.array([math.fsum(row) for row in rows.reshape(len(rows), -1)])
