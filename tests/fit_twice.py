"""An ordinary Keras `fit`, as a user's script: trains in a process of its own.

    python fit_twice.py BACKEND XLA FOLDER ...

One trail for each folder, all from one point; of the last one, named *other, the
examples are in an order that no seed fixes. Prints whether Keras compiled with XLA.
"""

import sys

import numpy as np

import gpuzoo

backend, xla, *folders = sys.argv[1:]
gpuzoo.repeatable(3, backend=backend, xla=xla, device="cpu", threads=2)

import keras  # noqa: E402
from keras import layers  # noqa: E402

from gpuzoo.callbacks import Trail  # noqa: E402

rng = np.random.default_rng(0)
x, y = rng.random((96, 10, 10, 1), np.float32), np.arange(96) % 3
for folder in folders:
    gpuzoo.repeatable(3, backend=backend, xla=xla, device="cpu", threads=2, quiet=True)
    inputs = keras.Input((10, 10, 1))
    z = layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    # One tensor used four times: its gradient is a sum of four.
    z = layers.Add()([layers.Conv2D(4, 3)(z) for _ in range(4)])
    z = layers.Flatten()(layers.UpSampling2D()(layers.Dropout(0.2)(z)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(z))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    order = np.arange(96)
    if folder.endswith("other"):
        order = np.random.default_rng().permutation(96)
    trail = Trail(folder, every=4)
    model.fit(
        x[order], y[order], batch_size=16, epochs=2, validation_split=1 / 3,
        callbacks=[trail], verbose=0,
    )  # fmt: skip
print(model.jit_compile)
