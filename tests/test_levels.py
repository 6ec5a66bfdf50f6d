"""What is promised at each level: refusals by name, and the bits themselves."""

import dataclasses
import json
import pathlib
import random

import keras
import numpy as np
import pytest
from reference import known_digests
from small import RECIPE, train

import gpuzoo
from gpuzoo.weights import digest_all


def with_layer(function, name="odd"):
    """A registered model with an operation of its own in the middle."""

    class Odd(keras.layers.Layer):
        def call(self, x):
            return function(x)

        def compute_output_shape(self, shape):
            return shape

    @gpuzoo.register(task="classify", reference="here")
    def odd_model(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
        """A model with an odd layer."""
        inputs = keras.Input(input_shape)
        x = keras.layers.Dense(8, name="dense")(keras.layers.Flatten()(inputs))
        return keras.Model(
            inputs, keras.layers.Dense(num_classes, name="logits")(Odd(name=name)(x))
        )

    return RECIPE.override(model="odd_model", model_options=())


def test_a_hidden_stream_of_random_numbers_is_refused_by_name(dataset, runtime):
    import tensorflow as tf

    recipe = with_layer(lambda x: x + tf.random.normal(tf.shape(x)), name="noisy")
    with pytest.raises(gpuzoo.GpuzooError, match="layer '.*noisy.*SeedGenerator"):
        train(recipe, dataset, runtime)


def _factor(draw):
    """A factor from Python's or NumPy's generator, drawn in a layer's call."""
    return with_layer(lambda x: x * (1 + draw() / 8), name="odd_one")


@pytest.mark.parametrize("draw", [random.random, np.random.random, np.random.randn])
def test_a_draw_while_the_step_is_traced_is_refused_by_name(draw, dataset, runtime):
    """It would be a constant of the step, and another one in the next compilation."""
    recipe = _factor(draw)
    with pytest.raises(gpuzoo.GpuzooError, match="layer 'odd_one' .*SeedGenerator"):
        train(recipe, dataset, runtime)
    train(recipe, dataset, dataclasses.replace(runtime, deterministic=False))
    train(_factor(lambda: 0.5), dataset, runtime)


def test_a_layer_of_keras_that_draws_while_it_is_traced(dataset, runtime):
    """AugMix chooses its augmentations with Python's random; the layer that draws is
    named, not the one around it."""

    @gpuzoo.register(task="classify", reference="here")
    def augmented(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
        """AugMix inside of another layer."""
        inputs = keras.Input(input_shape)
        x = keras.layers.Concatenate()([inputs, inputs, inputs])
        x = keras.layers.Pipeline([keras.layers.AugMix(name="mixed")])(x)
        x = keras.layers.Flatten()(x)
        return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))

    recipe = RECIPE.override(model="augmented", model_options=())
    with pytest.raises(gpuzoo.GpuzooError, match=r"layer 'mixed' \(AugMix\) draws"):
        train(recipe, dataset, runtime)


def test_a_sum_of_three_at_once_is_refused_by_name(dataset, runtime):
    import tensorflow as tf

    def add(*parts):
        return with_layer(lambda x: tf.add_n([x * p for p in parts]), name="sum")

    with pytest.raises(gpuzoo.GpuzooError, match="layer '.*sum.*AddN.*two by two"):
        train(add(1, 2, 3), dataset, runtime)
    train(add(1, 2), dataset, runtime)
    train(add(1, 2, 3), dataset, dataclasses.replace(runtime, deterministic=False))


def test_strict_tries_the_first_step_twice(dataset, runtime):
    """A layer that counts its calls in Python is no function of its input."""
    import tensorflow as tf

    calls = iter(range(1, 10_000))

    def count(x):
        factor = tf.numpy_function(lambda: 1 + 1e-3 * next(calls), (), tf.float64)
        return x * tf.cast(tf.ensure_shape(factor, ()), x.dtype)

    strict = dataclasses.replace(runtime, level="strict")
    train(RECIPE, dataset, strict)  # an honest model passes
    with pytest.raises(gpuzoo.GpuzooError, match="run twice, gave.* logits/kernel"):
        train(with_layer(count), dataset, strict)


