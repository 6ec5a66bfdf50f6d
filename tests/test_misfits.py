"""Models of a user's own that fit no task, or not the run, and how it is told."""

import re

import keras
import numpy as np
import pytest
from small import RECIPE, train

import gpuzoo
from gpuzoo import tasks
from gpuzoo.catalogue import architecture
from gpuzoo.training.build import build_model


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("two", "keras.Model([image, other], logits)", "takes 2 inputs, not one"),
        (
            "other",
            "keras.Model(other, keras.layers.Dense(10)(other))",
            r"takes \(None, 3\), not",
        ),
        (
            "bytes",
            "keras.Sequential([keras.Input(input_shape, dtype='uint8'),"
            " keras.layers.Flatten(), keras.layers.Dense(2)])",
            "takes uint8, and examples are floats; remove dtype",
        ),
        ("subclassed", "Own()", "fails when it is called .*ValueError: two at a time"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    name, body, told, dataset, tmp_path, runtime
):
    path = tmp_path / f"{name}.py"
    path.write_text(f'''
import keras
from gpuzoo.catalogue.registry import register

class Own(keras.Model):
    def call(self, x):
        raise ValueError("two at a time")

@register(task="classify", reference="none")
def {name}(*, input_shape: tuple = (14, 14, 1), num_classes: int = 2):
    """A small network."""
    image, other = keras.Input(input_shape), keras.Input((3,))
    flat = keras.layers.Concatenate()([keras.layers.Flatten()(image), other])
    logits = keras.layers.Dense(num_classes)(flat)
    return {body}
''')
    recipe = RECIPE.override(model=f"{path}:{name}", model_options=())
    with pytest.raises(gpuzoo.GpuzooError, match=told):
        build_model(recipe, dataset)


def ends(task, shape, last):
    """Models that end in some activation, by themselves and inside of another."""
    layers, flat = keras.layers, keras.layers.Flatten()
    inputs = keras.Input(shape)
    x = layers.Dense(196 if task == "autoencode" else 2, name="x")(flat(inputs))
    x = last(x)
    if task == "autoencode":
        x = layers.Reshape(shape)(x)
    inner = keras.Model(inputs, x)
    return inner, keras.Model(inputs, inner(inputs)), keras.Sequential([inputs, inner])


def test_an_activation_at_the_end_is_taken_or_refused(dataset, runtime):
    for kind, task in (("softmax", "classify"), ("sigmoid", "autoencode")):
        check, shape = tasks.load(task).check_model, (14, 14, 1)
        operation = getattr(keras.ops, kind)
        for name in (kind, "tanh", "relu"):
            for model in ends(task, shape, keras.layers.Activation(name)):
                assert check(model, dataset) is None
        for model in ends(task, shape, operation):
            assert check(model, dataset) is None
        for model in ends(task, shape, lambda x, f=operation: keras.ops.relu(f(x))):
            assert f"ends in a {kind} that is followed by" in check(model, dataset)
        for model in ends(task, shape, lambda x, f=operation: keras.ops.log(f(x))):
            assert check(model, dataset) is None


def twins():
    """Classifiers that end in a softmax, as functions of the inputs."""
    layers, ops = keras.layers, keras.ops

    def dense(**how):
        return layers.Dense(2, name="out", **how)

    def inside(inputs):
        image = keras.Input(inputs.shape[1:])
        return keras.Model(image, dense(activation="softmax")(image))(inputs)

    return {
        "a layer's own": lambda x: dense(activation="softmax")(x),
        "Softmax": lambda x: layers.Softmax()(dense()(x)),
        "in float32": lambda x: layers.Activation("softmax", dtype="float32")(
            dense()(x)
        ),
        "ops": lambda x: ops.reshape(ops.softmax(dense()(x)), (-1, 2)),
        "in a model": inside,
        "moved": lambda x: layers.Flatten()(
            layers.Softmax(2)(layers.Reshape((1, 2, 1))(dense()(x)))
        ),
        "of somebody else's": lambda x: dense(
            activation=lambda y: ops.exp(y) / ops.sum(ops.exp(y), -1, keepdims=True)
        )(x),
    }  # fmt: skip


def trained(head, dataset, runtime, shape=(14, 14, 1), recipe=None):
    """A model with a head, trained by the loop, and what came of it."""
    inputs = keras.Input(shape, name="image")
    x = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, head(x))
    recipe = recipe or RECIPE.override(augment=(), epochs=2, label_smoothing=0.1)
    assert tasks.load(recipe.task).check_model(model, dataset) is None
    return model, train(recipe, dataset, runtime, model=model)[0]


