"""`gpuzoo.repeatable`: set a process up for an ordinary Keras `fit`."""

import contextlib
import dataclasses
import os
import sys
import typing

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import configure, keras_state
from gpuzoo.runtime.environment import hash_order_is_fixed
from gpuzoo.runtime.options import LATE, Options, Precision, Runtime
from gpuzoo.runtime.portable import LEVEL

_kept = contextlib.ExitStack()
"""Replaced operations of Keras and TensorFlow, until the process ends."""
_in_force: "Repeatable | None" = None


@dataclasses.dataclass(frozen=True)
class Repeatable:
    """What `repeatable` has set, and what it cannot promise."""

    runtime: Runtime
    not_promised: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{self.runtime.line()} · seed {self.runtime.seed}"
        return f"{line}\nNot guaranteed: {'; '.join(self.not_promised)}."


def in_force() -> Repeatable | None:
    """Return what `repeatable` has set in this process, or None."""
    return _in_force


def repeatable(
    seed: int = 0,
    *,
    precision: str | None = None,
    xla: str = "auto",
    backend: str = "auto",
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
) -> Repeatable:
    """Set this process up so that an ordinary Keras `fit` gives the same weights, to
    the bit, whenever the script is run again on this machine.

    Call it before the first layer, model or tensor; Keras may be imported already. It
    sets the seeds of Python, NumPy, Keras and the backend, the number of threads, the
    dtype policy, the variables and flags for deterministic operations, and replaces
    operations that would add in an order that varies. Called again, with the same
    arguments, it starts the random numbers and the names of layers over, so that
    another model can be built and trained from the same point.

    Args:
        seed: of all random numbers.
        precision: dtype policy, as of `gpuzoo.configure`; None: that of Keras now.
        xla: compile the step with XLA: auto (on a GPU), on or off. On TensorFlow Keras
            itself turns XLA off when operations are deterministic; here it does not.
        backend, device, threads: as of `gpuzoo.configure`.
        quiet: do not print the result to standard error.

    Returns:
        What is set (`runtime`), and `not_promised`; as text both in two lines.

    Raises:
        GpuzooError: it is called too late, or this machine does not support a setting.
    """
    global _in_force

    options = configure.options_in_force()
    if options is None and (made := keras_state.named_so_far()):
        raise GpuzooError(
            f"repeatable() came too late: {', '.join(made[:3])} exist, and their "
            "weights are drawn from an unknown seed; call gpuzoo.repeatable() before "
            "the first layer"
        )
    if options is not None and options.level == LEVEL:
        raise GpuzooError(
            f"repeatable() cannot keep level {LEVEL}, whose bits need gpuzoo's own "
            f"step; train with gpuzoo.train(..., level={LEVEL!r}), or start a new "
            "process without gpuzoo.configure()"
        )
    named = {"backend": backend, "device": device, "xla": xla, "threads": threads}
    named = {name: value for name, value in named.items() if value not in ("auto", 0)}
    if precision is not None or options is None:
        named["precision"] = precision or _policy()
    chosen = dataclasses.replace(options or Options(), **named)
    late = "tensorflow" in sys.modules and "TF_ENABLE_ONEDNN_OPTS" not in os.environ
    runtime = configure.configure(chosen, seed=seed, quiet=True)
    if not runtime.deterministic:
        raise GpuzooError(
            f"repeatable() came too late: gpuzoo.configure(level='fast') is set; {LATE}"
        )
    keras_state.name_afresh()
    if _in_force is None:
        _replace(runtime)
        limits = _limits(runtime, late)
    else:
        limits = _in_force.not_promised
    _in_force = Repeatable(runtime, limits)
    if not quiet:
        print(_in_force, file=sys.stderr)
    return _in_force


def _policy() -> typing.Any:
    """Return the dtype policy that Keras has now."""
    if "keras" not in sys.modules:
        return "float32"
    policy = keras_state.layers_policy().name
    if policy not in typing.get_args(Precision):
        raise GpuzooError(
            f"repeatable() cannot keep Keras's dtype policy {policy!r}; name one with "
            f"precision=: {', '.join(typing.get_args(Precision))}"
        )
    return policy


def _replace(runtime: Runtime) -> None:
    if runtime.backend == "jax":
        from gpuzoo.engine.backends.jax import in_fit
    else:
        from gpuzoo.engine.backends.tensorflow import in_fit
    _kept.enter_context(in_fit(runtime))


def _limits(runtime: Runtime, late: bool) -> tuple[str, ...]:
    """Return what `fit` cannot promise in this process."""
    found = [
        "the same bits on another processor, number of threads or version",
        "the order of data from unseeded generators or several workers",
        "an exact resume, as fit saves no random state",
        "a re-run by gpuzoo verify, which has neither data nor code",
        "numbers that NumPy draws in the call of a layer: the compiled step repeats "
        "the first ones",
    ]
    if runtime.backend == "tensorflow":
        found.append("another order in each epoch, as fit(shuffle=True) of arrays "
                     "repeats the first one on TensorFlow")  # fmt: skip
        found.append("operations without a deterministic implementation: TensorFlow "
                     "raises an error")  # fmt: skip
    elif runtime.device == "gpu":
        found.append("operations without a deterministic implementation: JAX raises no "
                     "error")  # fmt: skip
    if not hash_order_is_fixed():
        found.append("the order of Python's sets (PYTHONHASHSEED=0 python ...)")
    if late:
        found.append(
            "oneDNN as elsewhere, as TensorFlow was imported before and chose by the "
            "processor"
        )
    return tuple(found)
