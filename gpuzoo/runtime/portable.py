"""Level portable: the same bits on every x86-64 processor with AVX2 and FMA.

What a library would choose by the processor is pinned before the library is imported,
and what cannot be pinned is refused. What is computed in another way is in
engine/backends/portable.py and elementary.py; what was tried, in benchmarks/LOG.md.
"""

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
_VARIABLES = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def expect() -> None:
    """Let what this level sets in the environment not count as a change of it."""
    environment.expect(_VARIABLES)


def settle(options: Options, backend: str) -> Options:
    """Set what is pinned in the environment of this process, before the backend is
    imported, and return the options that are left to it.

    Raises:
        GpuzooError: an option or a processor that this level refuses, or a backend that
            is imported already.
    """
    _check(options, backend)
    os.environ.update(_VARIABLES)
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
            f"level {LEVEL} refuses {backend}: its programs are compiled for the "
            "processor, and differ between processors even if they are held to AVX2; "
            "use --backend tensorflow, or --level repeatable"
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
    known = environment.cpu_isa()
    lacking = [name for name in _NEEDED if name not in known]
    if lacking or platform.machine() not in ("x86_64", "AMD64"):
        raise GpuzooError(
            f"level {LEVEL} needs an x86-64 processor with AVX2 and FMA, and this one, "
            f"{environment.cpu_model()}, is not; use --level repeatable"
        )
    if backend in sys.modules:
        raise GpuzooError(
            f"level {LEVEL}: too late to pin instruction sets, {backend} is already "
            f"imported; {LATE}"
        )
