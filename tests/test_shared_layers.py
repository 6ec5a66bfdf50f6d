"""Layers that are used several times, or side by side, repeat and learn rightly.

TensorFlow's oneDNN pass merges the gradient of a convolution's filters with that of a
bias, and without the mend with any that hangs on the same operation.
"""

import contextlib
import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import RECIPE, train

import gpuzoo
from gpuzoo.engine.backends import bias_gradients
from gpuzoo.runtime.environment import busy_cores
from gpuzoo.weights import digest_all


def times(x):
    x = layers.Reshape((7, -1, 2, 1))(x)
    return layers.TimeDistributed(layers.Conv2D(4, 2, padding="same"))(x)


def stacked(x):
    return layers.Lambda(lambda t: ops.stack(t, axis=1))(several(x))


def joined(x):
    """More than 16, whose gradient is then one Split."""
    return layers.Concatenate()(several(x, 18))


def unstacked(x):
    """One convolution shared by the parts of its input."""
    conv = layers.Conv2D(4, 3, padding="same")
    parts = [conv(layers.Rescaling(0.1 * k)(x)) for k in range(1, 6)]
    return layers.Lambda(lambda t: ops.stack(t, axis=-1))(parts)


def added(x):
    """Of several sizes on one gradient, with more takers than keep their order."""
    return layers.Add()(several(x, 9))


def several(x, count=5):
    return [
        layers.Conv2D(4, 1 + k % 3, padding="same", bias_initializer="normal")(x)
        for k in range(count)
    ]


SHAPES = [times, stacked, joined, unstacked, added]


@pytest.fixture
def recipe():
    def make(shape):
        @gpuzoo.register(task="classify", reference="here")
        def shared_layers(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
            """A model that uses convolutions in a special way."""
            inputs = keras.Input(input_shape)
            x = layers.Flatten()(shape(inputs))
            return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x))

        return RECIPE.override(model="shared_layers", model_options=())

    return make


def digests(recipe, dataset, runtime, count=4) -> set:
    with busy_cores():
        return {
            json.dumps(digest_all(train(recipe, dataset, runtime)[0].weights))
            for _ in range(count)
        }


@pytest.fixture
def unmended(monkeypatch):
    monkeypatch.setattr(bias_gradients, "kept_apart", contextlib.nullcontext)


@pytest.mark.parametrize("shape", [times, joined])
def test_trainings_end_alike(shape, recipe, dataset, runtime):
    assert len(digests(recipe(shape), dataset, runtime)) == 1


def test_it_is_the_merging_that_varied(recipe, dataset, runtime, unmended):
    """So that the tests here can fail; once they cannot, the mend can go."""
    assert len(digests(recipe(joined), dataset, runtime)) > 1


def test_strict_finds_a_compiler_that_varies(recipe, dataset, runtime, monkeypatch):
    strict = dataclasses.replace(runtime, level="strict")
    train(recipe(joined), dataset, strict)
    monkeypatch.setattr(bias_gradients, "kept_apart", contextlib.nullcontext)
    with pytest.raises(gpuzoo.GpuzooError, match="compilation, varies from run to run"):
        train(recipe(joined), dataset, strict)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_bias_gets_its_own_gradient(shape, called, runtime):
    """The eager one, where nothing is merged, and the same bits from each compilation;
    also if the convolutions lie in a function that the step calls."""
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 6, 1))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(shape(inputs))))
    x = np.random.default_rng(0).normal(size=(16, 7, 6, 1)).astype(np.float32)
    weights = [variable.value for variable in model.trainable_variables]
    inner = tf.function(lambda x: model(x, training=True), autograph=False)

    def gradients(call=inner if called else model):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(call(x) ** 2)
        return [tf.convert_to_tensor(one) for one in tape.gradient(loss, weights)]

    digests = set()
    for _ in range(4):
        with bias_gradients.kept_apart():
            found = tf.function(gradients).get_concrete_function()()
        digests.add(b"".join(one.numpy().tobytes() for one in found))
        for one, other in zip(gradients(model), found, strict=True):
            assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()
    assert len(digests) == 1


def test_a_single_convolution_keeps_its_merged_gradient(dataset, runtime):
    """No operation is added to a graph where nothing can be mistaken."""
    import tensorflow as tf

    conv = layers.Conv2D(4, 3, activation="relu")
    x = tf.random.stateless_normal((8, 6, 6, 3), (0, 1))
    conv.build(x.shape)

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(conv(x) ** 2)
        return tape.gradient(loss, [v.value for v in conv.trainable_variables])

    with bias_gradients.kept_apart():
        graph = tf.function(step).get_concrete_function().graph
    kinds = [one.type for one in graph.get_operations()]
    assert "BiasAddGrad" in kinds and "EnsureShape" not in kinds
