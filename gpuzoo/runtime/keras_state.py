"""Keras's global state: where gpuzoo sets it, and what of Keras's own it replaces.

Keras is imported inside of the functions: which backend it takes is decided by
`configure`, which imports this file before.
"""

import contextlib
import random

import numpy as np

from gpuzoo import randomness


def set_keras(precision: str) -> None:
    """The precision, and Keras's defaults whatever ~/.keras/keras.json says."""
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(precision)


def reseed(seed: int) -> None:
    """Seed Python, NumPy, Keras and the backend."""
    import keras

    if keras.config.backend() == "tensorflow":
        keras.utils.set_random_seed(seed % 2**32)
        return
    # keras.utils.set_random_seed would import TensorFlow, which takes seconds.
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
    from keras.src.utils.rng_utils import GLOBAL_RANDOM_SEED

    global_state.set_global_attribute(GLOBAL_RANDOM_SEED, seed % 2**32)
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    random.seed(seed % 2**32)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def orthogonal_in_any_precision():
    """Orthogonal weights in bfloat16, of which no backend has a QR decomposition, are
    drawn in float32 meanwhile: recurrent layers can be built under any policy."""
    import keras

    kind = keras.initializers.Orthogonal
    real = kind.__call__

    def call(self, shape, dtype=None):
        if keras.backend.standardize_dtype(dtype or "float32") != "bfloat16":
            return real(self, shape, dtype)
        return keras.ops.cast(real(self, shape, "float32"), "bfloat16")

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = real


@contextlib.contextmanager
def drawn_by_numpy():
    """What Keras draws meanwhile for initial weights is drawn by NumPy if the backend
    is JAX, which would compile a program for each shape: seconds, for numbers that are
    mostly overwritten. They follow from Keras's seeds as before.
    """
    import keras

    if keras.config.backend() != "jax":
        yield
        return
    from keras.src.backend.common.stateless_scope import in_stateless_scope
    from keras.src.backend.jax import random as drawn

    def address(seed) -> tuple:
        first, *rest = map(int, np.asarray(drawn.jax_draw_seed(seed)).ravel())
        return (first, "keras", *rest)

    def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        draws = randomness.uniform(tuple(shape), *address(seed))
        return (minval + (maxval - minval) * draws).astype(dtype or "float32")

    def normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        draws = randomness.normal(tuple(shape), *address(seed))
        return (mean + stddev * draws).astype(dtype or "float32")

    def truncated_normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        draws = randomness.truncated_normal(tuple(shape), *address(seed))
        return (mean + stddev * draws).astype(dtype or "float32")

    def chosen(ours, theirs):
        """In a layer's `call`, which is only traced, nothing can be drawn by NumPy."""
        return lambda *shape, **how: (theirs if in_stateless_scope() else ours)(
            *shape, **how
        )

    real = {one.__name__: getattr(drawn, one.__name__) for one in
            (uniform, normal, truncated_normal)}  # fmt: skip
    try:
        for one in (uniform, normal, truncated_normal):
            setattr(drawn, one.__name__, chosen(one, real[one.__name__]))
        yield
    finally:
        for name, one in real.items():
            setattr(drawn, name, one)


@contextlib.contextmanager
def fresh_names():
    """Meanwhile layers without a name are numbered from one: the names of weights are
    those of a fresh process, whatever was built before. Afterwards Keras counts on."""
    from keras.src.backend.common import global_state
    from keras.src.utils import naming

    counted = global_state.get_global_attribute("object_name_uids")
    naming.reset_uids()
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counted)


@contextlib.contextmanager
def in_float32():
    """Layers that are made inside compute in float32, whatever the run does."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
