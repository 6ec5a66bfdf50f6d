"""What Keras's layers compute and a backend cannot, done in another way.

It is used while a model is built and while a step is traced. Values are computed in
float32 where a backend has no kernel in 16 bits, and rounded to 16 bits at the end.
Nothing that a backend can compute is replaced.
"""

import contextlib
import functools
from unittest import mock

import keras
from keras.src import backend as keras_backend

from gpuzoo.runtime.options import Runtime

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.ops import gen_math_ops, gen_nn_ops, image_ops
else:
    import jax

_SIXTEEN_BITS = ("float16", "bfloat16")


@contextlib.contextmanager
def replaced(device: str = "cpu", xla: bool = False):
    """Replace within the block what has no kernel on a device (cpu, gpu), compiled by
    XLA or not. To build a model, which only derives shapes, the defaults do."""
    with contextlib.ExitStack() as stack:

        def replace(owner, name, function):
            changed = functools.partial(function, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, changed))

        if keras.config.backend() == "tensorflow":
            # The gradient of rotations, zooms and other projections refuses bfloat16,
            # though the operation that it calls takes it.
            known = image_ops._IMAGE_DTYPES | {tf.bfloat16}
            stack.enter_context(mock.patch.object(image_ops, "_IMAGE_DTYPES", known))
            replace(gen_math_ops, "_range", _range)
            replace(keras_backend.random, "beta", _beta)
            if device == "cpu" and not xla:
                for name in ("avg_pool3d", "max_pool3d"):
                    replace(gen_nn_ops, name, _pool)
        elif device == "cpu":
            replace(jax.nn, "dot_product_attention", _attention)
        if xla:
            crop = keras.layers.RandomCrop
            cut = functools.partialmethod(_crop, crop.transform_images)
            stack.enter_context(mock.patch.object(crop, "transform_images", cut))
        yield


def for_runtime(runtime: Runtime):
    """Return the block of `replaced` that a runtime needs."""
    return replaced(runtime.device, runtime.xla)


def _range(real, start, limit, delta, name=None):
    """tf.range: no float16, which Keras replaces in the same way outside a graph."""
    if start.dtype != tf.float16:
        return real(start, limit, delta, name=name)
    ends = (tf.cast(one, tf.float32) for one in (start, limit, delta))
    return tf.cast(real(*ends, name=name), tf.float16)


def _beta(real, shape, alpha, beta, dtype=None, seed=None):
    """Keras draws in float32 for bfloat16, and forgets to convert the parameters."""
    if keras.backend.standardize_dtype(dtype or keras.config.floatx()) == "bfloat16":
        alpha, beta = (keras.ops.cast(one, "float32") for one in (alpha, beta))
    return real(shape, alpha, beta, dtype=dtype, seed=seed)


def _pool(real, input, *args, **options):  # noqa: A002 TensorFlow's name
    """3-D pooling in float16."""
    images = tf.convert_to_tensor(input)
    if images.dtype != tf.float16:
        return real(images, *args, **options)
    return tf.cast(real(tf.cast(images, tf.float32), *args, **options), tf.float16)


def _attention(real, query, key, value, *args, **options):
    """Attention in float16, for which JAX chooses an algorithm that CPUs lack."""
    if query.dtype != "float16":
        return real(query, key, value, *args, **options)
    parts = (one.astype("float32") for one in (query, key, value))
    return real(*parts, *args, **options).astype("float16")


def _crop(self, real, images, transformation, training=True):
    """RandomCrop with a start that only the compiled step knows. Keras slices with it
    as with a number, whose size a compiler cannot know."""
    if not training or isinstance(transformation[0], int):
        return real(self, images, transformation, training)
    images = self.backend.cast(images, self.compute_dtype)
    starts, shape = [0] * len(images.shape), list(self.backend.shape(images))
    for axis, start, size in zip(
        (self.height_axis, self.width_axis),
        transformation,
        (self.height, self.width),
        strict=True,
    ):
        starts[axis], shape[axis] = start, size
    return keras.ops.slice(images, starts, shape)
