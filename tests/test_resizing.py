"""Nearest-neighbour resizing under XLA: the values and gradients of TensorFlow's."""

import dataclasses

import keras
import numpy as np
import pytest
from small import RECIPE, forward_and_backward, train

import gpuzoo
from gpuzoo.engine.backends import resizing

ops = keras.ops
# Up and down, by whole and other factors, to one row and from one row.
SIZES = ((5, 7), (10, 21), (12, 4), (3, 16), (1, 1), (64, 50))


def images(rows=5, columns=7):
    """Whole numbers, so that sums of them have one value in any order."""
    rng = np.random.default_rng(3)
    return rng.integers(-9, 9, (2, rows, columns, 3)).astype(np.float32)


def ways(size):
    """Keras's operation in both layouts, TensorFlow's with its older roundings."""
    import tensorflow as tf

    old = tf.compat.v1.image.resize_nearest_neighbor
    return {
        "last": lambda x: ops.image.resize(x, size, "nearest"),
        "first": lambda x: ops.image.resize(
            ops.transpose(x, (0, 3, 1, 2)), size, "nearest", data_format="channels_first"
        ),
        "padded": lambda x: ops.image.resize(
            x, size, "nearest", pad_to_aspect_ratio=True
        ),
        "corners": lambda x: old(x, size, align_corners=True),
        "old": lambda x: old(x, size),
    }  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_any_size_gives_the_bits_of_tensorflow(size, under_xla):
    for shape in ((5, 7), (1, 6), (8, 8)):
        x = images(*shape)
        for name, resize in ways(size).items():
            native = forward_and_backward(resize, x)
            with resizing.repeatable(under_xla):
                ours = forward_and_backward(resize, x)
            assert np.array_equal(native[0], ours[0]), (shape, name)
            assert np.array_equal(native[1], ours[1]), (shape, name)


def test_xla_with_determinism_compiles_it_and_refuses_the_native_one(under_xla):
    import tensorflow as tf

    def resize(x):  # squared: TensorFlow would compute a constant gradient beforehand
        return ops.square(ops.image.resize(x, (12, 4), "nearest"))

    x = images()
    with pytest.raises(tf.errors.OpError, match="Resize"):
        forward_and_backward(resize, x, xla=True)
    native = forward_and_backward(resize, x)
    with resizing.repeatable(under_xla):
        ours = forward_and_backward(resize, x, xla=True)
    for one, other in zip(native, ours, strict=True):
        assert np.array_equal(one, other)


def test_the_gradient_has_a_gradient(under_xla):
    """As a gradient penalty needs; the operation is linear, so a matrix says what."""
    import tensorflow as tf

    x, size = images()[:1, :, :, :1], (12, 4)
    unit = np.eye(35, dtype=np.float32).reshape(35, 5, 7, 1)
    with resizing.repeatable(under_xla):
        matrix = ops.image.resize(unit, size, "nearest").numpy().reshape(35, -1).T
        tensor = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch(tensor)
            with tf.GradientTape() as inner:
                inner.watch(tensor)
                y = tf.reduce_sum(ops.image.resize(tensor, size, "nearest") ** 2) / 2
            penalty = tf.reduce_sum(inner.gradient(y, tensor) ** 2) / 2
        found = outer.gradient(penalty, tensor)
    square = matrix.T @ matrix
    assert np.array_equal(found.numpy().ravel(), square @ square @ x.ravel())


def test_what_has_no_fixed_size_is_left_to_tensorflow(under_xla):
    import tensorflow as tf

    @tf.function(autograph=False)
    def resize(x, size):
        return tf.image.resize(x, size, "nearest")

    spec = tf.TensorSpec((None, None, 7, 3))
    with resizing.repeatable(under_xla):
        graphs = [
            resize.get_concrete_function(spec, (4, 4)).graph,
            resize.get_concrete_function(
                tf.TensorSpec((2, 5, 7, 3)), tf.TensorSpec((2,), tf.int32)
            ).graph,
        ]
    for graph in graphs:
        kinds = {one.type for one in graph.get_operations()}
        assert "ResizeNearestNeighbor" in kinds


def test_it_is_replaced_where_it_is_needed_and_put_back(runtime):
    from tensorflow.python.ops import gen_image_ops

    real = gen_image_ops.resize_nearest_neighbor
    for changes, wanted in (
        ({"xla": False}, False),
        ({"xla": True}, True),
        ({"xla": True, "deterministic": False}, True),
        ({"xla": False, "device": "gpu"}, True),
        ({"xla": False, "device": "gpu", "deterministic": False}, False),
    ):
        with resizing.repeatable(dataclasses.replace(runtime, **changes)):
            assert (gen_image_ops.resize_nearest_neighbor is not real) == wanted
        assert gen_image_ops.resize_nearest_neighbor is real


def test_a_model_with_it_trains_under_xla(dataset, runtime, under_xla):
    """As it trains without, up to rounding."""

    @gpuzoo.register(task="classify", reference="here")
    def resized(*, input_shape: tuple[int, ...] = (4, 4, 1), num_classes: int = 2):
        """A model that resizes up and down."""
        inputs = keras.Input(input_shape)
        x = keras.layers.Conv2D(3, 3, padding="same")(inputs)
        x = keras.layers.Resizing(13, 6, interpolation="nearest")(x)
        x = keras.layers.Conv2D(3, 3)(x)
        x = keras.layers.Resizing(5, 12, interpolation="nearest")(x)
        return keras.Model(
            inputs, keras.layers.Dense(num_classes)(keras.layers.Flatten()(x))
        )

    recipe = RECIPE.override(model="resized", model_options=())
    ends = [train(recipe, dataset, one)[0] for one in (runtime, under_xla, under_xla)]
    plain, first, second = (one.weights for one in ends)
    for name, array in first.items():
        assert np.array_equal(array, second[name])
        np.testing.assert_allclose(array, plain[name], rtol=1e-3, atol=1e-4)
