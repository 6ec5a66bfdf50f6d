"""Private parts of Keras: its global state, and the attributes of its objects.

Keras is imported inside the functions: `configure` imports this file before it chooses
the backend. The private attributes of layers are in keras_layers.py, those used in
compiled steps in engine/backends/. tests/test_private_doors.py fails when a release of
Keras changes one.
"""

import contextlib
import math
import random
import sys

import numpy as np

from gpuzoo import randomness
from gpuzoo.errors import GpuzooError

SLACK_BYTES = 1_000_000
"""For `at_most`: seeds of random layers and other small variables that a file of
weights lacks."""


@contextlib.contextmanager
def replaced(owner, **attributes):
    """Set attributes of a module or a class within the block."""
    real = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in real.items():
            setattr(owner, name, value)


def set_keras(precision: str) -> None:
    """Set the dtype policy, and Keras's defaults regardless of ~/.keras/keras.json."""
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
    """Initialize orthogonal bfloat16 weights in float32 inside the block, as backends
    have no QR decomposition for bfloat16: recurrent layers build under any policy."""
    import keras

    kind = keras.initializers.Orthogonal
    real = kind.__call__

    def call(self, shape, dtype=None):
        if keras.backend.standardize_dtype(dtype or "float32") != "bfloat16":
            return real(self, shape, dtype)
        return keras.ops.cast(real(self, shape, "float32"), "bfloat16")

    with replaced(kind, __call__=call):
        yield


@contextlib.contextmanager
def drawn_by_numpy():
    """Draw Keras's initial weights with NumPy inside the block if the backend is JAX,
    which would compile a program for each shape: seconds, for values that are mostly
    overwritten. They are still a function of Keras's seeds.
    """
    import keras

    if keras.config.backend() != "jax":
        yield
        return
    from keras.src.backend.common.stateless_scope import in_stateless_scope
    from keras.src.backend.jax import core
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
        """Use Keras's own function while a layer's `call` is traced."""
        return lambda *shape, **how: (theirs if in_stateless_scope() else ours)(
            *shape, **how
        )

    ours = {one.__name__: chosen(one, getattr(drawn, one.__name__))
            for one in (uniform, normal, truncated_normal)}  # fmt: skip
    # A large weight that is split over devices Keras would draw within a program.
    with replaced(drawn, **ours), replaced(core, should_shard_at_init=lambda *_: False):
        yield


@contextlib.contextmanager
def fresh_names():
    """Number layers without a name from one inside the block, so that names of weights
    are those of a new process; afterwards Keras's counters are restored."""
    from keras.src.backend.common import global_state

    counted = global_state.get_global_attribute("object_name_uids")
    name_afresh()
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counted)


def named_so_far() -> list[str]:
    """Return the kinds of layers and other objects that Keras has named, as `dense`:
    their initial weights are drawn, or the seeds of these."""
    if "keras" not in sys.modules:
        return []
    from keras.src.backend.common import global_state

    return list(global_state.get_global_attribute("object_name_uids") or ())


def name_afresh() -> None:
    """Number layers without a name from one again."""
    from keras.src.utils import naming

    naming.reset_uids()


@contextlib.contextmanager
def at_most(most: int, fault: str):
    """Refuse variables of more than so many bytes in all, created inside the block,
    before they are allocated.

    Raises:
        GpuzooError: `fault`, with the number of bytes.
    """
    from keras.src.backend.common import variables

    total, base = 0, variables.Variable
    real = base.__init__

    def create(self, initializer, shape=None, dtype=None, *rest, **named):
        nonlocal total
        if shape is not None:
            size = np.dtype("float64" if dtype == "float64" else "float32").itemsize
            total += size * math.prod(int(side) for side in shape)
            if total > most:
                raise GpuzooError(
                    f"{fault}: it has more than {most:,} bytes of weights"
                )
        real(self, initializer, shape, dtype, *rest, **named)

    with replaced(base, __init__=create):
        yield


@contextlib.contextmanager
def in_float32():
    """Build layers in float32 inside the block, whatever the run's precision."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def backend_of_keras() -> str:
    """Return the backend of Keras, in a process that gpuzoo has not set up, too."""
    import keras

    return keras.config.backend()


def layers_policy():
    """Return the dtype policy of new layers: the run's precision, or float32 inside
    `in_float32`."""
    import keras

    return keras.config.dtype_policy()


@contextlib.contextmanager
def whole_tracebacks():
    """Keep Keras's own frames in tracebacks, which show the layer that failed."""
    import keras

    filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtered:
            keras.config.enable_traceback_filtering()


# --- the graph of a functional model -------------------------------------------------


def graph_of(model):
    """Return the functional model inside a built Sequential; any other model is its own
    graph."""
    import keras

    return model._functional if isinstance(model, keras.Sequential) else model


def nodes_of(graph) -> list:
    """Return the nodes (calls of operations) of a graph in the order of computation.

    `keras.Function.operations` has each operation only once.
    """
    depths = graph._nodes_by_depth
    return [node for depth in sorted(depths, reverse=True) for node in depths[depth]]


def nodes_of_operation(operation) -> list:
    """Return all calls of an operation, in any graph."""
    return operation._inbound_nodes


def origin_of(tensor) -> tuple:
    """Return (operation, node, number of the output) that give a symbolic tensor."""
    operation, number, place = tensor._keras_history
    return operation, operation._inbound_nodes[number], place


# --- optimizers, losses and metrics --------------------------------------------------


def compile_arguments(model) -> dict:
    """Return the arguments of `compile()` as objects.

    `get_compile_config()` serializes them: a user's function looks like Keras's.
    """
    return model._compile_config.config


def given_learning_rate(optimizer):
    """Return the variable, schedule or function; `optimizer.learning_rate` is its value
    at the current step."""
    return getattr(optimizer, "_learning_rate", None)


def decays(optimizer, variable) -> bool:
    """Return whether weight decay applies to a variable.

    `get_config()` does not have what `exclude_from_weight_decay` excludes.
    """
    return optimizer._use_weight_decay(variable)


def list_all_variables(optimizer) -> None:
    """Add to `optimizer.variables` what Keras leaves out under loss scaling, a product
    of Nadam's: `stateless_apply` drops new values of variables that are not listed."""
    import keras

    inner = getattr(optimizer, "inner_optimizer", optimizer)
    listed = {id(variable) for variable in inner.variables}
    for one in list(vars(inner).values()):
        if isinstance(one, keras.Variable) and id(one) not in listed:
            inner._track_variable(one)


def moving_averages(optimizer) -> list[tuple]:
    """Return (weight, its moving average) of an optimizer with `use_ema`.

    Keras's own `finalize_variable_values` overwrites the weights for good.
    """
    kept = optimizer._model_variables_moving_average
    return list(zip(optimizer._trainable_variables, kept, strict=True))


def function_arguments(loss_or_metric) -> dict:
    """Return what a loss or metric of Keras passes to its function, such as `delta`;
    some leave it out of `get_config()`."""
    return getattr(loss_or_metric, "_fn_kwargs", {})
