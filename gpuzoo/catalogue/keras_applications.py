"""The networks of keras.applications as models, build("keras/mobilenet_v2"), and those
of KerasHub from a local preset, build("keras/hub", preset="folder/")."""

import hashlib
import inspect
import re

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.keras_layers import layers_of

PREFIX = "keras/"
HUB = PREFIX + "hub"
# The files of a preset that define a network; its weights last.
_PRESET = ("config.json", "image_converter.json", "model.weights.h5")
# Preprocessing of images -> the networks trained with it. Those of "itself" contain
# their preprocessing layers and expect [0, 255].
_NETWORKS = {
    "one": (
        "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "NASNetLarge",
        "NASNetMobile", "ResNet50V2", "ResNet101V2", "ResNet152V2", "Xception",
    ),
    "deviations": ("DenseNet121", "DenseNet169", "DenseNet201"),
    "bgr": ("ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"),
    "itself": (
        *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
        *(f"EfficientNetB{number}" for number in range(8)),
        *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
        "MobileNetV3Large", "MobileNetV3Small",
    ),
}  # fmt: skip
# Parts of class names that get a _ in front.
_PART = r"(V[23]|Tiny|Small|Base|XLarge|Large|Mobile$|B\d$|[SML]$)"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB

_DOC = """{} of keras.applications with a new classification head.

Input (batch, height, width, channels), floats in [0, 1]; output (batch, num_classes),
logits in float32. A single channel is repeated three times, and images are resized to
`side` x `side` pixels unless it is 0. `weights` is a file of the network without its
head, as published (..._no_top.h5) or saved (....weights.h5) by Keras, and `sha256` its
digest; nothing is downloaded. `frozen`: only the head is trainable."""

_HUB_DOC = """A KerasHub backbone with a new head (pip install -e ".[hub]").

Input (batch, height, width, channels), floats in [0, 1]; output (batch, num_classes),
logits in float32. `preset` is a folder written by KerasHub's save_to_preset or
downloaded from its pages: config.json (the network), image_converter.json (optional:
the scaling of images), model.weights.h5 (the weights; without it random). `sha256` is
the digest of these files one after the other; nothing is downloaded. `side`, `dropout`
and `frozen` as for the other networks of Keras."""


def names() -> list[str]:
    """Return keras/<name> of every network: efficientnet_v2_b0 for EfficientNetV2B0."""
    shipped = [_short(name) for some in _NETWORKS.values() for name in some]
    return sorted([HUB, *(PREFIX + name for name in shipped)])


def _short(name: str) -> str:
    return re.sub(r"(?<=.)" + _PART, r"_\1", name).lower()


def doc(name: str) -> str:
    return _HUB_DOC if name == HUB else _DOC.format(_class_of(name)[0])


def reference(name: str) -> str:
    return f"https://keras.io/{'keras_hub' if name == HUB else 'api/applications'}"


def _class_of(name: str) -> tuple[str, str]:
    """Return the name of the class and its preprocessing."""
    for scale, classes in _NETWORKS.items():
        for one in classes:
            if PREFIX + _short(one) == name:
                return one, scale
    raise KeyError(name)


def options(name: str) -> dict[str, str]:
    """Return options with annotation and default, as written."""
    parameters = inspect.signature(builder(name)).parameters.values()
    return {p.name: str(p).partition(":")[2].strip() for p in parameters}


def builder(name: str):
    """Return the function that builds a network."""
    if name == HUB:
        return _hub
    class_name, scale = _class_of(name)

    def network(
        *,
        input_shape: tuple[int, int, int] = (224, 224, 3),
        num_classes: int = 10,
        side: int = 0,
        dropout: float = 0.0,
        frozen: bool = False,
        weights: str = "",
        sha256: str = "",
    ):
        import keras

        def body(shape):
            made = getattr(keras.applications, class_name)(
                include_top=False, weights=None, input_shape=shape, pooling="avg"
            )
            if weights:
                path = expand(weights)
                _check([path], name, "weights", weights, sha256)
                _load(made, path, name, weights)
            return made, lambda x: made(_scaled(x, scale))

        return _with_head(name, body, input_shape, num_classes, side, dropout, frozen)

    return network


