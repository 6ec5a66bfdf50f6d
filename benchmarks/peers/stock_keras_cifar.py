"""Peer: the well-known small CIFAR-10 convnet, trained with plain Keras `fit`.

    python benchmarks/peers/stock_keras_cifar.py cifar10.npz --seed 0 --until 0.758

Two pairs of convolutions with pooling and dropout, a dense layer of 512, Adam: the
network that Keras users know from its examples. The rest as in stock_keras_mnist.py.
"""

import keras
from stock_keras_mnist import main

layers = keras.layers


def build() -> keras.Model:
    pair = []
    for filters in (32, 64):
        pair += [
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.Conv2D(filters, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
        ]
    head = [
        layers.Flatten(),
        layers.Dense(512, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    ]
    return keras.Sequential([keras.Input((32, 32, 3)), *pair, *head])


if __name__ == "__main__":
    main(build)
