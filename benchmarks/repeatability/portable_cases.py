"""Single operations, and their gradients, for portable_ops.py to compare."""

import functools

import numpy as np

ON_POSITIVE = "sqrt rsqrt log log1p log2 log10 exp2".split()
ON_ALL = (
    "exp expm1 sin cos tan sinh cosh tanh sigmoid silu gelu erf softplus softsign elu "
    "selu relu relu6 celu log_sigmoid hard_sigmoid hard_silu hard_tanh hard_shrink "
    "soft_shrink tanh_shrink squareplus sparse_plus arctan arcsinh leaky_relu square "
    "absolute negative reciprocal floor ceil round sign trunc isnan isfinite sort "
    "argsort cumsum cumprod flip diff nan_to_num zeros_like ones_like deg2rad"
).split()
BELOW_ONE = "arcsin arccos arctanh erfinv".split()
OF_TWO = (
    "add subtract multiply maximum minimum arctan2 logaddexp equal greater less "
    "not_equal greater_equal less_equal power mod floor_divide true_divide hypot"
).split()
OF_ROWS = (
    "max min prod mean std var sum argmax argmin any all median count_nonzero "
    "logsumexp softmax log_softmax"
).split()


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
    found |= {name: (getattr(ops, name), sym, pos) for name in OF_TWO}
    found |= {
        f"{name} of rows": (functools.partial(getattr(ops, name), axis=-1), rows)
        for name in OF_ROWS
    }
    found |= shapes(ops, rows, columns)
    found |= {
        "spectrogram": (lambda a: spectrogram(ops, a, 512, 128), sym[:4_096]),
        "spectrogram of 400": (lambda a: spectrogram(ops, a, 400, 160), sym[:4_096]),
        "exact gelu": (lambda a: ops.gelu(a, approximate=False), sym),
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
        "average pooling": (lambda a: ops.average_pool(a, 2, 2), images),
        "max pooling": (lambda a: ops.max_pool(a, 2), images),
    }
    found |= large(ops)
    found |= convolutions(ops, images, kernel)
    found |= parts_of_layers(ops, layers, images)
    for name in ("LayerNormalization", "RMSNormalization", "UnitNormalization"):
        found[name] = getattr(layers, name)(), images
    found["GroupNormalization"] = layers.GroupNormalization(5), images
    return found


