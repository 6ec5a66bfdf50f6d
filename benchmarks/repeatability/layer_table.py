"""How layers.py makes each layer of Keras, and the little models that it puts them in.

Layers are found by inspection of `keras.layers`; what has no line here is reported.
"""

import keras
from keras import layers, ops

SIDE, CHANNELS = 8, 3
# Cannot stand in the middle of a model that learns from numbers.
LEFT_OUT = {
    "FlaxLayer": "wraps a Flax module", "JaxLayer": "wraps a JAX function",
    "TFSMLayer": "wraps a SavedModel", "TorchModuleWrapper": "wraps a Torch module",
    "InputLayer": "is the input of every model here", "Layer": "the base class",
    "StringLookup": "takes text", "TextVectorization": "takes text",
    "MaxNumBoundingBoxes": "takes boxes", "StackedRNNCells": "no layer; see RNN",
    "GRUCell": "no layer; see RNN", "LSTMCell": "no layer; see RNN",
    "SimpleRNNCell": "no layer; see RNN", "Wrapper": "the base class of wrappers",
}  # fmt: skip
# Rank of the inputs without batch; "int" for whole numbers, "ints" for a
# pair of those, "two" for a pair of rank 2.
_RANK = {"1D": 2, "2D": 3, "3D": 4}
_GIVEN = {
    "Activation": (3, {"activation": "relu"}),
    "AlphaDropout": (3, {"rate": 0.2}),
    "BatchNormalization": (3, {}),
    "Bidirectional": (2, {"layer": lambda: layers.LSTM(3)}),
    "CategoryEncoding": ("int", {"num_tokens": 16}),
    "Cropping3D": (4, {"cropping": 1}),
    "Dense": (2, {"units": 4}),
    "Discretization": (2, {"bin_boundaries": [-1.0, 0.0, 1.0]}),
    "Dot": ("two", {"axes": 2}),
    "Dropout": (3, {"rate": 0.2}),
    "EinsumDense": (2, {"equation": "abc,cd->abd", "output_shape": (SIDE, 4)}),
    "Embedding": ("int", {"input_dim": 16, "output_dim": 4}),
    "GRU": (2, {"units": 3}),
    "GaussianDropout": (3, {"rate": 0.2}),
    "GaussianNoise": (3, {"stddev": 0.2}),
    "GroupNormalization": (3, {"groups": 3}),
    "GroupQueryAttention": (
        "two", {"head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 1}
    ),
    "HashedCrossing": ("ints", {"num_bins": 4}),
    "IntegerLookup": ("int", {"vocabulary": list(range(8))}),
    "RandomPosterization": (3, {"factor": 4}),
    "RandomShear": (3, {"x_factor": 0.2, "y_factor": 0.2}),
    "Hashing": ("int", {"num_bins": 4}),
    "LSTM": (2, {"units": 3}),
    "Lambda": (3, {"function": ops.tanh}),
    "MultiHeadAttention": ("two", {"num_heads": 2, "key_dim": 2}),
    "Normalization": (3, {"mean": 0.1, "variance": 2.0}),
    "Permute": (3, {"dims": (2, 1, 3)}),
    "Pipeline": (3, {"layers": lambda: [layers.RandomFlip()]}),
    "RNN": (2, {"cell": lambda: layers.StackedRNNCells(
        [layers.LSTMCell(3), layers.GRUCell(3), layers.SimpleRNNCell(3)])}),
    "RepeatVector": (1, {"n": 3}),
    "Rescaling": (3, {"scale": 0.5}),
    "Reshape": (3, {"target_shape": (-1, 6)}),
    "ReversibleEmbedding": ("int", {"input_dim": 16, "output_dim": 4}),
    "SimpleRNN": (2, {"units": 3}),
    "SpectralNormalization": (3, {"layer": lambda: layers.Conv2D(4, 3)}),
    "TimeDistributed": (4, {"layer": lambda: layers.Conv2D(4, 3)}),
    "STFTSpectrogram": (2, {
        "frame_length": 4, "frame_step": 2, "fft_length": 4, "mode": "log"}),
    "MelSpectrogram": (1, {
        "fft_length": 16, "sequence_stride": 8, "num_mel_bins": 4,
        "sampling_rate": 64, "min_freq": 1.0}),
    "RandomElasticTransform": (3, {}),
    "Resizing:nearest": (
        3, {"height": 12, "width": 5, "interpolation": "nearest"}
    ),
}  # fmt: skip
# Activations that keras.layers.Activation cannot take: it gives them no arguments, and
# says that the shape stays.
_FUNCTIONS = {
    "glu": keras.activations.glu,
    "threshold": lambda x: keras.activations.threshold(x, 0.1, 0.0),
}
_PAIRS = {
    "Add", "AdditiveAttention", "Attention", "Average", "Concatenate", "Maximum",
    "Minimum", "Multiply", "Subtract",
}  # fmt: skip
_ANY = {
    "ActivityRegularization", "ELU", "Flatten", "Identity", "LayerNormalization",
    "LeakyReLU", "Masking", "PReLU", "RMSNormalization", "ReLU", "Softmax",
    "UnitNormalization",
}  # fmt: skip
_IMAGES = {
    "AugMix", "AutoContrast", "CenterCrop", "CutMix", "Equalization", "MixUp",
    "ContrastLimitedAdaptiveHistogramEqualization", "RandAugment", "Resizing",
    "Solarization",
}  # fmt: skip
# By the name of an argument without a default.
_USUAL = {
    "filters": 4, "kernel_size": 2, "pool_size": 2, "output_size": 2, "rate": 0.2,
    "factor": 0.2, "height_factor": 0.2, "width_factor": 0.2, "height": 5, "width": 5,
}  # fmt: skip


def known() -> list[str]:
    """Every layer of Keras once, whatever other names it has, every activation, and
    the settings of a layer that take another way (`Layer:setting`)."""
    classes: dict[type, str] = {}
    for name, one in vars(layers).items():
        if isinstance(one, type) and issubclass(one, keras.Layer):
            if one not in classes or name == one.__name__:
                classes[one] = name
    functions: dict[object, str] = {}
    for name, one in vars(keras.activations).items():
        if callable(one) and name not in ("get", "serialize", "deserialize"):
            if one not in functions or name == one.__name__:
                functions[one] = name
    named = {f"Activation:{name}" for name in functions.values()}
    named |= {name for name in _GIVEN if ":" in name}
    return sorted(set(classes.values()) - LEFT_OUT.keys() | named)


def entry(name: str) -> tuple | None:
    """What a layer takes and is made with; None if nothing here says so."""
    import inspect

    if name in _GIVEN:
        return _GIVEN[name]
    name, _, activation = name.partition(":")
    if activation in _FUNCTIONS:
        return (2, {"function": _FUNCTIONS[activation]})
    if activation:
        return (2, {"activation": activation})
    if name in _PAIRS:
        return ("two", {})
    signature = inspect.signature(getattr(layers, name).__init__).parameters.values()
    needed = {
        one.name
        for one in list(signature)[1:]
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    }
    rank = 3 if name in _ANY | _IMAGES or name.startswith("Random") else None
    for text, number in _RANK.items():
        if text in name:
            rank = number + name.startswith("ConvLSTM")
    if rank is None or not needed <= _USUAL.keys():
        return None
    return rank, {one: _USUAL[one] for one in needed}


def build(name: str, arrangement: str, input_shape: tuple, classes: int):
    """A small classifier with the layer in it.

    Args:
        arrangement: alone; shared, four times on other inputs, stacked; siamese, twice,
            subtracted; parallel, four of them on one input, added or stacked; together,
            smaller and all of it in one model: one layer on two inputs, stacked and
            subtracted, and two of them on one input, added and stacked.
    """
    kind, arguments = entry(name)
    inputs = keras.Input(input_shape)

    def make():
        made = {
            key: value() if callable(value) and key != "function" else value
            for key, value in arguments.items()
        }
        kind = "Lambda" if "function" in made else name.partition(":")[0]
        return getattr(layers, kind)(**made)

    def call(layer, x):
        if name == "Equalization":  # by itself no part of a functional model: it says
            return layers.Lambda(layer)(x)  # that its output is its input
        if kind == "ints":
            one = layers.Lambda(lambda t: t[:, :1])(x)
            return layer((one, layers.Lambda(lambda t: 15 - t)(one)))
        if kind != "two":
            return layer(x)
        pair = [x, layers.Rescaling(0.5)(x)]
        called = name in ("GroupQueryAttention", "MultiHeadAttention")
        return layer(*pair) if called else layer(pair)

    def given(scale: float):
        x = layers.Rescaling(scale)(inputs)
        return _prepared(x, kind)

    def real(parts: list) -> list:
        return [_real(one) for one in parts]

    if arrangement == "alone":
        out = [call(make(), given(1.0))]
    elif arrangement == "shared":
        one = make()
        out = [_stack([call(one, given(0.2 * k)) for k in range(1, 5)])]
    elif arrangement == "siamese":
        one = make()
        out = [layers.Subtract()(real([call(one, given(k)) for k in (0.5, 1.0)]))]
    elif arrangement == "parallel":
        x = given(1.0)
        beside = [call(make(), x) for _ in range(4)]
        out = [layers.Add()(real(beside[:2])), _stack(beside[2:])]
    else:
        one, x = make(), given(1.0)
        same = [call(one, x), call(one, given(0.5))]
        beside = [call(make(), x) for _ in range(2)]
        out = [_stack(same), layers.Subtract()(real(same))]
        out += [layers.Add()(real(beside)), _stack(beside)]
    flat = [layers.Flatten()(_real(one)) for one in out]
    x = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x))


def _prepared(x, kind):
    """What a layer takes, made with weights of its own so that gradients go through."""
    x = layers.Conv2D(CHANNELS, 3, padding="same")(x)
    size = SIDE * SIDE * CHANNELS
    shapes = {1: (size,), 2: (SIDE, -1), "two": (SIDE, -1), 4: (4, 4, 4, CHANNELS),
              5: (2, 4, 4, 2, CHANNELS)}  # fmt: skip
    if kind in ("int", "ints"):
        return layers.Lambda(
            lambda t: ops.cast(
                ops.clip(ops.reshape(t, (-1, size)) * 4 + 8, 0, 15), "int32"
            )
        )(x)
    return layers.Reshape(shapes[kind])(x) if kind in shapes else x


def _stack(parts):
    return layers.Lambda(lambda t: ops.stack(t, axis=1))([_real(one) for one in parts])


def _real(x):
    if "float" in keras.backend.standardize_dtype(x.dtype):
        return x
    return layers.Lambda(lambda t: ops.cast(t, "float32"))(x)
