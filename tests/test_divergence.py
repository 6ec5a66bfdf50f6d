"""A training that diverges says where the first value that is not finite was made, and
why: by precision, learning rate, data or the model."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment, skip_without
from small import RECIPE, program, two_classes

import gpuzoo
from gpuzoo.engine import loop
from gpuzoo.runs.record import read_run

OWN = '''
import keras
import gpuzoo

ops = keras.ops


class Square(keras.layers.Layer):
    def call(self, x):
        y = ops.square(300.0 * x)
        return 1e-6 * ops.mean(y, axis=-1, keepdims=True)


class Logarithm(keras.layers.Layer):
    def call(self, x):
        x = 2.0 * x
        return ops.log(x)


class Norm(keras.layers.Layer):
    def call(self, x):
        zero = x - ops.stop_gradient(x)
        return x + ops.sqrt(ops.sum(ops.square(zero), axis=-1, keepdims=True))


class Masked(keras.layers.Layer):
    """Infinite on the way, and finite at the end: no fault."""

    def call(self, x):
        masked = ops.where(x > 0.5, x, -float("inf"))
        safe = ops.where(x > 0.5, ops.log(x), 0.0)
        return ops.softmax(ops.concatenate([masked, x], axis=-1))[:, :20] + safe[:, :20]


class Brightness(keras.layers.Layer):
    def call(self, x):
        return ops.concatenate([x, ops.log(ops.mean(x, axis=-1, keepdims=True))], -1)


class Half(keras.layers.Layer):
    def call(self, x):
        return ops.cast(ops.exp(ops.cast(12 + 0 * x, "float16")), "float32")


def net(input_shape, num_classes, *middle):
    x = inputs = keras.Input(input_shape)
    x = keras.layers.Flatten(name="flat")(x)
    for kind in middle:
        if kind in (Square, Norm):
            x = keras.layers.Dense(8, name="front")(x)
        x = kind(name=kind.__name__.lower())(x)
    x = keras.layers.Dense(16, name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))
''' + "".join(
    f'''

@gpuzoo.register(task="classify", reference="made up")
def {name}(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    return net(input_shape, num_classes, {kinds})
'''
    for name, kinds in [
        ("square", "Square"), ("logarithm", "Masked, Logarithm"), ("norm", "Norm"),
        ("masked", "Masked"), ("brightness", "Brightness"), ("half", "Half"),
    ]
)  # fmt: skip
# What one process trains, so that a backend is started once for all of them.
SCRIPT = """
import json, sys
import gpuzoo
told = {}
backend, precision, wanted = json.loads(sys.argv[1])
gpuzoo.configure(backend=backend, precision=precision, device="cpu", threads=2)
for name, recipe, changes in wanted:
    try:
        gpuzoo.train(recipe, out=name, quiet=True, **changes)
        told[name] = None
    except gpuzoo.Diverged as error:
        told[name] = [str(error), error.diagnosis]
