"""Compare single operations, and their gradients, at level portable between processors.

    python benchmarks/repeatability/portable_ops.py one.json
    qemu-x86_64-static -cpu Haswell .venv/bin/python \\
        benchmarks/repeatability/portable_ops.py other.json    # slow: an emulated one
    python benchmarks/repeatability/portable_ops.py --compare one.json other.json

Each operation of TensorFlow is traced as a training step of level portable is: with its
replacements (gpuzoo/engine/backends/portable.py), without constant folding, on two
threads. Written are digests of its result and of its gradients. Compared are two such
files: the names that differ are printed, exit code 1 if there are any that the level
does not refuse by name (REFUSED).
"""

import argparse
import hashlib
import json
import pathlib
import sys

import numpy as np

ON_POSITIVE = "sqrt rsqrt log log1p log2 log10 exp2".split()
ON_ALL = (
    "exp expm1 sin cos tan sinh cosh tanh sigmoid silu gelu erf softplus softsign elu "
    "selu relu6 log_sigmoid hard_sigmoid arctan arcsinh leaky_relu square"
).split()
BELOW_ONE = "arcsin arccos arctanh erfinv".split()
REFUSED = {"arctan", "erfinv"}


def numbers(key: int, *shape: int) -> np.ndarray:
    """Return numbers in [-1, 1) that no processor draws otherwise."""
    bits = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return ((bits >> np.uint64(11)) * 2.0**-52 - 1).astype("float32").reshape(shape)


def cases(ops, layers) -> dict:
    """Return name -> the function and its arguments."""
    sym, small = 8 * numbers(1, 20_003), numbers(2, 20_003)
    pos = np.abs(sym) + np.float32(2**-20)
    rows, columns = numbers(3, 64, 300), numbers(4, 300, 70)
    images, kernel = numbers(5, 8, 14, 14, 5), numbers(6, 3, 3, 5, 24)
    deep = numbers(7, 3, 3, 5, 1)
    sets = ((ON_POSITIVE, pos), (ON_ALL, sym), (BELOW_ONE, small))
    found = {name: (getattr(ops, name), x) for names, x in sets for name in names}
    found |= {
        "divide": (lambda a, b: a / b, sym, pos),
        "divide by constants": (lambda a: a / np.arange(3, 303, dtype="f"), rows),
        "power": (ops.power, pos, small),
        "softmax": (lambda a: ops.softmax(a, -1), rows),
        "logsumexp": (lambda a: ops.logsumexp(a, -1), rows),
        "sum": (lambda a: ops.sum(a, 1), rows),
        "variance": (lambda a: ops.var(a, 0), rows),
        "matmul": (ops.matmul, rows, columns),
        "einsum": (lambda a: ops.einsum("bhwc,bhvc->bwv", a, a), images),
        "convolution": (lambda a, b: ops.conv(a, b, padding="same"), images, kernel),
        "strided": (lambda a, b: ops.conv(a, b, strides=2), images, kernel),
        "depthwise": (ops.depthwise_conv, images, deep),
        "average pooling": (lambda a: ops.average_pool(a, 2), images),
        "max pooling": (lambda a: ops.max_pool(a, 2), images),
    }
    # Sums so long that both factors are larger than a second-level cache.
    long, tall = numbers(8, 40, 5_408), numbers(9, 5_408, 64)
    places, square = numbers(10, 40, 196, 64), numbers(11, 64, 64)
    flat, deeper = numbers(12, 4, 16, 5_000), numbers(13, 4, 5_000, 16)
    maps, point = numbers(14, 40, 8, 8, 512), numbers(15, 1, 1, 512, 128)
    found |= {
        "long product": (ops.matmul, long, tall),
        "long product, transposed": (
            lambda a, b: ops.matmul(ops.transpose(a), b), long.T, tall
        ),
        "long product, few columns": (ops.matmul, long, tall[:, :10]),
        "dense over positions": (ops.matmul, places, square),
        "batched long product": (ops.matmul, flat, deeper),
        "long product in a batch of one": (ops.matmul, flat[:1], deeper[:1]),
        "long einsum": (lambda a, b: ops.einsum("ij,jk->ik", a, b), long, tall),
        "einsum over positions": (
            lambda a, b: ops.einsum("abc,cd->abd", a, b), places, square
        ),
        "batched long einsum": (
            lambda a, b: ops.einsum("bij,bjk->bik", a, b), flat, deeper
        ),
        "deep 1x1 convolution": (ops.conv, maps, point),
        "long sum": (lambda a: ops.sum(a, 0), numbers(16, 20_000, 30)),
    }  # fmt: skip
    for name in ("LayerNormalization", "RMSNormalization", "UnitNormalization"):
        found[name] = getattr(layers, name)(), images
    found["GroupNormalization"] = layers.GroupNormalization(5), images
    return found


def digests() -> dict[str, str]:
    import gpuzoo

    runtime = gpuzoo.configure(level="portable", quiet=True)
    import keras
    import tensorflow as tf

    from gpuzoo.engine.backends import portable

    def step(function, *arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            result = function(*arrays)
            weights = tf.range(tf.size(result)) % 7
            loss = tf.reduce_sum(
                result * tf.reshape(tf.cast(weights, "float32") / 8, tf.shape(result))
            )
        return result, *tape.gradient(loss, arrays)

    found = {}
    for name, (function, *arrays) in cases(keras.ops, keras.layers).items():
        if isinstance(function, keras.layers.Layer):
            function.build(arrays[0].shape)
        compiled = tf.function(lambda *a, f=function: step(f, *a), autograph=False)
        with portable.exact(runtime):
            results = compiled(*map(tf.constant, arrays))
        for place, result in enumerate(results):
            part = name if place == 0 else f"{name}, gradient {place}"
            found[part] = hashlib.sha256(result.numpy().tobytes()).hexdigest()[:16]
    return found


def compare(one: dict, other: dict) -> int:
    differ = [name for name in one if one[name] != other.get(name)]
    print(json.dumps({"compared": len(one), "differ": differ}))
    return int(any(name.partition(",")[0] not in REFUSED for name in differ))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=pathlib.Path)
    parser.add_argument("--compare", nargs=2, type=pathlib.Path)
    args = parser.parse_args()
    if args.compare:
        return compare(*(json.loads(path.read_text()) for path in args.compare))
    if not args.file:
        parser.error("name a file, or --compare two of them")
    args.file.write_text(json.dumps(digests(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
