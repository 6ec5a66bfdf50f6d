"""The one small recipe and the small data that tests train with, and how they train."""

import numpy as np
from scipy import ndimage

from gpuzoo import randomness
from gpuzoo.catalogue.recipe import Recipe

RECIPE = Recipe(
    name="tiny", model="cnn", data="tiny", batch_size=16, epochs=3, learning_rate=0.01,
    augment=("translate:1", "flip"), model_options=("dropout=0.2", "dense=16"),
    log_every=2, digest_every=4,
)  # fmt: skip


def program(recipe, dataset, runtime, *, fast=False, model=None):
    """A recipe on a dataset, compiled."""
    from gpuzoo.engine.program import Program, Session
    from gpuzoo.training.build import build_model

    model = model or build_model(recipe, dataset)
    return Program(Session(recipe, runtime, dataset, model, fast=fast))


def run(recipe, dataset, runtime, *, fast=False, model=None, **options):
    """The training loop, as `gpuzoo.train` calls it, without a run folder."""
    from gpuzoo.engine import loop

    made = program(recipe, dataset, runtime, fast=fast, model=model)
    return loop.run(made, **options)


def train(recipe, dataset, runtime, **options):
    """A run of the loop: its result, and what it told its watcher."""
    rows = []
    watch = lambda *event: rows.append(event)  # noqa: E731
    return run(recipe, dataset, runtime, watch=watch, **options), rows


def same(one, other) -> bool:
    return all(np.array_equal(one.weights[k], other.weights[k]) for k in one.weights)


def two_classes() -> dict[str, np.ndarray]:
    """A small image set that can be learned: two classes, light and dark."""
    rng = np.random.default_rng(0)
    label = np.arange(120) % 2
    image = rng.integers(0, 100, (120, 14, 14, 1)) + 120 * label[:, None, None, None]
    image = image.astype(np.uint8)
    return {
        "x_train": image[:80], "y_train": label[:80],
        "x_test": image[80:], "y_test": label[80:],
    }  # fmt: skip


def unreadable():
    """A dataset with MNIST's shape and ten classes, and nothing to read in it."""
    from gpuzoo.data.validate import make_dataset

    rng = np.random.default_rng(0)
    label = np.arange(200) % 10
    image = rng.integers(0, 256, (200, 28, 28, 1)).astype(np.uint8)
    arrays = {"x_train": image[:100], "y_train": label[:100],
              "x_test": image[100:], "y_test": label[100:]}  # fmt: skip
    return make_dataset("snow", "made up", splits(arrays))


def splits(arrays) -> dict:
    return {
        s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]}
        for s in ("train", "test")
    }


def forward_and_backward(layer, x, xla=False):
    """What TensorFlow gives for an operation on x, and the gradient of a sum of it with whole factors."""
    import keras
    import tensorflow as tf

    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            factors = tf.cast(tf.range(tf.size(y)) % 7 - 3, y.dtype)
            total = tf.reduce_sum(y * tf.reshape(factors, y.shape))
        return y, tape.gradient(total, x)

    if xla:
        both = tf.function(both, jit_compile=True, autograph=False)
    return [tensor.numpy() for tensor in both(keras.ops.convert_to_tensor(x))]


# --- model objects ---------------------------------------------------------------------


def net(*layers, units=2, **named):
    from keras import Input, Sequential
    from keras import layers as L

    ends = L.Flatten(), L.Dense(units)
    return Sequential([Input((14, 14, 1)), *layers, *ends], **named)


def backbone():
    import keras
    from keras import layers as L

    image = keras.Input((14, 14, 1))
    x = L.BatchNormalization()(L.Conv2D(4, 3, activation="relu")(image))
    x = L.BatchNormalization()(L.Conv2D(4, 3)(x))
    return keras.Model(image, L.GlobalAveragePooling2D()(x))


def arrays(model):
    return [np.array(weight) for weight in model.weights]


def equal(one, other) -> bool:
    return all(map(np.array_equal, one, other))


def own_loss(wanted, told):
    import keras

    return keras.ops.mean(wanted - told)


def patched(part, name):
    setattr(part, name, own_loss)
    return part


def texture(count: int, *shape: int) -> np.ndarray:
    """Smooth random fields with the spectrum of small photographs, about."""
    noise = randomness.normal((count, *shape), 0, "texture")
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 0))
    return (255 * np.clip(0.5 + 0.2 * smooth / smooth.std(), 0, 1)).astype(np.uint8)
