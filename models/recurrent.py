"""Recurrent networks: over the rows of an image, and over a series."""

import keras

from gpuzoo.models._blocks import check_image
from gpuzoo.registry import register
from gpuzoo.runtime import in_force


@register(
    task="classify",
    reference="Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735; forget "
    "gates: Gers, Schmidhuber and Cummins, Neural Computation 12 (2000) 2451",
    parameters=81_674,
)
def lstm(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    units: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
) -> keras.Model:
    """LSTM over the rows of the image, dense logits after the last one.

    Input (batch, height, width, channels), numbers in [0, 1]; output
    (batch, num_classes), logits in float32. Any size: an image is a sequence of
    `height` steps of `width` * `channels` numbers. `dropout` is the fraction of each
    layer's output that is dropped.

    Keras's LSTM: with forget gates, whose biases start at one, and without peepholes.
    What differs from the papers: the first has no forget gates, and neither has images;
    the gradient goes back through all steps, where the first cuts it short; tanh where
    it squashes with scaled logistic functions.
    """
    return _rows("lstm", keras.layers.LSTM, input_shape, num_classes, units, layers,
                 dropout)  # fmt: skip


@register(
    task="classify",
    reference="Schuster and Paliwal, IEEE Trans. Signal Processing 45 (1997) 2673; "
    "with LSTM: Graves and Schmidhuber, Neural Networks 18 (2005) 602",
    parameters=163_338,
)
def bilstm(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    units: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
) -> keras.Model:
    """Bidirectional LSTM: one reads the rows downwards, one upwards, then dense logits.

    Input (batch, height, width, channels), numbers in [0, 1]; output
    (batch, num_classes), logits in float32. Any size, as with `lstm`. `units` are those
    of each direction, and the outputs of the two stand side by side.

    What differs from the papers: they label every step; here the image has one label,
    so the logits come from the last step of each direction. The LSTM is that of `lstm`.
    """
    return _rows("bilstm", keras.layers.LSTM, input_shape, num_classes, units, layers,
                 dropout, both_ways=True)  # fmt: skip


@register(
    task="classify",
    reference="Cho et al., arXiv 1406.1078",
    parameters=61_962,
)
def gru(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    units: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
) -> keras.Model:
    """GRU over the rows of the image, dense logits after the last one.

    Input (batch, height, width, channels), numbers in [0, 1]; output
    (batch, num_classes), logits in float32. Any size, as with `lstm`.

    Keras's GRU, in the form that cuDNN computes. What differs from the paper: the reset
    gate acts after the recurrent product, which has a bias of its own, where in the
    paper it acts before; and there it reads and writes phrases, not images.
    """
    return _rows("gru", keras.layers.GRU, input_shape, num_classes, units, layers,
                 dropout)  # fmt: skip


def _rows(
    name, layer, input_shape, num_classes, units, layers, dropout, both_ways=False
) -> keras.Model:
    check_image(input_shape, least=1, model=name)
    if units < 1 or layers < 1:
        raise ValueError(
            f"units and layers of {name} must be at least 1: {units}, {layers}"
        )
    height, width, channels = input_shape
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Reshape((height, width * channels), name="rows")(inputs)
    for i in range(1, layers + 1):
        recurrent = layer(
            units,
            return_sequences=i < layers,
            use_cudnn=_cudnn(),
            name=f"{layer.__name__.lower()}_{i}",
        )
        if both_ways:
            recurrent = keras.layers.Bidirectional(recurrent, name=f"both_{i}")
        x = recurrent(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
    # Logits stay in float32 in every precision: the loss needs the digits.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def _cudnn() -> str | bool:
    """Where XLA compiles the step, the loop must be one that XLA can compile: cuDNN's
    has no XLA kernel in TensorFlow, and JAX has it for float32 only."""
    runtime = in_force()
    return False if runtime is not None and runtime.xla else "auto"


@register(
    task="forecast",
    reference="Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735",
    parameters=17_936,
)
def lstm_forecaster(
    *,
    input_shape: tuple[int, int] = (64, 1),
    horizon: int = 16,
    units: int = 64,
    layers: int = 1,
) -> keras.Model:
    """An LSTM that foretells the next values of a series.

    Input (batch, time, channels), about standard normal; output (batch, horizon), in
    float32: all values to come at once, as what they differ from the last one seen.
    Any length and number of channels; the first channel is the one foretold.

    What differs from the paper: forget gates and no peepholes, as in `lstm`; the paper
    foretells no series, and the dense layer for all values at once, added to the last
    one seen, is of this catalogue.
    """
    if min(input_shape) < 1 or min(horizon, units, layers) < 1:
        raise ValueError(
            "input_shape, horizon, units and layers of lstm_forecaster must be at "
            f"least 1: {input_shape}, {horizon}, {units}, {layers}"
        )
    inputs = x = keras.Input(input_shape, name="series")
    for number in range(1, layers + 1):
        x = keras.layers.LSTM(
            units, return_sequences=number < layers, name=f"lstm_{number}"
        )(x)
    x = keras.layers.Dense(horizon, dtype="float32", name="change")(x)
    outputs = keras.layers.Add(dtype="float32", name="values")([x, inputs[:, -1, :1]])
    return keras.Model(inputs, outputs, name="lstm_forecaster")
