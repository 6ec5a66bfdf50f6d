"""Models of a user's own: what their layers add, draw, keep and write."""

import json

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.engine import checkpoint, initializers
from gpuzoo.training.build import build_model
from gpuzoo.weights import weights_bytes

HEAD = '''
import keras
from gpuzoo.catalogue.registry import register

class Noisy(keras.layers.Layer):
    """Draws from a generator in a list."""
    def __init__(self, **named):
        super().__init__(**named)
        self.generators = [keras.random.SeedGenerator(1)]

    def call(self, x, training=False):
        noise = keras.random.normal(keras.ops.shape(x), seed=self.generators[0])
        return x + noise if training else x

class Named(keras.layers.Layer):
    """Keeps the name of an initializer."""
    kernel_initializer, bias_initializer = "glorot_uniform", "zeros"

    def build(self, shape):
        for name, size in (("kernel", (shape[-1], 8)), ("bias", (8,))):
            how = getattr(self, f"{name}_initializer")
            setattr(self, name, self.add_weight(size, how, name=name))

    def call(self, x):
        return keras.ops.relu(keras.ops.matmul(x, self.kernel) + self.bias)

class Counting(keras.layers.Layer):
    """Keeps a number where no checkpoint finds it."""
    def __init__(self, **named):
        super().__init__(**named)
        self.hidden = {"count": keras.Variable(0.0, trainable=False)}
        self._tracker.unlock()

    def call(self, x):
        self.hidden["count"].assign_add(1.0)
        return x

@register(task="classify", reference="none")
def NAME(*, input_shape: tuple = (14, 14, 1), num_classes: int = 2):
    """A small network."""
    image = keras.Input(input_shape)
    x = keras.layers.Flatten()(image)
'''
REST = {
    "plain": "x = keras.layers.Dense(8, 'relu', name='one')(x)",
    "kernel": "x = keras.layers.Dense(8, 'relu', name='one',"
    " kernel_regularizer=keras.regularizers.L2(1.0))(x)",
    "activity": "x = keras.layers.Dense(8, 'relu', name='one',"
    " activity_regularizer=keras.regularizers.L2(1.0))(x)",
    "noise": "x = Noisy()(keras.layers.Dense(8, 'relu', name='one')(x))",
    "frozen": "x = keras.layers.Dense(8, name='one', trainable=False)(x)",
    "named": "x = Named(name='one')(x)",
    "twins": """for part in 'ab':
        h = keras.Input(x.shape[1:])
        x = keras.Model(h, keras.layers.Dense(8, name='one')(h), name=part)(x)""",
    "double": "x = keras.layers.Dense(8, name='one', dtype='float64')(x)",
}
END = "\n    return keras.Model(image, keras.layers.Dense(num_classes, name='l')(x))\n"


def source(kind: str) -> str:
    return HEAD.replace("NAME", kind) + f"    {REST[kind]}{END}"


@pytest.fixture
def own(tmp_path):
    """A recipe that trains one of the networks above."""

    def recipe(kind: str):
        path = tmp_path / f"{kind}.py"
        path.write_text(source(kind))
        return RECIPE.override(model=f"{path}:{kind}", model_options=())

    return recipe


@pytest.mark.parametrize("kind", ["kernel", "activity"])
def test_what_layers_add_to_the_loss_moves_the_weights(kind, own, dataset, runtime):
    sizes, images = [], dataset.test["image"].reshape(40, -1) / 255
    for recipe in (own("plain"), own(kind)):
        weights = train(recipe, dataset, runtime)[0].weights
        hidden = images @ weights["one/kernel"] + weights["one/bias"]
        sizes.append(np.square(np.maximum(hidden, 0)).mean())
    assert sizes[1] < 0.7 * sizes[0]


def test_what_layers_add_on_jax(cli_on, tmp_path):
    weights = {}
    for kind in ("plain", "activity"):
        (tmp_path / f"{kind}.py").write_text(source(kind))
        done = cli_on("jax")("train", "mnist", "--data", "digits", "--epochs", "1",
                        "--model", f"{kind}.py:{kind}", "--out", kind)  # fmt: skip
        assert done.returncode == 0, done.stderr
        weights[kind] = done.json["weights_sha256"]
    assert weights["plain"] != weights["activity"]


