"""Start TensorFlow with the given options."""

import functools
import os

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import portable, xla_probe
from gpuzoo.runtime.bootstrap import importing
from gpuzoo.runtime.environment import (
    cpu_model,
    variables_in_force,
)
from gpuzoo.runtime.keras_state import reseed, set_keras
from gpuzoo.runtime.options import LATE, Options, Runtime
from gpuzoo.runtime.startup import (
    check_limit,
    choose_device,
    choose_precision,
    choose_threads,
    choose_xla,
    quiet_start,
    set_variables,
)


def start_tensorflow(
    options: Options, seed: int, autotune_sha256: str | None
) -> Runtime:
    check_limit("TensorFlow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    late = set_variables()
    if late and options.level == "strict":
        raise GpuzooError(
            f"level strict: too late to set {', '.join(late)}, TensorFlow is already "
            f"imported; {LATE}"
        )
    with quiet_start(), importing("sklearn", "jax", "matplotlib", "IPython"):
        import keras
        import tensorflow as tf
        from tensorflow.python.framework.config import is_op_determinism_enabled
        from tensorflow.python.util import _pywrap_util_port

        gpus = tf.config.list_physical_devices("GPU")
    reasons: dict[str, str] = {}
    device, reasons["device"] = choose_device(
        options.device, bool(gpus), "TensorFlow", "tensorflow[and-cuda]"
    )
    threads, reasons["threads"] = choose_threads(options)
    _set_devices(tf, gpus if device == "gpu" else [], threads)
    capability, name = _device_facts(tf, gpus if device == "gpu" else [])
    precision, reasons["precision"] = choose_precision(
        options.precision, device, capability
    )
    set_keras(precision)
    _set_determinism(tf, options.level)
    reasons["deterministic"] = f"level {options.level}"
    reasons["tf32"] = "requested" if options.tf32 != "auto" else "the default"
    tf.config.experimental.enable_tensor_float_32_execution(options.tf32 != "off")
    probe = functools.partial(xla_probe.known_failure, name, capability)
    xla, reasons["xla"] = choose_xla(
        options.xla, name, probe if device == "gpu" else None
    )
    reasons["onednn"] = (
        "TensorFlow was imported before gpuzoo could turn it on" if late
        else f"TF_ENABLE_ONEDNN_OPTS={os.environ['TF_ENABLE_ONEDNN_OPTS']}"
    )  # fmt: skip
    reseed(seed)

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
        onednn=_pywrap_util_port.IsMklEnabled(),
        autotune_sha256=autotune_sha256,
        devices=1,
        model_devices=1,
        processes=1,
        variables=variables_in_force(),
        seed=seed,
        reasons=reasons,
    )


def _set_devices(tf, gpus: list, threads: int) -> None:
    """Let TensorFlow use the first of these GPUs, or only the CPU.

    Raises:
        GpuzooError: it has computed something already, so that this is fixed.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        tf.config.set_visible_devices(gpus[:1], "GPU")
        if gpus:
            tf.config.experimental.set_memory_growth(gpus[0], True)
    except RuntimeError as error:
        raise GpuzooError(
            f"too late to configure TensorFlow ({error}); {LATE}"
        ) from None


def _device_facts(tf, gpus: list) -> tuple[tuple[int, int], str]:
    """Return the compute capability of the GPU, (0, 0) of a CPU, and the name."""
    if not gpus:
        return (0, 0), cpu_model()
    details = tf.config.experimental.get_device_details(gpus[0])
    return (
        details.get("compute_capability", (0, 0)),
        details.get("device_name", "unknown GPU"),
    )


def _set_determinism(tf, level: str) -> None:
    """Make operations repeatable, unless the level is fast.

    Raises:
        GpuzooError: it is fast, and the process is set to repeatable operations.
    """
    from tensorflow.python.framework.config import is_op_determinism_enabled

    if level != "fast":
        tf.config.experimental.enable_op_determinism()
        # Grappler would merge chains of additions into AddN, whose order depends on
        # thread timing (see engine/backends/tensorflow.py).
        off = {"arithmetic_optimization": False}
        if level == portable.LEVEL:
            # It turns a division by a constant into a product with its reciprocal,
            # which each vendor approximates in its own way.
            off["constant_folding"] = False
        tf.config.optimizer.set_experimental_options(off)
    elif is_op_determinism_enabled():
        raise GpuzooError(
            "level fast was requested, but op determinism is already enabled in this "
            "process; start a new one"
        )


def file_openers() -> list[tuple]:
    """Where TensorFlow opens files: (class or module, name of the function, place of
    the path in its arguments)."""
    from tensorflow.python.lib.io import file_io
    from tensorflow.python.ops import gen_io_ops

    return [
        (file_io.FileIO, "__init__", 1),
        (gen_io_ops, "read_file", 0),
        (gen_io_ops, "whole_file_reader", 0),
    ]
