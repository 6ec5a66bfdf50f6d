"""The forms of max-pooling."""

import dataclasses

import keras
import numpy as np

import gpuzoo


def test_max_pool_forms_give_the_same_bits(runtime, monkeypatch):
    """The form for XLA with determinism, and the native one, forward and backward."""
    import tensorflow as tf

    from gpuzoo.models import _blocks

    def train_once(xla: bool):
        with monkeypatch.context() as patch:
            changed = dataclasses.replace(runtime, xla=xla)
            patch.setattr(_blocks, "in_force", lambda: changed)
            model = gpuzoo.build("cnn", input_shape=(29, 30, 1))
        rng = np.random.default_rng(1)
        for variable in model.weights:
            variable.assign(rng.normal(0, 0.1, variable.shape))
        images = rng.random((8, 29, 30, 1), np.float32)
        labels = rng.integers(0, 10, 8)
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = keras.losses.sparse_categorical_crossentropy(
                labels, logits, from_logits=True
            )
        kinds = {type(layer).__name__ for layer in model.layers}
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        return kinds, [logits.numpy(), *(g.numpy() for g in gradients)]

    native, slices = train_once(False), train_once(True)
    assert "MaxPooling2D" in native[0] and "MaxPooling2D" not in slices[0]
    for one, other in zip(native[1], slices[1], strict=True):
        assert np.array_equal(one, other)