def _hub(
    *,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 10,
    side: int = 0,
    dropout: float = 0.0,
    frozen: bool = False,
    preset: str = "",
    sha256: str = "",
):
    folder = expand(preset).resolve()
    files = [folder / file for file in _PRESET if (folder / file).exists()]
    if not preset or not files or files[0].name != _PRESET[0]:
        raise GpuzooError(
            f"preset of {HUB} must be a folder with {_PRESET[0]}, as KerasHub's "
            f"save_to_preset writes it; nothing is downloaded: {preset!r}"
        )
    if (folder / "model.weights.json").exists():
        raise GpuzooError(
            f"preset of {HUB}: {preset} has its weights in several files; save it "
            "again with save_to_preset(..., max_shard_size=None)"
        )
    _check(files, HUB, "preset", preset, sha256)
    try:
        import keras_hub
    except ImportError as error:
        raise GpuzooError(
            f"{HUB} needs KerasHub ({error}); in the checkout of gpuzoo run: pip "
            'install -e ".[hub]"'
        ) from None

    def body(shape):
        import keras

        from gpuzoo.runtime.keras_state import layers_policy

        made = keras_hub.models.Backbone.from_preset(
            str(folder), load_weights=False, image_shape=shape,
            dtype=layers_policy(),  # not the saved one
        )  # fmt: skip
        if files[-1].name == _PRESET[-1]:
            _load(made, files[-1], HUB, preset)
        scale, offset = 1.0, 0.0
        if folder / _PRESET[1] in files:
            converter = keras_hub.layers.ImageConverter.from_preset(str(folder))
            import numpy as np  # late, so that `gpuzoo list` starts without it

            scale = (255.0 * np.asarray(converter.scale or 1.0)).tolist()
            offset = converter.offset or 0.0

        def features(x):
            x = keras.layers.Rescaling(scale, offset, name="scale")(x)
            x = made(x)
            if len(x.shape) == 3:  # of a transformer: (batch, patches, features)
                return keras.layers.GlobalAveragePooling1D(name="pool")(x)
            return keras.layers.GlobalAveragePooling2D(name="pool")(x)

        return made, features

    return _with_head(HUB, body, input_shape, num_classes, side, dropout, frozen)


def _with_head(name, body, input_shape, num_classes, side, dropout, frozen):
    """Build a model from `body`: shape of an image -> network, features of images."""
    import keras

    if input_shape[2] not in (1, 3):
        raise ValueError(
            f"input_shape of {name} must have 1 or 3 channels: {input_shape}"
        )
    inputs = x = keras.Input(input_shape, name="image")
    if side:
        x = keras.layers.Resizing(side, side, name="resize")(x)
    if input_shape[2] == 1:
        x = keras.layers.Concatenate(name="colours")([x, x, x])
    network, features = body((side, side, 3) if side else (*input_shape[:2], 3))
    if frozen:
        network.trainable = False
    x = features(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    dense = keras.layers.Dense(num_classes, dtype="float32", name="logits")
    return keras.Model(inputs, dense(x), name=name.removeprefix(PREFIX))


def _scaled(x, scale: str):
    """Convert images in [0, 1] to the preprocessing of the network."""
    import keras

    rescaling, name = keras.layers.Rescaling, "scale"
    if scale == "one":
        return rescaling(2.0, -1.0, name=name)(x)
    if scale == "deviations":
        moved = [-m / d for m, d in zip(_MEAN, _DEVIATION, strict=True)]
        return rescaling([1 / d for d in _DEVIATION], moved, name=name)(x)
    if scale == "itself":
        return rescaling(255.0, name=name)(x)
    # The constants of Keras's preprocess_input; 255 times the mean above is close.
    moved = [-123.68, -116.779, -103.939]
    return keras.ops.flip(rescaling(255.0, moved, name=name)(x), axis=-1)


def _check(files, name: str, option: str, given: str, sha256: str) -> None:
    """Check the digest of the concatenated files."""
    try:
        found = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    except OSError as error:
        raise GpuzooError(
            f"{option} of {name}: {given}: {error.strerror}; name a local file, "
            "nothing is downloaded"
        ) from None
    if found.hexdigest() != sha256:
        wanted = f"not {sha256}" if sha256 else "pass it, so that runs are repeatable"
        raise GpuzooError(
            f"{option} of {name}: sha256={found.hexdigest()} is the digest of "
            f"{' + '.join(file.name for file in files)}; {wanted}"
        )


def _load(body, path, name: str, given: str) -> None:
    try:
        body.load_weights(path)
    except Exception as error:  # h5py and Keras raise a dozen different ones
        line = str(error).strip().partition("\n")[0]
        raise GpuzooError(
            f"weights of {name}: {given} does not fit, or is damaged: {line}"
        ) from None
    for layer in layers_of(body):
        layer.keeps_weights = True  # see engine/initializers.py