def test_a_generator_in_a_list_is_in_the_state(own, dataset, runtime, tmp_path):
    recipe = own("noise")
    whole, _ = train(recipe, dataset, runtime)
    asked = iter([False, True])
    train(recipe, dataset, runtime, folder=tmp_path / "c", stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path / "c")
    resumed, _ = train(recipe, dataset, runtime, resume=start)
    assert same(whole, resumed)
    plain, _ = train(own("plain"), dataset, runtime)
    assert not same(whole, plain)


def test_frozen_layers_are_not_drawn_anew_without_a_word(own, dataset, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match="'one' is frozen.*keeps_weights"):
        train(own("frozen"), dataset, runtime)
    recipe = own("frozen")
    model = build_model(recipe, dataset)
    layer = model.get_layer("one")
    layer.keeps_weights = True
    kept = np.random.default_rng(0).normal(size=layer.kernel.shape).astype("f4")
    layer.kernel.assign(kept)
    result, _ = train(recipe, dataset, runtime, model=model)
    assert np.array_equal(result.weights["one/kernel"], kept)


def test_what_a_users_function_loads_is_drawn_anew(dataset, runtime):
    """Biases and statistics too, but those of layers that keep their weights; the
    forget gates of an LSTM start at one, as Keras has it."""
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((14, 14, 1)), layers.Reshape((14, 14)), layers.LSTM(4),
        layers.BatchNormalization(), layers.Dense(3, name="kept"), layers.Dense(2),
    ])  # fmt: skip
    model.get_layer("kept").keeps_weights = True
    initializers.initialise(model, 0)
    fresh = [np.array(weight) for weight in model.weights]
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 7.0))
    initializers.initialise(model, 0)
    for weight, value in zip(model.weights, fresh, strict=True):
        kept = "/kept/" in weight.path
        assert np.array_equal(weight, np.full_like(value, 7) if kept else value)


def test_keras_counts_its_layers_on_after_a_training(own, dataset, runtime):
    """Or a user's next layer would be called like one of the model's."""
    before = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    build_model(own("plain"), dataset)
    after = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert before.layers[-1].name != after.layers[-1].name


def test_a_weight_that_is_trained_and_written_is_refused_on_jax(
    cli_on, cli_here, tmp_path
):
    layer = "x = keras.layers.SpectralNormalization(keras.layers.Dense(8))(x)"
    (tmp_path / "mine.py").write_text(source("plain").replace(REST["plain"], layer))
    words = ["train", "mnist", "--data", "digits", "--epochs", "1", "--model",
             "mine.py:plain"]  # fmt: skip
    here = ["--device", "cpu", "--precision", "float32", "--threads", "2"]
    assert cli_here(*words, *here).returncode == 0
    done = cli_on("jax")(*words, "--backend", "jax")
    assert done.returncode == 2 and "which JAX would drop; use --back" in done.stderr


def test_only_a_frozen_convolution_whitens(dataset, runtime):
    layers = keras.layers
    for layer in (layers.Dense(3, name="whiten"), layers.Conv2D(8, 2, name="whiten")):
        model = keras.Sequential([keras.Input((14, 14, 1)), layer])
        initializers.initialise(model, 0)
        before = np.array(layer.kernel)
        initializers.whiten(model, dataset.train["image"])
        assert np.array_equal(layer.kernel, before)
        layer.trainable = False
    initializers.whiten(model, dataset.train["image"])
    assert not np.array_equal(layer.kernel, before)


def test_layers_in_float64_are_trained(own, dataset, runtime):
    result, _ = train(own("double"), dataset, runtime)
    assert result.weights["one/kernel"].dtype == np.float64


def test_names_of_initializers_are_drawn_for_the_seed(own, dataset, runtime):
    first = []
    for seed, kind in ((0, "named"), (1, "named"), (0, "plain")):
        model = build_model(own(kind), dataset)
        initializers.initialise(model, seed)
        first.append(np.array(model.get_layer("one").kernel))
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])


def test_weights_of_like_named_layers_are_loaded(own, dataset, runtime, tmp_path):
    result, _ = train(own("twins").override(epochs=1), dataset, runtime)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_bytes(result.weights))
    model = build_model(own("twins"), dataset)
    gpuzoo.load_weights(model, path)
    for weight, wanted in zip(model.weights, result.weights.values(), strict=True):
        assert np.array_equal(weight, wanted)


