"""Keras's Adam and Muon with another update step.

They read and replace private methods and attributes of Keras's optimizers;
tests/test_private_doors.py fails when a release of Keras changes one.
"""

import math

import keras
import numpy as np


def fused_adam(backend) -> type[keras.optimizers.Adam]:
    """Return Keras's Adam with one fused operation per weight instead of a dozen, if
    the backend has one. Same state, same formula."""
    if backend.apply_adam is None:
        return keras.optimizers.Adam

    class Adam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            step = keras.ops.cast(self.iterations + 1, "float32")
            beta_1, beta_2 = np.float32(self.beta_1), np.float32(self.beta_2)
            index = self._get_variable_index(variable)
            backend.apply_adam(
                variable,
                self._momentums[index],
                self._velocities[index],
                gradient,
                learning_rate=keras.ops.cast(learning_rate, "float32"),
                beta_1=beta_1,
                beta_2=beta_2,
                beta_1_power=keras.ops.power(beta_1, step),
                beta_2_power=keras.ops.power(beta_2, step),
                epsilon=np.float32(self.epsilon),
            )

    return Adam


class Muon(keras.optimizers.Muon):
    """Keras's Muon (Jordan et al. 2024; Liu et al., arXiv 2502.16982), which makes the
    updates of matrices nearly orthogonal, for kernels of any number of axes: all but
    the last are flattened to the rows of a matrix, as in the CIFAR-10 speed runs.

    All other weights use Adam with the same learning rate: biases, scales, and the last
    kernel of the model, which gives the logits.
    """

    def build(self, variables: list[keras.Variable]) -> None:
        """Build the state for the weights of a model, in the order of its layers."""
        # By place: paths are not unique if nested models have layers of one name.
        kernels = [at for at, one in enumerate(variables) if len(one.shape) > 1]
        self._turned = set(kernels[:-1])
        super().build(variables)

    def _should_use_adamw(self, variable) -> bool:
        return self._get_variable_index(variable) not in self._turned

    def _muon_update_step(self, gradient, variable, lr, m) -> None:
        gradient = keras.ops.cast(gradient, variable.dtype)
        self.assign_add(m, gradient + m * (self.momentum - 1))
        ahead = gradient + self.momentum * m
        rows = math.prod(variable.shape[:-1])
        ahead = keras.ops.reshape(ahead, (rows, variable.shape[-1]))
        update = self.zeropower_via_newtonschulz5(ahead, self.ns_steps)
        update = self.lr_adjust(keras.ops.cast(lr, variable.dtype) * update)
        self.assign_sub(variable, keras.ops.reshape(update, variable.shape))
