"""Runtime choices: made once, early, and read back with the reason for each.

`configure()` must come before the first tensor. What is asked for by name is honoured
or refused with the remedy; `auto` picks by hardware and says why.
"""

import dataclasses
import importlib.util
import os
import sys
import typing
from typing import Literal

from gpuzoo.errors import GpuzooError
from gpuzoo.machine import moving_variables

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
BACKENDS = ("tensorflow", "jax")
LATE = "call gpuzoo.configure() first, before any tensor or model exists"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may ask of the machine; `auto` leaves the choice to gpuzoo."""

    backend: Literal["auto", "tensorflow", "jax"] = "auto"
    """The Keras backend; auto: KERAS_BACKEND, or tensorflow where it is installed."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; gpu is an error where there is none."""
    precision: Precision = "auto"
    """Numbers in the layers; auto: the 16-bit kind that this device computes itself."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the step with XLA; auto: on a GPU, not on a CPU."""
    level: Literal["fast", "repeatable", "strict"] = "repeatable"
    """fast promises nothing; repeatable gives the same bits on the same machine; strict
    also refuses whatever may move bits from outside, and tries the first step twice."""
    threads: int = 0
    """CPU threads, which the bits depend on; 0: one per available core."""
    tf32: Literal["auto", "on", "off"] = "auto"
    """TensorFloat-32 in float32 products of NVIDIA GPUs; auto: on."""
    autotune: str = ""
    """A file that pins XLA's choice of GPU kernels, so that repeatable steps are also
    tuned; a training makes it, by tuning once, if it is not there."""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What is in force, read back from the backend."""

    backend: str
    device: str
    """cpu or gpu."""
    device_name: str
    precision: str
    xla: bool
    deterministic: bool
    level: str
    threads: int
    tf32: bool
    onednn: bool | None
    """Whether TensorFlow computes with oneDNN; None on JAX, which has none."""
    autotune_sha256: str | None
    """Of the file that pins XLA's choice of kernels."""
    variables: dict[str, str]
    """Environment variables that gpuzoo has set."""
    seed: int
    reasons: dict[str, str]
    """Setting -> why it is what it is."""

    def line(self) -> str:
        """One line for a person."""
        parts = [
            f"{self.device} ({self.device_name})",
            f"{self.backend}",
            f"{self.precision}",
            f"XLA {'on' if self.xla else 'off'}",
            "repeatable to the bit" if self.deterministic else "not repeatable "
            f"({self.reasons['deterministic']})",
            f"{self.threads} thread{'s' * (self.threads != 1)}",
        ]  # fmt: skip
        if self.device == "cpu" and self.onednn is False:
            parts.append(f"slow without oneDNN: {self.reasons['onednn']}")
        return " · ".join(parts)

    def as_record(self) -> dict:
        return dataclasses.asdict(self)


_in_force: tuple[Options, Runtime] | None = None


def in_force() -> Runtime | None:
    """The runtime that `configure` set up in this process, or None."""
    return _in_force[1] if _in_force else None


def options_in_force() -> Options | None:
    """What `configure` was asked for in this process, or None."""
    return _in_force[0] if _in_force else None


def configure(
    options: Options | None = None, *, seed: int = 0, quiet: bool = False, **named
) -> Runtime:
    """Set up device, precision, XLA, determinism and threads, once per process.

    Args:
        options: all choices at once, or name them one by one: `device="cpu"`, ...
        seed: master seed of Python, NumPy and the backend.
        quiet: do not print what is in force, in one line, to standard error.

    Returns:
        What is in force. A second call with the same arguments returns it again.

    Raises:
        GpuzooError: a choice that this machine cannot honour, or a call that comes
            too late.
    """
    global _in_force
    known = {field.name for field in dataclasses.fields(Options)}
    if unknown := set(named) - known:
        raise GpuzooError(
            f"configure() has no {sorted(unknown)[0]!r}; it takes {sorted(known)}"
        )
    options = dataclasses.replace(options or Options(), **named)
    _check_values(options, seed)
    if _in_force:
        if _in_force[0] == options:
            _reseed(seed)
            return _in_force[1]
        raise GpuzooError(
            f"the runtime of this process is already set up as {_in_force[0]}; "
            "start a new process for other settings"
        )
    backend = _choose_backend(options.backend)
    if options.level == "strict":
        _refuse_drift()
    from gpuzoo import start

    autotune_sha256 = start.pin_autotune(options)
    runtime = getattr(start, backend)(options, seed, autotune_sha256)
    if autotune_sha256 and not (runtime.device == "gpu" and runtime.xla):
        raise GpuzooError(
            f"autotune pins what XLA compiles for a GPU, and this is {runtime.line()}; "
            "leave it out"
        )
    _in_force = (options, runtime)
    if not quiet:
        print(runtime.line(), file=sys.stderr)
    return runtime


def _check_values(options: Options, seed: int) -> None:
    for field in dataclasses.fields(Options):
        value = getattr(options, field.name)
        if field.name == "threads":
            if type(value) is not int or not 0 <= value <= 1024:
                raise GpuzooError(f"threads must be in 0..1024: {value!r}")
        elif field.name == "autotune":
            if not isinstance(value, str):
                raise GpuzooError(f"autotune must be the path of a file: {value!r}")
        elif value not in typing.get_args(field.type):
            choices = ", ".join(typing.get_args(field.type))
            raise GpuzooError(f"{field.name} must be one of {choices}: {value!r}")
    if type(seed) is not int or seed < 0:
        raise GpuzooError(f"seed must be a whole number, 0 or more: {seed!r}")


def _choose_backend(asked: str) -> str:
    named = os.environ.get("KERAS_BACKEND")
    backend = asked
    if asked == "auto":
        installed = importlib.util.find_spec("tensorflow") is not None
        backend = named or ("tensorflow" if installed else "jax")
    if backend not in BACKENDS:
        raise GpuzooError(
            f"KERAS_BACKEND={backend}, but gpuzoo runs on {' or '.join(BACKENDS)}; "
            "name one with --backend"
        )
    if "keras" in sys.modules and sys.modules["keras"].config.backend() != backend:
        raise GpuzooError(
            f"Keras runs on {sys.modules['keras'].config.backend()} already, not on "
            f"{backend}; {LATE}"
        )
    if importlib.util.find_spec(backend) is None:
        raise GpuzooError(f"{backend} is not installed; run: pip install {backend}")
    os.environ["KERAS_BACKEND"] = backend
    return backend


def _refuse_drift() -> None:
    """What level strict does not accept from outside."""
    for name, value in moving_variables().items():
        raise GpuzooError(
            f"level strict refuses {name}={value} in the environment, it moves bits; "
            f"run: unset {name}"
        )
    if not os.environ.get("PYTHONHASHSEED", "random").isdigit():
        raise GpuzooError(
            "level strict refuses a random order of Python's sets; it is fixed before "
            "Python starts: run PYTHONHASHSEED=0 python ..."
        )


def _reseed(seed: int) -> None:
    global _in_force
    from gpuzoo import start

    start.reseed(seed)
    options, runtime = _in_force
    _in_force = (options, dataclasses.replace(runtime, seed=seed))
