"""The task of autoencoding: its figures, its noise, its pictures."""

import dataclasses

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.engine import backends, evaluation
from gpuzoo.report import plots
from gpuzoo.tasks import load
from gpuzoo.tasks.autoencode import Task, cross_entropy

SMALL = ("filters=(4,8)", "dense=16", "latents=3")
VAE = RECIPE.override(
    task="autoencode",
    model="vae",
    augment=("translate:1",),
    model_options=SMALL,
    epochs=8,
)
PLAIN = VAE.override(model="autoencoder", model_options=SMALL)


@pytest.fixture(scope="module")
def runs():
    """Results of whole runs, by recipe: each is trained once for all tests."""
    return {}


def trained(runs, recipe, dataset, runtime):
    if recipe not in runs:
        runs[recipe] = train(recipe, dataset, runtime)
    return runs[recipe]


@pytest.mark.parametrize("recipe", [VAE, PLAIN], ids=lambda recipe: recipe.model)
def test_a_run_learns_and_repeats(recipe, runs, dataset, runtime):
    one, rows = trained(runs, recipe, dataset, runtime)
    other, _ = train(recipe, dataset, runtime)
    assert same(one, other) and one.metrics == other.metrics
    for name in one.outputs:
        assert np.array_equal(one.outputs[name], other.outputs[name]), name
    if recipe is VAE:
        control, _ = train(recipe.override(seed=1), dataset, runtime)
        assert not same(one, control)
    figures = {"loss", "error"} | ({"kl"} if recipe.model == "vae" else set())
    assert one.metrics.keys() == {f"test_{name}" for name in figures}
    tests = [row for event, row in rows if event == "test"]
    assert tests[0].keys() - {"epoch", "step"} == figures
    assert tests[-1]["loss"] < tests[0]["loss"]


def test_figures_are_what_they_are_called(runs, dataset, runtime):
    result, _ = trained(runs, VAE, dataset, runtime)
    outputs = result.outputs
    assert outputs["loss"].shape == outputs["kl"].shape == (40,)
    assert outputs["reconstruction"].dtype == outputs["samples"].dtype == np.uint8
    assert outputs["reconstruction"].shape == (40, 14, 14, 1)
    shown = outputs["reconstruction"] / 255 - dataset.test["image"] / 255
    error = np.mean(np.square(shown), axis=(1, 2, 3))
    assert np.allclose(outputs["error"], error, atol=1e-3)
    assert (outputs["kl"] >= 0).all()
    assert result.metrics["test_error"] == outputs["error"].mean(dtype=float)


def test_loss_is_the_cross_entropy_and_the_divergence(runtime):
    """Against the formulas, in float64, with logits that would overflow."""
    rng = np.random.default_rng(0)
    pixels = rng.random((5, 4, 3, 2)).astype("float32")
    logits = rng.normal(0, 5, pixels.shape).astype("float32")
    logits[0, 0, 0] = 200, -200
    mean, spread = rng.normal(size=(2, 5, 7)).astype("float32")
    outputs = {"reconstruction": logits, "mean": mean, "log_variance": spread}
    task = object.__new__(Task)
    task.variational = True
    found = task._figures(pixels, outputs, logits)
    found = {name: np.array(tensor) for name, tensor in found.items()}
    x, logit = pixels.astype("float64"), logits.astype("float64")
    entropy = x * np.logaddexp(0, -logit) + (1 - x) * np.logaddexp(0, logit)
    # Of two normal distributions, the second with mean 0 and variance 1.
    variance = np.exp(spread.astype("float64"))
    kl = -np.log(np.sqrt(variance)) + (variance + np.square(mean)) / 2 - 1 / 2
    assert np.allclose(found["kl"], kl.sum(axis=1), rtol=1e-5)
    bound = entropy.sum(axis=(1, 2, 3)) + kl.sum(axis=1)
    assert np.allclose(found["loss"], bound, rtol=1e-5)
    error = np.square(1 / (1 + np.exp(-logit)) - x).mean(axis=(1, 2, 3))
    assert np.allclose(found["error"], error, rtol=1e-5)


def test_keras_fit_takes_the_same_loss(dataset, runtime, tmp_path):
    """The divergence is in the model: also in one that was saved."""
    model = gpuzoo.build(
        "vae", input_shape=(14, 14, 1), filters=(4, 8), dense=16, latents=3
    )
    images = (dataset.train["image"] / 255).astype("f4")
    goal, loss = {"reconstruction": images}, {"reconstruction": cross_entropy}
    task = object.__new__(Task)
    task.variational = True

    def figures() -> dict:
        outputs = model(images)
        found = task._figures(images, outputs, outputs["reconstruction"])
        return {name: np.mean(each) for name, each in found.items()}

    before = figures()
    model.save(tmp_path / "vae.keras")
    for one in (keras.saving.load_model(tmp_path / "vae.keras"), model):
        one.compile("adam", loss, run_eagerly=True)
        told = one.evaluate(images, goal, 16, verbose=0, return_dict=True)["loss"]
        assert told == pytest.approx(before["loss"], rel=1e-5)
    # By the divergence alone the code becomes the standard normal one.
    model.compile(
        keras.optimizers.Adam(0.01), loss, loss_weights={"reconstruction": 0.0}
    )
    model.fit(images, goal, batch_size=16, epochs=20, verbose=0)
    assert figures()["kl"] < 0.1 * before["kl"]


