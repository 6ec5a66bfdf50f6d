"""Steps on JAX: what tensorflow.py has, as pure functions of the variables."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras.src.backend.common.stateless_scope import get_stateless_scope

from gpuzoo.engine.backends import pooling, rnn
from gpuzoo.engine.backends.determinism import refuse_variable
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import environment
from gpuzoo.runtime.options import Runtime


class JaxBackend:
    """The same steps as pure functions of the values of the variables.

    The stateful code of a task is traced under `keras.StatelessScope`: what it reads
    becomes an argument of the compiled function and what it writes a result.
    """

    apply_adam = None
    recompilations = 1  # see TensorFlowBackend

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
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                given = [_current(scope, v) for v in variables]
                loss, rest = function()
            for variable, value in zip(variables, given, strict=True):
                if _current(scope, variable) is not value:
                    raise GpuzooError(
                        f"weight {variable.path!r} is trained, and a layer writes into "
                        "it in its call, which JAX would drop; use --backend tensorflow"
                    )
            _check_known(scope, [*variables, *others])
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

    @property
    def looped(self) -> bool:
        """Whether the device goes from step to step by itself; in a loop on a CPU,
        convolutions are many times slower."""
        return self.runtime.device != "cpu"

    def compile_steps(
        self,
        body: Callable[[dict], dict],
        feed: dict,
        variables: list[keras.Variable],
    ) -> Callable:
        """See `TensorFlowBackend.compile_steps`.

        One program does every step of a run, wherever its calls are cut: a loop that is
        told how many of the feed's steps to do, or the single step. The `cost` of the
        function that is returned tells what XLA counts in a step, see `_cost`.
        """
        most = len(next(iter(feed.values()))) if self.looped else 1
        entry = {n: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for n, a in feed.items()}

        def step(values, entry):
            self._variables = variables
            mapping = list(zip(variables, values, strict=True))
            scope = keras.StatelessScope(state_mapping=mapping)
            with scope, pooling.repeatable(self.runtime), rnn.gates_together():
                outputs = body(entry)
            _check_known(scope, variables)
            return [_current(scope, v) for v in variables], outputs

        def one(values, feed, count):
            values, outputs = step(values, _entry(feed, 0))
            return values, jax.tree.map(lambda told: told[None], outputs)

        def several(values, feed, count):
            def do(i, state):
                values, outputs = step(state[0], _entry(feed, i))
                return values, jax.tree.map(
                    lambda told, new: lax.dynamic_update_index_in_dim(told, new, i, 0),
                    state[1], outputs,
                )  # fmt: skip

            _, told = jax.eval_shape(step, values, _entry(feed, 0))
            told = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), told)
            return lax.fori_loop(0, count, do, (values, told))

        program = jax.jit(several if self.looped else one, donate_argnums=0)

        def call(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            values, parts = [variable.value for variable in variables], []
            for first in range(0, len(next(iter(feed.values()))), most):
                part = {name: a[first : first + most] for name, a in feed.items()}
                count = len(next(iter(part.values())))
                part = {name: _filled(array, most) for name, array in part.items()}
                values, outputs = program(values, part, count)
                if count < most:  # each cut is a call of its own
                    outputs = jax.tree.map(lambda told, n=count: told[:n], outputs)
                parts.append(outputs)
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            # The device has all of the steps before the first result is waited for.
            parts = jax.device_get(parts)
            return jax.tree.map(lambda *told: np.concatenate(told), *parts)

        call.cost = lambda: _cost(step, [v.value for v in variables], entry)
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
        return stats["bytes_limit"] if stats else environment.memory_bytes()


def _cost(step: Callable, values: list, entry: dict) -> dict[str, float]:
    """What one step takes: `flops`, floating-point operations of what was traced, and
    `bytes`, read and written by what XLA made of it. It is compiled anew for this."""
    with _written_out():
        lowered = jax.jit(step).lower(values, entry)
    # What is fused stays the same; the program is never run.
    told = lowered.compile({"xla_backend_optimization_level": 0}).cost_analysis()
    flops = lowered.cost_analysis()["flops"]
    return {"flops": float(flops), "bytes": float(told["bytes accessed"])}


@contextlib.contextmanager
def _written_out():
    """Scans become their steps one after another: XLA counts the body of a loop once,
    however often it is done."""
    real = lax.scan

    def scan(*args, **options):
        return real(*args, **{**options, "unroll": True})

    lax.scan = scan
    try:
        yield
    finally:
        lax.scan = real


def _entry(feed: dict, i) -> dict:
    """What one step is given."""
    take = lax.dynamic_index_in_dim
    return {name: take(array, i, keepdims=False) for name, array in feed.items()}


def _filled(array: np.ndarray, count: int) -> np.ndarray:
    """The entries, and zeros after them."""
    if len(array) == count:
        return array
    filled = np.zeros((count, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled


def _check_known(scope, variables: list[keras.Variable]) -> None:
    """Raises GpuzooError if a step has written what is none of its variables."""
    known = {id(variable) for variable in variables}
    if any(key not in known for key in scope.state_mapping):
        refuse_variable()


def _current(scope, variable: keras.Variable):
    """The value of a variable as the scope has it, or its own."""
    value = scope.get_current_value(variable) if scope else None
    return variable._value if value is None else value
