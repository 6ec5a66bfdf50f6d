"""Runtime choices: made once, early, and read back with the reason for each.

`configure()` must come before the first tensor. What is asked for by name is honoured
or refused with the remedy; `auto` picks by hardware and says why.
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import tempfile
import typing
from typing import Literal

from gpuzoo.errors import GpuzooError
from gpuzoo.machine import available_cores, cpu_isa, cpu_model, moving_variables

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
LATE = "call gpuzoo.configure() first, before any tensor or model exists"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may ask of the machine; `auto` leaves the choice to gpuzoo."""

    backend: Literal["auto", "tensorflow"] = "auto"
    """The Keras backend; auto: KERAS_BACKEND, or tensorflow."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; gpu is an error where there is none."""
    precision: Precision = "auto"
    """Numbers in the layers; auto: the 16-bit kind that this device computes itself."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the step with XLA; auto: on a GPU, not on a CPU."""
    level: Literal["fast", "repeatable", "strict"] = "repeatable"
    """fast promises nothing; repeatable gives the same bits on the same machine; strict
    also refuses environment variables that move bits."""
    threads: int = 0
    """CPU threads, which the bits depend on; 0: one per available core."""
    tf32: Literal["auto", "on", "off"] = "auto"
    """TensorFloat-32 in float32 products of NVIDIA GPUs; auto: on."""


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
        return " · ".join(parts)

    def as_record(self) -> dict:
        return dataclasses.asdict(self)


_in_force: tuple[Options, Runtime] | None = None


def in_force() -> Runtime | None:
    """The runtime that `configure` set up in this process, or None."""
    return _in_force[1] if _in_force else None


