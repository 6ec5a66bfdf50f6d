"""Products of matrices and convolutions on JAX at level portable: one form of each.

XLA gives a product to one of several libraries by its shape and its layout, and most of
them choose by the processor: Eigen its blocks by the caches, oneDNN its kernels by the
instructions. Its library YNN takes products of rows by columns (..., M, K by ..., K, N)
and does neither, as long as the sums are short: long ones it splits for some sizes. So
every product here has that form and is made of sums of at most `_SUM` numbers, its
gradients are such products, and a convolution is the product of slices of the input and
the kernel. What was tried is in benchmarks/LOG.md.
"""

import contextlib
import functools
import itertools
import math

import keras

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import replaced

if keras.config.backend() == "jax":
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax._src.lax import convolution
    from jax._src.lax import lax as inner
    from jax._src.numpy import einsum as sums

    _dot_general = lax.dot_general
    _conv = lax.conv_general_dilated
    _einsum = jnp.einsum


@contextlib.contextmanager
def in_one_form():
    """Compute products of matrices and convolutions within the block in these forms."""
    names = {"dot_general": dot_general, "conv_general_dilated": conv_general_dilated}
    einsum = functools.partial(_einsum, _dot_general=dot_general)
    with (
        replaced(lax, **names),
        replaced(inner, dot_general=dot_general),
        replaced(convolution, conv_general_dilated=conv_general_dilated),
        replaced(jnp, einsum=einsum),
        replaced(sums, einsum=einsum),  # of jax.image and jax.nn
        # Part of the key of what JAX has traced before; of no effect on a CPU.
        jax.default_matmul_precision("float32"),
    ):
        yield


_SUM = 256


