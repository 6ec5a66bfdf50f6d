"""Steps on JAX: what backend.py offers, as pure functions of the variables' values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from gpuzoo import machine
from gpuzoo.engine import recurrent
from gpuzoo.engine.unrepeatable import check_jax
from gpuzoo.runtime import Runtime


class JaxBackend:
    """The same steps as pure functions of the values of the variables.

    The stateful code of a task is traced under `keras.StatelessScope`: what it reads
    becomes an argument of the compiled function and what it writes a result.
    """

    apply_adam = None

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.device = jax.devices(runtime.device)[0]
        self._variables: list[keras.Variable] = []

    def put(self, array: np.ndarray):
        """The array on the device."""
        return jax.device_put(array, self.device)

    def take(self, arrays: dict, indices) -> dict:
        """The examples of one batch, gathered on the device."""
        return {
            name: jnp.take(array, indices, axis=0) for name, array in arrays.items()
        }

    def seed_state(self, key: int, counter):
        """The value of a Keras seed generator that draws at (key, counter)."""
        return jnp.stack([jnp.uint32(key), counter.astype(jnp.uint32)])

    def value_and_grad(self, function: Callable, variables: list[keras.Variable]):
        """`function()` -> (loss, rest); returns (loss, rest), gradients."""
        outer = get_stateless_scope()
        trained = {id(variable) for variable in variables}
        others = [v for v in self._variables if id(v) not in trained]

        def pure(values):
            mapping = [*zip(variables, values, strict=True)]
            mapping += [(v, _current(outer, v)) for v in others]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                loss, rest = function()
            return loss, (rest, [_current(scope, v) for v in others])

        values = [_current(outer, v) for v in variables]
        (loss, (rest, written)), gradients = jax.value_and_grad(pure, has_aux=True)(
            values
        )
        for update in zip(others, written, strict=True):
            outer.add_update(update)
        return (loss, rest), gradients

    def apply(self, optimizer, gradients, variables: list[keras.Variable]) -> None:
        """One update of the variables by the optimizer."""
        # Not optimizer.apply(): loss scaling writes variables inside a condition.
        scope = get_stateless_scope()
        values = [_current(scope, v) for v in variables]
        slots = [_current(scope, v) for v in optimizer.variables]
        values, slots = optimizer.stateless_apply(slots, gradients, values)
        for update in zip(variables, values, strict=True):
            scope.add_update(update)
        for update in zip(optimizer.variables, slots, strict=True):
            scope.add_update(update)

    def compile_steps(
        self,
        body: Callable[[dict], dict],
        feed: dict,
        variables: list[keras.Variable],
    ) -> Callable:
        """See `TensorFlowBackend.compile_steps`.

        XLA compiles the single step here too, so that every step of every run is the
        same program, wherever the calls are cut. (A loop compiled around it would be
        another program for each number of steps, and makes convolutions on a CPU many
        times slower.)
        """

        def step(values, entry):
            self._variables = variables
            mapping = list(zip(variables, values, strict=True))
            scope = keras.StatelessScope(state_mapping=mapping)
            with scope, recurrent.gates_together():
                outputs = body(entry)
            return [_current(scope, v) for v in variables], outputs

        program = jax.jit(step, donate_argnums=0)
        if self.runtime.device != "cpu":
            values = [variable.value for variable in variables]
            lowered = program.lower(values, _entry(feed, 0))
            check_jax(lowered.as_text(), self.runtime)

        def call(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            values, parts = [variable.value for variable in variables], []
            for i in range(len(next(iter(feed.values())))):
                values, outputs = program(values, _entry(feed, i))
                parts.append(outputs)
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            # The device has all of the steps before the first result is waited for.
            parts = jax.device_get(parts)
            return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)

        return call

    def read(self, variables: list[keras.Variable]) -> list[np.ndarray]:
        """The values of variables, copied to the host."""
        return [np.array(variable.value) for variable in variables]

    def synchronise(self) -> None:
        """Wait until the device has done everything it was given."""
        jax.effects_barrier()
        jax.device_put(np.zeros(()), self.device).block_until_ready()

    def peak_device_bytes(self) -> int | None:
        """The most GPU memory held at once; None on a CPU."""
        stats = self.device.memory_stats() if self.runtime.device != "cpu" else None
        return stats["peak_bytes_in_use"] if stats else None

    def memory_bytes(self) -> int | None:
        """Memory that the device's arrays may fill; None if it is not known."""
        stats = self.device.memory_stats() if self.runtime.device != "cpu" else None
        return stats["bytes_limit"] if stats else machine.memory_bytes()


def _entry(feed: dict[str, np.ndarray], step: int) -> dict:
    return {name: array[step] for name, array in feed.items()}


def _current(scope, variable: keras.Variable):
    """The value of a variable as the scope has it, or its own."""
    value = scope.get_current_value(variable) if scope else None
    return variable._value if value is None else value