def test_codes_are_drawn_anew_at_every_step(dataset, runtime):
    """With a learning rate of almost nothing only the draws move the loss."""
    recipe = VAE.override(
        augment=(), learning_rate=1e-12, batch_size=80, epochs=4, log_every=1,
        optimizer="sgd",
    )  # fmt: skip
    _, rows = train(recipe, dataset, runtime)
    losses = [row["loss"] for event, row in rows if event == "train"]
    assert len(losses) == len(set(losses)) == 4 and np.ptp(losses) > 1e-3
    tests = [row["loss"] for event, row in rows if event == "test"]
    assert len(tests) == 4 and np.ptp(tests) < 1e-6  # the same codes every time


def test_evaluation_does_not_depend_on_its_batches(runs, dataset, runtime, monkeypatch):
    whole, _ = trained(runs, VAE, dataset, runtime)
    monkeypatch.setattr(evaluation, "_PIXELS", 14 * 14 * 7)  # 6 batches, the last 5
    parts, _ = train(VAE, dataset, runtime)
    for name in ("error", "kl"):
        assert np.allclose(whole.outputs[name], parts.outputs[name], rtol=1e-4)
    assert same(whole, parts)


def test_pictures(runs, dataset, runtime, tmp_path):
    for recipe, more in ((VAE, {"samples.png"}), (PLAIN, set())):
        result, rows = trained(runs, recipe, dataset, runtime)
        lines = [{"split": e, **row} for e, row in rows if e in ("train", "test")]
        contents = []
        for attempt in ("a", "b"):
            folder = tmp_path / recipe.model / attempt
            folder.mkdir(parents=True)
            plots.draw_all(
                folder, load("autoencode").pictures, "T", lines, dataset, result.outputs
            )
            contents.append({p.name: p.read_bytes() for p in folder.iterdir()})
        assert contents[0] == contents[1]
        assert contents[0].keys() == {"curves.png", "reconstructions.png", *more}


def _vae(names=("reconstruction", "mean", "log_variance"), latents=3, decoder=True):
    image, code = keras.Input((14, 14, 1)), keras.Input((3,))
    x = keras.layers.Flatten()(image)
    pixels = keras.layers.Reshape((14, 14, 1))(keras.layers.Dense(196)(code))
    decode = keras.Model(code, pixels, name="decoder" if decoder else "other")
    mean = keras.layers.Dense(3)(x)
    outputs = (decode(mean), mean, keras.layers.Dense(latents)(x))
    return keras.Model(image, dict(zip(names, outputs, strict=True)))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"names": ("image", "mean", "log_variance")}, "puts out image, log_variance"),
        ({"latents": 4}, r"a log_variance of \(None, 4\)"),
        ({"decoder": False}, "no layer 'decoder'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(options, fault, dataset, runtime):
    assert Task.check_model(_vae(), dataset) is None
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(Task.check_model(_vae(**options), dataset))


def test_label_smoothing_and_models_of_other_tasks_are_refused(dataset, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match="label_smoothing"):
        train(VAE.override(label_smoothing=0.1), dataset, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="'cnn' is for the task 'classify'"):
        train(VAE.override(model="cnn", model_options=()), dataset, runtime)


def test_no_sum_has_an_order_that_timing_decides(runtime):
    """AddN of three or more is not repeatable: neither the tape nor the optimizer of
    the graph may make one."""
    import tensorflow as tf

    variable = keras.Variable(np.ones(3, "float32"))

    def squares():
        ways = [keras.ops.sum(variable * i + variable**i) for i in range(4)]
        return sum(ways), None

    backend = backends.get(runtime)
    traced = tf.function(lambda: backend.value_and_grad(squares, [variable])[1])
    graph = traced.get_concrete_function().graph
    sums = [op for op in graph.get_operations() if op.type == "AddN"]
    assert sums and all(len(op.inputs) == 2 for op in sums)
    chosen = tf.config.optimizer.get_experimental_options()
    assert chosen["arithmetic_optimization"] is False


def test_half_precision_under_xla_stays_close(runs, dataset, runtime):
    plain, _ = trained(runs, VAE, dataset, runtime)
    mixed = dataclasses.replace(runtime, xla=True, precision="mixed_float16")
    keras.config.set_dtype_policy(mixed.precision)
    try:
        half, _ = train(VAE, dataset, mixed)
    finally:
        keras.config.set_dtype_policy("float32")
    assert not same(plain, half)
    # Loss scaling begins by leaving steps out, so the two are not at the same point.
    assert abs(half.metrics["test_loss"] / plain.metrics["test_loss"] - 1) < 0.05
    assert all(np.isfinite(array).all() for array in half.outputs.values())


def test_trains_on_jax(cli_on):
    done = cli_on("jax", level="strict")(
        "train", "mnist_vae", "--data", "digits", "--device", "cpu", "--fast-dev-run",
        "--backend", "jax", "--level", "strict", "--model-options", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["test_loss"] < 700 and done.json["test_kl"] >= 0


@pytest.mark.parametrize("name", gpuzoo.list_models(task="autoencode"))
def test_autoencoders_say_which_sizes_do(name, runtime):
    with pytest.raises(ValueError, match=r"at least 8 pixels.*\(28, 7, 1\)"):
        gpuzoo.build(name, input_shape=(28, 7, 1))
    with pytest.raises(ValueError, match="latents and filters"):
        gpuzoo.build(name, latents=0)


def test_a_code_is_drawn_in_training_only(runtime):
    model = gpuzoo.build("vae")
    images = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    calm = [model(images, training=False)["reconstruction"] for _ in range(2)]
    drawn = [model(images, training=True)["reconstruction"] for _ in range(2)]
    assert np.array_equal(*calm) and not np.array_equal(*drawn)
    decoded = model.get_layer("decoder")(model(images)["mean"])
    assert np.array_equal(calm[0], decoded)
