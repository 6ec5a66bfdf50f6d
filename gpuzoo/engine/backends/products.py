"""Products of matrices at level portable: put together of parts that fit every cache.

TensorFlow computes a product with one thread if both factors and the result fit into
the second-level cache of the processor, and with all threads if they do not; oneDNN
then sums in another order. So larger products are made of smaller ones, added in order.
"""

import contextlib
import functools
import itertools
import math
import string

import keras

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import replaced

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.ops import gen_math_ops

# Numbers in a part: 192 KB. Processors with AVX2 have at least 256 KB for each core.
_FITS = 48 * 1024
_SIDE = 128  # of the result of a part
_MOST = 20_000  # parts of a product


@contextlib.contextmanager
def divided():
    """Put products of matrices within the block together of parts."""
    product = functools.partial(_mat_mul, gen_math_ops.mat_mul)
    batched = {
        name: functools.partial(_batch_mat_mul, getattr(gen_math_ops, name), product)
        for name in ("batch_mat_mul", "batch_mat_mul_v2", "batch_mat_mul_v3")
    }
    with (
        replaced(gen_math_ops, mat_mul=product, **batched),
        replaced(tf, einsum=einsum),
        replaced(tf.linalg, einsum=einsum),
    ):
        yield


def _mat_mul(original, a, b, transpose_a=False, transpose_b=False, **others):
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    return _in_parts(functools.partial(original, **flags), a, b, *flags.values())


def _batch_mat_mul(original, single, x, y, *types, adj_x=False, adj_y=False, **others):
    """Return the products of matrices; `single` computes that of two."""
    others.pop("name", None)
    x, y = _known(x), _known(y)
    shared = all(size == 1 for size in y.shape[:-2])
    typed = types or "Tout" in others
    if shared and not typed and 2 < x.shape.rank >= y.shape.rank:
        # oneDNN makes one product of them, if all have the same second factor.
        rows = tf.linalg.matrix_transpose(x) if adj_x else x
        flat = tf.reshape(rows, (math.prod(rows.shape[:-1]), rows.shape[-1]))
        found = single(flat, tf.reshape(y, y.shape[-2:]), transpose_b=adj_y)
        return tf.reshape(found, (*rows.shape[:-1], found.shape[-1]))
    flags = {"adj_x": adj_x, "adj_y": adj_y}
    one = functools.partial(original, **flags, **others)
    return _in_parts(lambda x, y: one(x, y, *types), x, y, adj_x, adj_y)


def _in_parts(product, a, b, turned_a: bool, turned_b: bool):
    """Return the product of the last two axes, of parts that are added in order."""
    a, b = _known(a), _known(b)
    (rows, inner), (other, columns) = (-2, -1), (-2, -1)
    if turned_a:
        rows, inner = inner, rows
    if turned_b:
        other, columns = columns, other
    sizes = a.shape[rows], a.shape[inner], b.shape[columns]
    if parts_of(*sizes) == sizes:
        return product(a, b)
    height, length, width = parts_of(*sizes)
    uppers = [_split(x, length, inner) for x in _split(a, height, rows)]
    lefts = [_split(x, length, other) for x in _split(b, width, columns)]
    if len(uppers) * len(lefts) * len(lefts[0]) > _MOST:
        raise GpuzooError(
            f"a product of matrices {sizes[0]} x {sizes[1]} by {sizes[1]} x {sizes[2]} "
            f"has more than {_MOST:,} parts at level portable; make the layer or the "
            "batch smaller, or use --level repeatable"
        )
    made = []
    for upper in uppers:
        line = []
        for left in lefts:
            products = itertools.starmap(product, zip(upper, left, strict=True))
            line.append(functools.reduce(gen_math_ops.add_v2, products))
        made.append(tf.concat(line, -1) if line[1:] else line[0])
    return tf.concat(made, -2) if made[1:] else made[0]


def _known(x):
    """Return a tensor whose shape is known while the step is traced.

    Raises:
        GpuzooError: it is not, so that its parts cannot be chosen.
    """
    x = tf.convert_to_tensor(x)
    if not x.shape.is_fully_defined():
        raise GpuzooError(
            f"level portable needs the shape of each factor of a product of matrices, "
            f"and one is {x.shape}: a size depends on the values; use --level "
            "repeatable"
        )
    return x


