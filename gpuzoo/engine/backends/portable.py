"""Exact forms of approximations of the processor, used while a step is traced at level
portable.

The reciprocal square root of TensorFlow starts from an instruction that each vendor
rounds in its own way, and so does the reciprocal; the logarithm's gradient is one. A
division and a square root are rounded correctly everywhere.
"""

import contextlib

import keras

from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime
from gpuzoo.runtime.portable import LEVEL

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.ops import gen_math_ops, math_ops


@contextlib.contextmanager
def exact(runtime: Runtime):
    """Replace within the block what approximates, at level portable on TensorFlow."""
    if runtime.level != LEVEL or keras.config.backend() != "tensorflow":
        yield
        return
    with (
        replaced(gen_math_ops, rsqrt=_rsqrt, reciprocal=_reciprocal, inv=_reciprocal),
        replaced(math_ops, reciprocal=_reciprocal),
        replaced(tf.math, reciprocal=_reciprocal),
    ):
        yield


def _rsqrt(x, name=None):
    return _reciprocal(gen_math_ops.sqrt(x), name)


def _reciprocal(x, name=None):
    x = tf.convert_to_tensor(x)
    return gen_math_ops.real_div(tf.constant(1, x.dtype), x, name=name)
