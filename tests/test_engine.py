"""The parts of a run: addressed randomness, initial weights, schedules, the loop."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo import randomness
from gpuzoo.engine import (
    backends,
    checkpoint,
    evaluation,
    initializers,
    optim,
    plan,
)

# Numbers at three addresses, as they were when the streams were first defined.
RAW = [9929397452073648219, 15761814226355704753]
ORDER = [7, 4, 3, 6, 1, 5, 0, 2]
INTEGER = 1130345027


# --- randomness ---------------------------------------------------------------------


def test_an_address_always_gives_the_same_numbers():
    """Written down, so that a change of the streams is seen on the day it happens."""
    assert randomness.raw(2, 0, "order", 0).tolist() == RAW
    assert randomness.permutation(8, 1, "order", 2).tolist() == ORDER
    assert randomness.integer(3, "layer", "dropout") == INTEGER


def test_neighbouring_addresses_share_nothing():
    addresses = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a", 1, 1)]
    addresses += [(0, "a1", ""), (0, "a", "1 "), (11, "a", 1), (1, "a", 11)]
    firsts = {randomness.integer(*address) for address in addresses}
    assert len(firsts) == len(addresses)


def test_distributions_have_the_right_moments():
    u = randomness.uniform((200_000,), 0, "test")
    n = randomness.normal((200_001,), 0, "test")
    t = randomness.truncated_normal((200_000,), 0, "test")
    assert 0 <= u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
    assert n.shape == (200_001,) and abs(n.mean()) < 0.01 and abs(n.std() - 1) < 0.01
    assert np.abs(t).max() <= 2 and abs(t.std() - 0.8796) < 0.005
    order = randomness.permutation(1000, 0, "test")
    assert np.array_equal(np.sort(order), np.arange(1000))


def test_every_epoch_has_its_own_order():
    whole = plan.Plan(
        examples=64, batch=16, steps_per_epoch=4, epochs=2, seed=0, draws=0
    )
    first, second = whole.feed(0, 4)["indices"], whole.feed(4, 8)["indices"]
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(64))
    assert not np.array_equal(first, second)
    assert np.array_equal(whole.feed(6, 8)["indices"], second[2:])
    assert np.array_equal(whole.feed(2, 3)["draws"], whole.feed(0, 4)["draws"][2:3])


# --- initial weights, optimizers --------------------------------------


def test_initial_weights_depend_on_seed_and_name_only(runtime):
    first = gpuzoo.build("cnn")
    gpuzoo.build("mlp")  # moves Keras's own generators
    second = gpuzoo.build("cnn")
    for model in (first, second):
        initializers.initialise(model, 5)
    for one, other in zip(first.weights, second.weights, strict=True):
        assert np.array_equal(one.numpy(), other.numpy()), one.path
    initializers.initialise(second, 6)
    assert not np.array_equal(first.weights[0].numpy(), second.weights[0].numpy())


KINDS = [
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform",
    "lecun_normal", "random_normal", "random_uniform", "truncated_normal", "orthogonal",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_have_the_distribution_keras_would_draw(kind, runtime):
    def build():
        return keras.Sequential(
            [
                keras.Input((12, 12, 8)),
                keras.layers.Conv2D(64, 5, kernel_initializer=kind),
                keras.layers.Flatten(),
                keras.layers.Dense(40, kernel_initializer=kind),
            ]
        )

    keras.utils.set_random_seed(0)
    stock, ours = build(), build()
    initializers.initialise(ours, 0)
    for one, other in zip(stock.weights, ours.weights, strict=True):
        one, other = one.numpy(), other.numpy()
        if one.ndim == 1:
            assert np.array_equal(one, other)
            continue
        assert not np.array_equal(one, other)
        assert abs(other.mean()) < 0.05 * other.std()
        assert abs(one.std() / other.std() - 1) < 0.03
        assert abs(np.abs(one).max() / np.abs(other).max() - 1) < 0.35


def test_an_initializer_we_cannot_draw_is_refused(runtime):
    class Odd(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            return keras.random.normal(shape)

    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2, kernel_initializer=Odd())]
    )
    with pytest.raises(gpuzoo.GpuzooError, match="initializer Odd"):
        initializers.initialise(model, 0)


def test_recurrent_weights_are_drawn_too(runtime):
    models = []
    for _ in range(2):
        model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4)])
        initializers.initialise(model, 1)
        models.append({v.name: v.numpy() for v in model.weights})
    for name, value in models[0].items():
        assert np.array_equal(value, models[1][name]), name
    assert models[0]["bias"][4:8].tolist() == [1, 1, 1, 1]  # forget gates


def test_learning_rates():
    recipe = RECIPE.override(
        learning_rate=1.0, schedule="one_cycle", warmup_fraction=0.25
    )
    rates = optim.learning_rates(recipe, 400)
    assert rates.shape == (400,) and rates.dtype == np.float32
    assert rates[0] == np.float32(1 / 25) and rates.max() == rates[100] == 1
    assert (np.diff(rates[:101]) > 0).all() and (np.diff(rates[100:]) < 0).all()
    constant = optim.learning_rates(
        recipe.override(schedule="constant", warmup_fraction=0.0), 9
    )
    assert (constant == 1).all()
    linear = optim.learning_rates(
        recipe.override(schedule="linear", warmup_fraction=0.0), 4
    )
    assert linear.tolist() == [1, 0.75, 0.5, 0.25]
    moved_thrice = optim.Table(linear, moves=3)
    rates = [float(moved_thrice(step)) for step in range(13)]
    assert rates == [*np.repeat(linear, 3), 0.25]


def test_fused_adam_follows_keras_adam(runtime):
    backend = backends.get(runtime)
    recipe = RECIPE.override(schedule="cosine", weight_decay=0.01)
    fused = optim.build_optimizer(recipe, 20, backend)
    stock = keras.optimizers.Adam(
        optim.Table(optim.learning_rates(recipe, 20)), recipe.momentum, recipe.beta_2,
        epsilon=1e-8, weight_decay=0.01,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    start = rng.normal(size=(30, 7)).astype("float32")
    ours, theirs = keras.Variable(start), keras.Variable(start)
    fused.build([ours])
    stock.build([theirs])
    for _ in range(20):
        gradient = keras.ops.convert_to_tensor(
            rng.normal(size=(30, 7)).astype("float32")
        )
        fused.apply([gradient], [ours])
        stock.apply([gradient], [theirs])
    assert type(fused).update_step is not keras.optimizers.Adam.update_step
    assert np.allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)
    assert not np.allclose(ours.numpy(), start, atol=1e-2)


# --- the loop -----------------------------------------------------------------------


def test_a_run_learns_and_repeats(dataset, runtime):
    one, rows = train(RECIPE, dataset, runtime)
    other, _ = train(RECIPE, dataset, runtime)
    control, _ = train(RECIPE.override(seed=1), dataset, runtime)
    assert one.state == "finished" and one.steps == 15 and one.epochs == 3
    assert one.metrics["test_accuracy"] > 0.9
    assert same(one, other) and not same(one, control)
    assert [event for event, _ in rows].count("test") == 3
    digests = [row for event, row in rows if event == "digest"]
    assert [row["step"] for row in digests] == [4, 8, 12, 15]


@pytest.mark.parametrize(
    "changes",
    [{"log_every": 1}, {"log_every": 1000}, {"eval_every": 3}, {"digest_every": 1}],
    ids=str,
)
def test_watching_changes_no_bit(changes, dataset, runtime):
    plain, rows = train(RECIPE, dataset, runtime)
    watched, watched_rows = train(RECIPE.override(**changes), dataset, runtime)
    assert same(plain, watched)
    assert plain.metrics == watched.metrics

    def digests(rows):
        return {row["step"]: row["weights"] for event, row in rows if event == "digest"}

    first, second = digests(rows), digests(watched_rows)
    assert all(first[step] == second[step] for step in first.keys() & second.keys())


def test_warming_up_leaves_nothing(dataset, runtime, monkeypatch):
    """The same bits when the first step is compiled without being run beforehand."""
    plain, _ = train(RECIPE, dataset, runtime)
    kind = type(backends.get(runtime))
    compile_steps = kind.compile_steps

    def lazily(self, body, feed, variables):
        call, done = compile_steps(self, body, feed, variables), []

        def skip_first(feed):
            done.append(True)
            return {} if len(done) == 1 else call(feed)

        return skip_first

    monkeypatch.setattr(kind, "compile_steps", lazily)
    cold, _ = train(RECIPE, dataset, runtime)
    assert same(plain, cold)


def test_evaluation_covers_every_example_once(dataset, runtime, monkeypatch):
    whole, _ = train(RECIPE, dataset, runtime)
    assert whole.outputs["predicted"].shape == (40,)
    monkeypatch.setattr(evaluation, "_PIXELS", 14 * 14 * 7)  # 6 batches, the last 5
    parts, _ = train(RECIPE, dataset, runtime)
    assert parts.outputs["predicted"].shape == (40,)
    assert np.array_equal(whole.outputs["predicted"], parts.outputs["predicted"])
    assert np.isclose(whole.metrics["test_loss"], parts.metrics["test_loss"], rtol=1e-5)


def test_dropout_draws_anew_at_every_step_and_repeats(dataset, runtime):
    """With a learning rate of almost nothing only the draws move the loss."""
    recipe = RECIPE.override(
        augment=(), learning_rate=1e-12, batch_size=80, epochs=4, log_every=1,
        optimizer="sgd", model_options=("dropout=0.9",),
    )  # fmt: skip

    def losses(recipe):
        rows = train(recipe, dataset, runtime)[1]
        return [row["loss"] for event, row in rows if event == "train"]

    first = losses(recipe)
    assert len(set(first)) == 4
    assert losses(recipe) == first
    without = losses(recipe.override(model_options=("dropout=0.0",)))
    assert np.ptp(without) < 1e-6 < 1e-3 < np.ptp(first)  # the order of a sum, no more


def test_diverging_stops_and_keeps_the_last_good_weights(dataset, runtime):
    recipe = RECIPE.override(
        learning_rate=1e30, optimizer="sgd", epochs=6, digest_every=1, momentum=0.9
    )
    with pytest.raises(gpuzoo.Diverged, match=r"epoch \d+, step \d+ ") as caught:
        train(recipe, dataset, runtime)
    assert all(np.isfinite(w).all() for w in caught.value.weights.values())


def test_stopping_early_gives_a_whole_result(dataset, runtime):
    asked = iter([False, True])
    result, _ = train(RECIPE, dataset, runtime, stop=lambda: next(asked))
    assert result.state == "stopped" and result.steps == 4
    assert result.metrics and result.outputs["predicted"].shape == (40,)


def test_a_small_dataset_is_repeated(dataset, runtime):
    longer = plan.make_plan(dataclasses.replace(RECIPE, min_steps=23), 80, 0)
    assert (longer.steps_per_epoch, longer.epochs) == (5, 5)
    assert RECIPE.override(min_steps=23).override(epochs=2).min_steps == 0


def test_a_validation_split_makes_no_epoch_more():
    """A tenth of MNIST for validation leaves 210 steps of the 230 of mnist_fast."""
    recipe = gpuzoo.load_recipe("mnist_fast")
    assert plan.make_plan(recipe, 60_000, 0).epochs == 1
    assert plan.make_plan(recipe.override(validation=0.1), 54_000, 0).epochs == 1
    assert plan.make_plan(recipe, 54_000, 0).epochs == 2  # data of the user's, as small


def test_another_model_comes_as_it_is():
    """Options belong to the model that they were named for."""
    assert RECIPE.override(model="mlp").model_options == ()
    assert RECIPE.override(model="mlp", model_options=("units=4",)).model_options
    assert RECIPE.override(model="cnn", epochs=1).model_options == RECIPE.model_options


def test_batch_larger_than_the_data(dataset, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match="batch_size 81 is larger than the 80"):
        train(RECIPE.override(batch_size=81), dataset, runtime)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_averaged_weights_are_the_average(precision, dataset, runtime, tmp_path):
    """Of the weights after every step; the training itself does not see it."""
    recipe = RECIPE.override(epochs=1, log_every=1, digest_every=1, optimizer="sgd")
    averaged = recipe.override(ema_decay=0.7)
    runtime = dataclasses.replace(runtime, precision=precision)
    keras.config.set_dtype_policy(precision)
    try:
        found, rows = train(averaged, dataset, runtime)
        plain, plain_rows = train(recipe, dataset, runtime)
        after = []
        for steps in range(1, plain.steps):
            asked = iter([False] * (steps - 1) + [True])
            after.append(
                train(recipe, dataset, runtime, stop=functools.partial(next, asked))[0]
            )
        asked = iter([False, True])
        train(
            averaged,
            dataset,
            runtime,
            folder=tmp_path,
            stop=functools.partial(next, asked),
        )
        start, _ = checkpoint.load(tmp_path)
        resumed, _ = train(averaged, dataset, runtime, resume=start)
    finally:
        keras.config.set_dtype_policy("float32")
    after.append(plain)
    raw = [
        [r["weights"] for e, r in side if e == "digest"] for side in (rows, plain_rows)
    ]
    assert raw[0] == raw[1] and len(raw[0]) == plain.steps == len(after) == 5
    assert same(found, resumed) and not same(found, plain)
    if precision == "float32":  # loss scaling leaves the first steps out
        for name in plain.weights:
            average = after[0].weights[name]
            for one in after[1:]:
                average = 0.7 * average + 0.3 * one.weights[name]
            assert np.allclose(found.weights[name], average, atol=1e-6), name
    else:
        assert all(np.isfinite(value).all() for value in found.weights.values())


def test_a_step_is_traced_once(dataset, runtime, monkeypatch):
    """A variable that is made while TensorFlow traces would make it trace again."""
    from gpuzoo.engine.program import Program

    calls, real = [], Program.step

    def step(self, feed, backend=None):
        calls.append(feed)
        return real(self, feed, backend)

    monkeypatch.setattr(Program, "step", step)
    train(RECIPE.override(epochs=1), dataset, runtime)
    assert len(calls) == 1
