"""Nearest-neighbour resizing with a deterministic gradient, for TensorFlow's steps.

It is used while a step is traced. XLA has no gradient of TensorFlow's operation, and a
GPU has no deterministic one. Here rows and columns are gathered, and the gradient of
each is the sum of a contiguous run of the output, in a fixed order. The values are
those of TensorFlow, bit for bit.
"""

import contextlib
import functools

import keras
import numpy as np

from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.ops import gen_image_ops


def needed(runtime: Runtime) -> bool:
    """Return whether TensorFlow's own gradient is missing or not deterministic."""
    return runtime.xla or (runtime.deterministic and runtime.device == "gpu")


@contextlib.contextmanager
def repeatable(runtime: Runtime):
    """Replace nearest-neighbour resizing, of Keras and of `tf.image`, within the block
    if `needed`. Images or sizes that are not fixed are left to TensorFlow."""
    if not needed(runtime):
        yield
        return
    real = gen_image_ops.resize_nearest_neighbor
    ours = functools.partial(_resize, real)
    with replaced(gen_image_ops, resize_nearest_neighbor=ours):
        yield


def _resize(real, images, size, align_corners=False, half_pixel_centers=False,
            name=None):  # fmt: skip
    images, wanted = tf.convert_to_tensor(images), tf.get_static_value(size)
    if wanted is None or None in images.shape.as_list()[1:3]:
        return real(images, size, align_corners, half_pixel_centers, name)
    for axis, count in zip((1, 2), wanted, strict=True):
        # TensorFlow itself says which row it would take, rounding included.
        with tf.init_scope(), tf.device("/CPU:0"):
            rows = tf.reshape(tf.range(images.shape[axis]), (1, -1, 1, 1))
            taken = real(rows, (count, 1), align_corners, half_pixel_centers)
        images = _gather(images, axis, taken.numpy().ravel())
    return images


def _gather(x, axis: int, taken: np.ndarray):
    """Gather ascending indices along an axis, with gradients of any order."""
    count, total = x.shape[axis], len(taken)
    first, stop = (np.searchsorted(taken, range(count), s) for s in ("left", "right"))
    places = first[:, None] + np.arange(max(stop - first))
    inside = (places < stop[:, None]).reshape(-1, *[1] * (len(x.shape) - 1 - axis))
    places = np.minimum(places, total - 1)

    @tf.custom_gradient
    def spread(x):
        return tf.gather(x, taken, axis=axis), collect

    @tf.custom_gradient
    def collect(y):
        parts = tf.gather(y, places.ravel(), axis=axis)
        parts = tf.where(inside, parts, tf.zeros((), y.dtype))
        shape = tf.shape(y)
        shape = tf.concat([shape[:axis], places.shape, shape[axis + 1 :]], 0)
        return tf.reduce_sum(tf.reshape(parts, shape), axis + 1), spread

    return spread(x)
