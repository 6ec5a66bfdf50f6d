"""Residual networks: ResNet for small and large images, Wide ResNet."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image

# The papers' schedules are long; runs here may have a few hundred steps, in which
# moving averages with Keras's momentum of 0.99 would stay near their initial values.
_MOMENTUM = 0.9
_EPSILON = 1e-5
# Images with sides above this get the ImageNet stem.
_SMALL = 64


@register(
    task="classify",
    reference="He, Zhang, Ren and Sun, arXiv 1512.03385, section 4.2 with n = 1; as "
    "small as the one of MLPerf Tiny, Banbury et al., arXiv 2106.07597",
    parameters=75_770,
)
def resnet8(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 16,
) -> keras.Model:
    """ResNet-8, the smallest residual network for images like CIFAR's.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 4 up.

    `resnet20` with one block instead of three at each of the three widths. Differences
    from the paper: its smallest network has three; otherwise as for `resnet20`. The one
    of MLPerf Tiny has the same widths, but 1x1 convolutions on its shortcuts.
    """
    return _cifar_resnet("resnet8", input_shape, num_classes, 1, width)


@register(
    task="classify",
    reference="He, Zhang, Ren and Sun, arXiv 1512.03385, section 4.2 with n = 3",
    parameters=271_098,
)
def resnet20(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 16,
) -> keras.Model:
    """ResNet-20, the residual network of the paper's CIFAR-10 experiments.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 4 up.

    As in the paper: a 3x3 convolution, three blocks of two convolutions at each of
    `width`, 2 * `width`, 4 * `width` filters, global average pooling; shortcuts without
    weights, padded with zero channels (its option A). Differences: convolutions with
    stride 2 use Keras's "same" padding, on the far side only; the paper subtracts the
    mean image; weight decay is left to the recipe.
    """
    return _cifar_resnet("resnet20", input_shape, num_classes, 3, width)


@register(
    task="classify",
    reference="He, Zhang, Ren and Sun, arXiv 1512.03385, table 1; the stem for small "
    "images is the one in common use with CIFAR",
    parameters=11_183_562,
)
def resnet18(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 64,
    large_stem: bool | None = None,
) -> keras.Model:
    """ResNet-18, with a stem for small images or the paper's for large ones.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 8 up, from 32
    with the large stem.

    `large_stem`: the paper's, a 7x7 convolution with stride 2 and pooling, to a quarter
    of each side; without it, one 3x3 convolution. None: the large one if both
    sides are above 64 pixels. Then four stages of two blocks, with `width` filters and
    twice as many in each following stage, shortcuts of 1x1 convolutions where the shape
    changes (the paper's option B), global average pooling. Differences: the stem pools
    by 2x2, the paper's 3x3 windows overlap; convolutions with stride 2 use Keras's
    "same" padding.
    """
    if large_stem is None:
        large_stem = min(input_shape[:2]) > _SMALL
    check_image(input_shape, least=32 if large_stem else 8, model="resnet18")
    inputs = keras.Input(input_shape, name="image")
    if large_stem:
        x = _conv_bn(inputs, width, 7, stride=2, name="stem")
        x = keras.layers.ReLU(name="stem_relu")(x)
        x = keras.layers.MaxPooling2D(name="stem_pool")(x)
    else:
        x = keras.layers.ReLU(name="stem_relu")(_conv_bn(inputs, width, name="stem"))
    for stage in (1, 2, 3, 4):
        for block in (1, 2):
            stride = 2 if stage > 1 and block == 1 else 1
            name = f"stage_{stage}_block_{block}"
            filters = width * 2 ** (stage - 1)
            x = _basic_block(x, filters, stride, name=name, project=True)
    return keras.Model(inputs, _head(x, num_classes), name="resnet18")


@register(
    task="classify",
    reference="Zagoruyko and Komodakis, arXiv 1605.07146; blocks after He et al., "
    "arXiv 1603.05027",
    parameters=2_752_506,
)
def wide_resnet(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    depth: int = 16,
    width: int = 4,
    dropout: float = 0.0,
) -> keras.Model:
    """Wide ResNet (WRN-16-4 by default): fewer, wider blocks with the activation first.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width from 4 up. `depth`
    counts convolutions as the paper does, 6 n + 4; `width` multiplies 16, 32 and 64
    filters; `dropout` is applied between the two convolutions of a block.

    Differences from the paper: convolutions with stride 2 use Keras's "same" padding;
    weight decay is left to the recipe.
    """
    if depth < 10 or depth % 6 != 4 or width < 1:
        raise ValueError(
            "depth of wide_resnet must be 10, 16, 22, 28, ... (6 n + 4) and width at "
            f"least 1: {depth}, {width}"
        )
    check_image(input_shape, least=4, model="wide_resnet")
    inputs = keras.Input(input_shape, name="image")
    x = _conv(inputs, 16, name="stem_conv")
    for stage, filters in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range(1, (depth - 4) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            name = f"stage_{stage}_block_{block}"
            x = _activated_block(x, filters, stride, dropout, name=name)
    x = keras.layers.ReLU(name="relu")(_norm(x, name="bn"))
    return keras.Model(inputs, _head(x, num_classes), name="wide_resnet")


def _cifar_resnet(name, input_shape, num_classes, blocks, width) -> keras.Model:
    """Build the 6 n + 2 layers of the paper's section 4.2, with n = `blocks`."""
    check_image(input_shape, least=4, model=name)
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.ReLU(name="stem_relu")(_conv_bn(inputs, width, name="stem"))
    for stage in (1, 2, 3):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(
                x, width * 2 ** (stage - 1), stride,
                name=f"stage_{stage}_block_{block}", project=False,
            )  # fmt: skip
    return keras.Model(inputs, _head(x, num_classes), name=name)


def _basic_block(x, filters: int, stride: int, *, name: str, project: bool):
    """Two convolutions beside a shortcut; the activation comes after the sum."""
    y = _conv_bn(x, filters, stride=stride, name=f"{name}_1")
    y = keras.layers.ReLU(name=f"{name}_relu_1")(y)
    y = _conv_bn(y, filters, name=f"{name}_2")
    if stride > 1 or x.shape[-1] != filters:
        if project:
            x = _conv_bn(x, filters, 1, stride=stride, name=f"{name}_shortcut")
        else:
            surplus = filters - x.shape[-1]
            before, after = surplus // 2, surplus - surplus // 2
            # (batch, height, width, channels): every second pixel, zeros for channels
            x = x[:, ::stride, ::stride, :]
            x = keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [before, after]])
    return keras.layers.ReLU(name=f"{name}_relu_2")(
        keras.layers.Add(name=f"{name}_add")([x, y])
    )