print(json.dumps(told))
"""
DIGITS = {"data": "digits", "epochs": 2}
RATE = ["rate", "mnist", {**DIGITS, "model": "mlp", "optimizer": "sgd",
                          "learning_rate": 1e30}]  # fmt: skip
GAN = ["gan", "mnist_gan", {"data": "digits", "epochs": 1, "learning_rate": 1e30,
                            "model_options": ("filters=(4,8)",)}]  # fmt: skip
WGAN = ["wgan", "mnist_wgan", {
    **GAN[2], "model_options": ("filters=(4,8)", "critic_steps=2"),
}]  # fmt: skip
OF = {
    "float32": [RATE, GAN, WGAN, *(
        [name, "mnist", {**DIGITS, "model": f"own.py:{name}"}]
        for name in ("logarithm", "norm", "masked", "half")
    )],
    "mixed_float16": [
        ["square", "mnist", {**DIGITS, "model": "own.py:square"}],
        ["norm", "mnist", {**DIGITS, "model": "own.py:norm", "epochs": 9,
                           "digest_every": 45}],
        RATE,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """Text and diagnosis of each training of a process, by name; None: it finished."""
    known = {}

    def get(backend, precision) -> tuple:
        skip_without(backend)
        key = backend, precision
        if key not in known:
            place = tmp_path_factory.mktemp("-".join(key))
            (place / "own.py").write_text(OWN)
            words = json.dumps([backend, precision, OF[precision]])
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, words], cwd=place, text=True,
                capture_output=True, env=environment(place), check=False,
            )  # fmt: skip
            known[key] = done, place
        done, place = known[key]
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), place

    return get


BACKENDS = pytest.mark.parametrize("backend", ["tensorflow", "jax"])


@BACKENDS
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_too_large_a_learning_rate(backend, precision, diverged):
    told, place = diverged(backend, precision)
    text, found = told["rate"]
    assert found["cause"] == "learning rate" and found["failed"] is None
    where = [found["layer"], found["operation"].lower()]
    if precision == "float32":
        assert where in (["dense_2", "matmul"], ["dense_2", "dot_general"])
    else:  # such weights are no float16 numbers
        assert where in (["dense_1", "cast"], ["dense_1", "convert_element_type"])
    assert found["step"] == 2 and found["phase"] == "forward"
    assert "use --learning-rate 0.01" in text and "the loss became nan at" in text
    assert "gradient norm" in found["lines"][0]
    record = read_run(place / "rate")
    assert record["state"] == "diverged" and record["error"] == text
    assert record["diagnosis"] == found


@BACKENDS
def test_an_overflow_in_float16_that_float32_does_not_have(backend, diverged):
    text, found = diverged(backend, "mixed_float16")[0]["square"]
    assert found["cause"] == "precision" and found["layer"] == "square"
    assert found["operation"].lower() == "square" and found["step"] == 1
    assert found["place"].startswith("own.py, line ")
    line = int(found["place"].rpartition(" ")[2])
    assert OWN.splitlines()[line - 1].endswith("ops.square(300.0 * x)")
    assert "float16 ends at 6.55e+04" in text and "--precision float32" in text
    assert found["float32"].startswith("finite up to step")


@BACKENDS
def test_a_logarithm_of_zero_at_the_first_step(backend, diverged):
    """The masks before it are infinite on purpose, and blameless."""
    told = diverged(backend, "float32")[0]
    assert told["masked"] is None
    _, found = told["logarithm"]
    assert (found["cause"], found["layer"]) == ("model", "logarithm")
    assert (found["step"], found["phase"]) == (1, "forward")
    assert found["operation"].lower() == "log"
    line = int(found["place"].rpartition(" ")[2])
    assert OWN.splitlines()[line - 1].endswith("ops.log(x)")


@BACKENDS
def test_a_gradient_that_is_not_finite_while_the_loss_is(backend, diverged):
    text, found = diverged(backend, "float32")[0]["norm"]
    assert (found["cause"], found["layer"]) == ("model", "norm")
    assert (found["step"], found["phase"]) == (1, "gradient")
    assert "the gradient of layer 'norm' (Norm)" in text
    line = int(found["place"].rpartition(" ")[2])
    assert "ops.sqrt" in OWN.splitlines()[line - 1]


@BACKENDS
def test_float16_gradients_that_are_never_finite(backend, diverged):
    """Skipping such steps is normal; skipping all of them is no training."""
    text, found = diverged(backend, "mixed_float16")[0]["norm"]
    assert "the float16 gradients are not finite at any loss scale" in text
    assert (found["cause"], found["layer"]) == ("model", "norm")
    assert found["phase"] == "gradient"


@BACKENDS
def test_a_layer_that_computes_in_float16_in_a_run_in_float32(backend, diverged):
    _, found = diverged(backend, "float32")[0]["half"]
    assert (found["cause"], found["layer"]) == ("precision", "half")
    assert found["dtype"] == "float16" and found["operation"].lower() == "exp"


@BACKENDS
def test_two_optimizers(backend, diverged):
    """Of a GAN, which diverges within one step: after the first of its updates."""
    text, found = diverged(backend, "float32")[0]["gan"]
    assert found["cause"] == "learning rate" and found["failed"] is None
    assert found["layer"].startswith(("discriminator/", "generator/")), found
    assert "use --learning-rate" in text


@BACKENDS
def test_several_updates_of_a_critic_in_a_step(backend, diverged):
    """The first one makes the weights extreme, the second is not finite: neither the
    weights before the step nor those after it show why."""
    text, found = diverged(backend, "float32")[0]["wgan"]
    assert found["cause"] == "learning rate" and found["failed"] is None
    assert found["layer"].startswith("discriminator/") and found["step"] == 1
    assert "after an earlier update of the same step, its inputs are up to" in text
    assert 1e20 < found["largest_input"] < 1e35


def test_operations_by_numpy_are_those_of_jax():
    """NumPy computes what JAX compiles for seconds, to the finite and infinite values."""
    skip_without("jax")
    import jax
    import jax.numpy as jnp
    import ml_dtypes

    from gpuzoo.engine.backends import operations

    values = np.array([[0.0, -2.5, 3e-39, 6e4], [np.inf, np.nan, -1e-30, 1e38]])
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            one = values.astype(dtype)
        other = one[::-1]
        for step in (
            *(lambda a, b, f=f: f(a, b) for f in (
                jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.maximum, jnp.minimum,
            )),
            *(lambda a, b, f=f: f(a) for f in (jnp.negative, jnp.abs, jnp.sqrt)),
            lambda a, b: jnp.square(a) + 1.5,
            lambda a, b: jnp.transpose(a).reshape(2, 2, 2)[::-1] * jnp.ones((3, 1, 1, 1), a.dtype),
            lambda a, b: jnp.squeeze(jnp.broadcast_to(a[None, :1], (5, 1, 4)), 1),
        ):  # fmt: skip
            closed = jax.make_jaxpr(step)(one, other)
            wanted = np.asarray(jax.jit(step)(one, other))
            walk = operations._Walk(sizes=(2,))
            given = [jnp.asarray(one), jnp.asarray(other)]
            (found,), _ = walk.through(
                closed.jaxpr, closed.consts, given, [None, None], "", None
            )
            found = np.asarray(found)
            assert found.dtype == wanted.dtype and found.shape == wanted.shape
            np.testing.assert_allclose(
                found.astype("f4"), wanted.astype("f4"), rtol=1e-2, atol=2e-38,
                err_msg=str(closed),
            )  # fmt: skip


# --- in this process -------------------------------------------------------------------


def diagnosed(recipe, dataset, runtime, **options) -> tuple:
    from gpuzoo.training.diagnosis import diagnose

    made = program(recipe, dataset, runtime)
    with pytest.raises(gpuzoo.Diverged) as caught:
        loop.run(made)
    return caught.value, diagnose(made, caught.value, [], **options)


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return lambda name: RECIPE.override(model=f"{file}:{name}", augment=())


def black(split: str, place: int):
    from small import splits

    from gpuzoo.data.validate import make_dataset

    arrays = two_classes()
    arrays[f"x_{split}"][place] = 0
    return make_dataset("dark", "made up", splits(arrays))


def test_an_example_that_the_model_cannot_take(own, runtime):
    _, found = diagnosed(own("brightness"), black("train", 33), runtime)
    assert (found["cause"], found["layer"]) == ("data", "brightness")
    assert "only for training example 33)" in found["text"]


def test_the_parts_of_a_batch_are_no_updates(own, dataset, runtime):
    """One example of a part; and a rate that is too large for the second step."""
    recipe = own("brightness").override(accumulate=2)
    error, found = diagnosed(recipe, black("train", 33), runtime)
    assert (found["cause"], found["layer"]) == ("data", "brightness")
    assert "only for training example 33)" in found["text"]
    recipe = RECIPE.override(
        model="mlp", model_options=("units=(8,)",), augment=(), learning_rate=1e30,
        optimizer="sgd", accumulate=4,
    )  # fmt: skip
    _, found = diagnosed(recipe, dataset, runtime)
    assert (found["cause"], found["step"]) == ("learning rate", 2)
    assert "earlier update" not in found["text"]


@pytest.mark.parametrize(
    "ends", ["at the last step", "early", "early, of val", "with the best"]
)
def test_the_evaluation_alone(ends, own, runtime):
    """At the end, and when early stopping ends it, of the weights that are kept."""
    how = {
        "at the last step": {},
        "early": {"early_stopping": 1, "monitor": "accuracy", "min_delta": 0.99},
        "early, of val": {
            "early_stopping": 1,
            "monitor": "accuracy",
            "min_delta": 0.99,
        },
        "with the best": {"keep": "best", "ema_decay": 0.9},
    }[ends]
    data = black("test", 7)
    if how:
        good = data.test if ends == "early, of val" else data.train
        rows = {name: rows[:20] for name, rows in good.items()}
        data = dataclasses.replace(data, splits={**data.splits, "val": rows})
    recipe = own("brightness").override(epochs=3, digest_every=10**6, **how)
    error, found = diagnosed(recipe, data, runtime)
    split = "val" if ends == "early, of val" else "test"
    assert error.what.startswith(f"{split}_loss is ") and error.split == split
    assert (found["layer"], found["phase"]) == ("brightness", "evaluation")
    named = {"val": "validation", "test": "test"}[split]
    assert f"in the evaluation of {named} data, in layer 'brightness'" in found["text"]
    assert found["step"] == error.step <= error.at
    if ends.startswith("early"):
        assert error.at < 3 * (len(data.train["label"]) // recipe.batch_size)
    assert all(np.isfinite(one).all() for one in error.weights.values())


def test_the_replay_begins_at_the_last_good_state(dataset, runtime):
    """Steps after a digest, with momentum and random layers, are those of the run."""
    recipe = RECIPE.override(learning_rate=3e4, optimizer="sgd", epochs=9)
    error, found = diagnosed(recipe, dataset, runtime)
    assert found["failed"] is None and found["cause"] == "learning rate", found
    assert error.step < found["step"] <= error.at


@pytest.mark.parametrize(
    ("problem", "why"),
    [(MemoryError(), "out of memory"), (KeyError("odd"), "KeyError: 'odd'")],
)
def test_a_replay_that_fails_hides_nothing(problem, why, dataset, runtime, monkeypatch):
    from gpuzoo.training import replay

    def fails(*_, **__):
        raise problem

    monkeypatch.setattr(replay, "Observer", fails)
    recipe = RECIPE.override(learning_rate=1e30, optimizer="sgd")
    error, found = diagnosed(recipe, dataset, runtime)
    error.diagnosis = found
    assert str(error).startswith("the loss became nan at epoch 1, step")
    assert why in str(error) and "try a smaller --learning-rate" in str(error)


def test_a_replay_ends_when_it_is_interrupted_or_takes_too_long(
    dataset, runtime, monkeypatch
):
    from gpuzoo.training import replay

    recipe = RECIPE.override(learning_rate=1e30, optimizer="sgd")
    _, found = diagnosed(recipe, dataset, runtime, stop=lambda: True)
    assert found["failed"] == "interrupted" and found["cause"] is None
    monkeypatch.setattr(replay, "SECONDS", 0.0)
    _, found = diagnosed(recipe, dataset, runtime)
    assert "took longer than 0 s" in found["text"]
    assert np.isfinite(found["seconds"])
