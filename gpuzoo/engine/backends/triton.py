"""Programs of JAX that are compiled again without Triton, where it has no tiles for a
product of matrices.

Where kernels are not tuned on the card, as at level repeatable, XLA tries nothing else.
Then cuBLAS computes all products.
"""

from collections.abc import Callable

import jax

_WITHOUT_TRITON = {"xla_gpu_enable_triton_gemm": False}


def compile_program(program, *given, options: dict | None = None):
    """Compile a jitted program for arguments, without Triton if it has no tiles;
    `options`: further options of XLA."""
    lowered = program.lower(*given)
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        _check_tiles(error)
        return lowered.compile({**(options or {}), **_WITHOUT_TRITON})


def called(program, **options) -> Callable:
    """Return a function that calls a jitted program; one that is compiled without
    Triton if it has no tiles, with the same options of `jax.jit`."""

    def call(*given):
        nonlocal program
        try:
            return program(*given)
        except jax.errors.JaxRuntimeError as error:
            _check_tiles(error)
            program = jax.jit(
                program.__wrapped__, compiler_options=_WITHOUT_TRITON, **options
            )
            return program(*given)

    return call


def _check_tiles(error: Exception) -> None:
    """Raise the error again unless Triton has no tiles for a product of matrices."""
    if "Couldn't find output tile sizes" not in str(error):
        raise error