def test_the_command_fixes_the_order_of_sets(cli, npz):
    words = ["mnist", "--data", npz, "--batch-size", "16", "--fast-dev-run", "--quiet"]
    programs = [("-m", "gpuzoo", "train"), (pathlib.Path("recipes/train_mnist.py"),)]
    root = pathlib.Path(__file__).parent.parent
    for program in programs:
        head = [root / p if isinstance(p, pathlib.Path) else p for p in program]
        rest = words if program[-1] == "train" else words[1:]
        done = cli(*rest, "--out", f"run{len(head)}", "--level", "strict", program=head)
        assert done.returncode == 0, done.stderr
        run = json.loads((npz.parent / f"run{len(head)}" / "run.json").read_text())
        assert run["runtime"]["variables"]["PYTHONHASHSEED"] == "0"
        assert run["runtime"]["variables"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("ours", [True, False])
def test_only_a_command_leaves_packages_out(ours, cli):
    """A script of the user's has Keras's wrappers for scikit-learn as ever; and where
    something was left out, it can be imported afterwards."""
    pytest.importorskip("jax")
    code = (
        f"import sys; from gpuzoo.runtime import bootstrap; bootstrap.ours = {ours}\n"
        "import gpuzoo; gpuzoo.configure(device='cpu', quiet=True)\n"
        "print(*(n in sys.modules for n in ('sklearn', 'jax', 'matplotlib')))\n"
        "import gc, matplotlib.pyplot; assert gc.isenabled()\n"
        "import jax.numpy, sklearn.base; from keras.src.wrappers import sklearn_wrapper as w\n"
        "print(w.BaseEstimator is sklearn.base.BaseEstimator)"
    )
    done = cli(program=("-c", code))
    assert done.stdout.split() == 4 * [str(not ours)], done.stderr


def test_autotune_is_for_gpus(cli, tmp_path):
    """What can be shown without one: nothing is left out quietly."""
    words = ["train", "mnist", "--data", "digits", "--autotune", "choices.txt"]
    done = cli(*words, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and "sees no GPU" in done.stderr
    assert cli(*words, "--device", "cpu").returncode == 2
    (tmp_path / "choices.txt").write_text("version: 3\n")
    done = cli(*words, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and "pins XLA's GPU kernels" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"choices.txt", "cache"}


def test_a_layer_that_cannot_repeat_is_refused_by_name(dataset, runtime):
    """XLA with determinism and a max-pooling that goes past Keras."""
    import tensorflow as tf

    def pooled(x):
        rows = tf.reshape(x, (-1, 2, 4, 1))
        largest = tf.nn.max_pool2d(rows, 2, 1, "SAME", name="MaxPool2d")
        return tf.reshape(largest, tf.shape(x))

    mixed = dataclasses.replace(runtime, xla=True)
    recipe = with_layer(pooled, name="own_pool")
    with pytest.raises(gpuzoo.GpuzooError, match="layer '.*own_pool.*MaxPoolGrad") as e:
        train(recipe, dataset, mixed)
    assert "keras.ops.max_pool" in str(e.value) and "--xla off" in str(e.value)
    train(recipe, dataset, runtime)  # what is offered is honoured


def test_what_xla_cannot_compile_is_one_line(dataset, runtime):
    import tensorflow as tf

    def raw(x):
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=(9, 9))

    @gpuzoo.register(task="classify", reference="here")
    def unsortable(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
        """A model with an operation that XLA lacks."""
        inputs = keras.Input(input_shape)
        x = keras.layers.Lambda(raw)(keras.layers.Conv2D(2, 3)(inputs))
        x = keras.layers.Dense(num_classes)(keras.layers.Flatten()(x))
        return keras.Model(inputs, x)

    mixed = dataclasses.replace(runtime, xla=True)
    recipe = RECIPE.override(model="unsortable", model_options=())
    with pytest.raises(gpuzoo.GpuzooError, match="nearest"):
        train(recipe, dataset, mixed)
    free = dataclasses.replace(mixed, deterministic=False)
    with pytest.raises(
        gpuzoo.GpuzooError, match="XLA cannot compile.*Resize.*--xla off"
    ):
        train(recipe, dataset, free)


# --- reference digests --------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_reference_digest(precision, dataset, runtime):
    """The bits are those of the day they were written down, on a machine of that class
    (tests/reference.py)."""
    runtime = dataclasses.replace(runtime, precision=precision)
    keras.config.set_dtype_policy(precision)
    try:
        result, _ = train(RECIPE, dataset, runtime)
    finally:
        keras.config.set_dtype_policy("float32")
    found = digest_all(result.weights)
    known = known_digests(found, runtime.threads, precision)
    if not known:
        pytest.skip("no reference digests for this class of machine")
    assert known == dict.fromkeys(known, found)
