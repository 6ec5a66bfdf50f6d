"""Models that draw images, adversarial and by diffusion, and how that is measured."""

import dataclasses
import json

import keras
import numpy as np
import PIL.Image
import pytest
from small import RECIPE, same, train, unreadable

import gpuzoo
from gpuzoo.engine import checkpoint
from gpuzoo.tasks import frechet, scores
from gpuzoo.training.build import build_model

GAN = RECIPE.override(
    task="adversarial", model="gan", augment=(), epochs=4, beta_1=0.5,
    model_options=("filters=(4,8)", "latents=5"),
)  # fmt: skip
HELD = GAN.override(
    model="conditional_gan",
    model_options=("filters=(4,8)", "latents=5", "penalty=1"),
)
WASSERSTEIN = GAN.override(
    model="wgan_gp", model_options=GAN.model_options, batch_size=20
)
DIFFUSION = GAN.override(
    task="diffusion", model="diffusion", model_options=("filters=(8,)", "blocks=1")
)
RECIPES = [GAN, HELD, WASSERSTEIN, DIFFUSION]


@pytest.fixture(scope="module")
def digits():
    return gpuzoo.load_data("digits")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.model)
def test_a_run_learns_repeats_and_resumes(recipe, dataset, runtime, tmp_path):
    one, rows = train(recipe, dataset, runtime)
    other, _ = train(recipe, dataset, runtime)
    assert same(one, other) and one.metrics == other.metrics
    assert np.array_equal(one.outputs["samples"], other.outputs["samples"])
    assert not same(one, train(recipe.override(seed=1), dataset, runtime)[0])
    asked = iter([False, False, True])
    train(recipe, dataset, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    assert 0 < start.step < one.steps
    resumed, _ = train(recipe, dataset, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    tests = [row for event, row in rows if event == "test"]
    assert tests[0].keys() == {"epoch", "step", "loss"}  # 14x14: no other figure
    shown = [row for event, row in rows if event == "samples"]
    assert [row["epoch"] for row in shown] == [1, 2, 3, 4]
    assert shown[0]["images"].shape == (40, 14, 14, 1)
    if recipe is DIFFUSION:
        assert tests[-1]["loss"] < tests[0]["loss"]


# XLA compiles for many seconds: the two that differ most.
@pytest.mark.parametrize(
    "recipe", [WASSERSTEIN, DIFFUSION], ids=lambda recipe: recipe.model
)
def test_half_precision_under_xla(recipe, dataset, runtime):
    mixed = dataclasses.replace(runtime, xla=True, precision="mixed_float16")
    keras.config.set_dtype_policy(mixed.precision)
    try:
        half, _ = train(recipe, dataset, mixed)
    finally:
        keras.config.set_dtype_policy("float32")
    for values in (*half.weights.values(), *half.outputs.values()):
        assert np.isfinite(values).all()


def test_no_update_overtakes_a_result(dataset, runtime):
    """The gradient of Wasserstein's loss does not depend on the scores: their products
    with the last weights must be computed before these are updated all the same."""
    import tensorflow as tf

    from gpuzoo.engine import backends

    weight, backend = keras.Variable(np.ones((3, 1), "f4")), backends.get(runtime)

    def step():
        def loss():
            score = keras.ops.matmul(keras.ops.ones((2, 3)), weight)
            return keras.ops.mean(score), score

        (_, score), gradients = backend.value_and_grad(loss, [weight])
        weight.assign(weight - gradients[0])
        return score

    graph = tf.function(step).get_concrete_function().graph
    (product,) = [op for op in graph.get_operations() if op.type == "MatMul"
                  and "gradient_tape" not in op.name]  # fmt: skip
    (update,) = [op for op in graph.get_operations() if op.type == "AssignVariableOp"]
    before, seen = [update], set()
    while before:
        operation = before.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            before += [*operation.control_inputs, *(i.op for i in operation.inputs)]
    assert product.name in seen


@pytest.mark.parametrize("recipe", [GAN, WASSERSTEIN], ids=lambda r: r.model)
def test_each_side_moves_on_its_own_loss_alone(recipe, dataset, runtime):
    """With no rate for one optimizer only the other network moves; each as often as
    the task says, which its schedule goes by."""
    from gpuzoo.engine import backends
    from gpuzoo.tasks.adversarial import Task

    model = build_model(recipe, dataset)
    before = {w.path: w.numpy().copy() for w in model.trainable_weights}
    backend = backends.get(runtime)
    rates = (1e-3, 0.0)
    optimizers = [keras.optimizers.SGD(rate) for rate in rates]
    for optimizer, group in zip(optimizers, Task.groups(model), strict=True):
        optimizer.build(group)
    task = Task(model=model, recipe=recipe, dataset=dataset, runtime=runtime)
    task.begin(optimizers, dataset)
    shape = (recipe.batch_size, Task.count_draws(recipe, model))
    draws = np.random.default_rng(0).random(shape).astype("f4")
    images = dataset.train["image"][: recipe.batch_size]
    batch = {"image": keras.ops.convert_to_tensor(images)}
    told = task.step(batch, keras.ops.convert_to_tensor(draws), backend)
    moved = {w.path for w in model.trainable_weights
             if not np.array_equal(before[w.path], w.numpy())}  # fmt: skip
    assert moved == {w.path for w in model.discriminator.trainable_weights}
    assert set(told) == {metric.name for metric in task.step_metrics}
    assert [int(one.iterations) for one in optimizers] == Task.moves(model)


@pytest.mark.parametrize("shape", [(28, 28, 1), (13, 10, 3), (9, 9, 2)])
def test_a_convolution_over_blocks_is_the_plain_one(shape, runtime):
    """With the same numbers at the same places of its kernel."""
    from gpuzoo.models._blocks import halved

    inputs = keras.Input(shape)
    model = keras.Model(inputs, halved(inputs, 5, name="halved"))
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(4, 4, shape[2], 5)).astype("f4")
    kernel = plain.reshape(2, 2, 2, 2, shape[2], 5).transpose(0, 2, 1, 3, 4, 5)
    model.set_weights([kernel.reshape(2, 2, -1, 5), rng.normal(size=5)])
    images = rng.random((2, *shape)).astype("f4")
    edges = [(1, 2 * -(-side // 2) + 1 - side) for side in shape[:2]]
    padded = np.pad(images, [(0, 0), *edges, (0, 0)])
    wanted = keras.ops.conv(padded, plain, 2, "valid") + model.get_weights()[1]
    assert np.allclose(model(images), wanted, atol=1e-5)
    same = keras.ops.conv(images, plain, 2, "same") + model.get_weights()[1]
    if not any(side % 2 for side in shape[:2]):  # where the borders are filled alike
        assert np.allclose(model(images), same, atol=1e-5)


def test_the_losses_are_the_papers(dataset, runtime):
    """Against their formulas in numpy; the penalty against differences."""
    keras.utils.set_random_seed(0)  # the same weights in each run of the test
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 1)).astype("f4")
    small = {"input_shape": (14, 14, 1), "filters": (4, 8)}
    plain, held = (gpuzoo.build("gan", **small, penalty=p) for p in (0.0, 3.0))
    held.set_weights(plain.get_weights())
    taken = -np.log(1 / (1 + np.exp(-scores.astype(float)))).mean()
    assert np.allclose(plain.generator_loss(scores), taken, rtol=1e-5)
    critic = gpuzoo.build("wgan_gp", **small)
    assert np.allclose(critic.generator_loss(scores), -scores.mean(), rtol=1e-5)
    real, fake = rng.random((2, 3, 14, 14, 1)).astype("f4")
    between = rng.random((3, 1)).astype("f4")
    given = (*map(keras.ops.convert_to_tensor, (real, fake)), None, between)

    judged = [np.array(critic.judge(x)).mean() for x in (real, fake)]
    mixed = (fake + between[:, :, None, None] * (real - fake)).astype("f4")
    steep = np.sqrt(squared_slopes(critic, mixed))
    wanted = 10 * np.square(steep - 1).mean() - judged[0] + judged[1]
    assert np.isclose(float(critic.discriminator_loss(*given)), wanted, rtol=1e-2)

    told = [1 / (1 + np.exp(-np.array(plain.judge(x), float))) for x in (real, fake)]
    wanted = -np.log(told[0]).mean() - np.log(1 - told[1]).mean()
    assert np.isclose(float(plain.discriminator_loss(*given)), wanted, rtol=1e-5)
    wanted += 3 / 2 * squared_slopes(plain, real).mean()
    assert np.isclose(float(held.discriminator_loss(*given)), wanted, rtol=1e-2)


def squared_slopes(model, images) -> np.ndarray:
    """Of the score of each image by its pixels, by differences."""
    step = 5e-4
    bumps = step * np.eye(196, dtype="f4").reshape(196, 1, 14, 14, 1)
    up, down = (
        np.array(model.judge((images + side * bumps).reshape(-1, 14, 14, 1)))
        for side in (1, -1)
    )
    slopes = (up - down).reshape(196, len(images)) / (2 * step)
    return np.square(slopes).sum(axis=0)


def test_the_true_velocity_draws_the_image(runtime):
    """A model that knew the image would draw it from any noise, and lose nothing."""
    from gpuzoo.models.diffusion import Diffusion, _parts

    image = np.random.default_rng(0).random((1, 8, 8, 1)).astype("f4")
    clean = 2 * image - 1

    class Knows(keras.Model):
        def call(self, given, training=False):
            x, noise = _parts(given["time"])
            e = (given["image"] - x * clean) / keras.ops.maximum(noise, 1e-6)
            return x * e - noise * clean

    model = Diffusion(Knows(), name="knows")
    noise = np.random.default_rng(1).normal(size=(5, 8, 8, 1)).astype("f4")
    assert np.allclose(model.draw(noise), np.tile(image, (5, 1, 1, 1)), atol=1e-4)
    times = np.linspace(0.1, 1, 5, dtype="f4")[:, None]
    images = np.tile(image, (5, 1, 1, 1))
    assert np.max(model.losses_of(images, times, noise=noise)) < 1e-6


def test_frechet_is_the_distance_of_normal_distributions():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(20_000, 3))
    assert frechet.frechet(one, one) == pytest.approx(0, abs=1e-9)
    other = one * [1, 2, 3] + [0, 0, 5]
    # Along each axis (difference of means)^2 + (difference of deviations)^2.
    assert frechet.frechet(one, other) == pytest.approx(25 + 1 + 4, rel=0.02)
    turned = other @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    back = frechet.frechet(turned, turned @ np.linalg.qr(rng.normal(size=(3, 3)))[0])
    assert back > 0.1
    assert frechet.frechet(one, other) == pytest.approx(frechet.frechet(other, one))


def test_figures_of_the_matrix_library_are_rounded():
    """In another order of the features every digit that is kept is the same."""
    rng = np.random.default_rng(0)
    one = np.maximum(rng.normal(size=(500, 84)), 0) * (
        np.arange(84) % 3 > 0
    )  # dead ones
    other = np.maximum(one + rng.normal(size=one.shape), 0) * (np.arange(84) % 5 > 0)
    found = frechet.frechet(one, other)
    assert found == float(f"{found:.6g}") > 1
    for _ in range(5):
        order = rng.permutation(84)
        assert frechet.frechet(one[:, order], other[:, order]) == found
    assert [scores.rounded(x) for x in (1e-20, -1e-20, 12.3456789)] == [0, 0, 12.3457]
    assert repr(scores.rounded(-1e-20)) == "0.0"
    assert np.isnan(scores.rounded(float("nan")))


def test_the_fixed_classifier_reads_digits_and_is_pinned(digits, monkeypatch):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = frechet.load()
    finally:
        keras.config.set_dtype_policy("float32")
    seen, predicted = classifier(digits.test["image"] / np.float32(255))
    assert seen.shape[1] == 84 and seen.dtype == "float32"
    assert np.mean(np.array(predicted) == digits.test["label"]) > 0.8  # other scans
    monkeypatch.setattr(frechet, "SHA256", "0" * 64)
    with pytest.raises(gpuzoo.GpuzooError, match="digits.safetensors has the sha256"):
        frechet.load()


def test_what_the_classifier_cannot_read_has_no_distance(digits, runtime):
    assert frechet.reader_of(digits) is not None
    snow = unreadable()
    assert frechet.reader_of(snow) is None
    for recipe in (HELD.override(epochs=1), DIFFUSION.override(epochs=1)):
        result, _ = train(recipe, snow, runtime)
        assert result.metrics.keys() == {"test_loss"}
        assert "seen" not in result.outputs


def test_it_is_said_that_there_is_no_distance(npz, cli_here):
    done = cli_here("train", "mnist_gan", "--data", npz, "--batch-size", "32",
               "--model-options", "filters=(4,8)", "--fast-dev-run")  # fmt: skip
    assert done.returncode == 0
    assert "Note: no frechet. It is measured by a classifier" in done.stderr
    assert not any("frechet" in key for key in done.json)


def test_figures_and_pictures_of_a_run(cli_here, tmp_path):
    done = cli_here(
        "train", "mnist_gan", "--model", "conditional_gan", "--data", "digits",
        "--device", "cpu", "--epochs", "2", "--threads", "2", "--model-options",
        "filters=(8,16)", "--batch-size", "64", "--out", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["test_frechet"] > 1 and 0 <= done.json["test_accuracy"] <= 1
    assert "train discr." in done.stderr and "test frechet" in done.stderr
    assert "Note: no frechet" not in done.stderr
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    sheets = [f"samples/epoch-{number:03d}.png" for number in (1, 2)]
    assert {*sheets, "samples.png", "samples.gif", "curves.png"} <= run["files"].keys()
    with PIL.Image.open(tmp_path / "run" / "samples.gif") as gif:
        assert gif.n_frames == 2
    (tmp_path / "run" / sheets[0]).write_bytes(b"another")
    done = cli_here("verify", "run", "--quick")
    assert done.returncode == 1 and done.json["changed_files"] == [sheets[0]]


@pytest.mark.parametrize("name", ["gan", "conditional_gan", "wgan_gp"])
def test_what_is_drawn_comes_nearer_to_the_digits(name, digits, runtime):
    recipe = gpuzoo.load_recipe("mnist_gan").override(
        model=name,
        model_options=("filters=(8,16)",),
        epochs=4,
        batch_size=60,
        ema_decay=0.9,
    )
    _, rows = train(recipe, digits, runtime)
    told = [row["frechet"] for event, row in rows if event == "test"]
    assert told[-1] < 0.75 * told[0]


def test_what_does_not_fit_is_refused(dataset, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match="multiple of 5.*: 16"):
        train(WASSERSTEIN.override(batch_size=16), dataset, runtime)
    with pytest.raises(
        gpuzoo.GpuzooError, match="critic_steps of gan must be positive"
    ):
        train(GAN.override(model_options=("latents=0",)), dataset, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="'cnn' is for the task"):
        train(GAN.override(model="cnn", model_options=()), dataset, runtime)
    fault = gpuzoo.tasks.load("adversarial").check_model(
        gpuzoo.build("vae", input_shape=(14, 14, 1)), dataset
    )
    assert "has no generator" in fault


@pytest.mark.parametrize("recipe", ["mnist_gan", "mnist_diffusion"])
def test_trains_on_jax(recipe, cli_on):
    small = {"mnist_gan": ("filters=(4,8)",), "mnist_diffusion": ("filters=(8,)",)}
    words = ["train", recipe, "--data", "digits", "--device", "cpu", "--fast-dev-run",
             "--backend", "jax", "--level", "strict", "--model-options",
             *small[recipe], "--quiet"]  # fmt: skip
    done = cli_on("jax", level="strict")(*words)
    assert done.returncode == 0, done.stderr
    assert done.json["test_frechet"] > 1 and done.json["backend"] == "jax"
