"""Sub-classed models are trained as their layers in a graph are, or refused in a line."""

import re

import keras
import numpy as np
import pytest
from small import RECIPE, train

import gpuzoo
from gpuzoo import tasks
from gpuzoo.engine.model_objects import not_used
from gpuzoo.keras_layers import layers_of
from gpuzoo.runs.divergence import read_weights
from gpuzoo.runtime.keras_state import fresh_names
from gpuzoo.tasks import ends
from gpuzoo.tasks.subclassed import in_graph
from gpuzoo.training.build import build_model

FILE = '''
import keras
import gpuzoo

class Net(keras.Model):
    def __init__(self, classes, end, begin):
        super().__init__()
        self.flat = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(8, activation="relu", name="hidden",
                                         kernel_initializer=begin)
        self.drop = keras.layers.Dropout(0.2)
        self.out = keras.layers.Dense(classes, name="out", kernel_initializer=begin,
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
def graph(*, num_classes: int = 2, begin: str = "glorot_uniform"):
    """The same layers in a functional model."""
    inputs = keras.Input((14, 14, 1))
    x = keras.layers.Dense(8, activation="relu", name="hidden",
                           kernel_initializer=begin)(keras.layers.Flatten()(inputs))
    x = keras.layers.Dense(num_classes, name="out", kernel_initializer=begin)(
        keras.layers.Dropout(0.2)(x))
    return keras.Model(inputs, keras.layers.Softmax()(x))

@gpuzoo.register(task="classify", reference="none")
def net(*, num_classes: int = 2, end: str = "none", steps: bool = False,
        begin: str = "glorot_uniform"):
    """A subclassed network."""
    return (Steps if steps else Net)(num_classes, end, begin)
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


# --- calls of every kind ----------------------------------------------------------------


class Parts(keras.Model):
    """Layers for the calls below."""

    def __init__(self, units):
        super().__init__()
        self.flat, self.out = keras.layers.Flatten(), keras.layers.Dense(units)
        self.soft, self.other = keras.layers.Softmax(), keras.layers.Softmax()
        if type(self).call is names_of_operations:  # Keras warns of unused ones
            self.add = keras.layers.Add()
        if type(self).call is hidden_use:
            self.gate = Gate(self.soft)
        self.twins = [keras.layers.Activation("relu", name="twin") for _ in range(2)]
        self.grid = keras.layers.Reshape((1, 1, units))
        self.softs = keras.layers.Softmax(axis=3)

    def logits(self, x):
        return self.out(self.flat(x))


class Gate(keras.layers.Layer):
    """Applies a layer of another's."""

    def __init__(self, soft):
        super().__init__()
        self.inner = [soft]

    def call(self, x):
        return x * self.inner[0](x)


def foreign(x):
    """Make a call that only tensors pass."""
    if isinstance(x, keras.KerasTensor):
        raise TypeError("as a function of TensorFlow or JAX would")
    return x


def sigmoid(self, x):
    return keras.ops.sigmoid(foreign(self.logits(x)))


def sigmoid_in_training(self, x, training=False):
    x = foreign(self.logits(x))
    return keras.ops.sigmoid(x) if training else x


def predicts_by_default_not(self, x, training=True):
    return self.logits(x) if training else self.soft(self.logits(x))


def softmax_in_training(self, x, training=False):
    return self.soft(self.logits(x)) if training else self.logits(x)


def two_ends(self, x, training=False):
    return (self.soft if training else self.other)(self.logits(x))


def names_of_operations(self, x):
    x = self.logits(x)
    x = self.add([x, x]) + x * keras.ops.softmax(x)
    return self.soft(x)


def names_of_layers(self, x):
    return self.soft(self.twins[0](self.logits(x)) - self.twins[1](-self.logits(x)))


def hidden_use(self, x):
    return self.soft(self.gate(self.logits(x)))


def moved(self, x):
    return self.flat(self.softs(self.grid(self.logits(x))))


EXACT = [predicts_by_default_not, softmax_in_training, names_of_operations,
         names_of_layers, moved]  # fmt: skip
REFUSED = [
    (sigmoid, 1, "values between 0 and 1, from 'model'"),
    (sigmoid, 2, "values between 0 and 1, from 'model'"),
    (sigmoid_in_training, 1, "values between 0 and 1, from 'model'"),
    (two_ends, 2, "and while it is trained in a softmax in 'softmax"),
    (hidden_use, 2, "inputs the call of .* uses in another way"),
]


def made(call, units=2):
    with fresh_names():
        model = type("Model", (Parts,), {"call": call})(units)
        return in_graph(model, (14, 14, 1), "model")


@pytest.mark.parametrize("call", EXACT, ids=lambda one: one.__name__)
def test_a_call_is_without_its_softmax(call, dataset, runtime):
    model = made(call)
    before = [np.array(one) for one in model.variables]
    assert tasks.load("classify").check_model(model, dataset) is None
    for one, other in zip(before, model.variables, strict=True):
        assert np.array_equal(one, other)
    names = [layer.name for layer in layers_of(model)]
    assert names.count("twin") == 2 and "softmax" in names  # as they were
    network = ends.Network(model, (14, 14, 1))
    assert network.end.kind == "softmax"
    images = dataset.test["image"][:8] / np.float32(50)
    for training in (False, True):
        logits = np.array(network(images, training))
        assert (logits < 0).any()
        if training == (call is softmax_in_training) or call in EXACT[2:]:
            squashed = model(images, training=training)
            np.testing.assert_allclose(squashed, keras.ops.softmax(logits), rtol=1e-5)


@pytest.mark.parametrize(("call", "units", "told"), REFUSED)
def test_a_call_that_would_be_squashed_twice_is_refused(
    call, units, told, dataset, runtime
):
    assert re.search(
        told, tasks.load("classify").check_model(made(call, units), dataset)
    )


def test_the_softmax_of_many_classes_is_looked_at(runtime):
    """All of whose probabilities are about as small."""
    for call, exact in ((hidden_use, False), (names_of_operations, True)):
        model = made(call, 100)
        assert ends.skips_only(ends.find(model.output, model), model) == exact


@pytest.mark.parametrize("squash", [False, True])
def test_a_last_layer_that_starts_at_zero(squash, dataset, runtime):
    class Last(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=shape[1:], initializer="zeros")

        def call(self, x):
            return keras.ops.sigmoid(x * self.scale) if squash else x * self.scale

    inputs = keras.Input((14, 14, 1))
    model = keras.Model(inputs, Last()(inputs))
    found = tasks.load("autoencode").check_model(model, dataset)
    assert ("between 0 and 1" in found) if squash else found is None


def test_layers_made_late_have_names_of_their_own(tmp_path, dataset, runtime):
    path = tmp_path / "late.py"
    path.write_text('''
