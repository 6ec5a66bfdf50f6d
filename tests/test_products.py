"""Level portable: products of matrices have parts that fit into every cache."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import needs_tensorflow
from small import RECIPE, train

import gpuzoo

pytestmark = needs_tensorflow


@pytest.mark.parametrize(("rows", "length", "columns", "parts"), [
    (40, 5408, 64, 13),  # a dense layer on a map of 13 x 13 x 32
    (100, 2400, 10, 7), (1, 9000, 1, 1), (16, 30_000, 16, 21), (64, 256, 64, 1),
    (120, 1200, 96, 10), (128, 784, 512, 28), (300, 700, 200, 36), (1000, 50, 10, 8),
])  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_products_have_parts_that_fit_every_cache(
    rows, length, columns, parts, turned, batch, runtime
):
    """TensorFlow computes others with one thread or with all of them, by the size of
    the processor's cache, and oneDNN then sums in another order."""
    import tensorflow as tf

    from gpuzoo.engine.backends.portable import exact

    rng = np.random.default_rng(0)
    a = rng.normal(size=(*batch, rows, length)).astype("f")
    b = rng.normal(size=(*batch, length, columns)).astype("f")
    if turned:
        a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)

    @tf.function(autograph=False)
    def step(a, b):
        with tf.GradientTape() as tape:
            tape.watch((a, b))
            product = tf.matmul(a, b, transpose_a=turned, transpose_b=turned)
        return product, *tape.gradient(product, (a, b))

    @tf.function(autograph=False)
    def forward(a, b):
        return tf.matmul(a, b, transpose_a=turned, transpose_b=turned)

    with exact(dataclasses.replace(runtime, level="portable")):
        traced = step.get_concrete_function(tf.constant(a), tf.constant(b))
        alone = forward.get_concrete_function(tf.constant(a), tf.constant(b))
    found = [x.numpy() for x in traced(tf.constant(a), tf.constant(b))]
    plain = [x.numpy() for x in step.python_function(tf.constant(a), tf.constant(b))]
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-3)
    assert_fits(traced.graph)
    assert_fits(alone.graph)
    products = [x for x in alone.graph.get_operations() if "MatMul" in x.type]
    assert len(products) == parts


