"""Starting a backend as it was asked for, and reading back what came of it."""

import contextlib
import hashlib
import os
import random
import sys
import tempfile

from gpuzoo.errors import GpuzooError
from gpuzoo.failures import check_limit
from gpuzoo.files import expand
from gpuzoo.machine import (
    DEFAULT_VARIABLES,
    DETERMINISTIC_FLAG,
    LOAD_TUNING_FLAG,
    READ_AT_IMPORT,
    WHOLE_TUNING_FLAG,
    available_cores,
    cpu_isa,
    cpu_model,
    variables_in_force,
)
from gpuzoo.process import importing
from gpuzoo.runtime import LATE, Options, Runtime


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
        except Exception:
            log.seek(0)
            os.write(saved, log.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _set_variables() -> list[str]:
    """Before a backend is imported, which is when it reads them.

    Returns those that TensorFlow, imported already, would read no more: they are not
    set, so that nothing says that they are in force.
    """
    late = [
        name
        for name in READ_AT_IMPORT
        if "tensorflow" in sys.modules and name not in os.environ
    ]
    for name, value in DEFAULT_VARIABLES.items():
        if name not in late:
            os.environ.setdefault(name, value)
    return late


def pin_autotune(options: Options) -> str | None:
    """Tell XLA, before it starts, to take its choices from the file; its sha256.

    XLA then refuses to compile what the file has no choice for.
    """
    if not options.autotune:
        return None
    check_autotune(options)
    path = expand(options.autotune).resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GpuzooError(
            f"autotune file {options.autotune}: {error.strerror}; gpuzoo train "
            "--autotune FILE makes it on a GPU"
        ) from None
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} {LOAD_TUNING_FLAG}{path} {WHOLE_TUNING_FLAG}"
    os.environ["XLA_FLAGS"] = flags.strip()
    return hashlib.sha256(content).hexdigest()


def check_autotune(options: Options) -> None:
    """Refuse to pin what XLA compiles for a GPU where it compiles nothing for one."""
    for name, value in (("device", "cpu"), ("xla", "off")):
        if getattr(options, name) == value:
            raise GpuzooError(
                f"autotune pins what XLA compiles for a GPU; leave it out with "
                f"--{name} {value}"
            )


def tensorflow(options: Options, seed: int, autotune_sha256: str | None) -> Runtime:
    check_limit("TensorFlow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    late = _set_variables()
    if late and options.level == "strict":
        raise GpuzooError(
            f"level strict: too late to set {', '.join(late)}, TensorFlow has been "
            f"imported; {LATE}"
        )
    with _quiet_start(), importing("sklearn", "jax", "matplotlib", "IPython"):
        import keras
        import tensorflow as tf
        from tensorflow.python.framework.config import is_op_determinism_enabled
        from tensorflow.python.util import _pywrap_util_port

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
    threads, reasons["threads"] = _choose_threads(options)
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
    _set_keras(precision)

    deterministic = options.level != "fast"
    reasons["deterministic"] = f"level {options.level}"
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        # It makes one AddN of a chain of additions, whose order follows the timing of
        # the threads (see engine/backend.py).
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
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


def jax(options: Options, seed: int, autotune_sha256: str | None) -> Runtime:
    check_limit("JAX")
    if "jax" in sys.modules:
        from jax._src import xla_bridge

        if xla_bridge.backends_are_initialized():
            raise GpuzooError(f"too late to configure JAX; {LATE}")
    if options.xla == "off":
        raise GpuzooError("xla off was asked for, but JAX compiles everything with XLA")
    reasons = {"xla": "JAX always compiles with XLA"}
    threads, reasons["threads"] = _choose_threads(options)
    os.environ["NPROC"] = str(threads)  # what XLA's CPU thread pool goes by
    _set_variables()
    deterministic = options.level != "fast"
    reasons["deterministic"] = f"level {options.level}"
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and DETERMINISTIC_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC_FLAG}".strip()
    with _quiet_start(), importing("sklearn", "matplotlib", "IPython"):
        import jax

        if options.device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        found = jax.devices()[0]
        import keras
    device = "gpu" if found.platform in ("gpu", "cuda") else "cpu"
    if options.device == "gpu" and device != "gpu":
        raise GpuzooError(
            "device gpu was asked for, but JAX sees no GPU here; check the driver with "
            "nvidia-smi and run: pip install 'jax[cuda13]', or use --device cpu"
        )
    reasons["device"] = (
        "asked for" if options.device != "auto"
        else "a GPU is there" if device == "gpu" else "JAX sees no GPU"
    )  # fmt: skip
    precision, reasons["precision"] = options.precision, "asked for"
    if precision == "auto" and device == "cpu":
        precision, why = "float32", "XLA on a CPU is faster in float32 than in bfloat16"
        reasons["precision"] = why
    elif precision == "auto":
        capability = str(getattr(found, "compute_capability", "0.0")).split(".")
        precision, reasons["precision"] = _choose_precision(
            options.precision, device, tuple(map(int, capability))
        )
    _set_keras(precision)
    tf32 = options.tf32 != "off"
    reasons["tf32"] = "asked for" if options.tf32 != "auto" else "the default"
    if not tf32:
        jax.config.update("jax_default_matmul_precision", "highest")
    reseed(seed)
    return Runtime(
        backend=keras.config.backend(),
        device=device,
        device_name=cpu_model() if device == "cpu" else found.device_kind,
        precision=keras.config.dtype_policy().name,
        xla=True,
        deterministic=deterministic,
        level=options.level,
        threads=int(os.environ["NPROC"]),
        tf32=tf32,
        onednn=None,
        autotune_sha256=autotune_sha256,
        variables=variables_in_force(),
        seed=seed,
        reasons=reasons,
    )


def _set_keras(precision: str) -> None:
    """The precision, and Keras's defaults whatever ~/.keras/keras.json says."""
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(precision)


def reseed(seed: int) -> None:
    """Seed Python, NumPy, Keras and the backend."""
    import keras

    if keras.config.backend() == "tensorflow":
        keras.utils.set_random_seed(seed % 2**32)
        return
    # keras.utils.set_random_seed would import TensorFlow, which takes seconds.
    import numpy as np
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
    from keras.src.utils.rng_utils import GLOBAL_RANDOM_SEED

    global_state.set_global_attribute(GLOBAL_RANDOM_SEED, seed % 2**32)
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    random.seed(seed % 2**32)
    np.random.seed(seed % 2**32)


def _choose_threads(options: Options) -> tuple[int, str]:
    if options.threads:
        return options.threads, "asked for"
    return available_cores(), "one per available core"


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
