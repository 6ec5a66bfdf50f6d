"""Faster forms of Keras's recurrent layers, used while a step is traced.

On a CPU each thread computes its part of the batch over all time steps: the products
are small, and one shared by several threads waits for the slowest at every time step.
Parts of a batch do not wait for each other. Convolutional LSTMs do in one convolution
what Keras does in eight.
"""

import contextlib

import keras
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

from gpuzoo.runtime.keras_state import replaced

_LEAST = 32  # examples per part; products of fewer are slow
_LONGEST = 64  # time steps unrolled at most


@contextlib.contextmanager
def split_over(threads: int):
    """Let Keras's recurrent layers compute parts of the batch in parallel in the block.

    Results are the same up to the order in which gradients are summed over the batch.
    Layers with dropout, which have one mask for the batch, are not split.
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

    with replaced(keras.layers.RNN, inner_loop=inner_loop):
        yield


@contextlib.contextmanager
def gates_together():
    """Let Keras's convolutional LSTMs compute their four gates together in the block,
    and the gates' part from the inputs for all time steps at once.

    Results are the same up to the order of sums. Layers with dropout, a mask or more
    than _LONGEST time steps are not replaced.
    """
    real = keras.layers.RNN.inner_loop

    def inner_loop(self, sequences, initial_state, mask, training=False):
        convolves = type(self.cell) is ConvLSTMCell and mask is None
        steps = sequences.shape[1]
        if not convolves or _drops_out(self.cell) or not 0 < (steps or 0) <= _LONGEST:
            return real(self, sequences, initial_state, mask, training)
        return _convolved(self, sequences, initial_state)

    with replaced(keras.layers.RNN, inner_loop=inner_loop):
        yield


def _convolved(layer, sequences, initial_state) -> tuple:
    """Return the last output, all outputs and the final states."""
    cell, steps = layer.cell, sequences.shape[1]
    sequences = keras.ops.moveaxis(sequences, 1, 0)
    gates = keras.ops.conv(
        keras.ops.reshape(sequences, (-1, *sequences.shape[2:])), cell.kernel,
        strides=cell.strides, padding=cell.padding, data_format=cell.data_format,
        dilation_rate=cell.dilation_rate,
    )  # fmt: skip
    first = cell.data_format == "channels_first"
    if cell.use_bias:
        others = (1,) * cell.rank
        shape = (-1, *others) if first else (*others, -1)
        gates = gates + keras.ops.reshape(cell.bias, (1, *shape))
    gates = keras.ops.reshape(gates, (steps, -1, *gates.shape[1:]))
    (hidden, carry), outputs = initial_state, []
    for seen in keras.ops.unstack(gates)[:: -1 if layer.go_backwards else 1]:
        now = seen + cell.recurrent_conv(hidden, cell.recurrent_kernel)
        come, stay, new, show = keras.ops.split(now, 4, axis=1 if first else -1)
        come, stay, show = map(cell.recurrent_activation, (come, stay, show))
        carry = stay * carry + come * cell.activation(new)
        hidden = show * cell.activation(carry)
        outputs.append(hidden)
    return hidden, keras.ops.stack(outputs, axis=1), [hidden, carry]


def _cut(tensors, parts: int) -> list:
    """Split a structure of tensors into parts of the batch."""
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
