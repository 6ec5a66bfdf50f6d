"""Recurrent networks: over the rows of an image, and over a series."""

from typing import Literal

import keras

from gpuzoo import register
from gpuzoo.models._blocks import check_forecaster, check_image, forecast_of
from gpuzoo.runtime.configure import in_force


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
    implementation: Literal["auto", "cudnn", "scan", "unrolled"] = "auto",
) -> keras.Model:
    """LSTM over the rows of the image, dense logits after the last one.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any size: an image is a sequence of
    `height` steps of `width` * `channels` features. `dropout` is the dropout rate after
    each layer. `implementation` of the recurrence: a loop (`scan`), an unrolled loop
    (`unrolled`), which takes longer to compile, or NVIDIA's kernel (`cudnn`): on a GPU,
    on TensorFlow without XLA, on JAX in float32 and not for `gru`. `auto` is a loop
    where XLA compiles the step, otherwise Keras's choice. They sum in different orders
    and give different bits.

    Keras's LSTM: with forget gates, whose biases start at one, and without peepholes.
    Differences from the papers: the first has no forget gates, truncates the gradient,
    which here goes back through all steps, and uses scaled logistic functions instead
    of tanh; neither uses images.
    """
    return _rows("lstm", keras.layers.LSTM, input_shape, num_classes, units, layers,
                 dropout, implementation)  # fmt: skip


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
    implementation: Literal["auto", "cudnn", "scan", "unrolled"] = "auto",
) -> keras.Model:
    """Bidirectional LSTM over the rows of the image, dense logits after the last step.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any size, as with `lstm`. Each direction
    has `units` units, and the two outputs are concatenated. `implementation`: see
    `lstm`.

    Differences from the papers: they label every step; here the image has one label,
    so the logits come from the last step of each direction. The LSTM is that of `lstm`.
    """
    return _rows("bilstm", keras.layers.LSTM, input_shape, num_classes, units, layers,
                 dropout, implementation, both_ways=True)  # fmt: skip


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
    implementation: Literal["auto", "cudnn", "scan", "unrolled"] = "auto",
) -> keras.Model:
    """GRU over the rows of the image, dense logits after the last one.

    Input (batch, height, width, channels), values in [0, 1]; output
    (batch, num_classes), logits in float32. Any size, as with `lstm`, and so is
    `implementation`.

    Keras's GRU, in the form of cuDNN. Differences from the paper: the reset gate is
    applied after the recurrent product, which has its own bias, in the paper before;
    the paper uses it on phrases, not images.
    """
    return _rows("gru", keras.layers.GRU, input_shape, num_classes, units, layers,
                 dropout, implementation)  # fmt: skip


def _rows(
    name, layer, input_shape, num_classes, units, layers, dropout, implementation,
    both_ways=False,
) -> keras.Model:  # fmt: skip
    check_image(input_shape, least=1, model=name)
    if units < 1 or layers < 1:
        raise ValueError(
            f"units and layers of {name} must be at least 1: {units}, {layers}"
        )
    height, width, channels = input_shape
    how = through_time(name, implementation)
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Reshape((height, width * channels), name="rows")(inputs)
    for i in range(1, layers + 1):
        recurrent = layer(
            units,
            return_sequences=i < layers,
            **how,
            name=f"{layer.__name__.lower()}_{i}",
        )
        if both_ways:
            recurrent = keras.layers.Bidirectional(recurrent, name=f"both_{i}")
        x = recurrent(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{i}")(x)
    # Logits stay in float32 in every precision: the loss needs the accuracy.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def through_time(model: str, implementation: str) -> dict:
    """Return the arguments of a recurrent layer that choose its implementation.

    Where XLA compiles the step, `auto` must be a loop that XLA can compile: cuDNN's has
    no XLA kernel in TensorFlow, and JAX has it for float32 only.
    """
    runtime = in_force()
    cudnn = False if runtime is not None and runtime.xla else "auto"
    if implementation == "cudnn":
        cudnn = True
        if runtime is not None:
            _check_cudnn(model, runtime)
    elif implementation != "auto":
        cudnn = False
    return {"use_cudnn": cudnn, "unroll": implementation == "unrolled"}


def _check_cudnn(model: str, runtime) -> None:
    jax = runtime.backend == "jax"
    for needed, missing in (
        ("a GPU", runtime.device == "cpu"),
        ("TensorFlow", jax and model == "gru"),
        ("--precision float32 on JAX", jax and runtime.precision != "float32"),
        ("--xla off on TensorFlow", not jax and runtime.xla),
    ):
        if missing:
            raise ValueError(
                f"implementation cudnn of {model} needs {needed}, and this is "
                f"{runtime.line()}; use scan or auto"
            )


@register(
    task="forecast",
    reference="Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735",
    parameters=17_936,
)
def lstm_forecaster(
    *,
    input_shape: tuple[int, int] = (64, 1),
    horizon: int = 16,
    targets: int = 1,
    num_classes: int = 0,
    units: int = 64,
    layers: int = 1,
    implementation: Literal["auto", "cudnn", "scan", "unrolled"] = "auto",
) -> keras.Model:
    """An LSTM that forecasts the next values of a series.

    Input (batch, time, channels), standardized; output (batch, horizon), float32: the
    next values of the first channel, all at once, or of the first `targets` channels,
    (batch, horizon, targets). The network predicts their differences from the last
    input value. With `num_classes` the output are logits (batch, num_classes). Any
    length and number of channels. `implementation`: see `lstm`.

    Differences from the paper: forget gates and no peepholes, as in `lstm`; the paper
    does not forecast, and the dense layer for all values at once, added to the last
    input value, is gpuzoo's.
    """
    check_forecaster(
        input_shape, horizon, units, layers, targets=targets, model="lstm_forecaster"
    )
    how = through_time("lstm_forecaster", implementation)
    inputs = x = keras.Input(input_shape, name="series")
    for number in range(1, layers + 1):
        x = keras.layers.LSTM(
            units,
            return_sequences=number < layers,
            **how,
            name=f"lstm_{number}",
        )(x)
    outputs = forecast_of(
        x, inputs, horizon=horizon, targets=targets, num_classes=num_classes
    )
    return keras.Model(inputs, outputs, name="lstm_forecaster")
