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
OTHER_FORM = "in another form"
"""Ends the name of a product that is not of the form of products_jax.py."""
_UNLIKE = (
    "this product of matrices was not made by jax.numpy, jax.lax or Keras in the step",
    "use keras.ops.matmul or einsum, or --level repeatable",
)
_LIST = """\
abs
abs float32
acos float32
add
add float32
add_any complex64
add_any float32
and
argmax
argmax float32
argmin float32
asin float32
asinh float32
atan float32
atan2 float32
atanh float32
bitcast_convert_type float32
broadcast_in_dim
broadcast_in_dim complex64
broadcast_in_dim float32
ceil float32
clamp float32
complex complex64 float32
concatenate
concatenate float32
cond float32
conj complex64
convert_element_type
convert_element_type complex64 float32
convert_element_type float32
copy float32
cos float32
cosh float32
cumsum
cumsum float32
custom_jvp_call float32
custom_vjp_call
custom_vjp_call float32
div
div complex64
div float32
dot_general float32
dynamic_slice
dynamic_slice float32
dynamic_update_slice complex64
dynamic_update_slice float32
eq
eq float32
erf float32
erf_inv float32
erfc float32
exp float32
exp2 float32
expm1 float32
fft complex64 float32
floor float32
gather
gather float32
ge
ge float32
gt
gt float32
imag complex64 float32
integer_pow float32
iota
iota float32
is_finite float32
jit
jit complex64 float32
jit float32
le
le float32
le_to float32
log float32
log1p float32
logistic float32
lt
lt float32
lt_to float32
max
max float32
min
min float32
mul
mul complex64
mul float32
ne
ne float32
neg float32
nextafter float32
optimization_barrier float32
or
pad
pad float32
pow float32
random_bits
random_gamma float32
random_split
random_wrap
real complex64 float32
reduce_and
reduce_max float32
reduce_min float32
reduce_or
reduce_sum
reduce_sum float32
reduce_window_sum float32
rem
rem float32
reshape
reshape float32
rev
rev float32
round float32
rsqrt float32
scan float32
scatter float32
scatter-add float32
scatter-max float32
select_n
select_n float32
shift_left
shift_right_arithmetic
shift_right_logical
sign
sign float32
sin float32
sinh float32
slice
slice float32
sort float32
split float32
sqrt float32
square float32
squeeze
squeeze float32
stack
stack float32
stop_gradient float32
sub
sub float32
tan float32
tanh float32
tile
tile float32
top_k float32
transpose
transpose complex64
transpose float32
unstack float32
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
        elif name.endswith(OTHER_FORM):
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
            name = f"{name} {OTHER_FORM}"
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
