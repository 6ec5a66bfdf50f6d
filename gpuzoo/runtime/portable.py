"""Level portable: the same bits on every x86-64 processor with AVX2 and FMA.

What a library would choose by the processor is pinned before the library is imported,
and what cannot be pinned is refused. What is computed in another way is in
engine/backends/portable.py and elementary.py; what was tried, in benchmarks/LOG.md.
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
VARIABLES = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
# Fields of a record's environment that nothing on TensorFlow's CPU side reads.
_OF_OTHERS = ("driver", "versions.nvidia-", "versions.jax")
_settled = False


def without_effect(field: str) -> bool:
    """Whether no result at this level depends on a field of the environment, named as
    in runs/drift.py: versions.jax, variables.OPENBLAS_CORETYPE."""
    name = field.removeprefix("variables.")
    return field.startswith(_OF_OTHERS) or name in WITHOUT_EFFECT


@contextlib.contextmanager
def expected(level: str | None):
    """Within the block, what this level sets in the environment is no change of it."""
    if level != LEVEL:
        yield
        return
    before = environment.expect(VARIABLES)
    try:
        yield
    finally:
        environment.expect(before)


def refuse_after_failure(level: str) -> None:
    """Refuse another level if this one was settled in this process.

    Raises:
        GpuzooError: it was, and TensorFlow may have read what is set for it.
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
    environment.expect(VARIABLES)
    os.environ.update(VARIABLES)
    elementary.use_exact(True)
    return dataclasses.replace(
        options, device="cpu", precision="float32", xla="off",
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
    if backend != "tensorflow":
        raise GpuzooError(
            f"level {LEVEL} refuses {backend}: held to AVX2, XLA still computes "
            "gradients of some products and convolutions in an order that follows the "
            "processor; use --backend tensorflow, or --level repeatable"
        )
    for name, value, why, remedy in (
        ("device", "gpu", "its results are a GPU's", "--device cpu"),
        ("precision", "mixed_bfloat16", "some processors have units for it and round "
         "differently", "--precision float32"),
        ("precision", "mixed_float16", "some processors have units for it and round "
         "differently", "--precision float32"),
        ("xla", "on", "XLA compiles for the processor", "--xla off"),
    ):  # fmt: skip
        if getattr(options, name) == value:
            raise GpuzooError(
                f"level {LEVEL} refuses {name} {value}: {why}; use {remedy}, or "
                "--level repeatable"
            )
    if options.model_devices > 1:
        raise GpuzooError(
            f"level {LEVEL} refuses model_devices {options.model_devices}: sums over "
            "devices have not been compared between processors; use --model-devices 1, "
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
