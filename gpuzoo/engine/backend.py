"""The only file that knows one backend from another.

A backend offers: arrays on the device, values and gradients of a function over Keras
variables, and a compiled call that does many steps at once. Tasks and the loop are
written against these and contain no TensorFlow.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from gpuzoo.runtime import Runtime


class TensorFlowBackend:
    """Steps over `tf.Variable`s inside one `tf.function`.

    XLA compiles the single step, inside an ordinary loop over the steps: with op
    determinism as well, which stock Keras does not offer.
    """

    def __init__(self, runtime: Runtime):
        self.xla = runtime.xla
        self.device = "/GPU:0" if runtime.device == "gpu" else "/CPU:0"

    def put(self, array: np.ndarray) -> tf.Tensor:
        """The array on the device."""
        with tf.device(self.device):
            return tf.constant(array)

    def take(self, arrays: dict[str, tf.Tensor], indices) -> dict[str, tf.Tensor]:
        """The examples of one batch, gathered on the device."""
        return {name: tf.gather(array, indices) for name, array in arrays.items()}

    def seed_state(self, key: int, counter):
        """The value of a Keras seed generator that draws at (key, counter)."""
        return tf.stack([tf.constant(key, tf.int64), tf.cast(counter, tf.int64)])

    def value_and_grad(self, function: Callable, variables: list[keras.Variable]):
        """`function()` -> (loss, rest); returns (loss, rest), gradients."""
        with tf.GradientTape() as tape:
            loss, rest = function()
        return (loss, rest), tape.gradient(loss, [v.value for v in variables])

    def compile_steps(self, body: Callable[[dict], dict], feed: dict) -> Callable:
        """Compile `body`, which does one step, into a call that does many.

        Args:
            body: takes one entry of each array of the feed, returns a dict of tensors.
            feed: example of a feed; arrays of any leading size, the number of steps.

        Returns:
            A function from a feed to a dict of arrays on the host, stacked over the
            steps. It is traced once for any number of steps.
        """
        signature = {
            name: tf.TensorSpec((None, *array.shape[1:]), array.dtype)
            for name, array in feed.items()
        }
        entry = {
            name: tf.TensorSpec(spec.shape[1:], spec.dtype)
            for name, spec in signature.items()
        }
        step = tf.function(
            body, input_signature=[entry], jit_compile=self.xla, autograph=False
        )
        outputs = step.get_concrete_function().structured_outputs
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
            with tf.device(self.device):
                outputs = many({name: tf.constant(a) for name, a in feed.items()})
            return {name: tensor.numpy() for name, tensor in outputs.items()}

        return call

    def read(self, variables: list[keras.Variable]) -> list[np.ndarray]:
        """The values of variables, copied to the host."""
        return [np.array(variable.numpy()) for variable in variables]

    def apply_adam(self, variable, momentum, velocity, gradient, **scalars) -> None:
        """One fused Adam update in place (Kingma and Ba, arXiv 1412.6980)."""
        # Keras hands the optimizer the tf.Variable inside its own variable.
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
        """Wait until the device has done everything it was given."""
        if self.device != "/CPU:0":
            tf.test.experimental.sync_devices()

    def peak_device_bytes(self) -> int | None:
        """The most GPU memory held at once; None on a CPU."""
        if self.device == "/CPU:0":
            return None
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def get(runtime: Runtime) -> TensorFlowBackend:
    return TensorFlowBackend(runtime)
