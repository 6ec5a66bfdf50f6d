"""What a backend cannot compute of Keras's layers, computed in another way."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import environment, needs_jax, needs_tensorflow

from gpuzoo.engine.backends import missing_kernels


def compiled(function, *inputs, xla=False):
    """Values and gradients of a function, traced with the replacements."""
    import tensorflow as tf

    def both(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(*inputs)
        return outputs, tape.gradient(outputs, inputs)

    with missing_kernels.replaced(xla=xla):
        traced = tf.function(both, jit_compile=xla, autograph=False)
        return keras.tree.map_structure(
            lambda one: one.numpy(),
            traced.get_concrete_function(*inputs)(*inputs),
        )


def whole_numbers(shape, dtype):
    import tensorflow as tf

    rng = np.random.default_rng(5)
    return tf.constant(rng.integers(-9, 9, shape), dtype)


@needs_tensorflow
def test_a_shift_in_bfloat16_has_its_gradient(runtime):
    import tensorflow as tf

    x = whole_numbers((2, 6, 7, 3), "bfloat16")
    shift = [[1.0, 0, 2, 0, 1, 1, 0, 0]]  # two columns and a row: nothing is rounded

    def moved(x):
        return keras.ops.image.affine_transform(x, tf.constant(shift), "nearest",
                                                "constant")  # fmt: skip

    with pytest.raises(TypeError, match="bfloat16"), tf.GradientTape() as tape:
        tape.watch(x)
        tape.gradient(moved(x), x)
    values, (gradient,) = compiled(moved, x)
    assert np.array_equal(values[:, :5, :5], x.numpy()[:, 1:, 2:])
    inside = np.zeros(x.shape)
    inside[:, 1:, 2:] = 1
    assert np.array_equal(gradient.astype(float), inside)


@needs_tensorflow
@pytest.mark.parametrize("ends", [(7,), (2, 9), (1, 8, 2)])
def test_a_range_in_float16(ends, runtime):
    import tensorflow as tf

    def counted(x):
        return x * keras.ops.sum(keras.ops.arange(*ends, dtype="float16"))

    x = tf.constant(1.0, tf.float16)
    with pytest.raises((ValueError, tf.errors.OpError)):
        tf.function(counted).get_concrete_function(x)
    values, (gradient,) = compiled(counted, x)
    assert values == gradient == sum(range(*ends)) and values.dtype == np.float16


@needs_tensorflow
def test_a_beta_with_parameters_in_bfloat16(runtime):
    import tensorflow as tf

    def drawn(x):
        return keras.random.beta((500,), x, x, dtype="bfloat16", seed=1)

    with missing_kernels.replaced():
        values = drawn(tf.constant(0.5, tf.bfloat16)).numpy().astype(float)
    assert abs(values.mean() - 0.5) < 0.05 and abs(values.var() - 0.125) < 0.02


@needs_tensorflow
@pytest.mark.parametrize("kind", ["max_pool", "average_pool"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_pooling_of_volumes_in_float16(kind, padding, runtime):
    """Those of float32, rounded once."""
    import tensorflow as tf

    def pool(x):
        return getattr(keras.ops, kind)(x, (2, 2, 3), 2, padding)

    x = whole_numbers((2, 5, 6, 7, 3), "float16")
    values, (gradient,) = compiled(pool, x)
    exact, (slope,) = compiled(pool, tf.cast(x, tf.float32))
    assert values.dtype == gradient.dtype == np.float16
    assert np.array_equal(values, exact.astype("float16"))
    assert np.array_equal(gradient, slope.astype("float16"))


# Of each image a part of the wanted size, at one place in all of them.
CROPS = """
import keras
import numpy as np

def check(call, dtype):
    rng = np.random.default_rng(7)
    for layout in ("channels_last", "channels_first"):
        for rank in (3, 4):
            layer = keras.layers.RandomCrop(
                5, 6, seed=3, data_format=layout, dtype=dtype
            )
            x = rng.integers(-99, 99, (2, 9, 11, 3)[4 - rank :]).astype("float32")
            first = layout == "channels_first"
            given = np.moveaxis(x, -1, -3) if first else x
            places = set()
            for _ in range(8):
                got = np.asarray(call(layer, given)).astype("float32")
                got = np.moveaxis(got, -3, -1) if first else got
                found = {
                    (i, j)
                    for i in range(5)
                    for j in range(6)
                    if np.array_equal(got, x[..., i : i + 5, j : j + 6, :])
                }
                assert len(found) == 1, (layout, rank, got.shape)
                places |= found
            assert len(places) > 1
    small = np.ones((2, 4, 4, 3), "float32")  # no crop: resized, as Keras does
    assert call(keras.layers.RandomCrop(5, 6), small).shape == (2, 5, 6, 3)
"""


@needs_tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_crop_under_xla_is_a_part_of_the_image(dtype, runtime):
    import tensorflow as tf

    def call(layer, x):
        run = tf.function(lambda x: layer(x, training=True), jit_compile=True)
        with missing_kernels.replaced(xla=True):
            return run(tf.constant(x))

    known = {}
    exec(CROPS, known)
    known["check"](call, dtype)


@needs_tensorflow
def test_an_operation_that_xla_lacks_is_named_with_its_layer(runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends.tensorflow import _readable
    from gpuzoo.errors import GpuzooError

    inner = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.RandomZoom(0.2)])
    outer = keras.Sequential([keras.Input((4, 4, 3)), inner])
    run = tf.function(lambda x: outer(x, training=True), jit_compile=True)
    with _readable(xla=True), pytest.raises(tf.errors.InvalidArgumentError):
        run(tf.zeros((1, 4, 4, 3)))
    told = "no operation ImageProjectiveTransformV3, of layer '.*random_zoom.*--xla off"
    with pytest.raises(GpuzooError, match=told), _readable(xla=True):
        run(tf.zeros((1, 4, 4, 3)))


ON_JAX = """
import gpuzoo
gpuzoo.configure(backend="jax", device="cpu", quiet=True)
import jax
from gpuzoo.engine.backends import missing_kernels

def call(layer, x):
    state = layer.generator.state

    def step(values, x):
        with keras.StatelessScope([(state, values)]) as scope:
            with missing_kernels.replaced(xla=True):
                outputs = layer(x, training=True)
        return outputs, scope.get_current_value(state)

    outputs, values = jax.jit(step)(state.value, x)
    state.assign(values)
    return outputs

check(call, "float32")
check(call, "bfloat16")

layer = keras.layers.MultiHeadAttention(2, 4, dtype="float16")
rng = np.random.default_rng(0)
x = rng.normal(size=(2, 5, 8)).astype("float16")
layer.build(x.shape, x.shape)
exact = keras.layers.MultiHeadAttention(2, 4, dtype="float32")
exact.build(x.shape, x.shape)
exact.set_weights([w.astype("float32") for w in layer.get_weights()])

def loss(layer, x):
    with missing_kernels.replaced(xla=True):
        return keras.ops.sum(keras.ops.cast(layer(x, x), "float32") ** 2)

for layer_, dtype in ((layer, "float16"), (exact, "float32")):
    value, slope = jax.jit(jax.value_and_grad(lambda x: loss(layer_, x)))(
        x.astype(dtype)
    )
    assert slope.dtype == dtype
    found = np.append(np.asarray(slope, "float32").ravel(), value)
    if dtype == "float16":
        half = found
np.testing.assert_allclose(half, found, rtol=0.03, atol=0.03)
"""


@needs_jax
def test_on_jax(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CROPS + ON_JAX],
        env=environment(tmp_path) | {"KERAS_BACKEND": "jax"},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
