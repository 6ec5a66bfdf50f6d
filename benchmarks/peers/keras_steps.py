"""Peer: the same networks trained with plain Keras `fit`.

The networks are built by gpuzoo and trained without it, as users would: NumPy arrays
passed to `fit`, default settings of the backend, no determinism. One `fit` continues
from turn to turn, so that its startup cost is paid once. See turns.py for the protocol;
KERAS_BACKEND selects the backend.
"""

import os
import queue
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import turns

import gpuzoo
from gpuzoo.tasks import autoencode, detect, next_frame, scenes


class Made(keras.Model):
    """A network on inputs computed from the images by gpuzoo's own functions, with
    random numbers of Keras; `batch` images at a time."""

    def __init__(self, network, batch: int):
        super().__init__()
        self.network, self.batch = network, batch
        self.seed = keras.random.SeedGenerator(0)
        self.built = True

    def call(self, images, training=False):
        return images

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        images = keras.ops.reshape(x, (self.batch, *x.shape[1:]))
        labels = keras.ops.reshape(y, (self.batch,))
        return self.loss_of(images, labels)


class Scenes(Made):
    def loss_of(self, images, labels):
        ways = keras.random.uniform((self.batch, scenes.DRAWS), seed=self.seed)
        scene = scenes.make(images, labels, ways, (64, 64, 1))
        cells = self.network(scene["image"], training=True)
        return detect.per_object(*detect.losses_of(scene, cells))


class Films(Made):
    def loss_of(self, images, labels):
        ops = keras.ops
        ways = keras.random.uniform((self.batch, 8), seed=self.seed)
        film = next_frame.moving(images, ways, (44, 44))
        logits, goal = self.network(film[:, :-1], training=True), film[:, -1]
        missed = ops.softplus(logits) - goal * logits
        return ops.mean(ops.sum(missed, axis=(1, 2, 3)))


class Turns(keras.callbacks.Callback):
    """Lets `fit` continue for the requested number of steps.

    It checks before each step: a callback on the end of steps makes Keras wait for
    every one of them.
    """

    def __init__(self):
        super().__init__()
        self.asked, self.told = queue.SimpleQueue(), queue.SimpleQueue()
        self.left = None

    def on_train_batch_begin(self, batch, logs=None):
        if self.left == 0:
            if keras.backend.backend() == "jax":
                # Not self.model, which would copy its state; and by hand, for JAX sees
                # no arrays in Keras's tracked lists.
                for arrays in self._model._jax_state.values():
                    for array in arrays:
                        array.block_until_ready()
            self.told.put(None)
        if not self.left:
            self.left = self.asked.get()
        self.left -= 1

    def steps(self, count: int) -> None:
        self.asked.put(count)
        if error := self.told.get():
            raise error


def prepare(asked: dict, arrays):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(asked["precision"])
    batch, work = asked["batch"], asked["work"]
    images, labels = (array[: len(array) // batch * batch] for array in arrays)
    Adam = keras.optimizers.Adam
    if work == "tiny":  # benchmarks/speed/overhead.py
        model = gpuzoo.build("mlp", input_shape=images.shape[1:], units=())
    else:
        model = gpuzoo.build(work)
    if work == "tiny":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(Adam(0.001), loss)
        data = images, labels
    elif work in ("cnn", "lstm"):
        rate, *betas = (0.01, 0.7, 0.9) if work == "cnn" else (0.004, 0.9, 0.99)
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        )
        model.compile(Adam(rate, *betas), loss)
        data = images, keras.utils.to_categorical(labels, 10)
    elif work in ("detector", "conv_lstm"):
        made, beta_2 = (Scenes, 0.99) if work == "detector" else (Films, 0.999)
        model = made(model, batch)
        model.compile(Adam(0.003, 0.9, beta_2))
        data = images, labels.astype("int32")
    elif work == "vae":
        model.compile(Adam(0.003), {"reconstruction": autoencode.cross_entropy})
        data = images, {"reconstruction": images}
    else:
        model.compile(Adam(0.003, 0.5, 0.99))
        data = (images,)

    going = Turns()

    def train() -> None:
        keras.config.set_dtype_policy(asked["precision"])  # each thread has its own
        try:
            model.fit(
                *data, batch_size=batch, epochs=10**9, verbose=0, callbacks=[going]
            )
        except Exception as error:
            going.told.put(error)

    threading.Thread(target=train, daemon=True).start()
    return going.steps


if __name__ == "__main__":
    turns.take_turns(prepare)