def large(ops) -> dict:
    """Return sums so long that both factors are larger than a second-level cache."""
    long, tall = numbers(8, 40, 5_408), numbers(9, 5_408, 64)
    places, square = numbers(10, 40, 196, 64), numbers(11, 64, 64)
    flat, deeper = numbers(12, 4, 16, 5_000), numbers(13, 4, 5_000, 16)
    maps, point = numbers(14, 40, 8, 8, 512), numbers(15, 1, 1, 512, 128)
    return {
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


def convolutions(ops, images, kernel) -> dict:
    """Return further kinds of convolutions."""
    series, taps = numbers(22, 4, 60, 6), numbers(23, 3, 6, 8)
    return {
        "dilated convolution": (
            lambda a, b: ops.conv(a, b, padding="same", dilation_rate=2), images, kernel
        ),
        "transposed convolution": (
            lambda a, b: ops.conv_transpose(a, b, strides=2, padding="same"),
            images, numbers(26, 4, 4, 24, 5),
        ),
        "convolution of series": (
            lambda a, b: ops.conv(a, b, dilation_rate=4), series, taps
        ),
        "strided depthwise convolution": (
            lambda a, b: ops.depthwise_conv(a, b, strides=2, padding="same"),
            images, numbers(27, 3, 3, 5, 2),
        ),
    }  # fmt: skip


def parts_of_layers(ops, layers, images) -> dict:
    """Return operations that only few layers have, in the layers or alone."""
    import keras

    whole = np.arange(40, dtype="int32").reshape(8, 5) % 16
    volume, kernel = numbers(17, 2, 6, 6, 6, 3), numbers(18, 2, 2, 2, 3, 4)
    weights = keras.Variable(numbers(19, 40), trainable=False)
    pixels = 127 + 127 * images[..., :3]

    def number(layer, *given):
        return lambda a: (
            a[:8]
            * ops.reshape(
                ops.sum(ops.reshape(ops.cast(layer(*given), "float32"), (8, -1)), 1),
                (8, 1, 1, 1),
            )
        )

    def assigned(a):
        weights.assign(a)
        weights.value.assign_add(2 * a)
        weights.value.assign_sub(3 * weights.value)
        return a * weights

    def training(layer):
        return lambda a: layer(a, training=True)

    found = {
        "volumes": (lambda a, b: ops.conv(a, b, padding="same"), volume, kernel),
        "average pooling of volumes": (
            lambda a: ops.average_pool(a, 2, 2, "same"), volume
        ),
        "max pooling of volumes": (lambda a: ops.max_pool(a, 2, 2, "same"), volume),
        "flipped bytes": (lambda a: a * ops.cast(ops.flip(
            ops.cast(a, "uint8"), 2), "float32"), pixels),
        "hue": (lambda a: ops.image.hsv_to_rgb(ops.image.rgb_to_hsv(a / 255)), pixels),
        "CategoryEncoding": (number(layers.CategoryEncoding(16), whole), images),
        "CategoryEncoding, counted": (
            number(layers.CategoryEncoding(16, output_mode="count"), whole), images
        ),
        "Discretization": (lambda a: a * ops.cast(
            layers.Discretization(bin_boundaries=[-0.5, 0.0, 0.5])(a), "float32"
        ), images),
        "gamma": (
            lambda a: a * keras.random.gamma((8, 14, 14, 5), 0.3, seed=3), images
        ),
        "beta": (
            lambda a: a * keras.random.beta((8, 14, 14, 5), 0.3, 0.6, seed=3), images
        ),
        "drawn": (lambda a: a * ops.cast(
            keras.random.randint((8, 14, 14, 5), 0, 9, seed=3), "float32"), images),
        "SpectralNormalization": (
            training(layers.SpectralNormalization(layers.Dense(4))), images
        ),
        "RandomPosterization": (
            training(layers.RandomPosterization(4, seed=1)), pixels
        ),
        "Equalization": (training(layers.Equalization()), pixels),
        "RandomTranslation": (
            training(layers.RandomTranslation(0.2, 0.2, seed=1)), pixels
        ),
        "RandomShear": (training(layers.RandomShear(0.2, 0.2, seed=1)), pixels),
        "RandomPerspective": (
            training(layers.RandomPerspective(seed=1)), pixels
        ),
        "RandomErasing": (training(layers.RandomErasing(seed=1)), pixels),
    }  # fmt: skip
    if keras.config.backend() != "tensorflow":  # which the last ones need
        # There it is a call of a function, whose own operations are what matters.
        return found | {
            "grouped convolution": (
                ops.conv,
                numbers(24, 8, 14, 14, 6),
                numbers(25, 3, 3, 3, 8),
            )
        }
    return found | {
        "assigned": (assigned, numbers(20, 40)),
        "Hashing": (number(layers.Hashing(4), whole), images),
        "HashedCrossing": (
            number(layers.HashedCrossing(4), (whole[:, :1], whole[:, 1:2])), images
        ),
        "IntegerLookup": (
            number(layers.IntegerLookup(vocabulary=list(range(8))), whole), images
        ),
    }  # fmt: skip


def spectrogram(ops, signal, length: int, stride: int):
    """Return the squares of the magnitudes of a short-time Fourier transform."""
    real, imaginary = ops.stft(signal, length, stride, length)
    return real * real + imaginary * imaginary


def shapes(ops, rows, columns) -> dict:
    """Return operations that only move, choose or count numbers."""
    places = np.array([3, 0, 3, 60], "int32")
    bins = np.arange(20, dtype="int32")
    return {
        "concatenate": (lambda a: ops.concatenate([a, a[:7]]), rows),
        "stack": (lambda a: ops.stack([a, 2 * a], axis=1), rows),
        "split": (lambda a: ops.split(a, 4)[1], rows),
        "unstack": (lambda a: ops.unstack(a, axis=1)[3], rows),
        "transpose": (ops.transpose, rows),
        "swapaxes": (lambda a: ops.swapaxes(a, 0, 1), rows),
        "repeat": (lambda a: ops.repeat(a, 2, axis=0), rows),
        "tile": (lambda a: ops.tile(a, (2, 1)), rows),
        "roll": (lambda a: ops.roll(a, 5, axis=1), rows),
        "expand": (lambda a: ops.squeeze(ops.expand_dims(a, 1), 1), rows),
        "broadcast": (lambda a: ops.broadcast_to(a[:1], (9, 300)), rows),
        "pad": (lambda a: ops.pad(a, ((1, 2), (0, 3))), rows),
        "reflected": (lambda a: ops.pad(a, ((1, 2), (0, 3)), "reflect"), rows),
        "take": (lambda a: ops.take(a, places, axis=0), rows),
        "taken along": (lambda a: ops.take_along_axis(a, places[:, None], 1), rows[:4]),
        "slice": (lambda a: a[3:40:2, ::-1, None], rows),
        "slice_update": (lambda a: a * ops.slice_update(
            ops.ones_like(a), (1, 2), ops.stop_gradient(a[:3, :3])), rows),
        "scatter": (lambda a: ops.scatter(places[:, None], a, (64,)), rows[0, :4]),
        "segment_sum": (lambda a: ops.segment_sum(a, bins // 4, 5), rows[:20]),
        "segment_max": (lambda a: ops.segment_max(a, bins // 4, 5), rows[:20]),
        "one_hot": (lambda a: a[:20] * ops.one_hot(bins, 300), rows),
        "where": (lambda a: ops.where(a > 0, a, 3 * a), rows),
        "clip": (lambda a: ops.clip(a, -0.5, 0.5), rows),
        "top_k": (lambda a: ops.top_k(a, 3)[0], rows),
        "tril": (ops.tril, columns), "triu": (ops.triu, columns),
        "diag": (lambda a: ops.diag(a[0]), columns), "trace": (ops.trace, columns),
        "outer": (lambda a: ops.outer(a[0], a[1]), columns),
        "norm": (lambda a: ops.norm(a, axis=1), columns),
        "normalize": (lambda a: ops.normalize(a), columns),
        "cast": (lambda a: ops.cast(ops.cast(8 * a, "int32"), "float32") * a, columns),
        "meshgrid": (lambda a: ops.meshgrid(a[0], a[1])[0], columns),
        "linspace": (lambda a: a * ops.linspace(0.0, 1.0, 70), columns),
        "arange": (lambda a: a * ops.arange(70, dtype="float32"), columns),
        "searchsorted": (lambda a: a[0] * ops.cast(
            ops.searchsorted(ops.sort(a[0]), a[1]), "float32"), columns),
        "bincount": (lambda a: a[0, :20] * ops.cast(
            ops.bincount(bins, minlength=20), "float32"), columns),
        "cond": (lambda a: ops.cond(a[0, 0] > 0, lambda: a, lambda: 2 * a), columns),
        "while_loop": (lambda a: ops.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, x * a), (0, a))[1], columns),
        "scan": (lambda a: ops.scan(lambda c, x: (c + x, c * x), a[0], a)[1], columns),
        "map": (lambda a: ops.map(lambda x: 2 * x, a), columns),
        "resize": (lambda a: ops.image.resize(
            ops.reshape(a, (1, 70, 60, 5)), (35, 90)), columns),
        "resize, nearest": (lambda a: ops.image.resize(
            ops.reshape(a, (1, 70, 60, 5)), (35, 90), "nearest"), columns),
        "cross-entropy": (lambda a: ops.sparse_categorical_crossentropy(
            bins, a[:20], from_logits=True), rows),
        "cross-entropy of one-hot": (lambda a: ops.categorical_crossentropy(
            ops.one_hot(bins, 300), a[:20], from_logits=True), rows),
        "binary cross-entropy": (lambda a: ops.binary_crossentropy(
            ops.cast(a > 0, "float32"), a, from_logits=True), rows),
    }  # fmt: skip