def _split(x, size: int, axis: int) -> list:
    whole = x.shape[axis]
    sizes = [size] * (whole // size) + [whole % size] * (whole % size > 0)
    return tf.split(x, sizes, axis) if sizes[1:] else [x]


def parts_of(rows: int, length: int, columns: int) -> tuple[int, int, int]:
    """Return rows, length of the sum, and columns of a part of a product."""
    if rows * columns + length * (rows + columns) <= _FITS:
        return rows, length, columns
    height, width = max(min(rows, _SIDE), 1), max(min(columns, _SIDE), 1)
    fits = (_FITS - height * width) // (height + width)
    return height, max(min(length, fits // 64 * 64), 1), width


def einsum(equation: str, *operands, **options):
    """Return `tf.einsum` by products of matrices, which have parts; of more than two
    operands one after the other.

    Raises:
        GpuzooError: an equation without an output, or with an index that one operand
            has twice.
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    given = [_known(one) for one in operands]
    terms, output = _without_dots(terms, output, given)
    plain = all(
        (one or "a").isalpha() and len(set(one)) == len(one) for one in (*terms, output)
    )
    if not arrow or not plain or len(terms) != len(operands):
        raise GpuzooError(
            f"einsum {equation!r}: level portable computes those with an output and "
            "different indices (ab,bc->ac) in parts; write it so, or use --level "
            "repeatable"
        )
    (term, *terms), (found, *given) = terms, given
    while terms:
        other, *terms = terms
        later = "".join((output, *terms))
        kept = "".join(x for x in dict.fromkeys(term + other) if x in later)
        found = _contracted(term, other, kept, found, given.pop(0))
        term = kept
    found, term = _without(found, term, set(term) - set(output))
    return tf.transpose(found, [term.index(name) for name in output])


def _without_dots(terms: list[str], output: str, given: list) -> tuple[list[str], str]:
    """Write the indices that "..." stands for."""
    taken = {*"".join((*terms, output))}
    spare = "".join(x for x in string.ascii_letters if x not in taken)
    counts = [
        one.shape.rank - len(term.replace("...", ""))
        for term, one in zip(terms, given, strict=False)
    ]
    most = max([n for n, term in zip(counts, terms, strict=False) if "..." in term],
               default=0)  # fmt: skip
    spelt = [
        term.replace("...", spare[most - count : most])
        for term, count in zip(terms, counts, strict=False)
    ]
    return spelt + terms[len(spelt) :], output.replace("...", spare[:most])


def _without(x, term: str, names: set):
    """Return an operand summed over some of its indices, and those that are left."""
    axes = [term.index(name) for name in sorted(names)]
    left = "".join(name for name in term if name not in names)
    return (tf.reduce_sum(x, axes) if axes else x), left


def _contracted(one: str, other: str, output: str, a, b):
    """Return the einsum of two operands."""
    a, one = _without(a, one, set(one) - set(other) - set(output))
    b, other = _without(b, other, set(other) - set(one) - set(output))
    batch = [x for x in output if x in one and x in other]
    summed = [x for x in one if x in other and x not in output]
    left = [x for x in output if x in one and x not in other]
    right = [x for x in output if x in other and x not in one]
    sizes = dict(zip(one + other, (*a.shape, *b.shape), strict=True))
    if any(sizes[x] != size for x, size in zip(one, a.shape, strict=True)):
        raise GpuzooError(
            f"einsum of shapes {a.shape} and {b.shape}: an index has two sizes; level "
            "portable does not broadcast it"
        )

    def matrix(x, term: str, first: list, second: list):
        order = [term.index(name) for name in (*batch, *first, *second)]
        shape = [
            *(sizes[name] for name in batch),
            math.prod(sizes[x] for x in first), math.prod(sizes[x] for x in second),
        ]  # fmt: skip
        return tf.reshape(tf.transpose(x, order), shape)

    found = tf.matmul(matrix(a, one, left, summed), matrix(b, other, summed, right))
    made = [*batch, *left, *right]
    found = tf.reshape(found, [sizes[name] for name in made])
    return tf.transpose(found, [made.index(name) for name in output])
