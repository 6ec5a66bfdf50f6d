"""Models of a user's own that fit no task, or not the run, and how it is told."""

import keras
import pytest
from conftest import RECIPE

import gpuzoo
from gpuzoo import tasks
from gpuzoo.engine.loop import build_model


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
            "takes uint8, and is given real numbers; leave dtype out",
        ),
        ("subclassed", "Own()", "is neither a functional nor a Sequential"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    name, body, told, dataset, tmp_path, runtime
):
    path = tmp_path / f"{name}.py"
    path.write_text(f'''
import keras
from gpuzoo.registry import register

class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.build((None, 14, 14, 1))
    def build(self, shape):
        self.dense.build((None, 196))
        self.built = True
    def call(self, x):
        return self.dense(keras.ops.reshape(x, (-1, 196)))

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


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_probabilities_in_place_of_logits_are_refused(kind, dataset, runtime):
    task = "classify" if kind == "softmax" else "autoencode"
    check, operation = tasks.load(task).check_model, getattr(keras.ops, kind)
    for last in (keras.layers.Activation(kind), operation):
        for model in ends(task, (14, 14, 1), last):
            assert f"ends in a {kind}; let it" in check(model, dataset)
    for last in (keras.layers.Activation("tanh"), keras.layers.ReLU()):
        for model in ends(task, (14, 14, 1), last):
            assert check(model, dataset) is None


def fitting(task, inputs):
    """What puts out the right shape of a dataset with two classes."""
    layers = keras.layers
    if task in ("classify", "forecast"):
        return layers.Dense(2 if task == "classify" else 16)(layers.Flatten()(inputs))
    if task == "detect":
        return layers.Conv2D(6, 1, 4)(inputs)
    return layers.Activation("tanh")(inputs[:, -1] if task == "next_frame" else inputs)


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("classify", (14, 14, 1)),
        ("autoencode", (14, 14, 1)),
        ("forecast", (64, 1)),
        ("detect", (32, 32, 1)),
        ("next_frame", (8, 24, 24, 1)),
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
    def train(policy: str, last: str) -> dict:
        inputs, layers = keras.Input((28, 28, 1)), keras.layers
        x = layers.Dense(8, dtype=policy)(layers.Flatten()(inputs))
        model = keras.Model(inputs, layers.Dense(10, dtype=last)(x))
        how = {"out": tmp_path / "run", "fast_dev_run": True, "quiet": True}
        return gpuzoo.train(model, data="digits", **how)

    with pytest.raises(gpuzoo.GpuzooError, match="for mixed_float16, the run is float"):
        train("mixed_float16", "mixed_float16")
    assert not (tmp_path / "run").exists()
    assert train("mixed_float16", "float32")["state"] == "finished"
