"""Initial weights, the same on every backend.

Keras draws initial weights from the backend's generator, so TensorFlow and JAX start
from different values, and those of a layer depend on how many layers were built before.
Here every random weight is a function of (seed, its place in the model).
"""

import math

import keras
import numpy as np

from gpuzoo import elementary, randomness
from gpuzoo.errors import GpuzooError
from gpuzoo.keras_layers import (
    added_as_trainable,
    layers_of,
    own_seed_generators,
    own_variables,
)

# Initializers without random numbers.
_CONSTANT = (
    keras.initializers.Constant,
    keras.initializers.Identity,
    keras.initializers.Ones,
    keras.initializers.Zeros,
)


def initialise(model: keras.Model, seed: int) -> None:
    """Initialise every weight whose layer has an initializer, `w_initializer` for `w`;
    random ones use our stream.

    Raises:
        GpuzooError: an initializer that gpuzoo cannot reproduce.
    """
    layers = layers_of(model)
    # Weights that were loaded from a file stay (catalogue/keras_applications.py); of a
    # model in the model, those of all its layers.
    kept = {
        id(inner)
        for layer in layers
        if getattr(layer, "keeps_weights", False)
        for inner in layers_of(layer)
    }
    pairs = [
        (layer, variable)
        for layer in layers
        if id(layer) not in kept
        for variable in own_variables(layer)
    ]
    for place, (layer, variable) in enumerate(pairs):
        initializer = _initializer_of(layer, variable)
        if isinstance(initializer, str | dict):  # unresolved, as in a user layer
            initializer = keras.initializers.get(initializer)
        if initializer is None:
            continue
        constant = isinstance(initializer, _CONSTANT)
        if constant:
            value = _constant(initializer, layer, variable)
            if value is None or np.array_equal(value, variable):
                continue
        ours = any(variable is one for one in added_as_trainable(layer))
        single = ours and layer.trainable and not variable.trainable
        if (single or not layer.trainable) and not _whitens(layer):
            part = f"{variable.name} of layer" if single else "layer"
            raise GpuzooError(
                f"{part} {layer.name!r} is frozen, and its weights would be "
                "re-initialised from the seed of the run; make it trainable, or set "
                "keeps_weights = True on the layer to keep its weights"
            )
        if constant:  # the user's function has loaded weights
            variable.assign(value)
            continue
        # Not the path: Keras numbers unnamed layers per process.
        value = _draw(initializer, variable, (seed, "initial", place, variable.name))
        variable.assign(value.astype("float32"))


