"""Start JAX with the given options."""

import os
import sys

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.bootstrap import importing
from gpuzoo.runtime.environment import (
    DETERMINISTIC_FLAG,
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
    quiet_start,
    set_variables,
)


def start_jax(options: Options, seed: int, autotune_sha256: str | None) -> Runtime:
    check_limit("JAX")
    if "jax" in sys.modules:
        from jax._src import xla_bridge

        if xla_bridge.backends_are_initialized():
            raise GpuzooError(f"too late to configure JAX; {LATE}")
    if options.xla == "off":
        raise GpuzooError("xla off was requested, but JAX compiles everything with XLA")
    reasons = {"xla": "JAX always compiles with XLA"}
    threads, reasons["threads"] = choose_threads(options)
    os.environ["NPROC"] = str(threads)  # sets the size of XLA's CPU thread pool
    set_variables()
    deterministic = options.level != "fast"
    reasons["deterministic"] = f"level {options.level}"
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and DETERMINISTIC_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC_FLAG}".strip()
    with quiet_start(), importing("sklearn", "matplotlib", "IPython"):
        import jax

        if options.device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        found = jax.devices()[0]
        import keras
    seen = found.platform in ("gpu", "cuda")
    device, reasons["device"] = choose_device(
        options.device, seen, "JAX", "jax[cuda13]"
    )
    precision, reasons["precision"] = options.precision, "requested"
    if precision == "auto" and device == "cpu":
        precision, why = "float32", "XLA on a CPU is faster in float32 than in bfloat16"
        reasons["precision"] = why
    elif precision == "auto":
        capability = str(getattr(found, "compute_capability", "0.0")).split(".")
        precision, reasons["precision"] = choose_precision(
            options.precision, device, tuple(map(int, capability))
        )
    set_keras(precision)
    tf32 = options.tf32 != "off"
    reasons["tf32"] = "requested" if options.tf32 != "auto" else "the default"
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