def test_products_with_one_second_factor_are_one_product(runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends.portable import exact

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 50, 30)), rng.normal(size=(20, 30))
    a, b = tf.constant(a.astype("f")), tf.constant(b.astype("f"))
    step = tf.function(lambda x, y: tf.matmul(x, y, transpose_b=True), autograph=False)
    turned = tf.function(
        lambda x, y: tf.matmul(x, y, transpose_a=True, transpose_b=True),
        autograph=False,
    )
    with exact(dataclasses.replace(runtime, level="portable")):
        one, other = (
            step.get_concrete_function(a, b),
            turned.get_concrete_function(tf.linalg.matrix_transpose(a), b[None]),
        )
    for traced, x, y in ((one, a, b), (other, tf.linalg.matrix_transpose(a), b[None])):
        kinds = [x.type for x in traced.graph.get_operations() if "MatMul" in x.type]
        assert kinds == ["MatMul"]
        np.testing.assert_allclose(
            traced(x, y).numpy(), a.numpy() @ b.numpy().T, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("equation", [
    "ab,bc->ac", "abc,cd->abd", "abc,cde->abde", "BTNH,BSNH->BNTS", "BNTS,BSNH->BTNH",
    "aecd,abcd->acbe", "ab,ab->a", "ab,cd->abcd", "ab,ba->", "a,a->a", " ab , cb -> ca ",
    "abc,acde,afd->abfe", "ab,bc,cd->ad", "ab->ba", "abc->b", "ab,bc->a", "ab,cd->ad",
])  # fmt: skip
def test_einsum_is_that_of_tensorflow(equation, runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends.products import einsum

    rng = np.random.default_rng(0)
    sizes = dict(zip("abcdefBTNHS", (3, 4, 5, 2, 6, 4, 3, 4, 2, 5, 7), strict=True))
    terms = equation.replace(" ", "").split("->")[0].split(",")
    operands = [rng.normal(size=[sizes[x] for x in term]).astype("f") for term in terms]
    found = einsum(equation, *operands, optimize="optimal").numpy()
    wanted = tf.einsum(equation, *operands).numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("equation", "one", "other"), [
    ("...x,xy->...y", (3, 4, 5), (5, 6)), ("...x,...x->...", (3, 4, 5), (3, 4, 5)),
    ("...ab,...bc->...ac", (2, 3, 4, 5), (2, 3, 5, 6)), ("a...,a->...", (3, 4), (3,)),
])  # fmt: skip
def test_einsum_with_dots_is_that_of_tensorflow(equation, one, other, runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends.products import einsum

    rng = np.random.default_rng(0)
    operands = [rng.normal(size=shape).astype("f") for shape in (one, other)]
    wanted = tf.einsum(equation, *operands).numpy()
    np.testing.assert_allclose(
        einsum(equation, *operands).numpy(), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("equation", "one", "other"), [
    ("abc,cde->abde", (40, 60, 192), (192, 3, 64)), ("BTNH,BSNH->BNTS", (2, 200, 2, 300), (2, 200, 2, 300)),
    ("...x,xy->...y", (30, 50, 64), (64, 300)),
])  # fmt: skip
def test_einsum_and_its_gradients_have_parts(equation, one, other, runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends.portable import exact

    rng = np.random.default_rng(0)
    operands = [tf.constant(rng.normal(size=x).astype("f")) for x in (one, other)]

    def step(a, b):
        with tf.GradientTape() as tape:
            tape.watch((a, b))
            result = tf.einsum(equation, a, b)
            loss = tf.reduce_sum(result * result)
        return result, *tape.gradient(loss, (a, b))

    wanted = step(*operands)
    with exact(dataclasses.replace(runtime, level="portable")):
        traced = tf.function(step, autograph=False).get_concrete_function(*operands)
    for found, plain in zip(traced(*operands), wanted, strict=True):
        np.testing.assert_allclose(found.numpy(), plain.numpy(), rtol=1e-3, atol=1e-2)
    kinds = {x.type for x in traced.graph.get_operations()}
    assert "Einsum" not in kinds and kinds & {"MatMul", "BatchMatMulV2"}
    assert_fits(traced.graph)


def assert_fits(graph) -> None:
    """Every product of a graph is at most as large as what fits into a cache."""
    for one in graph.get_operations():
        if "MatMul" in one.type:
            factors = sum(x.shape[-1] * x.shape[-2] for x in one.inputs)
            m, n = one.outputs[0].shape[-2:]
            assert m * n + factors <= 48 * 1024, one


@pytest.mark.parametrize(("one", "other", "types"), [
    ((0, 2000), (2000, 64), {}), ((500, 0), (0, 500), {}), ((5, 2, 0), (5, 0, 3), {}),
    ((4, 3, 5), (1, 1, 5, 6), {}), ((3, 5), (2, 5, 6), {}),
    ((2, 3, 4), (4, 5), {"output_type": "int32"}),
])  # fmt: skip
def test_products_of_other_shapes_are_those_of_tensorflow(one, other, types, runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends.portable import exact

    dtype = "int8" if types else "float32"
    a, b = (
        tf.cast(tf.reshape(tf.range(np.prod(x)), x) % 7, dtype) for x in (one, other)
    )
    wanted = tf.matmul(a, b, **types).numpy()
    with exact(dataclasses.replace(runtime, level="portable")):
        found = tf.matmul(a, b, **types).numpy()
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_products_that_cannot_have_parts_are_refused(runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends.portable import exact

    step = tf.function(lambda a, b: tf.matmul(a, b), autograph=False)
    unknown = tf.TensorSpec((None, 40), tf.float32)
    large = tf.TensorSpec((4096, 4096), tf.float32)
    ours = dataclasses.replace(runtime, level="portable")
    with exact(ours), pytest.raises(gpuzoo.GpuzooError, match="depends on the values"):
        step.get_concrete_function(unknown, tf.TensorSpec((40, 5), tf.float32))
    with exact(ours), pytest.raises(gpuzoo.GpuzooError, match="more than 20,000 parts"):
        step.get_concrete_function(large, large)


@pytest.mark.parametrize(("equation", "count"), [
    ("aa,ab->b", 2), ("ab,bc", 2), ("ab,bc->ac", 3),
])  # fmt: skip
def test_another_einsum_is_refused_by_name(equation, count, runtime):
    from gpuzoo.engine.backends.products import einsum

    with pytest.raises(
        gpuzoo.GpuzooError, match="einsum '.*(portable|level repeatable)"
    ):
        einsum(equation, *[np.ones((3, 3), "f")] * count)


def test_attention_trains_at_this_level(dataset, runtime):

    @gpuzoo.register(task="classify", reference="here")
    def attends(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
        inputs = keras.Input(input_shape)
        x = keras.layers.Reshape((-1, 14))(inputs)
        x = keras.layers.MultiHeadAttention(2, 8)(x, x)
        x = keras.layers.EinsumDense("abc,cd->abd", (14, 8))(x)
        x = keras.layers.GlobalAveragePooling1D()(x)
        return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))

    ours = dataclasses.replace(runtime, level="portable")
    recipe = RECIPE.override(model="attends", model_options=())
    assert train(recipe, dataset, ours)[0].steps > 0