def test_a_softmax_at_the_end_is_trained_as_the_logits_before_it(dataset, runtime):
    _, plain = trained(keras.layers.Dense(2, name="out"), dataset, runtime)
    images, labels = dataset.test["image"] / 255, dataset.test["label"]
    for name, head in twins().items():
        model, result = trained(head, dataset, runtime)
        for one, other in zip(
            result.weights.values(), plain.weights.values(), strict=True
        ):
            assert one.tobytes() == other.tobytes(), name
        assert result.metrics["test_loss"] == plain.metrics["test_loss"]
        told = keras.ops.convert_to_numpy(model(images))
        np.testing.assert_allclose(told.sum(1), 1, rtol=1e-5)  # still a softmax
        right = np.mean(told.argmax(1) == labels)
        assert result.metrics["test_accuracy"] == pytest.approx(right)
        loss = -np.log(told[np.arange(len(labels)), labels]).mean()
        assert result.metrics["test_loss"] == pytest.approx(loss, rel=1e-4)


def test_one_unit_tells_two_classes_apart(dataset, runtime):
    """As Keras's binary cross-entropy would train it."""
    heads = (
        lambda x: keras.layers.Dense(1, activation="sigmoid", name="out")(x),
        lambda x: keras.ops.sigmoid(keras.layers.Dense(1, name="out")(x)),
        keras.layers.Dense(1, name="out"),
    )
    results = []
    for head in heads:
        model, result = trained(head, dataset, runtime)
        results.append(b"".join(w.tobytes() for w in result.weights.values()))
        told = np.array(model(dataset.test["image"] / 255))[:, 0]
        labels = dataset.test["label"]
        bar = 0.5 if head is not heads[2] else 0
        right = np.mean((told > bar) == labels)
        assert result.metrics["test_accuracy"] == pytest.approx(right)
        loss = keras.losses.binary_crossentropy(
            labels.astype("float32"), told, from_logits=head is heads[2]
        )
        loss = float(keras.ops.mean(loss))
        assert result.metrics["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert len(set(results)) == 1


@pytest.mark.parametrize("shape", [(14, 14), (196,), (None, 14)])
def test_images_are_given_as_the_model_takes_them(shape, dataset, runtime):
    def head(x):
        return keras.layers.Dense(2, activation="softmax", name="out")(x)

    if None in shape:
        inputs = keras.Input(shape)
        model = keras.Model(inputs, head(keras.layers.LSTM(3)(inputs)))
        assert tasks.load("classify").check_model(model, dataset) is None
        recipe = RECIPE.override(epochs=1)
        assert train(recipe, dataset, runtime, model=model)[0].state == "finished"
        return
    _, plain = trained(head, dataset, runtime)
    _, other = trained(head, dataset, runtime, shape)
    assert [w.tobytes() for w in plain.weights.values()] == [
        w.tobytes() for w in other.weights.values()
    ]


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (
            lambda kl, x: kl.Dropout(0.1)(kl.Dense(2, "softmax")(x)),
            "followed by dropout",
        ),
        (
            lambda kl, x: kl.Average()([kl.Dense(2, "softmax")(x) for _ in range(2)]),
            "followed by average",
        ),
        (lambda kl, x: kl.Dense(2, "sparsemax")(x), "ends in a sparsemax; end it in D"),
        (lambda kl, x: kl.Dense(2, "sigmoid")(x), "activation='softmax'"),
        (lambda kl, x: kl.Dense(1, "softmax")(x), "softmax of one unit"),
        (lambda kl, x: kl.Dense(3)(x), r"puts out \(None, 3\)"),
        (
            lambda kl, x: kl.Dense(2, "softmax", activity_regularizer="l2")(x),
            "with an activity_regularizer",
        ),
        (
            lambda kl, x: (lambda d: d(d(kl.Dense(2)(x))))(kl.Dense(2, "softmax")),
            "used more than once",
        ),
        (lambda kl, x: Halves()(x), "puts out probabilities, from 'halves"),
        (
            lambda kl, x: kl.Flatten()(kl.Dense(1, "softmax")(kl.Reshape((2, 4))(x))),
            "softmax over an axis",
        ),
    ],
)
def test_a_softmax_that_cannot_be_left_out_is_refused(head, told, dataset, runtime):
    inputs = keras.Input((14, 14, 1))
    x = keras.layers.Dense(8)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, head(keras.layers, x))
    assert re.search(told, tasks.load("classify").check_model(model, dataset))


