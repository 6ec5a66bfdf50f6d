"""Sub-classed models are trained as their layers in a graph are, or refused in a line."""

import keras
import numpy as np
import pytest
from small import RECIPE, train

import gpuzoo
from gpuzoo import tasks
from gpuzoo.tasks import ends
from gpuzoo.tasks.subclassed import in_graph
from gpuzoo.training.build import build_model

FILE = '''
import keras
import gpuzoo

class Net(keras.Model):
    def __init__(self, classes, end):
        super().__init__()
        self.flat = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(8, activation="relu", name="hidden")
        self.drop = keras.layers.Dropout(0.2)
        self.out = keras.layers.Dense(classes, name="out",
                                      activation="softmax" if end == "dense" else None)
        self.soft = keras.layers.Softmax()
        self.end = end

    def call(self, x, training=None):
        x = self.drop(self.hidden(self.flat(x)), training=training)
        x = self.out(x)
        if self.end == "layer" or (self.end == "predicts" and not training):
            x = self.soft(x)
        if self.end == "function":
            x = keras.ops.softmax(x)
        if self.end == "twice":
            x = self.soft(x + self.soft(x))
        if self.end == "scaled":
            x = self.soft(self.soft(x) * 2 - 1)
        if self.end == "foreign":  # cannot be traced without values
            if isinstance(x, keras.KerasTensor):
                raise TypeError("as a function of TensorFlow or JAX would")
            x = keras.ops.softmax(x)
        return x

class Steps(Net):
    def train_step(self, data):
        return {}

@gpuzoo.register(task="classify", reference="none")
def net(*, num_classes: int = 2, end: str = "none", steps: bool = False):
    """A sub-classed network."""
    return (Steps if steps else Net)(num_classes, end)
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def recipe_of(file, end: str, *more):
    options = (f"end={end}", *more)
    return RECIPE.override(
        model=f"{file}:net", model_options=options, augment=(), epochs=2
    )


def values(result):
    return b"".join(array.tobytes() for array in result.weights.values())


def test_its_end_is_taken_as_that_of_a_graph(file, dataset, runtime):
    plain, _ = train(recipe_of(file, "none"), dataset, runtime)
    images, labels = dataset.test["image"] / 255, dataset.test["label"]
    for end in ("dense", "layer", "predicts"):
        recipe = recipe_of(file, end)
        model = build_model(recipe, dataset)
        result, _ = train(recipe, dataset, runtime, model=model)
        assert values(result) == values(plain), end
        assert result.metrics == plain.metrics
        told = np.array(model(images))  # still a softmax
        np.testing.assert_allclose(told.sum(1), 1, rtol=1e-5)
        loss = -np.log(told[np.arange(len(labels)), labels]).mean()
        assert result.metrics["test_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("end", "more", "told"),
    [
        ("function", (), "the call of Net computes by a function, not a layer; end it"),
        ("twice", (), "used more than once; end it in Dense.2. without"),
        ("scaled", (), "used more than once|followed by"),
        (
            "foreign",
            (),
            "puts out probabilities, from 'net'; let it put out the logits",
        ),
        ("none", ("steps=True",), "has train_step of its own"),
    ],
)
def test_what_cannot_be_exact_is_refused(file, end, more, told, dataset, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match=told) as error:
        build_model(recipe_of(file, end, *more), dataset)
    assert "\n" not in str(error.value)


class Auto(keras.Model):
    """An autoencoder with a sigmoid at its end."""

    def __init__(self, how):
        super().__init__()
        self.down = keras.layers.Dense(8, activation="relu")
        self.up = keras.layers.Dense(
            196, activation="sigmoid" if how == "layer" else None
        )
        self.flat, self.square = (
            keras.layers.Flatten(),
            keras.layers.Reshape((14, 14, 1)),
        )
        self.how = how

    def call(self, x):
        x = self.up(self.down(self.flat(x)))
        if self.how == "function":
            x = keras.ops.sigmoid(x)
        if self.how == "foreign":
            if isinstance(x, keras.KerasTensor):
                raise TypeError("as a function of TensorFlow or JAX would")
            x = keras.ops.sigmoid(x)
        return self.square(x)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("layer", None),
        ("none", None),
        ("function", "by a function, not a layer"),
        ("foreign", "between 0 and 1, from"),
    ],
)
def test_autoencoders(how, told, dataset, runtime):
    model = in_graph(Auto(how), (14, 14, 1), "model")
    found = tasks.load("autoencode").check_model(model, dataset)
    assert found is None if told is None else told in found
    end = ends.find(model.output, model)
    assert end.kind == ("" if how in ("none", "foreign") else "sigmoid")


def test_a_custom_layer_that_squashes_pixels_is_refused(dataset, runtime):
    class Squash(keras.layers.Layer):
        def call(self, x):
            return keras.ops.sigmoid(x)

    inputs = keras.Input((14, 14, 1))
    x = keras.layers.Dense(196)(keras.layers.Flatten()(inputs))
    x = Squash(name="squash")(keras.layers.Reshape((14, 14, 1))(x))
    found = tasks.load("autoencode").check_model(keras.Model(inputs, x), dataset)
    assert "values between 0 and 1, from 'squash'" in found


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_it_is_verified_and_loaded(backend, file, npz, cli_several):
    words = ("train", "mnist", "--model", f"{file}:net", "--data", npz, "--epochs", "1",
             "--model-options", "end=layer", "--batch-size", "16", "--out", "run",
             "--backend", backend, "--device", "cpu", "--precision", "float32")  # fmt: skip
    verify = ("verify", "run", "--trust-code")
    evaluate = ("evaluate", "run", "--trust-code")
    for done in cli_several(words, verify, evaluate):
        assert done.returncode == 0, done.stderr