if keras.config.backend() == "jax":

    @jax.custom_vjp
    def product(a, b):
        """Return the product of the last two axes of (..., M, K) and (..., K, N)."""
        *batch, rows, length = a.shape
        if length <= _SUM:
            return _short(a, b)
        count, width = -(-length // _SUM), b.shape[-1]
        edges = [(0, 0)] * (len(batch) + 1)
        missing = (0, count * _SUM - length)
        a = jnp.pad(a, [*edges, missing]).reshape(*batch, rows, count, _SUM)
        b = jnp.pad(b, [*edges[:-1], missing, (0, 0)])
        parts = _short(jnp.swapaxes(a, -2, -3), b.reshape(*batch, count, _SUM, width))
        # Otherwise XLA may join the parts to one product again.
        return jnp.sum(lax.optimization_barrier(parts), axis=-3)

    def _short(a, b):
        leading = tuple(range(a.ndim - 2))
        axes = ((a.ndim - 1,), (b.ndim - 2,)), (leading, leading)
        # XLA would turn a transposition or a reshape into another product.
        factors = map(lax.optimization_barrier, (a, b))
        return _dot_general(*factors, axes, precision=lax.Precision.DEFAULT)

    def _product_and_factors(a, b):
        return product(a, b), (a, b)

    def _gradients(factors, gradient):
        a, b = (jnp.swapaxes(x, -1, -2) for x in factors)
        return product(gradient, b), product(a, gradient)

    product.defvjp(_product_and_factors, _gradients)


def dot_general(lhs, rhs, dimension_numbers, precision=None,
                preferred_element_type=None, **others):  # fmt: skip
    """`jax.lax.dot_general`; of numbers that are not float32, JAX's own."""
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    if not _in_float32(lhs, rhs, preferred_element_type):
        return _dot_general(
            lhs, rhs, dimension_numbers, precision, preferred_element_type, **others
        )
    (summed_l, summed_r), (batch_l, batch_r) = dimension_numbers
    left = [i for i in range(lhs.ndim) if i not in (*summed_l, *batch_l)]
    right = [i for i in range(rhs.ndim) if i not in (*summed_r, *batch_r)]
    found = product(
        _grouped(lhs, batch_l, left, summed_l), _grouped(rhs, batch_r, summed_r, right)
    )
    sizes = [lhs.shape[i] for i in (*batch_l, *left)]
    return found.reshape(*sizes, *(rhs.shape[i] for i in right))


def _in_float32(lhs, rhs, wanted) -> bool:
    return {str(jnp.dtype(x)) for x in (lhs, rhs, wanted or lhs)} == {"float32"}


def _grouped(x, *groups):
    """Return x with each group of axes as one; an empty first group is left out."""
    sizes = [math.prod(x.shape[i] for i in axes) for axes in groups]
    sizes = sizes if groups[0] else sizes[1:]
    return jnp.transpose(x, [*itertools.chain(*groups)]).reshape(sizes)


def conv_general_dilated(
    lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
    dimension_numbers=None, feature_group_count=1, batch_group_count=1,
    precision=None, preferred_element_type=None, **others,
):  # fmt: skip
    """`jax.lax.conv_general_dilated`; of numbers that are not float32, JAX's own.

    Raises:
        GpuzooError: a convolution whose examples are in groups (batch_group_count).
    """
    if not _in_float32(lhs, rhs, preferred_element_type):
        return _conv(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation,
            dimension_numbers, feature_group_count, batch_group_count, precision,
            preferred_element_type, **others,
        )  # fmt: skip
    if batch_group_count != 1:
        raise GpuzooError(
            f"level portable computes no convolution with batch_group_count="
            f"{batch_group_count}; use feature_group_count, or --level repeatable"
        )
    axes = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    count = lhs.ndim - 2
    # Examples, places, channels; places of the kernel, channels, filters.
    x = jnp.transpose(lhs, (axes.lhs_spec[0], *axes.lhs_spec[2:], axes.lhs_spec[1]))
    kernel = jnp.transpose(
        rhs, (*axes.rhs_spec[2:], axes.rhs_spec[1], axes.rhs_spec[0])
    )
    apart, spread = lhs_dilation or (1,) * count, rhs_dilation or (1,) * count
    reach = [(s - 1) * d + 1 for s, d in zip(kernel.shape, spread, strict=False)]
    if isinstance(padding, str):
        wide = [(s - 1) * d + 1 for s, d in zip(x.shape[1:-1], apart, strict=True)]
        padding = lax.padtype_to_pads(wide, reach, window_strides, padding)
    edges = [(*pair, d - 1) for pair, d in zip(padding, apart, strict=True)]
    if any(map(any, edges)):
        x = lax.pad(x, jnp.float32(0), [(0, 0, 0), *edges, (0, 0, 0)])
    parts, places = _slices(x, kernel.shape[:count], spread, window_strides)
    found = _summed(parts, kernel, feature_group_count)
    found = found.reshape(len(x), *places, kernel.shape[-1])
    order = (axes.out_spec[0], *axes.out_spec[2:], axes.out_spec[1])
    return jnp.transpose(found, [order.index(i) for i in range(count + 2)])


def _slices(x, sizes, spread, strides) -> tuple[list, list[int]]:
    """Return of each place of the kernel what it is multiplied by, as (rows, channels),
    and the sizes of the result."""
    places = [
        (whole - (size - 1) * d - 1) // step + 1
        for whole, size, d, step in zip(
            x.shape[1:-1], sizes, spread, strides, strict=True
        )
    ]
    parts = []
    for place in itertools.product(*map(range, sizes)):
        first = [i * d for i, d in zip(place, spread, strict=True)]
        last = [
            start + (n - 1) * step + 1
            for start, n, step in zip(first, places, strides, strict=True)
        ]
        part = lax.slice(
            x, (0, *first, 0), (len(x), *last, x.shape[-1]), (1, *strides, 1)
        )
        parts.append(part.reshape(-1, x.shape[-1]))
    return parts, places


def _summed(parts: list, kernel, groups: int):
    """Return the sum over places and channels, (rows, filters)."""
    channels, filters = parts[0].shape[-1], kernel.shape[-1]
    if groups == channels:  # depthwise: a sum over places only, without a product
        weights = kernel.reshape(len(parts), channels, filters // groups)
        found = jnp.zeros((), parts[0].dtype)
        for part, weight in zip(parts, weights, strict=True):
            found = found + part[:, :, None] * weight
        return found.reshape(-1, filters)
    if groups == 1:
        columns = jnp.concatenate(parts, axis=-1) if parts[1:] else parts[0]
        return product(columns, kernel.reshape(-1, filters))
    inside = channels // groups
    columns = jnp.stack(parts, axis=1).reshape(-1, len(parts), groups, inside)
    columns = jnp.transpose(columns, (2, 0, 1, 3)).reshape(
        groups, -1, len(parts) * inside
    )
    weights = kernel.reshape(len(parts) * inside, groups, filters // groups)
    found = product(columns, jnp.transpose(weights, (1, 0, 2)))
    return jnp.transpose(found, (1, 0, 2)).reshape(-1, filters)
