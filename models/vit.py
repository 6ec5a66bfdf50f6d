"""The vision transformer."""

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_image

# Images with sides above this get the patch size of the paper's ImageNet models.
_SMALL = 64


@register(
    task="classify",
    reference="Dosovitskiy et al., arXiv 2010.11929; the size after Touvron et al., "
    "arXiv 2012.12877; the average after Beyer, Zhai and Kolesnikov, arXiv 2205.01580",
    parameters=5_352_970,
)
def vit_tiny(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    patch: int | None = None,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    dropout: float = 0.0,
) -> keras.Model:
    """A small vision transformer (ViT-Ti), adapted to small images.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any height and width that `patch` divides.
    `patch` is the side of a patch in pixels; None: 4, or 16 if both sides are above 64
    pixels. The cost grows with the number of patches, that of attention with its
    square.

    As in the papers: linear patch embeddings with learned positions, `depth` blocks of
    attention and an MLP four times as wide, each with pre-normalization and a shortcut.
    Differences: global average pooling instead of a class token; no biases in
    attention, where that of the keys has no effect; the biases of the patches and the
    position embeddings, which are only ever added, are one weight, the bias of the
    layer `patches`.
    """
    check_image(input_shape, least=4, model="vit_tiny")
    rows, columns, channels = input_shape
    if patch is None:
        patch = 16 if min(rows, columns) > _SMALL else 4
    if patch < 1 or rows % patch or columns % patch:
        fitting = [p for p in range(1, 33) if rows % p == columns % p == 0]
        raise ValueError(
            f"patch of vit_tiny must divide both sides of the image: {patch} for "
            f"{input_shape}; patch={fitting[-1]} does, or resize the images"
        )
    if width % heads:
        raise ValueError(f"heads of vit_tiny must divide width {width}: {heads}")
    rows, columns = rows // patch, columns // patch
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Reshape((rows, patch, columns, patch, channels), name="cut")(
        inputs
    )
    x = keras.layers.Permute((1, 3, 2, 4, 5), name="order")(x)
    x = keras.layers.Reshape((rows * columns, patch * patch * channels), name="flat")(x)
    x = keras.layers.EinsumDense(  # (batch, token, pixel) -> (batch, token, embedding)
        "btp,pe->bte", (rows * columns, width), bias_axes="te",
        bias_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="patches",
    )(x)  # fmt: skip
    x = _drop(x, dropout, name="patches")
    for i in range(1, depth + 1):
        x = _block(x, heads, dropout, name=f"block_{i}")
    x = _norm(x, name="norm")
    x = keras.layers.GlobalAveragePooling1D(name="average")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="vit_tiny")


def _block(x, heads: int, dropout: float, *, name: str):
    """Attention, then two dense layers, each beside a shortcut."""
    width = x.shape[-1]
    y = _norm(x, name=f"{name}_norm_1")
    # With the scores returned, Keras computes plain products. Otherwise JAX uses a
    # fused attention without float16 on a CPU and deterministic gradient on a GPU.
    y, _ = keras.layers.MultiHeadAttention(
        heads, width // heads, use_bias=False, name=f"{name}_attention"
    )(y, y, return_attention_scores=True)
    y = _drop(y, dropout, name=f"{name}_1")
    x = keras.layers.Add(name=f"{name}_add_1")([x, y])
    y = _norm(x, name=f"{name}_norm_2")
    y = keras.layers.Dense(4 * width, activation="gelu", name=f"{name}_dense_1")(y)
    y = _drop(y, dropout, name=f"{name}_2")
    y = keras.layers.Dense(width, name=f"{name}_dense_2")(y)
    y = _drop(y, dropout, name=f"{name}_3")
    return keras.layers.Add(name=f"{name}_add_2")([x, y])


def _norm(x, *, name: str):
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)


def _drop(x, rate: float, *, name: str):
    return keras.layers.Dropout(rate, name=f"{name}_dropout")(x) if rate else x
