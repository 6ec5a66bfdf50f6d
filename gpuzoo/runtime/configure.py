"""Runtime settings: made once, early, and read back with the reason for each.

Call `configure()` before the first tensor. An explicit setting is applied or refused
with a remedy; `auto` chooses by hardware (startup.py) and records the reason.
"""

import dataclasses
import os
import sys
import typing

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import portable
from gpuzoo.runtime.environment import (
    hash_order_is_fixed,
    is_installed,
    moving_variables,
)
from gpuzoo.runtime.keras_state import reseed
from gpuzoo.runtime.options import (
    BACKENDS,
    LATE,
    WITHOUT_TENSORFLOW,
    Options,
    Runtime,
)

_in_force: tuple[Options, Runtime] | None = None


def in_force() -> Runtime | None:
    """Return the runtime that `configure` set up in this process, or None."""
    return _in_force[1] if _in_force else None


def options_in_force() -> Options | None:
    """Return the options that `configure` was called with in this process, or None."""
    return _in_force[0] if _in_force else None


def configure(
    options: Options | None = None, *, seed: int = 0, quiet: bool = False, **named
) -> Runtime:
    """Set up device, precision, XLA, determinism and threads, once per process.

    Args:
        options: all options at once, or pass them one by one: `device="cpu"`, ...
        seed: master seed of Python, NumPy and the backend.
        quiet: do not print the line with the settings in use to standard error.

    Returns:
        The settings in use. A second call returns them again if it asks for nothing
        else.

    Raises:
        GpuzooError: an option that this machine does not support, or a call that comes
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
        if _is_met(options, *_in_force):
            _reseed(seed)
            return _in_force[1]
        raise GpuzooError(
            f"the runtime of this process is already set up as {_in_force[0]}; "
            "start a new process for other settings"
        )
    portable.refuse_after_failure(options.level)
    backend, why = _choose_backend(options.backend)
    _check_devices(options, backend)
    given = options
    if options.level == "strict":
        _refuse_drift(options.level)
        _refuse_random_order()
    elif options.level == portable.LEVEL:
        with portable.expected(options.level, backend):
            _refuse_drift(options.level)
        given = portable.settle(options, backend)
    from gpuzoo.runtime import startup

    autotune_sha256 = startup.pin_autotune(given)
    if backend == "jax":
        from gpuzoo.runtime.jax import start_jax as start
    else:
        from gpuzoo.runtime.tensorflow import start_tensorflow as start
    runtime = start(given, seed, autotune_sha256)
    if options.level == portable.LEVEL:
        runtime = portable.explained(runtime, options)
    runtime = dataclasses.replace(runtime, reasons={**runtime.reasons, "backend": why})
    if autotune_sha256 and not (runtime.device == "gpu" and runtime.xla):
        raise GpuzooError(
            f"autotune pins XLA's GPU kernels, and this is {runtime.line()}; leave it "
            "out"
        )
    _in_force = (options, runtime)
    if not quiet:
        print(runtime.line(), file=sys.stderr)
    return runtime


def as_in_force(options: Options) -> Options:
    """Return the options that this process was set up by if they meet these, which a
    run is to record: another process then makes the same choices."""
    return _in_force[0] if _in_force and _is_met(options, *_in_force) else options


def _is_met(options: Options, in_force: Options, runtime: Runtime) -> bool:
    """Whether what is in force is what these options ask for: they leave a setting to
    gpuzoo, or name the one that was chosen."""
    free = ("backend", "device", "precision", "xla", "threads", "tf32")
    chosen = {name: getattr(runtime, name) for name in free}
    for name in ("xla", "tf32"):
        chosen[name] = "on" if chosen[name] else "off"
    usual = Options()
    for field in dataclasses.fields(options):
        name, wanted = field.name, getattr(options, field.name)
        left = name in free and wanted == getattr(usual, name)
        if not left and wanted not in (getattr(in_force, name), chosen.get(name)):
            return False
    return True


def _check_values(options: Options, seed: int) -> None:
    for field in dataclasses.fields(Options):
        value = getattr(options, field.name)
        if field.name == "threads":
            if type(value) is not int or not 0 <= value <= 1024:
                raise GpuzooError(f"threads must be in 0..1024: {value!r}")
        elif field.name in ("devices", "model_devices"):
            if type(value) is not int or not 1 <= value <= 1024:
                raise GpuzooError(f"{field.name} must be in 1..1024: {value!r}")
        elif field.type is bool or field.type == "bool":
            if type(value) is not bool:
                raise GpuzooError(f"{field.name} must be True or False: {value!r}")
        elif field.name == "autotune":
            if not isinstance(value, str):
                raise GpuzooError(f"autotune must be the path of a file: {value!r}")
        elif value not in typing.get_args(field.type):
            choices = ", ".join(typing.get_args(field.type))
            raise GpuzooError(f"{field.name} must be one of {choices}: {value!r}")
    if type(seed) is not int or seed < 0:
        raise GpuzooError(f"seed must be an integer, 0 or more: {seed!r}")


def _check_devices(options: Options, backend: str) -> None:
    """Raise GpuzooError for several devices that cannot be used so."""
    given = [
        "distributed" if name == "distributed" else f"{name}={value}"
        for name, value in (
            ("devices", options.devices), ("model_devices", options.model_devices),
            ("distributed", options.distributed),
        )
        if value > 1 or value is True
    ]  # fmt: skip
    if given and backend != "jax":
        raise GpuzooError(
            f"{given[0]} needs --backend jax: on {backend} gpuzoo trains on one device"
        )
    if options.model_devices > 1 and len(given) > 1:
        other = next(one for one in given if not one.startswith("model_"))
        raise GpuzooError(
            f"model_devices={options.model_devices} cannot be combined with {other}: "
            "the weights are split over the devices of one process, and each computes "
            "the whole batch; leave one of them out"
        )


def _choose_backend(requested: str) -> tuple[str, str]:
    """Return the backend and the reason for it."""
    installed = [name for name in BACKENDS if is_installed(name)]
    named = os.environ.get("KERAS_BACKEND")
    if not installed:
        raise GpuzooError(
            f"no backend is installed ({' or '.join(BACKENDS)}); run: pip install "
            "tensorflow"
        )
    if requested != "auto":
        backend, why = requested, "requested"
    elif named and (named, installed) != ("jax", ["jax"]):
        backend, why = named, "KERAS_BACKEND"
    elif installed == ["jax"]:
        backend, why = "jax", WITHOUT_TENSORFLOW
    else:
        backend, why = "tensorflow", "the default"
    if backend not in BACKENDS:
        raise GpuzooError(
            f"KERAS_BACKEND={backend}, but gpuzoo runs on {' or '.join(BACKENDS)}; "
            "choose one with --backend"
        )
    if "keras" in sys.modules and sys.modules["keras"].config.backend() != backend:
        raise GpuzooError(
            f"Keras already runs on {sys.modules['keras'].config.backend()}, not on "
            f"{backend}; {LATE}"
        )
    if backend not in installed:
        raise GpuzooError(
            f"backend {backend} is not installed; run: pip install {backend}, or use "
            f"--backend {installed[0]}"
        )
    os.environ["KERAS_BACKEND"] = backend
    return backend, why


def _refuse_drift(level: str) -> None:
    """Raise for variables that levels strict and portable do not accept."""
    for name, value in moving_variables().items():
        if level == portable.LEVEL and name in portable.WITHOUT_EFFECT:
            continue
        raise GpuzooError(
            f"level {level} refuses {name}={value} in the environment, it changes "
            f"results; run: unset {name}"
        )


def _refuse_random_order() -> None:
    if not hash_order_is_fixed():
        raise GpuzooError(
            "level strict refuses random hash seeds (the order of Python's sets); set "
            "one before Python starts: PYTHONHASHSEED=0 python ..."
        )


def _reseed(seed: int) -> None:
    global _in_force

    reseed(seed)
    options, runtime = _in_force
    _in_force = (options, dataclasses.replace(runtime, seed=seed))