def _activated_block(x, filters: int, stride: int, dropout: float, *, name: str):
    """Normalization and activation before each convolution; nothing after the sum."""
    y = keras.layers.ReLU(name=f"{name}_relu_1")(_norm(x, name=f"{name}_bn_1"))
    if stride > 1 or x.shape[-1] != filters:
        x = _conv(y, filters, 1, stride=stride, name=f"{name}_shortcut")
    y = _conv(y, filters, stride=stride, name=f"{name}_conv_1")
    y = keras.layers.ReLU(name=f"{name}_relu_2")(_norm(y, name=f"{name}_bn_2"))
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = _conv(y, filters, name=f"{name}_conv_2")
    return keras.layers.Add(name=f"{name}_add")([x, y])


def _conv_bn(x, filters: int, size: int = 3, *, stride: int = 1, name: str):
    x = _conv(x, filters, size, stride=stride, name=f"{name}_conv")
    return _norm(x, name=f"{name}_bn")


def _conv(x, filters: int, size: int = 3, *, stride: int = 1, name: str):
    return keras.layers.Conv2D(
        filters, size, strides=stride, padding="same", use_bias=False,
        kernel_initializer="he_normal", name=name,
    )(x)  # fmt: skip


def _norm(x, *, name: str):
    return keras.layers.BatchNormalization(
        momentum=_MOMENTUM, epsilon=_EPSILON, name=name
    )(x)


def _head(x, num_classes: int):
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    return keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