def configure(options: Options | None = None, *, seed: int = 0, **named) -> Runtime:
    """Set up device, precision, XLA, determinism and threads, once per process.

    Args:
        options: all choices at once, or name them one by one: `device="cpu"`, ...
        seed: master seed of Python, NumPy and the backend.

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
            if seed != _in_force[1].seed:
                _reseed(seed)
            return _in_force[1]
        raise GpuzooError(
            f"the runtime of this process is already set up as {_in_force[0]}; "
            "start a new process for other settings"
        )
    _choose_backend(options.backend)
    _refuse_inherited_flags(options.level)
    runtime = _configure_tensorflow(options, seed)
    _in_force = (options, runtime)
    return runtime


def _check_values(options: Options, seed: int) -> None:
    for field in dataclasses.fields(Options):
        value = getattr(options, field.name)
        if field.name == "threads":
            if type(value) is not int or value < 0:
                raise GpuzooError(f"threads must be 0 or more: {value!r}")
        elif value not in typing.get_args(field.type):
            choices = ", ".join(typing.get_args(field.type))
            raise GpuzooError(f"{field.name} must be one of {choices}: {value!r}")
    if type(seed) is not int or seed < 0:
        raise GpuzooError(f"seed must be a whole number, 0 or more: {seed!r}")


def _choose_backend(asked: str) -> None:
    backend = "tensorflow" if asked == "auto" else asked
    named = os.environ.get("KERAS_BACKEND")
    if named and named != backend:
        raise GpuzooError(
            f"KERAS_BACKEND={named} but gpuzoo runs on {backend}; "
            f"run: export KERAS_BACKEND={backend}"
        )
    if "keras" in sys.modules and sys.modules["keras"].config.backend() != backend:
        raise GpuzooError(
            f"Keras runs on {sys.modules['keras'].config.backend()} already, not on "
            f"{backend}; {LATE}"
        )
    if importlib.util.find_spec(backend) is None:
        raise GpuzooError(f"{backend} is not installed; run: pip install {backend}")
    os.environ["KERAS_BACKEND"] = backend


def _refuse_inherited_flags(level: str) -> None:
    found = moving_variables()
    if level == "strict" and found:
        name, value = next(iter(found.items()))
        raise GpuzooError(
            f"level strict refuses {name}={value} in the environment, it moves bits; "
            f"run: unset {name}"
        )


@contextlib.contextmanager
def _quiet_start():
    """Keep the start-up lines of a backend's C++ off the terminal.

    They are shown after all if what is started fails.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        saved = os.dup(2)
        try:
            os.dup2(log.fileno(), 2)
            yield
        except BaseException:
            log.seek(0)
            os.write(saved, log.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _configure_tensorflow(options: Options, seed: int) -> Runtime:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Two cuBLAS workspaces of 4 MiB, so that products on several streams repeat; read
    # when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with _quiet_start():
        import keras
        import tensorflow as tf
        from tensorflow.python.framework.config import is_op_determinism_enabled

        gpus = tf.config.list_physical_devices("GPU")
    reasons = {}
    if options.device == "gpu" and not gpus:
        raise GpuzooError(
            "device gpu was asked for, but TensorFlow sees no GPU here; check the "
            "driver with nvidia-smi and run: pip install 'tensorflow[and-cuda]', or "
            "use --device cpu"
        )
    device = "gpu" if gpus and options.device != "cpu" else "cpu"
    reasons["device"] = (
        "asked for" if options.device != "auto"
        else "a GPU is there" if gpus else "TensorFlow sees no GPU"
    )  # fmt: skip
    threads = options.threads or available_cores()
    reasons["threads"] = "asked for" if options.threads else "one per available core"
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        else:
            tf.config.set_visible_devices(gpus[:1], "GPU")
            tf.config.experimental.set_memory_growth(gpus[0], True)
    except RuntimeError as error:
        raise GpuzooError(
            f"too late to configure TensorFlow ({error}); {LATE}"
        ) from None

    capability, name = (0, 0), cpu_model()
    if device == "gpu":
        details = tf.config.experimental.get_device_details(gpus[0])
        capability = details.get("compute_capability", (0, 0))
        name = details.get("device_name", "unknown GPU")
    precision, reasons["precision"] = _choose_precision(
        options.precision, device, capability
    )
    keras.config.set_dtype_policy(precision)

    deterministic = options.level != "fast"
    reasons["deterministic"] = f"level {options.level}"
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    elif is_op_determinism_enabled():
        raise GpuzooError(
            "level fast was asked for, but op determinism is already on in this "
            "process; start a new one"
        )
    tf32 = options.tf32 != "off"
    reasons["tf32"] = "asked for" if options.tf32 != "auto" else "the default"
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    xla = options.xla == "on" or (options.xla == "auto" and device == "gpu")
    reasons["xla"] = (
        "asked for" if options.xla != "auto"
        else "compiled steps are faster on a GPU" if xla
        else "on a CPU oneDNN convolutions are several times faster than XLA's"
    )  # fmt: skip
    keras.utils.set_random_seed(seed % 2**32)

    return Runtime(
        backend=keras.config.backend(),
        device=device,
        device_name=name,
        precision=keras.config.dtype_policy().name,
        xla=xla,
        deterministic=is_op_determinism_enabled(),
        level=options.level,
        threads=tf.config.threading.get_intra_op_parallelism_threads(),
        tf32=tf.config.experimental.tensor_float_32_execution_enabled(),
        seed=seed,
        reasons=reasons,
    )


def _reseed(seed: int) -> None:
    global _in_force
    sys.modules["keras"].utils.set_random_seed(seed % 2**32)
    options, runtime = _in_force
    _in_force = (options, dataclasses.replace(runtime, seed=seed))


def _choose_precision(asked: str, device: str, capability) -> tuple[str, str]:
    if asked != "auto":
        return asked, "asked for"
    if device == "gpu":
        if tuple(capability) >= (8, 0):
            return "mixed_bfloat16", "this GPU computes bfloat16 (capability >= 8.0)"
        if tuple(capability) >= (7, 0):
            return "mixed_float16", "this GPU computes float16 but not bfloat16"
        return "float32", "this GPU has no 16-bit matrix units"
    flags = set(cpu_isa()) & {"avx512_bf16", "amx_bf16"}
    if flags:
        return "mixed_bfloat16", f"this CPU computes bfloat16 ({sorted(flags)[0]})"
    return "float32", "this CPU does not compute 16-bit numbers itself"
