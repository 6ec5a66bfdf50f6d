"""Operations of JAX that level portable takes, as compared.py has those of TensorFlow.

The list is written by benchmarks/repeatability/portable_ops.py --backend jax --keep.
"""

import re
from collections.abc import Callable, Iterator

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.portable import LEVEL

_UNKNOWN = (
    "its bits have not been compared between processors",
    "use another operation, or --level repeatable",
)
_IN_FLOAT32 = "give the layer dtype='float32', or use --level repeatable"
# LAPACK and BLAS as SciPy has them, which choose their code by the processor.
LIBRARIES = {
    "cholesky", "cholesky_update", "eig", "eigh", "geqp3", "geqrf", "hessenberg",
    "householder_product", "lu", "ormqr", "qr", "schur", "svd", "sylvester",
    "triangular_solve", "tridiagonal", "tridiagonal_solve",
}  # fmt: skip
_LIBRARY = (
    "a library computes it that chooses its code by the processor",
    "use another operation, or --level repeatable",
)
_OTHER_FORM = "in another form"
_UNLIKE = (
    "this product of matrices was not made by jax.numpy, jax.lax or Keras in the step",
    "use keras.ops.matmul or einsum, or --level repeatable",
)
_LIST = """\
""".splitlines()
COMPARED = frozenset(_LIST)
_TYPES = frozenset(name.partition(" ")[0] for name in _LIST)
# Of name scopes: jvp(cnn_1), transpose(jvp(cnn_1)).
_WITHIN = re.compile(r"\w+\(([^()]*)\)")


def check(trace: Callable) -> None:
    """Search a step for operations that were not compared.

    Args:
        trace: returns the step as a `ClosedJaxpr`.

    Raises:
        GpuzooError: names the layer, the operation, the reason and the remedy.
    """
    try:
        closed = trace()
    except NotImplementedError as error:
        # JAX transposes what solves a system of equations; it cannot transpose the form
        # of products_jax.py.
        if "custom_vjp" not in str(error):
            raise
        raise GpuzooError(
            f"level {LEVEL}: JAX cannot compute a gradient through a product of "
            "matrices in the form of this level, for example where a system of linear "
            "equations is solved; leave the operation out (RandomPerspective has one), "
            "or use --level repeatable"
        ) from None
    others = [pair for pair in named(closed.jaxpr) if pair[1] not in COMPARED]
    # Casts, which the model may have named, last.
    others.sort(key=lambda pair: (_type(pair[1]) in _TYPES, _type(pair[1]) == _CAST))
    for layer, name in others:
        kind = _type(name)
        why, remedy = _UNKNOWN
        if kind in LIBRARIES:
            why, remedy = _LIBRARY
        elif name.endswith(_OTHER_FORM):
            why, remedy = _UNLIKE
        elif kind in _TYPES:
            dtypes = " and ".join(name.split()[1:]) or "whole numbers"
            why, remedy = f"level {LEVEL} does not compute it in {dtypes}", _IN_FLOAT32
        raise GpuzooError(
            f"layer {layer!r} is not repeatable with these settings: its operation "
            f"{kind}: {why}; {remedy}"
        )


_CAST = "convert_element_type"


def _type(name: str) -> str:
    return name.partition(" ")[0]


def operations_of(closed) -> set[str]:
    """Return the operations of a traced step, each with its floating-point types."""
    return {name for _, name in named(closed.jaxpr)}


def named(jaxpr, outer: str = "") -> Iterator[tuple[str, str]]:
    """Yield the layer and the name of each operation of a function and of those in it:
    exp float32; add, of whole numbers; convert_element_type float16 float32."""
    barriers = set()
    for equation in jaxpr.eqns:
        scope = str(equation.source_info.name_stack)
        layer = "/".join(filter(None, [outer, scope]))
        kind = equation.primitive.name
        dtypes = {
            str(one.aval.dtype)
            for one in (*equation.invars, *equation.outvars)
            if hasattr(one.aval, "dtype")
        }
        name = " ".join([kind, *sorted(x for x in dtypes if _is_rounded(x))])
        if kind == "optimization_barrier":
            barriers.update(equation.outvars)
        elif kind == "dot_general" and name != kind and not _ours(equation, barriers):
            name = f"{name} {_OTHER_FORM}"
        yield _layer(layer), name
        for inner in _functions(equation.params):
            yield from named(inner, layer)


def _is_rounded(dtype: str) -> bool:
    return "float" in dtype or "complex" in dtype


def _ours(equation, barriers: set) -> bool:
    """Whether a product has the form of products_jax.py."""
    (lefts, rights), batch = equation.params["dimension_numbers"]
    a, b = (one.aval for one in equation.invars)
    leading = tuple(range(a.ndim - 2))
    return (
        a.ndim == b.ndim >= 2
        and tuple(map(tuple, batch)) == (leading, leading)
        and (tuple(lefts), tuple(rights)) == ((a.ndim - 1,), (b.ndim - 2,))
        and all(not hasattr(x, "val") and x in barriers for x in equation.invars)
    )


def _functions(parameters: dict) -> Iterator:
    """Yield the functions that an operation calls."""
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _layer(scope: str) -> str:
    """jvp(cnn_1)/transpose(jvp(pool_1)) -> cnn_1/pool_1"""
    while scope != (plain := _WITHIN.sub(r"\1", scope)):
        scope = plain
    return "/".join(filter(None, scope.split("/"))) or "the step"
