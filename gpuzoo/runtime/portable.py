"""Level portable: the same bits on every x86-64 processor with AVX2 and FMA.

What a library would choose by the processor is pinned before the library is imported,
and what cannot be pinned is refused. What is computed in another way is in
engine/backends/portable.py, products_jax.py and elementary.py; what was tried, in
benchmarks/LOG.md.
"""

import contextlib
import dataclasses
import os
import platform
import sys

from gpuzoo import elementary
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import environment
from gpuzoo.runtime.options import LATE, Options, Runtime

LEVEL = "portable"
CLASS = "the same bits on every x86-64 processor with AVX2 and FMA"
THREADS = 2
# They choose NumPy's code, on which nothing depends here (elementary.py).
WITHOUT_EFFECT = ("NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE")
_NEEDED = ("avx2", "fma")
_OF_EACH = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
# The second lets XLA write its own form of 1/sqrt(x), for one of an instruction.
_OF_JAX = {
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_enable_platform_dependent_math=false"
}
VARIABLES = {**_OF_EACH, **_OF_JAX}
"""What the level sets for one of the backends."""
# Fields of a record's environment that nothing on the CPU side of a backend reads.
_OF_OTHERS = {
    "tensorflow": ("driver", "versions.nvidia-", "versions.jax"),
    "jax": ("driver", "versions.nvidia-", "versions.jax-cuda"),
}
_settled = False


def pinned(backend: str) -> dict[str, str]:
    """Return the variables that the level sets for a backend."""
    return VARIABLES if backend == "jax" else _OF_EACH


def without_effect(field: str, backend: str) -> bool:
    """Whether no result at this level depends on a field of the environment, named as
    in runs/drift.py: versions.jax, variables.OPENBLAS_CORETYPE."""
    name = field.removeprefix("variables.")
    return field.startswith(_OF_OTHERS[backend]) or name in WITHOUT_EFFECT


@contextlib.contextmanager
def expected(level: str | None, backend: str = "jax"):
    """Within the block, what this level sets in the environment is no change of it;
    without the name of a backend, what it sets for any."""
    if level != LEVEL:
        yield
        return
    before = environment.expect(pinned(backend))
    try:
        yield
    finally:
        environment.expect(before)


def refuse_after_failure(level: str) -> None:
    """Refuse another level if this one was settled in this process.

    Raises:
        GpuzooError: it was, and the backend may have read what is set for it.
    """
    if _settled and level != LEVEL:
        raise GpuzooError(
            f"level {level}: configure(level={LEVEL!r}) failed in this process, and "
            "what it set may be in use already; start a new process"
        )


def settle(options: Options, backend: str) -> Options:
    """Set what is pinned in the environment of this process, before the backend is
    imported, and return the options that are left to it.

    Raises:
        GpuzooError: an option or a processor that this level refuses, or a backend that
            is imported already.
    """
    global _settled
    _check(options, backend)
    _settled = True
    environment.expect(pinned(backend))
    os.environ.update(pinned(backend))
    elementary.use_exact(True)
    return dataclasses.replace(
        options, device="cpu", precision="float32",
        xla=options.xla if backend == "jax" else "off",
        threads=options.threads or THREADS,
    )  # fmt: skip


def explained(runtime: Runtime, options: Options) -> Runtime:
    """Return the runtime with the reasons for what was not requested."""
    reasons = {**runtime.reasons, "level": CLASS}
    for name in ("device", "precision", "threads", "xla"):
        if getattr(options, name) in ("auto", 0) and reasons[name] == "requested":
            reasons[name] = f"level {LEVEL}"
    return dataclasses.replace(runtime, reasons=reasons)


def _check(options: Options, backend: str) -> None:
    for name, value, why, remedy in (
        ("device", "gpu", "its results are a GPU's", "--device cpu"),
        ("precision", "mixed_bfloat16", "some processors have units for it and round "
         "differently", "--precision float32"),
        ("precision", "mixed_float16", "some processors have units for it and round "
         "differently", "--precision float32"),
        ("xla", "on", "XLA compiles for the processor", "--xla off"),
        ("distributed", True, "sums over processes have not been compared between "
         "processors", "one process"),
    ):  # fmt: skip
        if name == "xla" and backend == "jax":
            continue  # JAX always compiles with XLA, held to AVX2
        if getattr(options, name) == value:
            raise GpuzooError(
                f"level {LEVEL} refuses {name} {value}: {why}; use {remedy}, or "
                "--level repeatable"
            )
    for name in ("devices", "model_devices"):
        if (count := getattr(options, name)) > 1:
            raise GpuzooError(
                f"level {LEVEL} refuses {name} {count}: sums over devices have not "
                f"been compared between processors; use --{name.replace('_', '-')} 1, "
                "or --level repeatable"
            )
    if options.autotune:
        raise GpuzooError(
            f"level {LEVEL} refuses autotune {options.autotune}: it pins XLA's GPU "
            "kernels; leave it out, or use --level repeatable"
        )
    known = environment.cpu_isa()
    lacking = [name for name in _NEEDED if name not in known]
    if lacking or platform.machine() not in ("x86_64", "AMD64"):
        raise GpuzooError(
            f"level {LEVEL} needs Linux, where /proc/cpuinfo names them, and an x86-64 "
            f"processor with AVX2 and FMA; here it is {environment.cpu_model()} on "
            f"{platform.system()}; use --level repeatable"
        )
    if backend in sys.modules:
        raise GpuzooError(
            f"level {LEVEL}: too late to pin instruction sets, {backend} is already "
            f"imported; {LATE}"
        )
