"""Recurrent layers whose batch is split over the threads compute what they computed."""

import numpy as np
import pytest


@pytest.fixture
def parts(monkeypatch):
    """How many examples each loop over time was given."""
    from keras import layers

    seen, real = [], layers.RNN.inner_loop

    def inner_loop(self, sequences, *rest, **named):
        seen.append(sequences.shape[0])
        return real(self, sequences, *rest, **named)

    monkeypatch.setattr(layers.RNN, "inner_loop", inner_loop)
    return seen


def make(kind: str):
    import keras

    layers = keras.layers
    image = (70, 5, 6, 6, 2)
    kinds = {
        "lstm": (layers.LSTM(8), (70, 5, 4)),
        "sequences": (layers.LSTM(8, return_sequences=True), (70, 5, 4)),
        "gru, backwards": (layers.GRU(8, go_backwards=True), (70, 5, 4)),
        "both ways": (layers.Bidirectional(layers.LSTM(8)), (70, 5, 4)),
        "cells": (layers.RNN([layers.GRUCell(8), layers.GRUCell(6)]), (70, 5, 4)),
        "unrolled": (layers.SimpleRNN(8, unroll=True), (70, 5, 4)),
        "convolutions": (layers.ConvLSTM2D(3, 3, padding="same"), image),
    }
    layer, shape = kinds[kind]
    values = np.random.default_rng(0).standard_normal(shape).astype("float32")
    layer.build(shape)
    return layer, values


@pytest.mark.parametrize(
    "kind",
    ["lstm", "sequences", "gru, backwards", "both ways", "cells", "unrolled",
     "convolutions"],
)  # fmt: skip
def test_the_same_function_and_gradient(kind, runtime, parts):
    import tensorflow as tf

    from gpuzoo.engine.backends.rnn import split_over

    layer, values = make(kind)

    def trained(threads):
        @tf.function(input_signature=[tf.TensorSpec(values.shape)])
        def step(values):
            with tf.GradientTape() as tape:
                outputs = layer(values)
                loss = tf.reduce_sum(outputs * tf.cos(outputs))
            weights = [weight.value for weight in layer.trainable_variables]
            return outputs, tape.gradient(loss, weights)

        with split_over(threads):
            step.get_concrete_function()
        outputs, gradients = step(values)
        return [outputs.numpy(), *(gradient.numpy() for gradient in gradients)]

    whole, split = trained(1), trained(2)
    loops = 2 if kind == "both ways" else 1
    assert parts == [70] * loops + [35, 35] * loops
    for one, other in zip(whole, split, strict=True):
        assert np.allclose(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(split, trained(2), strict=True):
        assert one.tobytes() == other.tobytes()


FILMS = [
    {},
    {"return_sequences": True, "go_backwards": True, "use_bias": False},
    {"strides": 2, "padding": "valid", "activation": "relu"},
    {"dilation_rate": 2, "recurrent_activation": "hard_sigmoid"},
]


@pytest.mark.parametrize("options", FILMS, ids=lambda options: "-".join(options))
def test_four_gates_in_one_convolution(options, runtime, parts):
    import tensorflow as tf
    from keras import layers

    from gpuzoo.engine.backends.rnn import gates_together

    rng = np.random.default_rng(0)
    values = tf.constant(rng.standard_normal((6, 5, 9, 8, 2)).astype("f4"))
    layer = layers.ConvLSTM2D(3, 3, **{"padding": "same", **options})
    layer.build(values.shape)
    for weight in layer.trainable_variables:
        weight.assign(0.2 * rng.standard_normal(weight.shape))

    def found():
        with tf.GradientTape() as tape:
            outputs = layer(values, training=True)
            loss = tf.reduce_sum(outputs * tf.cos(outputs))
        weights = [weight.value for weight in layer.trainable_variables]
        return outputs, *tape.gradient(loss, weights)

    wanted = found()
    assert parts == [6]
    with gates_together():
        ours = found()
    assert parts == [6]  # Keras's own loop has not been asked again
    for one, other in zip(wanted, ours, strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}])
def test_convolutions_that_drop_out_are_left_alone(options, runtime, parts):
    from keras import layers

    from gpuzoo.engine.backends.rnn import gates_together

    with gates_together():
        layer = layers.ConvLSTM2D(3, 3, **options)
        layer(np.ones((2, 5, 6, 6, 1), "f4"), training=True)
    assert parts == [2]


def test_what_is_masked_stays_masked(runtime, parts):
    import tensorflow as tf

    from gpuzoo.engine.backends.rnn import split_over

    layer, values = make("lstm")
    mask = np.arange(5)[None] < np.arange(1, 71)[:, None] % 5 + 1
    whole = layer(values, mask=tf.constant(mask))
    with split_over(2):
        split = layer(values, mask=tf.constant(mask))
    assert parts == [70, 35, 35]
    assert np.allclose(whole, split, atol=1e-6)
    assert not np.allclose(whole, layer(values), atol=1e-3)


@pytest.mark.parametrize(("options", "examples"), [({"dropout": 0.5}, 70), ({}, 63)])
def test_dropout_and_small_batches_are_left_whole(options, examples, runtime, parts):
    import keras

    from gpuzoo.engine.backends.rnn import split_over

    values = np.ones((examples, 5, 4), "float32")
    with split_over(2):
        keras.layers.LSTM(8, **options)(values, training=True)
    assert parts == [examples]


def test_fresh_processes_train_split_layers_to_the_same_bits(cli):
    """The recipe's batch of 128 is split; the matrix of models has smaller ones."""
    done = cli("train", "mnist_lstm", "--data", "digits", "--epochs", "2", "--device",
               "cpu", "--threads", "2", "--quiet", "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cli("verify", "run").returncode == 0


@pytest.mark.parametrize("name", ["lstm", "bilstm", "gru", "lstm_forecaster"])
def test_every_way_through_time_is_the_same_function(name, runtime):
    import gpuzoo

    shape = (6, 2) if name == "lstm_forecaster" else (6, 5, 2)
    values = np.random.default_rng(0).random((3, *shape), np.float32)
    models = [
        gpuzoo.build(name, input_shape=shape, units=4, layers=2, implementation=way)
        for way in ("auto", "scan", "unrolled")
    ]
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
    wanted, *others = (np.array(model(values)) for model in models)
    assert all(np.allclose(wanted, other, atol=1e-6) for other in others)
    with pytest.raises(ValueError, match="needs a GPU.*use scan or auto"):
        gpuzoo.build(name, input_shape=shape, implementation="cudnn")
    with pytest.raises(TypeError, match="implementation"):
        gpuzoo.build(name, input_shape=shape, implementation="fast")
