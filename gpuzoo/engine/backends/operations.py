"""Do one step and look at the result of every operation in it.

The step is traced as for a training, with a few numbers about each floating-point
tensor as additional results. Loops are looked at from outside only.
"""

import contextlib
import dataclasses
import traceback
from collections.abc import Callable

import keras
import numpy as np

# Parameters of JAX's primitives that hold a function which is called once.
_INLINED = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call",
            "custom_vjp_call", "remat", "checkpoint"}  # fmt: skip
# Operations that JAX compiles for every shape, 50 ms each, and that take most of the
# time of a GAN's step if they are not done by NumPy.
_BY_NUMPY = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply,
    "div": np.divide, "neg": np.negative, "abs": np.abs, "square": np.square,
    "sqrt": np.sqrt, "max": np.maximum, "min": np.minimum,
}  # fmt: skip
_SMALLEST = 1.1754944e-38  # normal number of float32 and bfloat16
_WRITES = ("Assign", "ResourceApply", "ResourceScatter")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A floating-point result of an operation, or what a step starts with."""

    operation: str
    """Its type, such as MatMul or dot_general; empty for variables and examples."""
    scope: str
    """The name scopes in which it was traced."""
    dtype: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    """Places of its inputs in the list of all tensors."""
    frames: Callable[[], list[tuple[str, int]]]
    """Returns file and line of the Python calls that made it, the innermost last."""
    count: int = 0
    """Number of its values."""
    bad: int = 0
    """Number of those that are NaN or infinite."""
    largest: float = 0.0
    """Largest absolute value: inf, or NaN, if there are such values."""
    rows: tuple[int, ...] = ()
    """Rows of the first axis that are not finite, if that is the axis of examples."""


def observed(
    backend, body: Callable, feed: dict, variables: list, sizes: tuple[int, ...]
):
    """Compile one step so that every operation can be looked at.

    Args:
        body, feed, variables: as of `compile_steps`.
        sizes: numbers of examples of a step, and of a part of its batch.

    Returns:
        A function from the feed of one step to its results (name -> array), the tensors
        in the order of computation, and the places of results and of updated variables
        among them (name, or number of the variable -> place).
    """
    make = _on_jax if backend.runtime.backend == "jax" else _on_tensorflow
    return make(backend, body, feed, variables, sizes)


# --- TensorFlow -----------------------------------------------------------------------


def _on_tensorflow(backend, body, feed, variables, sizes: tuple[int, ...]):
    import tensorflow as tf

    tensors: list[Tensor] = []
    ends: dict = {}
    handles = {id(variable.value.handle): i for i, variable in enumerate(variables)}

    def numbers(x) -> tuple:
        axes = list(range(x.shape.rank))
        finite = tf.math.is_finite(x)
        good = tf.reduce_sum(tf.cast(finite, tf.int32), axes)
        largest = tf.cast(tf.reduce_max(tf.abs(x), axes), tf.float32)
        if axes and x.shape[0] in sizes:
            return good, largest, tf.size(x), tf.reduce_all(finite, axes[1:])
        return good, largest, tf.size(x), tf.constant([], tf.bool)

    def traced(entry):
        tensors.clear()
        ends.clear()
        results = body(entry)
        graph = tf.compat.v1.get_default_graph()
        outside = {id(inner): outer for outer, inner in graph.captures}
        places, found = {}, []
        for operation in list(graph.get_operations()):
            known = [places[x.name] for x in operation.inputs if x.name in places]
            if operation.type.startswith(_WRITES):
                number = handles.get(id(outside.get(id(operation.inputs[0]))))
                for place in known if number is not None else ():
                    ends[number] = place
            for x in operation.outputs:
                if x.dtype.is_floating and x.shape.rank is not None:
                    places[x.name] = len(tensors)
                    source = operation.type in ("Placeholder", "ReadVariableOp")
                    tensors.append(Tensor(
                        "" if source else operation.type, operation.name,
                        x.dtype.name, tuple(x.shape), tuple(known), _lines(operation),
                    ))  # fmt: skip
                    found.append(numbers(x))
        ends.update({n: places[x.name] for n, x in results.items() if x.name in places})
        return results, found

    entry = {n: tf.TensorSpec(a.shape[1:], a.dtype) for n, a in feed.items()}
    step = tf.function(
        traced, input_signature=[entry], jit_compile=backend.xla, autograph=False
    )
    with backend.replacements(), _without_grappler():
        compiled = step.get_concrete_function()

    def call(feed: dict):
        with tf.device(backend.device), _without_grappler():
            entry = {name: tf.constant(array[0]) for name, array in feed.items()}
            results, found = compiled(entry)
        results = {name: x.numpy() for name, x in results.items()}
        filled = []
        for tensor, numbers in zip(tensors, found, strict=True):
            good, largest, size, rows = (x.numpy() for x in numbers)
            bad = tuple(np.flatnonzero(~rows).tolist())
            filled.append(dataclasses.replace(
                tensor, count=int(size), bad=int(size - good), largest=float(largest),
                rows=bad,
            ))  # fmt: skip
        return results, filled, ends

    return call


@contextlib.contextmanager
def _without_grappler():
    """Run graphs in the block as they were traced: to optimize one with numbers about
    every tensor takes long, and merges operations."""
    import tensorflow as tf

    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        off = before.get("disable_meta_optimizer", False)
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": off})


def _lines(operation) -> Callable:
    return lambda: [(frame.filename, frame.lineno) for frame in operation.traceback]


# --- JAX ------------------------------------------------------------------------------


def _on_jax(backend, body, feed, variables, sizes: tuple[int, ...]):
    import jax

    _, step, _ = backend.program(body, feed, variables)
    entry = {name: array[0] for name, array in feed.items()}
    values = [variable.value for variable in variables]
    closed, form = jax.make_jaxpr(step, return_shape=True)(values, entry)

    def call(feed: dict):
        # Operation by operation, each compiled for itself: to compile them all as one
        # program, with what is kept of each, takes several times as long.
        walk = _Walk(sizes)
        entry = {name: array[0] for name, array in feed.items()}
        given = jax.tree.leaves(([variable.value for variable in variables], entry))
        given = jax.device_put(given, backend.device)
        sources = [walk.add("", "", x, (), list) for x in given]
        with jax.default_device(backend.device):  # of what NumPy has computed
            found, places = walk.through(
                closed.jaxpr, closed.consts, given, sources, "", None
            )
        values, results = jax.tree.unflatten(jax.tree.structure(form), found)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        numbered, named = jax.tree.unflatten(
            jax.tree.structure(form), [-1 if one is None else one for one in places]
        )
        ends = {**dict(enumerate(numbered)), **named}
        ends = {name: place for name, place in ends.items() if place >= 0}
        return jax.device_get(results), walk.tensors, ends

    return call


class _Walk:
    """Does the operations of a traced function one by one."""

    def __init__(self, sizes: tuple[int, ...]):
        self.sizes = sizes
        self.tensors: list[Tensor] = []

    def add(self, operation: str, scope: str, x, inputs: tuple, frames) -> int | None:
        """Add a value; return its place, None if it is not a floating-point one."""
        if not keras.backend.is_float_dtype(str(getattr(x, "dtype", "int32"))):
            return None
        array = np.asarray(x)
        finite = np.isfinite(array)
        good = bool(finite.all())
        rows = ()
        if not good and array.ndim and len(array) in self.sizes:
            bad = ~finite.reshape(len(array), -1).all(axis=1)
            rows = tuple(np.flatnonzero(bad).tolist())
        with np.errstate(invalid="ignore"):  # NumPy warns of NaN in 16 bits
            largest = np.max(np.abs(array), initial=0)  # NaN if there is one
        self.tensors.append(Tensor(
            operation, scope, str(array.dtype), array.shape, inputs, frames, array.size,
            int(array.size - finite.sum()), float(largest), rows,
        ))  # fmt: skip
        return len(self.tensors) - 1

    def through(self, jaxpr, consts, given, sources, scope: str, outer) -> tuple:
        """Return the values of a function and their places.

        Args:
            given, sources: values of its arguments and their places.
            scope, outer: name scopes and traceback of the call of the function.
        """
        known = dict(zip(jaxpr.constvars, consts, strict=True))
        known |= zip(jaxpr.invars, given, strict=True)
        places = dict(zip(jaxpr.invars, sources, strict=True))
        for one in jaxpr.constvars:
            places[one] = self.add("", scope, known[one], (), list)

        def is_known(one) -> bool:  # others are literals
            return not hasattr(one, "val")

        def read(one):
            return known[one] if is_known(one) else one.val

        last = {one: None for one in jaxpr.outvars if is_known(one)}
        for equation in reversed(jaxpr.eqns):
            for one in filter(is_known, equation.invars):
                last.setdefault(one, equation)
        for equation in jaxpr.eqns:
            inputs = [read(one) for one in equation.invars]
            origins = [
                places[one] if is_known(one) else None for one in equation.invars
            ]
            stack = str(equation.source_info.name_stack)
            within = "/".join(filter(None, [scope, stack]))
            trace = equation.source_info.traceback or outer
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            if equation.primitive.name in _INLINED and inner is not None:
                consts = getattr(inner, "consts", ())
                inner = getattr(inner, "jaxpr", inner)
                found, ends = self.through(
                    inner, consts, inputs, origins, within, trace
                )
            else:
                found = _done(equation, inputs)
                there = tuple(one for one in origins if one is not None)
                name = equation.primitive.name
                ends = [self.add(name, within, x, there, _frames(trace)) for x in found]
            known |= zip(equation.outvars, found, strict=True)
            places |= zip(equation.outvars, ends, strict=True)
            for one in {*filter(is_known, equation.invars), *equation.outvars}:
                if last.get(one, equation) is equation:  # frees its memory
                    known.pop(one, None)
        ends = [places[one] if is_known(one) else None for one in jaxpr.outvars]
        return [read(one) for one in jaxpr.outvars], ends


def _done(equation, inputs: list) -> list:
    """Do one operation of JAX."""
    name, (result, *_) = equation.primitive.name, equation.outvars
    if name in _MOVES:
        return [_MOVES[name](np.asarray(inputs[0]), equation.params)]
    if name in _BY_NUMPY and keras.backend.is_float_dtype(str(result.aval.dtype)):
        return [_by_numpy(_BY_NUMPY[name], inputs, result.aval.dtype)]
    options = equation.primitive.get_bind_params(equation.params)
    if isinstance(options, tuple):  # JAX before 0.10
        functions, options = options
        inputs = [*functions, *inputs]
    found = equation.primitive.bind(*inputs, **options)
    return found if equation.primitive.multiple_results else [found]


def _broadcast(x: np.ndarray, how: dict) -> np.ndarray:
    axes = [1] * len(how["shape"])
    for axis, length in zip(how["broadcast_dimensions"], x.shape, strict=True):
        axes[axis] = length
    return np.broadcast_to(x.reshape(axes), how["shape"])


# Operations that only move values.
_MOVES = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, how: x.reshape(how["new_sizes"]),
    "rev": lambda x, how: np.flip(x, how["dimensions"]),
    "squeeze": lambda x, how: np.squeeze(x, tuple(how["dimensions"])),
    "transpose": lambda x, how: x.transpose(how["permutation"]),
}


def _by_numpy(function, inputs: list, dtype) -> np.ndarray:
    """Do an operation on each element, with denormal numbers as zero, as XLA does."""

    def flushed(x) -> np.ndarray:
        x = np.asarray(x, dtype)
        if str(dtype) not in ("float32", "bfloat16"):  # of float16 they are kept
            return x
        return np.where(np.abs(x) < _SMALLEST, x * 0, x)

    with np.errstate(all="ignore"):
        return flushed(function(*map(flushed, inputs)))


def _frames(trace) -> Callable:
    def lines() -> list[tuple[str, int]]:
        if trace is None:
            return []
        python = trace.as_python_traceback()
        return [(f.f_code.co_filename, n) for f, n in traceback.walk_tb(python)]

    return lines


@contextlib.contextmanager
def scope(name: str):
    """Trace the block in a name scope of the backend."""
    if keras.config.backend() == "jax":
        import jax

        with jax.named_scope(name):
            yield
    else:
        import tensorflow as tf

        with tf.name_scope(name):
            yield
