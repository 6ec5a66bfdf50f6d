"""Start TensorFlow with the given options."""

import functools
import os

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import xla_probe
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
    reasons = {}
    device, reasons["device"] = choose_device(
        options.device, bool(gpus), "TensorFlow", "tensorflow[and-cuda]"
    )
    threads, reasons["threads"] = choose_threads(options)
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
    precision, reasons["precision"] = choose_precision(
        options.precision, device, capability
    )
    set_keras(precision)

    deterministic = options.level != "fast"
    reasons["deterministic"] = f"level {options.level}"
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        # Grappler would merge chains of additions into AddN, whose order depends on
        # thread timing (see engine/backends/tensorflow.py).
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    elif is_op_determinism_enabled():
        raise GpuzooError(
            "level fast was requested, but op determinism is already enabled in this "
            "process; start a new one"
        )
    tf32 = options.tf32 != "off"
    reasons["tf32"] = "requested" if options.tf32 != "auto" else "the default"
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
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
        variables=variables_in_force(),
        seed=seed,
        reasons=reasons,
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
