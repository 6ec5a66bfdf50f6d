"""Peer: the well-known simple MNIST convnet, trained with plain Keras `fit`.

    python benchmarks/peers/stock_keras_mnist.py mnist.npz --seed 0 --until 0.99

Network, optimizer, batch size and loss are those of the "Simple MNIST convnet" that
every Keras user meets first. It gets every advantage that keeps it stock: all 60,000
training examples (no validation split), default threads, no determinism, and only the
seconds inside `fit` are counted, without test evaluation.
The last line on stdout is one JSON object.
"""

import argparse
import json
import os
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np


def build() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def main(build=build) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--until", type=float, default=0.99)
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    with np.load(args.data, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for split in ("train", "test"):
        images = arrays[f"x_{split}"]
        images = images if images.ndim == 4 else images[..., None]
        arrays[f"x_{split}"] = images.astype("float32") / 255

    model = build()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    seconds, trail = 0.0, []
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        model.fit(arrays["x_train"], arrays["y_train"], batch_size=128, verbose=0)
        epoch_seconds = time.perf_counter() - start
        seconds += epoch_seconds
        _, accuracy = model.evaluate(
            arrays["x_test"], arrays["y_test"], batch_size=1000, verbose=0
        )
        trail.append(
            {
                "epoch": epoch,
                "seconds": round(epoch_seconds, 3),
                "train_seconds": round(seconds, 3),
                "test_accuracy": round(float(accuracy), 4),
            }
        )
        print(trail[-1], flush=True)
        if accuracy >= args.until:
            break
    print(json.dumps({"reached": accuracy >= args.until, **trail[-1], "trail": trail}))


if __name__ == "__main__":
    main()