def whiten(model: keras.Model, images: np.ndarray) -> None:
    """Set a layer named `whiten`, a frozen convolution with a bias, from training
    images.

    The first half of its filters are the principal components of its input patches,
    each divided by its standard deviation, the second half their negatives; the bias
    subtracts the mean. A model without such a layer is left unchanged. In float64 on
    the host, from the first 5,000 images, (examples, height, width, channels).
    """
    layers = [layer for layer in model.layers if _whitens(layer)]
    if not layers:
        return
    (layer,), images = layers, np.asarray(images[:5000])
    images = images / 255 if images.dtype == np.uint8 else images.astype(np.float64)
    rows, columns, channels, filters = layer.kernel.shape
    windows = np.lib.stride_tricks.sliding_window_view(images, (rows, columns), (1, 2))
    patches = np.moveaxis(windows, 3, -1).reshape(-1, rows * columns * channels)
    mean, values, vectors = elementary.principal_axes(patches)
    half = (vectors / np.sqrt(values + 5e-4))[:, ::-1][:, : filters // 2]
    kernel = np.concatenate([half, -half], axis=1)
    layer.bias.assign(elementary.product(-mean, kernel).astype("float32"))
    kernel = kernel.reshape(rows, columns, channels, filters)
    layer.kernel.assign(kernel.astype("float32"))


def _whitens(layer) -> bool:
    frozen = isinstance(layer, keras.layers.Conv2D) and not layer.trainable
    return frozen and layer.use_bias and layer.name == "whiten"


def address_generators(model: keras.Model, seed: int) -> list[tuple]:
    """Return the seed generators of dropout and noise layers, each with its own key.

    Returns:
        (state variable, key) of each generator; the step writes (key, step) into the
        state, which makes its random numbers a function of (seed, place of the layer,
        step).
    """
    return [
        (generator.state, randomness.integer(seed, "layer", place))
        for place, generator in enumerate(seed_generators(model))
    ]


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Return the seed generators of all layers, in layer order.

    Generators of initializers are not needed once the model is built.
    """
    found = []
    for layer in layers_of(model):
        found += [one for one in own_seed_generators(layer) if one not in found]
    return found


def _constant(initializer, layer, variable) -> np.ndarray | None:
    """Return the constant that Keras fills a weight of its own layers with; None for
    other layers, which may use that initializer differently."""
    if not type(layer).__module__.startswith("keras."):
        return None
    value = initializer(variable.shape, "float32")
    value = np.array(keras.ops.convert_to_numpy(value))
    if getattr(layer, "unit_forget_bias", False) and variable.name == "bias":
        units = len(value) // 4
        value[units : 2 * units] = 1
    return value


def _initializer_of(layer, variable):
    for name in (f"{variable.name}_initializer", f"{variable.name}s_initializer"):
        if hasattr(layer, name):
            return getattr(layer, name)
    # The initializer of recurrent_kernel is recurrent_initializer; the kernels of
    # separable convolutions are named in the same way.
    if variable.name.endswith("_kernel"):
        stem = variable.name.removesuffix("_kernel")
        return getattr(layer, f"{stem}_initializer", None)
    if variable.name == "kernel":  # a depthwise convolution's
        return getattr(layer, "depthwise_initializer", None)
    return None


def _draw(initializer, variable, address: tuple) -> np.ndarray:
    """Draw from the distribution of a Keras initializer, from our stream."""
    kinds, shape = keras.initializers, tuple(variable.shape)
    if isinstance(initializer, kinds.VarianceScaling):
        return _variance_scaling(initializer, shape, address)
    if isinstance(initializer, kinds.RandomUniform):
        low, high = initializer.minval, initializer.maxval
        return low + (high - low) * randomness.uniform(shape, *address)
    if isinstance(initializer, kinds.TruncatedNormal):
        draws = randomness.truncated_normal(shape, *address)
        return initializer.mean + initializer.stddev * draws
    if isinstance(initializer, kinds.RandomNormal):
        draws = randomness.normal(shape, *address)
        return initializer.mean + initializer.stddev * draws
    if isinstance(initializer, kinds.Orthogonal):
        return initializer.gain * _orthogonal(shape, address)
    raise GpuzooError(
        f"weight {variable.path!r} has the initializer {type(initializer).__name__}, "
        "which gpuzoo cannot reproduce; use a random initializer of Keras"
    )


def _variance_scaling(initializer, shape, address) -> np.ndarray:
    receptive = math.prod(shape[:-2])
    fan_in = receptive * (shape[-2] if len(shape) > 1 else shape[0])
    fan_out = receptive * shape[-1]
    fan = {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": (fan_in + fan_out) / 2,
    }[initializer.mode]
    variance = initializer.scale / max(1.0, fan)
    if initializer.distribution == "uniform":
        limit = math.sqrt(3 * variance)
        return limit * (2 * randomness.uniform(shape, *address) - 1)
    if initializer.distribution == "truncated_normal":
        # 0.8796 is the standard deviation of a standard normal cut off at two.
        deviation = math.sqrt(variance) / 0.87962566103423978
        return deviation * randomness.truncated_normal(shape, *address)
    return math.sqrt(variance) * randomness.normal(shape, *address)


def _orthogonal(shape, address) -> np.ndarray:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    tall = randomness.normal((max(rows, columns), min(rows, columns)), *address)
    q = elementary.orthonormal(tall)
    return (q if rows >= columns else q.T).reshape(shape)