import keras, gpuzoo
class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.last = keras.layers.Flatten(), keras.layers.Dense(2)
    def build(self, shape):
        self.first = keras.layers.Dense(3)
        self.first.build((None, 196))
        self.last.build((None, 3))
    def call(self, x):
        return self.last(self.first(self.flat(x)))
@gpuzoo.register(task="classify", reference="none")
def late(*, num_classes: int = 2):
    """A network that makes a layer in build()."""
    return Net()
''')
    model = build_model(
        RECIPE.override(model=f"{path}:late", model_options=()), dataset
    )
    assert len({weight.path for weight in model.weights}) == 4
    assert ends.find(model.output, model).inside is model.layers[-1]  # traced
    # What is compiled and not used is said, whichever of the two is.
    model.compile("sgd", "mse")
    assert "compiled with SGD, which is not used" in not_used(model, RECIPE)[0]


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_it_is_verified_and_loaded(backend, file, npz, cli_several, tmp_path):
    words = ("train", "mnist", "--model", f"{file}:net", "--data", npz, "--epochs", "1",
             "--model-options", "end=layer", "begin=identity", "--batch-size", "16", "--out", "run",
             "--backend", backend, "--device", "cpu", "--precision", "float32")  # fmt: skip
    verify = ("verify", "run", "--trust-code")
    evaluate = ("evaluate", "run", "--trust-code")
    graph = [{"run": "graph", f"{file}:net": f"{file}:graph"}.get(w, w) for w in words]
    graph.remove("end=layer")
    for done in cli_several(words, verify, evaluate, graph):
        assert done.returncode == 0, done.stderr
    # The initial weights are the same too: drawn ones are in the order of the layers.
    mine, plain = (read_weights(tmp_path / name) for name in ("run", "graph"))
    assert {f"net/{name}": one.tobytes() for name, one in plain.items()} == {
        name: one.tobytes() for name, one in mine.items()
    }
