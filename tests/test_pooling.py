"""Max-pooling under XLA with determinism: the values and gradients of Keras's."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from small import RECIPE, forward_and_backward, train

import gpuzoo
from gpuzoo.engine.backends import pooling

ops = keras.ops
FORMATS = ("channels_last", "channels_first")
SHAPES = {1: (3, 23, 2), 2: (2, 11, 13, 3), 3: (2, 7, 9, 8, 2)}


def shape_of(rank: int, layout: str) -> tuple[int, ...]:
    batch, *sides, channels = SHAPES[rank]
    last = layout == "channels_last"
    return (batch, *sides, channels) if last else (batch, channels, *sides)


def values(shape, ties: bool):
    """Integers, so that sums of them have one value in any order."""
    rng = np.random.default_rng(1)
    if ties:
        return rng.integers(-2, 3, shape).astype(np.float32)
    return rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) - 99


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("rank", SHAPES)
def test_any_window_gives_the_bits_of_keras(rank, layout, under_xla):
    """Any size, stride and padding; of ties the first takes the gradient, as in Keras,
    which in three dimensions on a CPU gives it to each of them instead."""
    windows = [
        (size, strides, padding)
        for size in (1, 2, 3, 4, 7, (2, 3, 5)[:rank])
        for strides in (None, 1, 3, (3, 1, 2)[:rank])
        for padding in ("valid", "same")
    ]
    for ties in (False, True):
        x = values(shape_of(rank, layout), ties)
        for window in windows:

            def pool(x, window=window):
                return ops.max_pool(x, *window, data_format=layout)

            native = forward_and_backward(pool, x)
            with pooling.repeatable(under_xla):
                ours = forward_and_backward(pool, x)
            assert np.array_equal(native[0], ours[0]), (window, ties)
            if not ties or rank < 3:
                assert np.array_equal(native[1], ours[1]), (window, ties)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("rank", SHAPES)
def test_adaptive_pooling_gives_the_bits_of_keras(rank, layout, under_xla):
    for ties in (False, True):
        x = values(shape_of(rank, layout), ties)
        for size in (2, 3, (5, 2, 3)[:rank]):

            def pool(x, size=size):
                return ops.adaptive_max_pool(x, size, layout)

            native = forward_and_backward(pool, x)
            with pooling.repeatable(under_xla):
                ours = forward_and_backward(pool, x)
            assert np.array_equal(native[0], ours[0]), (size, ties)
            if not ties or rank < 3:
                assert np.array_equal(native[1], ours[1]), (size, ties)


def test_xla_with_determinism_compiles_it_and_refuses_the_native_one(under_xla):
    """Which is why it is replaced; here XLA itself says so, on a CPU."""
    import tensorflow as tf

    def pool(x):
        return ops.max_pool(x, 3, 2, "same")

    x = values(SHAPES[2], ties=True)
    with pytest.raises(tf.errors.UnimplementedError, match="deterministic"):
        forward_and_backward(pool, x, xla=True)
    native = forward_and_backward(pool, x)
    with pooling.repeatable(under_xla):
        ours = forward_and_backward(pool, x, xla=True)
    for one, other in zip(native, ours, strict=True):
        assert np.array_equal(one, other)


def test_odd_numbers_and_long_windows(under_xla):
    """NaN is handed on, the sign of zero and -inf are kept, integers are left to
    the backend, and a window of 1000 takes few operations."""
    import tensorflow as tf

    row = np.array([np.nan, 1, 1, np.nan, -0.0, 0.0, 0.0, -0.0, -np.inf, -np.inf])
    x = row.astype(np.float32).reshape(1, 10, 1)
    with pooling.repeatable(under_xla):
        ours = ops.max_pool(x, 2).numpy().ravel()
        whole = ops.max_pool(np.arange(8, dtype=np.int32).reshape(1, 8, 1), 2)
        long = tf.function(lambda x: ops.max_pool(x, 1000, 3), autograph=False)
        graph = long.get_concrete_function(tf.zeros((2, 5000, 1))).graph
    assert np.isnan(ours[:2]).all() and ours[4] == -np.inf
    assert np.array_equal(ops.convert_to_numpy(whole).ravel(), [1, 3, 5, 7])
    assert "MaxPool" not in {one.type for one in graph.get_operations()}
    assert len(graph.get_operations()) < 200


def test_it_is_replaced_where_it_is_needed_and_put_back(runtime):
    real = keras.src.backend.nn.max_pool
    for changes, wanted in (
        ({"xla": False}, False),
        ({"xla": True}, True),
        ({"xla": True, "deterministic": False}, True),
        ({"xla": True, "device": "gpu"}, True),
        ({"xla": True, "device": "gpu", "deterministic": False}, False),
        ({"xla": False, "device": "gpu"}, False),
    ):
        with pooling.repeatable(dataclasses.replace(runtime, **changes)):
            assert (keras.src.backend.nn.max_pool is not real) == wanted
        assert keras.src.backend.nn.max_pool is real


def every_pool(input_shape, num_classes):
    """A model with every layer of Keras that takes the largest of something."""
    layers = keras.layers
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(3, 3, padding="same")(inputs)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.MaxPooling2D((2, 1))(x)
    x = layers.Conv2D(4, 1)(x)
    cube = layers.AdaptiveMaxPooling2D((2, 3))(x)
    cube = layers.Reshape((*cube.shape[1:], 1))(cube)
    row = layers.Reshape((-1, x.shape[-1]))(x)
    flat = layers.Flatten()
    ends = [
        layers.GlobalMaxPooling2D()(x),
        flat(layers.MaxPooling3D(2, strides=1)(cube)),
        layers.GlobalMaxPooling3D()(cube),
        flat(layers.AdaptiveMaxPooling3D(2)(cube)),
        flat(layers.AdaptiveMaxPooling1D(4)(row)),
        layers.GlobalMaxPooling1D()(layers.MaxPooling1D(3)(row)),
    ]
    return keras.Model(inputs, layers.Dense(num_classes)(layers.Concatenate()(ends)))


def test_a_model_of_every_pooling_trains_under_xla(dataset, runtime, under_xla):
    """As it trains without, up to rounding."""

    @gpuzoo.register(task="classify", reference="here")
    def poolings(*, input_shape: tuple[int, ...] = (4, 4, 1), num_classes: int = 2):
        """Every kind of max-pooling."""
        return every_pool(input_shape, num_classes)

    recipe = RECIPE.override(model="poolings", model_options=())
    ends = [train(recipe, dataset, one)[0] for one in (runtime, under_xla, under_xla)]
    plain, first, second = (one.weights for one in ends)
    for name, array in first.items():
        assert np.array_equal(array, second[name])
        np.testing.assert_allclose(array, plain[name], rtol=1e-3, atol=1e-4)


_JAX = """
import dataclasses, json, sys
import numpy as np
import gpuzoo
runtime = gpuzoo.configure(backend="jax", device="cpu", threads=2, quiet=True)
import jax, keras
from gpuzoo.engine.backends import pooling
rng, found = np.random.default_rng(2), {}
for shape, size, strides, padding in (
    ((2, 9, 2), (3,), (2,), "same"), ((2, 9, 7, 2), (3, 2), (2, 3), "same"),
    ((1, 5, 6, 4, 2), (2, 3, 2), (1, 2, 2), "valid"),
):
    x = rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    def total(x):
        y = keras.ops.max_pool(x, size, strides, padding)
        return (y * (np.arange(y.size) % 7 - 3.0).reshape(y.shape)).sum(), y
    def both():
        (_, y), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return np.array(y), np.array(gradient)
    native = both()
    with pooling.repeatable(runtime):
        text = str(jax.make_jaxpr(jax.grad(lambda x: total(x)[0]))(x))
        ours = both()
    found[str(shape)] = [
        *(bool(np.array_equal(a, b)) for a, b in zip(native, ours)),
        "select_and" not in text and "scatter" not in text,
    ]
with pooling.repeatable(runtime):
    row = np.array([1, 1, 1, 2, 3, 3], np.float32).reshape(1, 6, 1)
    share = jax.grad(lambda x: keras.ops.max_pool(x, 2).sum())(row)
found["ties"] = [share.ravel().tolist() == [0.5, 0.5, 0, 1, 0.5, 0.5]]
print(json.dumps(found))
"""


def test_jax_gives_the_bits_of_keras_and_scatters_nothing(cli):
    done = cli(program=("-c", _JAX))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4 and all(map(all, found.values())), found