class Halves(keras.layers.Layer):
    """Of the user's own: nothing but its numbers tell that it ends in a softmax."""

    def call(self, x):
        return keras.ops.softmax(x[:, :2])


def test_pixels_from_a_sigmoid_are_trained_as_logits(dataset, runtime):
    layers, shape = keras.layers, (14, 14, 1)
    recipe = RECIPE.override(task="autoencode", augment=(), epochs=2)
    flat = (196,)
    heads = [
        (shape, lambda x: layers.Reshape(shape)(layers.Dense(196, name="o")(x))),
        (shape, lambda x: layers.Reshape(shape)(layers.Dense(196, "sigmoid", name="o")(x))),
        (shape, lambda x: layers.Activation("sigmoid")(layers.Reshape(shape)(layers.Dense(196, name="o")(x)))),
        (flat, lambda x: layers.Dense(196, activation="sigmoid", name="o")(x)),
    ]  # fmt: skip
    results = [trained(h, dataset, runtime, s, recipe)[1] for s, h in heads]
    for result in results[1:]:
        assert result.metrics == results[0].metrics
        assert [w.tobytes() for w in result.weights.values()] == [
            w.tobytes() for w in results[0].weights.values()
        ]
        assert result.outputs["reconstruction"].shape == (40, *shape)


def test_a_layer_that_keeps_its_state_is_refused(dataset, runtime):
    layers = keras.layers
    for layer in (
        layers.LSTM(3, stateful=True, name="kept"),
        layers.Bidirectional(layers.GRU(3, stateful=True), name="kept"),
    ):
        inputs = keras.Input((14, 14), batch_size=16)
        model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
        told = tasks.load("classify").check_model(model, dataset)
        assert "stateful=True" in told and "remove stateful" in told
    inputs = keras.Input((14, 14, 1), batch_size=16)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)))
    told = tasks.load("classify").check_model(model, dataset)
    assert "batches of 16 only; remove batch_size" in told


def fitting(task, inputs):
    """What puts out the right shape of a dataset with two classes."""
    layers = keras.layers
    if task in ("classify", "forecast"):
        return layers.Dense(2 if task == "classify" else 16)(layers.Flatten()(inputs))
    if task == "detect":
        return layers.Conv2D(6, 1, 4)(inputs)
    return layers.Activation("tanh")(
        inputs[:, -1] if task == "video_prediction" else inputs
    )


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("classify", (14, 14, 1)),
        ("autoencode", (14, 14, 1)),
        ("forecast", (64, 1)),
        ("detect", (32, 32, 1)),
        ("video_prediction", (8, 24, 24, 1)),
    ],
)
def test_models_of_other_inputs_and_outputs_are_refused(task, shape, dataset, runtime):
    check, inputs = tasks.load(task).check_model, keras.Input((9, *shape))
    told = check(keras.Model(inputs, inputs[:, 0]), dataset)
    assert "takes (None, 9" in told
    inputs = keras.Input(shape)
    fits = fitting(task, inputs)
    assert check(keras.Model(inputs, fits), dataset) is None
    for alone in ({"a": fits}, [fits]):  # one, but in something
        told = check(keras.Model(inputs, alone), dataset)
        assert told.startswith("puts out") and ", not" in told


def test_a_model_of_another_precision_than_the_run_is_refused(runtime, tmp_path):
    def run(policy: str, last: str) -> dict:
        inputs, layers = keras.Input((28, 28, 1)), keras.layers
        x = layers.Dense(8, dtype=policy)(layers.Flatten()(inputs))
        model = keras.Model(inputs, layers.Dense(10, dtype=last)(x))
        how = {"out": tmp_path / "run", "fast_dev_run": True, "quiet": True}
        return gpuzoo.train(model, data="digits", **how)

    with pytest.raises(gpuzoo.GpuzooError, match="for mixed_float16, the run is float"):
        run("mixed_float16", "mixed_float16")
    assert not (tmp_path / "run").exists()
    assert run("mixed_float16", "float32")["state"] == "finished"


def test_weights_in_float32_in_a_run_of_16_bits(runtime):
    def check(other: str):
        image = keras.Input((4, 4, 1))
        x = keras.layers.Flatten(dtype=other)(image)
        x = keras.layers.Dense(2, dtype="float32")(x)
        architecture.check_precision(keras.Model(image, x), "mixed_bfloat16")

    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        check("mixed_bfloat16")  # built for the run, its one layer on purpose not
        with pytest.raises(gpuzoo.GpuzooError, match="was built for float32, the run"):
            check("float32")  # built before the run's precision was set
    finally:
        keras.config.set_dtype_policy("float32")
