"""Steps on TensorFlow; those on JAX are in jax.py."""

import contextlib
import functools
import logging
import re
from collections.abc import Callable

import keras
import numpy as np
from keras.src.trainers import trainer

from gpuzoo.engine.backends import (
    bias_gradients,
    missing_kernels,
    pooling,
    portable,
    resizing,
    rnn,
)
from gpuzoo.engine.backends.determinism import (
    check_tensorflow,
    check_written,
    make_global_generator,
)
from gpuzoo.errors import GpuzooError
from gpuzoo.keras_layers import layers_of
from gpuzoo.runtime import environment
from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.client import device_lib
    from tensorflow.python.ops import gen_math_ops


class TensorFlowBackend:
    """Steps over `tf.Variable`s inside one `tf.function`.

    XLA compiles the single step, inside an ordinary loop over the steps: with op
    determinism as well, which stock Keras does not offer.
    """

    recompilations = 3
    """How often level strict recompiles the step. TensorFlow's passes may order a graph
    by memory addresses, and a single recompilation often gives the same order."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.xla = runtime.xla
        self.device = "/GPU:0" if runtime.device == "gpu" else "/CPU:0"
        on_threads = runtime.device == "cpu" and not runtime.xla
        self.parts = runtime.threads if on_threads else 1

    def put(self, array: np.ndarray):
        """Return the array on the device."""
        with tf.device(self.device):
            return tf.constant(array)

    def take(self, arrays: dict, indices) -> dict:
        """Return the examples of one batch, gathered on the device."""
        return {name: tf.gather(array, indices) for name, array in arrays.items()}

    def seed_state(self, key: int, counter):
        """Return the state of a Keras seed generator for (key, counter)."""
        return tf.stack([tf.constant(key, tf.int64), tf.cast(counter, tf.int64)])

    def value_and_grad(self, function: Callable, variables: list[keras.Variable]):
        """`function()` -> (loss, rest); returns (loss, rest), gradients."""
        with tf.GradientTape() as tape:
            loss, rest = function()
        with _added_in_pairs():
            gradients = tape.gradient(loss, [v.value for v in variables])
        # No update before everything is computed: if a result does not depend on a
        # gradient, as with the Wasserstein loss, it could otherwise be computed after
        # the update, from the new weights.
        computed = tf.nest.flatten((loss, rest, gradients))
        with tf.control_dependencies([one for one in computed if one is not None]):
            gradients = [g if g is None else tf.identity(g) for g in gradients]
        return (loss, rest), gradients

    def input_gradient(self, function: Callable, inputs):
        """Return the gradient of `function(inputs)`, a scalar, by `inputs`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            value = function(inputs)
        with _added_in_pairs():
            return tape.gradient(
                value, inputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )

    def dense(self, gradient):
        """Return a gradient as a tensor: TensorFlow gives that of an embedding as the
        rows that were looked up."""
        return tf.convert_to_tensor(gradient)

    def apply(self, optimizer, gradients, variables: list[keras.Variable]) -> None:
        """Update the variables by the optimizer, once."""
        optimizer.apply(gradients, variables)

    def compile_steps(
        self,
        body: Callable[[dict], dict],
        feed: dict,
        variables: list[keras.Variable],
    ) -> Callable:
        """Compile `body`, which does one step, into a call that does many.

        Args:
            body: takes one entry of each array of the feed, returns a dict of tensors.
            feed: example of a feed; arrays with a leading axis for the steps. JAX gives
                the device as many steps at a time.
            variables: everything that `body` reads or writes.

        Returns:
            A function from a feed to a dict of arrays on the host, stacked over the
            steps. It is traced once for feeds of any number of steps.
        """
        signature = {
            name: tf.TensorSpec((None, *array.shape[1:]), array.dtype)
            for name, array in feed.items()
        }
        entry = {
            name: tf.TensorSpec(spec.shape[1:], spec.dtype)
            for name, spec in signature.items()
        }
        # Several trainings in one process are no reason for a warning.
        tf.get_logger().addFilter(_not_of_retracing)
        step = tf.function(
            body, input_signature=[entry], jit_compile=self.xla, autograph=False
        )
        if self.runtime.deterministic:
            make_global_generator()
        with self.replacements():
            traced = step.get_concrete_function()
        check_tensorflow(traced.graph, self.runtime)
        check_written(traced.graph, [variable.value for variable in variables])
        outputs = traced.structured_outputs
        out_signature = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), outputs
        )

        @tf.function(input_signature=[signature], autograph=False)
        def many(feed):
            # One step after another: the variables are state.
            return tf.map_fn(
                step, feed, fn_output_signature=out_signature, parallel_iterations=1
            )

        def call(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with tf.device(self.device), _readable(self.xla):
                outputs = many({name: tf.constant(a) for name, a in feed.items()})
            return {name: tensor.numpy() for name, tensor in outputs.items()}

        call.graph = traced.graph  # type: ignore[attr-defined]
        return call

    @contextlib.contextmanager
    def replacements(self):
        """Trace a step in the block with gpuzoo's replacements of operations."""
        kept = repeatable_operations(self.runtime)
        rnns = rnn.gates_together(), rnn.split_over(self.parts)
        kernels = missing_kernels.for_runtime(self.runtime)
        with kept, kernels, rnns[0], rnns[1]:
            yield

    def read(self, variables: list[keras.Variable]) -> list[np.ndarray]:
        """Return the values of variables, copied to the host."""
        return [np.array(variable.numpy()) for variable in variables]

    def apply_adam(self, variable, momentum, velocity, gradient, **scalars) -> None:
        """Do one fused Adam update in place (Kingma and Ba, arXiv 1412.6980)."""
        # Keras hands the optimizer the tf.Variable inside its own variable.
        scalars = {k: tf.cast(value, variable.dtype) for k, value in scalars.items()}
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.value.handle,
            v=velocity.value.handle,
            beta1_power=scalars["beta_1_power"],
            beta2_power=scalars["beta_2_power"],
            lr=scalars["learning_rate"],
            beta1=scalars["beta_1"],
            beta2=scalars["beta_2"],
            epsilon=scalars["epsilon"],
            grad=gradient,
        )

    def synchronise(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device != "/CPU:0":
            tf.test.experimental.sync_devices()

    def peak_device_bytes(self) -> int | None:
        """Return the peak GPU memory in bytes; None on a CPU."""
        if self.device == "/CPU:0":
            return None
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]

    def memory_bytes(self) -> int | None:
        """Return the memory of the device in bytes; None if unknown."""
        if self.device == "/CPU:0":
            return environment.memory_bytes()
        found = {one.name: one.memory_limit for one in device_lib.list_local_devices()}
        return found["/device:GPU:0"]