STATEFUL = {
    "a tf.Variable": (
        "tensorflow",
        "import tensorflow as tf\nCOUNT = tf.Variable(0.0)",
        "COUNT.assign_add(1.0)\n        return x + COUNT",
    ),
    "the generator of the process": (
        "tensorflow",
        "",
        "return x + keras.random.normal(keras.ops.shape(x))",
    ),
    "a keras.Variable": (
        "jax",
        "COUNT = keras.Variable(0.0, trainable=False)",
        "COUNT.assign(COUNT + 1.0)\n        return x + COUNT",
    ),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_state_that_no_checkpoint_holds_is_refused(kind, cli_on, cli_here, tmp_path):
    backend, before, body = STATEFUL[kind]
    (tmp_path / "own.py").write_text(f'''
import keras
from gpuzoo.catalogue.registry import register
{before}

class Odd(keras.layers.Layer):
    def call(self, x):
        {body}

    def compute_output_shape(self, shape):
        return shape

@register(task="classify", reference="none")
def net(*, input_shape: tuple = (28, 28, 1), num_classes: int = 10):
    """A small network."""
    image = keras.Input(input_shape)
    x = Odd()(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Dense(num_classes)(x))
''')
    words = ["train", "mnist", "--data", "digits", "--model", "own.py:net",
             "--fast-dev-run", "--precision", "float32"]  # fmt: skip
    if backend == "jax":
        done = cli_on("jax")(*words, "--backend", backend)
    else:
        done = cli_here(*words, "--device", "cpu", "--threads", "2")
    assert done.returncode == 2, done.stderr
    assert (
        "the model writes into a variable that is not one of its weights" in done.stderr
    )


def test_the_teacher_may_be_a_model_of_a_users_own(cli_here, tmp_path):
    model = keras.Sequential([
        keras.Input((28, 28, 1)), keras.layers.Flatten(),
        keras.layers.Dense(10, name="logits"),
    ])  # fmt: skip
    gpuzoo.train(
        model, data="digits", epochs=2, out=str(tmp_path / "teacher"), quiet=True
    )
    done = cli_here("train", "distill_mnist", "--data", "digits", "--teacher",
                    "teacher", "--fast-dev-run", "--out", "student", "--device", "cpu",
                    "--precision", "float32", "--threads", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "student" / "run.json").read_text())
    assert recorded["recipe"]["teacher_sha256"]


def test_a_helper_module_may_be_edited_between_two_trainings(cli, tmp_path):
    (tmp_path / "own.py").write_text(source("plain").replace("8,", "WIDTH,").replace(
        "import keras\n", "import keras\nfrom parts import WIDTH\n", 1))  # fmt: skip
    script = (
        "import pathlib, sys; sys.path.insert(0, '.'); import gpuzoo\n"
        "how = dict(data='digits', model='own.py:plain', fast_dev_run=True, quiet=True)\n"
        "for width in (8, 9):\n"
        "    pathlib.Path('parts.py').write_text(f'WIDTH = {width}  #' + '#' * width)\n"
        "    run = gpuzoo.train('mnist', out=str(width), **how)\n"
        "model = gpuzoo.build('plain'); print(model.get_layer('one').units)"
    )
    done = cli(program=("-c", script))
    assert done.stdout.strip() == "9", done.stderr
    codes = [json.loads((tmp_path / n / "run.json").read_text()) for n in "89"]
    assert codes[0]["code"]["parts"] != codes[1]["code"]["parts"]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (
            "step",
            "fails in layer 'late' (Late) at own.py, line 8: RuntimeError: not so many",
        ),
        ("build", "fails at own.py, line 15: ZeroDivisionError: division by zero"),
    ],
)
def test_what_fails_in_a_users_own_file_is_told_by_its_line(
    where, told, cli, cli_here, tmp_path
):
    (tmp_path / "own.py").write_text(f"""
import keras
from gpuzoo import register

class Late(keras.layers.Layer):
    def call(self, x):
        if x.shape[0] is not None:
            raise RuntimeError("not so many")
        return x

@register(task="classify", reference="here")
def net(*, input_shape: tuple = (8, 8, 1), num_classes: int = 10):
    '''A layer that fails when it is given a batch.'''
    inputs = keras.Input(input_shape)
    {"1 / 0" if where == "build" else "x = Late()(keras.layers.Flatten()(inputs))"}
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))
""")
    words = [
        "train",
        "mnist",
        "--data",
        "digits",
        "--model",
        "own.py:net",
        "--out",
        "x",
    ]
    here = ["--device", "cpu", "--precision", "float32", "--threads", "2"]
    done = cli_here(*words, "--fast-dev-run", *here)
    assert done.returncode == 2 and told in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert not (tmp_path / "x").exists()  # no step was done
    assert "Traceback" in cli(*words[:-1], "y", "--fast-dev-run", "--debug").stderr
