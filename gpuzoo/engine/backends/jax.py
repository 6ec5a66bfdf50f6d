"""Steps on JAX: as tensorflow.py, as pure functions of the variables."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras.src.backend.common.stateless_scope import get_stateless_scope

from gpuzoo.engine.backends import (
    compared_jax,
    missing_kernels,
    pooling,
    portable,
    processes,
    rnn,
    shards,
    triton,
)
from gpuzoo.engine.backends.determinism import refuse_variable
from gpuzoo.errors import GpuzooError
from gpuzoo.keras_layers import layers_of
from gpuzoo.runtime import environment, split
from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime
from gpuzoo.runtime.portable import LEVEL


class JaxBackend:
    """The same steps as pure functions of the values of the variables.

    The stateful code of a task is traced under `keras.StatelessScope`: variables that
    it reads become arguments of the compiled function, those it writes results.
    """

    apply_adam = None
    recompilations = 1  # see TensorFlowBackend

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.device = jax.local_devices(backend=runtime.device)[0]
        self.processes = processes.Processes()
        self._variables: list[keras.Variable] = []

    @property
    def split(self) -> bool:
        """Whether weights are split over several devices."""
        return self.runtime.model_devices > 1

    def put(self, array: np.ndarray):
        """Return the array on the device, or on each over which weights are split."""
        return jax.device_put(array, split.copies() if self.split else self.device)

    def take(self, arrays: dict, indices) -> dict:
        """Return the examples of one batch, gathered on the device."""
        return {
            name: jnp.take(array, indices, axis=0) for name, array in arrays.items()
        }

    def seed_state(self, key: int, counter):
        """Return the state of a Keras seed generator for (key, counter)."""
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

    def input_gradient(self, function: Callable, inputs):
        """Return the gradient of `function(inputs)`, a scalar, by `inputs`; what the
        function writes into variables is dropped."""
        outer = get_stateless_scope()
        mapping = [(v, _current(outer, v)) for v in self._variables]

        def pure(inputs):
            with keras.StatelessScope(mapping):
                return function(inputs)

        return jax.grad(pure)(inputs)

    def dense(self, gradient):
        """See `TensorFlowBackend.dense`."""
        return gradient

    def apply(self, optimizer, gradients, variables: list[keras.Variable]) -> None:
        """Update the variables by the optimizer, once."""
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
        """Whether steps are a loop on the device; on a CPU, convolutions in a loop are
        many times slower."""
        return self.runtime.device != "cpu"

    def compile_steps(
        self,
        body: Callable[[dict], dict],
        feed: dict,
        variables: list[keras.Variable],
    ) -> Callable:
        """See `TensorFlowBackend.compile_steps`.

        One program does every step of a run, however they are split into calls: a loop
        with the number of the feed's steps as an argument, or the single step. The
        attribute `cost` of the returned function is described in `_cost`.
        """
        program, step, most = self.program(body, feed, variables)
        if self.runtime.level == LEVEL:
            part = {name: _filled(a[:most], most) for name, a in feed.items()}
            values = [variable.value for variable in variables]
            compared_jax.check(lambda: program.trace(values, part, most).jaxpr)
        called = triton.called(program, **self._jitted(variables))

        def call(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            values, parts = [variable.value for variable in variables], []
            for first in range(0, len(next(iter(feed.values()))), most):
                part = {name: a[first : first + most] for name, a in feed.items()}
                count = len(next(iter(part.values())))
                part = {name: _filled(array, most) for name, array in part.items()}
                values, outputs = called(values, part, count)
                if count < most:  # the last call is shorter
                    outputs = jax.tree.map(lambda x, n=count: x[:n], outputs)
                parts.append(outputs)
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            # All steps are queued on the device before the first result is awaited.
            parts = jax.device_get(parts)
            return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

        entry = _shapes(feed)
        cost = lambda: _cost(step, [v.value for v in variables], entry)  # noqa: E731
        call.cost = cost  # type: ignore[attr-defined]
        return call

    def program(self, body: Callable, feed: dict, variables: list[keras.Variable]):
        """Return the jitted loop of `compile_steps`, a function of the variables'
        values, a feed and the number of its steps; one step of it, to be traced; and
        the most steps of one call."""
        most = len(next(iter(feed.values()))) if self.looped else 1

        step = self.traced(body, variables)

        def one(values, feed, count):
            values, outputs = step(values, _entry(feed, 0))
            return values, jax.tree.map(lambda x: x[None], outputs)

        def several(values, feed, count):
            def do(i, state):
                values, outputs = step(state[0], _entry(feed, i))
                return values, jax.tree.map(
                    lambda x, new: lax.dynamic_update_index_in_dim(x, new, i, 0),
                    state[1], outputs,
                )  # fmt: skip

            _, outputs = jax.eval_shape(step, values, _entry(feed, 0))
            outputs = jax.tree.map(
                lambda x: jnp.zeros((most, *x.shape), x.dtype), outputs
            )
            return lax.fori_loop(0, count, do, (values, outputs))

        function = several if self.looped else one
        return jax.jit(function, **self._jitted(variables)), step, most

    def _jitted(self, variables: list[keras.Variable]) -> dict:
        """Return the options of `jax.jit` for a program of steps."""
        options: dict = {"donate_argnums": 0}
        if self.split:  # else XLA would choose where the new values are
            results = split.placements(variables), split.copies()
            options["out_shardings"] = results
        return options

    def traced(self, body: Callable, variables: list[keras.Variable]) -> Callable:
        """Return one step as a pure function: values of the variables and an entry of
        the feed -> new values and outputs."""

        def step(values, entry):
            self._variables = variables
            mapping = list(zip(variables, values, strict=True))
            scope = keras.StatelessScope(state_mapping=mapping)
            with scope, repeatable_operations(self.runtime), rnn.gates_together():
                outputs = body(entry)
            _check_known(scope, variables)
            return [_current(scope, v) for v in variables], outputs

        return step

    def sharded(self, count: int) -> shards.Shards:
        """Return the backend for steps of a batch in so many shards."""
        here = self.runtime.devices // self.runtime.processes
        devices = jax.local_devices(backend=self.runtime.device)[:here]
        return shards.Shards(self, count, devices)

    def averaging(self) -> shards.Averaging:
        """Return the backend for the step of one shard."""
        return shards.Averaging(self)

    def read(self, variables: list[keras.Variable]) -> list[np.ndarray]:
        """Return the values of variables, copied to the host."""
        return [np.array(variable.value) for variable in variables]

    def synchronise(self) -> None:
        """Wait until the device has finished all queued work."""
        jax.effects_barrier()
        jax.device_put(np.zeros(()), self.device).block_until_ready()

    def peak_device_bytes(self) -> int | None:
        """Return the peak GPU memory in bytes; None on a CPU."""
        stats = self.device.memory_stats() if self.runtime.device != "cpu" else None
        return stats["peak_bytes_in_use"] if stats else None

    def memory_bytes(self) -> int | None:
        """Return the memory of the device in bytes; None if unknown."""
        stats = self.device.memory_stats() if self.runtime.device != "cpu" else None
        return stats["bytes_limit"] if stats else environment.memory_bytes()


@contextlib.contextmanager
def repeatable_operations(runtime: Runtime):
    """Replace within the block what would not repeat, what JAX cannot compute, and, at
    level portable, what follows the processor."""
    kernels = missing_kernels.for_runtime(runtime)
    with pooling.repeatable(runtime), kernels, portable.exact(runtime):
        yield


def in_fit(runtime: Runtime):
    """Return a block in which what an ordinary Keras `fit` would compute in an order
    that varies is replaced."""
    return pooling.repeatable(runtime)


def refuse_float64(model: keras.Model, name: str) -> None:
    """Raise GpuzooError if a layer has dtype float64, which JAX computes in float32."""
    if jax.config.jax_enable_x64:
        return
    for layer in layers_of(model, include_self=False):
        policy = layer.dtype_policy
        if "float64" in (policy.compute_dtype, policy.variable_dtype):
            raise GpuzooError(
                f"model {name!r}: layer {layer.name!r} ({type(layer).__name__}) has "
                "dtype float64, which JAX would compute in float32; use --backend "
                "tensorflow, or give the layer dtype='float32'"
            )


def _shapes(feed: dict) -> dict:
    """Return the shapes of one step's entry."""
    return {n: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for n, a in feed.items()}