@contextlib.contextmanager
def repeatable_operations(runtime: Runtime):
    """Replace within the block what would not repeat: bias gradients that oneDNN may
    confuse, gradients that XLA or a GPU has only in an order that varies, and, at level
    portable, approximations of the processor."""
    merges = runtime.device == "cpu" and not runtime.xla
    apart = bias_gradients.kept_apart() if merges else contextlib.nullcontext()
    pools, sizes = pooling.repeatable(runtime), resizing.repeatable(runtime)
    with apart, pools, sizes, portable.exact(runtime):
        yield


@contextlib.contextmanager
def in_fit(runtime: Runtime):
    """Replace within the block what an ordinary Keras `fit` would compute in an order
    that varies, and let it compile with XLA, or not, as the runtime says."""

    def resolved(self) -> bool:
        return runtime.xla and trainer.model_supports_jit(self)

    def supports_jit(model) -> bool:
        # Keras refuses XLA with deterministic operations, as XLA lacks the gradients
        # that are replaced here.
        return all(layer.supports_jit for layer in layers_of(model))

    kept, pairs = repeatable_operations(runtime), _added_in_pairs()
    auto = replaced(trainer.Trainer, _resolve_auto_jit_compile=resolved)
    with kept, pairs, auto, contextlib.ExitStack() as stack:
        if runtime.xla:
            stack.enter_context(replaced(trainer, model_supports_jit=supports_jit))
            if runtime.device == "cpu":  # a fit may be compiled without XLA
                stack.enter_context(bias_gradients.kept_apart())
        yield


@contextlib.contextmanager
def _added_in_pairs():
    """Add gradients of a tensor that is used more than twice in pairs.

    AddN of three or more starts with any input whose buffer it can reuse: the order of
    the sum, and its last bits, depend on thread timing.
    """
    real = gen_math_ops.add_n

    def add_n(inputs, name=None):
        return functools.reduce(lambda a, b: real([a, b], name=name), inputs)

    with replaced(gen_math_ops, add_n=add_n):
        yield


_LACKS = re.compile(r"No registered '(\w+)' OpKernel.*?\{\{node ([^}]+)\}\}", re.S)


@contextlib.contextmanager
def _readable(xla: bool):
    """Raise in one line what XLA cannot compile."""
    try:
        yield
    except (
        tf.errors.InvalidArgumentError, tf.errors.UnimplementedError,
        tf.errors.InternalError,
    ) as error:  # fmt: skip
        if not xla:
            raise
        noise = ("Graph execution error", "Detected at", "<stack traces", "Stack trace")
        lines = [line.strip() for line in error.message.splitlines()]
        first = [x for x in lines if x and not x.startswith(noise)][0][:300]
        if lacks := _LACKS.search(error.message):
            operation, node = lacks.groups()
            layer = node.rpartition("/")[0] or node
            first = f"it has no operation {operation}, of layer {layer!r}"
        raise GpuzooError(
            f"XLA cannot compile this model: {first}; use --xla off"
        ) from error


def _not_of_retracing(record: logging.LogRecord) -> bool:
    """Whether a record of TensorFlow's log is not about tracing `compile_steps`."""
    text = record.getMessage()
    return not ("tf.function retracing" in text and "compile_steps" in text)
