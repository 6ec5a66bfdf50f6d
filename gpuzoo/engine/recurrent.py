"""Recurrent layers on a CPU: each thread takes its part of the batch through time.

Their products are small, and a product that several threads share waits for the slower
one at every step of time. Parts of a batch do not wait for each other.
"""

import contextlib

import keras

_LEAST = 32  # examples of a part; fewer make slow products


@contextlib.contextmanager
def split_over(threads: int):
    """Keras's recurrent layers, traced inside, compute parts of the batch side by side.

    The same function of the same numbers, up to the order in which a gradient is summed
    over the batch. Layers that drop out keep their one mask, and are not split.
    """
    real = keras.layers.RNN.inner_loop

    def inner_loop(self, sequences, initial_state, mask, training=False):
        count = min(threads, (sequences.shape[0] or 0) // _LEAST)
        if count < 2 or _drops_out(self.cell):
            return real(self, sequences, initial_state, mask, training)
        parts = [
            real(self, *part, training)
            for part in zip(
                _cut(sequences, count),
                _cut(initial_state, count),
                _cut(mask, count),
                strict=True,
            )
        ]
        return keras.tree.map_structure(
            lambda *pieces: keras.ops.concatenate(pieces, axis=0), *parts
        )

    keras.layers.RNN.inner_loop = inner_loop
    try:
        yield
    finally:
        keras.layers.RNN.inner_loop = real


def _cut(tensors, parts: int) -> list:
    """The same structure of tensors, each with its part of the batch."""
    return [
        keras.tree.map_structure(lambda one, i=i: _part(one, i, parts), tensors)
        for i in range(parts)
    ]


def _part(tensor, number: int, parts: int):
    if tensor is None:
        return None
    batch = tensor.shape[0]
    return tensor[batch * number // parts : batch * (number + 1) // parts]


def _drops_out(cell) -> bool:
    cells = getattr(cell, "cells", [cell])
    return any(
        getattr(one, name, 0)
        for one in cells
        for name in ("dropout", "recurrent_dropout")
    )