def _cost(step: Callable, values: list, entry: dict) -> dict[str, float]:
    """Return the cost of one step: `flops`, floating-point operations as traced, and
    `bytes`, read and written after XLA's optimisation. It is recompiled for this."""
    lowered = _lower(step, values, entry)
    # Fusion stays the same; the program is never run.
    cost = lowered.compile({"xla_backend_optimization_level": 0}).cost_analysis()
    flops = lowered.cost_analysis()["flops"]
    return {"flops": float(flops), "bytes": float(cost["bytes accessed"])}


def flops_of(step: Callable, values: list, feed: dict) -> float:
    """Return the floating-point operations of one step, as traced."""
    return float(_lower(step, values, _shapes(feed)).cost_analysis()["flops"])


def _lower(step: Callable, values: list, entry: dict):
    with written_out():
        # Not of `step` itself: its trace with loops may be cached.
        return jax.jit(lambda *given: step(*given)).lower(values, entry)


@contextlib.contextmanager
def written_out():
    """Unroll scans: XLA counts the body of a loop once, however often it runs."""
    real = lax.scan

    def scan(*args, **options):
        return real(*args, **{**options, "unroll": True})

    with replaced(lax, scan=scan):
        yield


def _entry(feed: dict, i) -> dict:
    """Return the entry of one step."""
    take = lax.dynamic_index_in_dim
    return {name: take(array, i, keepdims=False) for name, array in feed.items()}


def _filled(array: np.ndarray, count: int) -> np.ndarray:
    """Pad with zeros to `count` entries."""
    if len(array) == count:
        return array
    filled = np.zeros((count, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled


def _check_known(scope, variables: list[keras.Variable]) -> None:
    """Raise GpuzooError if a step has written a variable that it does not know."""
    known = {id(variable) for variable in variables}
    if any(key not in known for key in scope.state_mapping):
        refuse_variable()


def _current(scope, variable: keras.Variable):
    """Return the value of a variable in the scope, or its own."""
    value = scope.get_current_value(variable) if scope else None
    return variable._value if value is None else value
