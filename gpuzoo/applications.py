"""The networks of keras.applications as models: build("keras/mobilenet_v2")."""

import hashlib
import inspect
import re

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand

PREFIX = "keras/"
# What a network was made for, in [0, 255] -> the networks. Those of "itself" begin with
# layers that do it.
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
# Of their names what a _ stands before.
_PART = r"(V[23]|Tiny|Small|Base|XLarge|Large|Mobile$|B\d$|[SML]$)"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB

_DOC = """{} of keras.applications with a head of its own.

Input (batch, height, width, channels), numbers in [0, 1]; output (batch, num_classes),
logits in float32. One channel is taken three times, and images are resized to `side` x
`side` pixels unless it is 0. `weights` is a file of the network without its head, as
Keras publishes them (..._no_top.h5) or saves them (....weights.h5), and `sha256` its
digest; nothing is downloaded. `frozen` keeps all but the head as it is."""


def names() -> list[str]:
    """keras/<name> of every network: efficientnet_v2_b0 for EfficientNetV2B0."""
    return sorted(PREFIX + _short(name) for some in _NETWORKS.values() for name in some)


def _short(name: str) -> str:
    return re.sub(r"(?<=.)" + _PART, r"_\1", name).lower()


def doc(name: str) -> str:
    return _DOC.format(_class_of(name)[0])


def _class_of(name: str) -> tuple[str, str]:
    """The name of the class, and what its images must be."""
    for scale, classes in _NETWORKS.items():
        for one in classes:
            if PREFIX + _short(one) == name:
                return one, scale
    raise KeyError(name)


def options(name: str) -> dict[str, str]:
    """Option -> annotation and default, as written."""
    parameters = inspect.signature(builder(name)).parameters.values()
    return {p.name: str(p).partition(":")[2].strip() for p in parameters}


def builder(name: str):
    """The function that builds it."""

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

        class_name, scale = _class_of(name)
        shape = (side, side, 3) if side else (*input_shape[:2], 3)
        if input_shape[2] not in (1, 3):
            raise ValueError(f"input_shape of {name} must have 1 or 3: {input_shape}")
        inputs = keras.Input(input_shape, name="image")
        x = inputs
        if side:
            x = keras.layers.Resizing(side, side, name="resize")(x)
        if input_shape[2] == 1:
            x = keras.layers.Concatenate(name="colours")([x, x, x])
        body = getattr(keras.applications, class_name)(
            include_top=False, weights=None, input_shape=shape, pooling="avg"
        )
        if weights:
            _load(body, name, weights, sha256)
        if frozen:
            body.trainable = False
        x = body(_scaled(x, scale))
        if dropout:
            x = keras.layers.Dropout(dropout, name="dropout")(x)
        dense = keras.layers.Dense(num_classes, dtype="float32", name="logits")
        return keras.Model(inputs, dense(x), name=name.removeprefix(PREFIX))

    return network


def _scaled(x, scale: str):
    """[0, 1] -> what the network was made for."""
    import keras

    rescaling, name = keras.layers.Rescaling, "scale"
    if scale == "one":
        return rescaling(2.0, -1.0, name=name)(x)
    if scale == "deviations":
        moved = [-m / d for m, d in zip(_MEAN, _DEVIATION, strict=True)]
        return rescaling([1 / d for d in _DEVIATION], moved, name=name)(x)
    if scale == "itself":
        return rescaling(255.0, name=name)(x)
    # Keras subtracts these very numbers; 255 times the mean above is near them.
    moved = [-123.68, -116.779, -103.939]
    return keras.ops.flip(rescaling(255.0, moved, name=name)(x), axis=-1)


def _load(body, name: str, weights: str, sha256: str) -> None:
    path = expand(weights)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise GpuzooError(
            f"weights of {name}: {weights}: {error.strerror}; name a file that "
            "you have, nothing is downloaded"
        ) from None
    if found != sha256:
        wanted = f"not {sha256}" if sha256 else "name it, that the run can be repeated"
        raise GpuzooError(f"weights of {name}: sha256={found} is the file's; {wanted}")
    try:
        body.load_weights(path)
    except Exception as error:  # h5py and Keras raise a dozen different ones
        line = str(error).strip().partition("\n")[0]
        raise GpuzooError(
            f"weights of {name}: {weights} does not fit, or is damaged: {line}"
        ) from None
    for layer in body._flatten_layers():
        layer.keeps_weights = True  # see engine/initial.py
