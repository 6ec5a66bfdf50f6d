"""A user's own function as the model of a recipe, one for each task."""

import json

import numpy as np
import pytest
import safetensors.numpy

import gpuzoo

OWN = '''
import math
import keras
from keras import layers
from gpuzoo import register
from gpuzoo.models.diffusion import Diffusion
from gpuzoo.models.gan import Adversaries

Shape = tuple[int, ...]

@register(task="classify", reference="here")
def own_reader(*, input_shape: Shape = (8, 8, 1), num_classes: int = 2):
    """Reads images."""
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x))

@register(task="classify_audio", reference="here")
def own_listener(*, input_shape: Shape = (1600,), num_classes: int = 2):
    """Listens."""
    inputs = keras.Input(input_shape)
    x = layers.Conv1D(4, 64, 16, name="waves")(layers.Reshape((-1, 1))(inputs))
    x = layers.GlobalMaxPooling1D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x))

@register(task="forecast", reference="here")
def own_prophet(*, input_shape: Shape = (8, 1), horizon: int = 2):
    """Foretells."""
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, layers.Dense(horizon, name="foretold")(x))

@register(task="forecast", reference="here")
def own_guess(*, input_shape: Shape = (8, 1), horizon: int = 2, num_classes: int = 2):
    """Guesses."""
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, layers.Dense(num_classes, name="guess")(x))

@register(task="autoencode", reference="here")
def own_code(*, input_shape: Shape = (8, 8, 1)):
    """Images to a code and back."""
    inputs = keras.Input(input_shape)
    x = layers.Dense(4, name="code")(layers.Flatten()(inputs))
    x = layers.Dense(math.prod(input_shape), name="pixels")(x)
    return keras.Model(inputs, layers.Reshape(input_shape)(x))

@register(task="autoencode", reference="here")
def own_drawn_code(*, input_shape: Shape = (8, 8, 1)):
    """Images to the distribution of a code and back."""
    code, inputs = keras.Input((3,)), keras.Input(input_shape)
    pixels = layers.Dense(math.prod(input_shape), name="pixels")(code)
    decoder = keras.Model(code, layers.Reshape(input_shape)(pixels), name="decoder")
    x = layers.Flatten()(inputs)
    mean, log_variance = (layers.Dense(3, name=n)(x) for n in ("middle", "width"))
    return keras.Model(inputs, {
        "reconstruction": decoder(mean), "mean": mean, "log_variance": log_variance,
    })

@register(task="table", reference="here")
def own_line(*, input_shape: Shape = (3,), num_outputs: int = 1):
    """A linear model of the columns."""
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, layers.Dense(num_outputs, name="line")(inputs))

@register(task="classify_text", reference="here")
def own_words(*, input_shape: Shape = (8,), num_classes: int = 2, words: int = 9):
    """The mean of the words."""
    inputs = keras.Input(input_shape, dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(words, 4)(inputs))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x))

@register(task="classify_film", reference="here")
def own_watcher(*, input_shape: Shape = (4, 8, 8, 1), num_classes: int = 2):
    """Watches, by Keras's own convolution over time."""
    inputs = keras.Input(input_shape)
    x = layers.Conv3D(2, 3, strides=4, name="watch")(inputs)
    x = layers.GlobalAveragePooling3D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x))
@register(task="embed", reference="here")
def own_vectors(*, input_shape: Shape = (8, 8, 1)):
    """Vectors of length 1."""
    inputs = keras.Input(input_shape)
    x = layers.Dense(4, name="numbers")(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.UnitNormalization(dtype="float32")(x))

@register(task="detect", reference="here")
def own_finder(*, input_shape: Shape = (8, 8, 1), num_classes: int = 2):
    """Finds."""
    inputs = keras.Input(input_shape)
    cells = layers.Conv2D(num_classes + 4, 4, 4, name="cells")(inputs)
    return keras.Model(inputs, cells)

@register(task="segment", reference="here")
def own_painter(*, input_shape: Shape = (8, 8, 1), num_classes: int = 2):
    """Paints."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(num_classes, 3, padding="same", name="paint")(inputs)
    return keras.Model(inputs, layers.Softmax()(x))

@register(task="video_prediction", reference="here")
def own_film(*, input_shape: Shape = (2, 8, 8, 1)):
    """The next frame, of the last."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(input_shape[-1], 3, padding="same", name="next")(inputs[:, -1])
    return keras.Model(inputs, x)

@register(task="adversarial", reference="here")
def own_rivals(*, input_shape: Shape = (8, 8, 1)):
    """One draws, the other judges."""
    code, image = keras.Input((5,)), keras.Input(input_shape)
    x = layers.Dense(math.prod(input_shape), "sigmoid", name="pixels")(code)
    generator = keras.Model(code, layers.Reshape(input_shape)(x))
    score = layers.Dense(1, name="score")(layers.Flatten()(image))
    return Adversaries(generator, keras.Model(image, score), 1, 0.1, name="rivals")

@register(task="diffusion", reference="here")
def own_cleaner(*, input_shape: Shape = (8, 8, 1)):
    """Takes noise out."""
    image, time = keras.Input(input_shape, name="image"), keras.Input((1,), name="time")
    moved = layers.Dense(1, name="moved")(time)[:, None, None]
    x = layers.Conv2D(input_shape[-1], 3, padding="same", name="clean")(image) + moved
    return Diffusion(keras.Model({"image": image, "time": time}, x), name="cleaner")
'''
CASES = [
    ("mnist", "own_reader", "digits"),
    ("distill_mnist", "own_reader", "digits"),
    ("mnist_robust", "own_reader", "digits"),
    ("tones", "own_listener", "tones"),
    ("forecast", "own_prophet", "mackey_glass"),
    ("market", "own_prophet", "market"),
    ("next_move", "own_guess", "market"),
    ("table", "own_line", "flats"),
    ("table", "own_line", "lettings"),
    ("text", "own_words", "reviews"),
    ("films", "own_watcher", "moving_digits"),
    ("glyphs", "own_vectors", "glyphs"),
    ("mnist_vae", "own_code", "digits"),
    ("mnist_vae", "own_drawn_code", "digits"),
    ("digit_detection", "own_finder", "digits"),
    ("segmentation", "own_painter", "textured_digits"),
    ("moving_mnist", "own_film", "digits"),
    ("mnist_gan", "own_rivals", "digits"),
    ("mnist_diffusion", "own_cleaner", "digits"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(("recipe", "name", "data"), CASES)
def test_a_users_own_function_trains_with_the_recipe(
    recipe, name, data, file, runtime, own_cache, tmp_path
):
    model = f"{file}:{name}"
    told = gpuzoo.train(
        recipe, model=model, data=data, model_options=(), out=tmp_path / "run",
        fast_dev_run=True, quiet=True,
    )  # fmt: skip
    assert told["state"] == "finished" and told["steps"] == 2
    assert np.isfinite(told["test_eer" if recipe == "glyphs" else "test_loss"])
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert recorded["model"] == model
    trained = safetensors.numpy.load_file(tmp_path / "run" / "weights.safetensors")
    biases = [array for path, array in trained.items() if path.endswith("bias")]
    # They begin at zero.
    assert biases and all(bias.any() for bias in biases)


@pytest.mark.parametrize(("recipe", "name", "data"), CASES[-2:])
def test_its_networks_may_end_in_16_bits(recipe, name, data, file, cli, tmp_path):
    done = cli(
        "train", recipe, "--model", f"{file}:{name}", "--precision", "mixed_float16",
        "--data", data, "--out", "run", "--fast-dev-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.isfinite(done.json["test_loss"])
    trained = safetensors.numpy.load_file(tmp_path / "run" / "weights.safetensors")
    assert all(np.isfinite(array).all() for array in trained.values())


def test_tasks_are_all_there():
    tasks = {gpuzoo.load_recipe(recipe).task for recipe, _, _ in CASES}
    assert tasks == {gpuzoo.load_recipe(name).task for name in gpuzoo.list_recipes()}


DRAWS = '''
import keras, gpuzoo
from keras import initializers, random

WAYS = {
    "of its own name": "random_normal",
    "an object": initializers.GlorotUniform(),
    "a lambda": lambda shape, dtype=None: initializers.Orthogonal()(shape, dtype),
    "a function": random.uniform,
    "own numbers": lambda shape, dtype=None: random.gamma(shape, 2.0),
    "own seeds": lambda shape, dtype=None: random.normal(
        shape, seed=random.SeedGenerator()
    ),
}

class Draws(keras.layers.Layer):
    """Its weights have no initializer that the layer names."""

    def build(self, shape):
        self.ways = [
            self.add_weight(shape=(shape[-1], 3), initializer=one)
            for one in WAYS.values()
        ]
        self.offset = self.add_weight(shape=(3,), initializer="zeros")
        self.offset.assign(random.normal((3,)))
        self.scale = keras.Variable(random.truncated_normal((3,)))

    def call(self, x):
        x = sum(keras.ops.matmul(x, way) for way in self.ways)
        return (x + self.offset) * self.scale

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple = (8, 8, 1), num_classes: int = 10):
    "A layer that draws."
    inputs = keras.Input(input_shape)
    x = Draws(name="draws")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))
'''
TWICE = """
import json, random, sys
import gpuzoo
gpuzoo.configure(backend=sys.argv[1], device="cpu", precision="float32", threads=2)
import keras, safetensors.numpy

def digests(**how):
    told = gpuzoo.train("mnist", model="own.py:net", data="digits", model_options=(),
                        fast_dev_run=True, quiet=True, **how)
    weights = safetensors.numpy.load_file(told["run_dir"] + "/weights.safetensors")
    return {"all": told["weights_sha256"]} | {
        name: [str(value.dtype), value.tolist()] for name, value in weights.items()
    }

if len(sys.argv) > 2:  # what came before in the process does not matter
    keras.random.uniform((3,)), random.random(), keras.layers.GRU(3).build((1, 2, 3))
    told = [digests(out="other", seed=1), digests(out="again")]
else:
    told = [digests(out="alone")]
print(json.dumps({"told": told}))
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_weights_that_no_initializer_of_the_layer_gives_repeat(backend, cli, tmp_path):
    (tmp_path / "own.py").write_text(DRAWS)
    alone, many = (
        cli(program=("-c", TWICE, backend, *words)) for words in ([], ["more"])
    )
    assert many.returncode == alone.returncode == 0, many.stderr + alone.stderr
    (wanted,), (other, again) = alone.json["told"], many.json["told"]
    assert wanted == again
    drawn = [name for name in wanted if name.startswith("draws/")]
    assert len(drawn) == 8
    for name in drawn:  # each is a draw, and of the seed
        assert wanted[name] != other[name], name
