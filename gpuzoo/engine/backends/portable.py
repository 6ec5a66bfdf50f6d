"""What is computed in another way while a step is traced at level portable.

The reciprocal square root of TensorFlow starts from an instruction that each vendor
rounds in its own way, and so does the reciprocal; the logarithm's gradient is one. A
division and a square root are rounded correctly everywhere. The error function has the
same bits on processors that were compared, its complement has not: the exact GELU takes
the first. Products of matrices: products.py. XLA, by which JAX computes, has its own
forms of all of these (runtime/portable.py); its products: products_jax.py.
"""

import contextlib
import functools
import math

import keras

from gpuzoo.engine.backends.products import divided
from gpuzoo.engine.backends.products_jax import in_one_form
from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime
from gpuzoo.runtime.portable import LEVEL

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.ops import gen_math_ops, math_ops


@contextlib.contextmanager
def exact(runtime: Runtime):
    """Replace within the block what differs, at level portable."""
    if runtime.level != LEVEL:
        yield
        return
    if keras.config.backend() == "jax":
        with in_one_form():
            yield
        return
    with (
        divided(),
        replaced(gen_math_ops, rsqrt=_rsqrt, reciprocal=_reciprocal, inv=_reciprocal),
        replaced(math_ops, reciprocal=_reciprocal),
        replaced(tf.math, reciprocal=_reciprocal),
        replaced(tf.nn, gelu=functools.partial(_gelu, tf.nn.gelu)),
    ):
        yield


def _rsqrt(x, name=None):
    return _reciprocal(gen_math_ops.sqrt(x), name)


def _reciprocal(x, name=None):
    x = tf.convert_to_tensor(x)
    return gen_math_ops.real_div(tf.constant(1, x.dtype), x, name=name)


def _gelu(original, features, approximate=False, name=None):
    """Return x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel, arXiv 1606.08415)."""
    if approximate:
        return original(features, approximate=True, name=name)
    x = tf.convert_to_tensor(features)
    inside = gen_math_ops.erf(x * tf.constant(math.sqrt(0.5), x.dtype))
    return tf.multiply(0.5 * x, 1 + inside, name=name)
