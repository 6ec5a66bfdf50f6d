"""An ordinary Keras `fit` made repeatable, and its trail."""

import dataclasses
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, environment, skip_without
from small import net

import gpuzoo
from gpuzoo.callbacks import Trail
from gpuzoo.repro.diff import diff
from gpuzoo.runs.divergence import read_digests, read_metrics
from gpuzoo.runs.fit import read_fit
from gpuzoo.runtime.environment import hash_order_is_fixed, is_installed
from gpuzoo.runtime.keras_state import fresh_names
from gpuzoo.weights import digest_all

SCRIPT = ROOT / "tests" / "fit_twice.py"


def ran(tmp_path, *words, code=None, **env):
    script = [SCRIPT] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *map(str, script), *words], capture_output=True, text=True,
        cwd=tmp_path, env={**environment(tmp_path), **env}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_fit_repeats_in_another_process_and_in_the_same(backend, tmp_path):
    skip_without(backend)
    first = ran(tmp_path, backend, "auto", "one", "again", "other")
    assert "Not guaranteed: the same bits on another processor" in first.stderr
    assert "PYTHONHASHSEED=0 python" in first.stderr
    # A row for each epoch, below a head.
    assert re.search(r"epoch +step +accuracy +loss +val_accuracy", first.stderr)
    second = ran(tmp_path, backend, "auto", "fresh", PYTHONHASHSEED="7")
    assert "PYTHONHASHSEED" not in second.stderr
    one, again, fresh, other = (
        tmp_path / name for name in ("one", "again", "fresh", "other")
    )
    for twin in (again, fresh):
        found = diff(one, twin)
        assert (found["verdict"], found["compared"]) == ("identical", 8)
        assert found["changed_files"] == [[], []]
    found = diff(one, other)
    assert found["first_difference"]["step"] == 1 and found["exit_code"] == 1
    record = read_fit(one)
    assert record["state"] == "finished" and list(record["code"]) == ["__main__"]
    assert record["runtime"]["backend"] == backend


def test_xla_and_repeatable_operations_in_a_fit(tmp_path):
    """Keras alone turns one of the two off; and XLA has no gradient of max-pooling."""
    skip_without("tensorflow")
    done = ran(tmp_path, "tensorflow", "on", "one", "again")
    assert done.stdout.split() == ["True"] and "XLA on" in done.stderr
    assert diff(tmp_path / "one", tmp_path / "again")["verdict"] == "identical"


def test_too_late_is_said(tmp_path):
    code = """
import keras, gpuzoo
def refused():
    try:
        gpuzoo.repeatable()
    except gpuzoo.GpuzooError as error:
        print(error)
layer = keras.layers.Dense(3)  # no tensor yet, and its seed is drawn
refused()
keras.utils.clear_session()
policy = keras.config.set_dtype_policy("mixed_bfloat16")
made = gpuzoo.repeatable(seed=4, threads=1)
print(made.runtime.precision, made.runtime.threads, made.runtime.seed, flush=True)
"""
    done = ran(tmp_path, code=code)
    late, kept = done.stdout.splitlines()
    assert "too late: dense exist" in late and "before the first layer" in late
    assert kept == "mixed_bfloat16 1 4"
    if is_installed("tensorflow"):
        assert "TensorFlow was imported before" in done.stderr


# --- the trail, in this process --------------------------------------------------------


def fitted(
    folder, runtime, *, epochs=1, every=2, seed=0, rate=0.01, kind=keras.Model,
    optimizer=None, examples=32, unknown=False, after=(), **how,
):  # fmt: skip
    """A fit of a fresh model with a trail, and callbacks after it."""
    keras.utils.set_random_seed(seed)
    with fresh_names():
        plain = net(units=2)
        model = plain if kind is keras.Model else kind(plain.inputs, plain.outputs)
    optimizer = optimizer or keras.optimizers.SGD(rate)
    model.compile(optimizer, keras.losses.MeanSquaredError(), **how)
    rng = np.random.default_rng(0)
    data = rng.random((examples, 14, 14, 1), np.float32), rng.random((examples, 2))
    trail, named = Trail(folder, every, quiet=True), {"batch_size": 8}
    if unknown:  # how many batches there are
        import tensorflow as tf

        batches = tf.data.Dataset.from_tensor_slices(data).batch(8)
        data, named = (batches.filter(lambda x, y: True),), {}
    model.fit(*data, epochs=epochs, shuffle=False, verbose=0,
              callbacks=[trail, *after], **named)  # fmt: skip
    return model, trail


def test_the_trail_of_a_fit(tmp_path, runtime):
    model, _ = fitted(tmp_path / "one", runtime, epochs=2, every=3)
    rows = read_digests(tmp_path / "one")
    assert [row["step"] for row in rows] == [0, 3, 6, 8]
    assert [len(row["losses"]) // 8 for row in rows] == [0, 3, 3, 2]
    twin = net(units=2)
    gpuzoo.load_weights(twin, tmp_path / "one")
    for mine, its in zip(twin.weights, model.weights, strict=True):
        assert np.array_equal(mine, its)
    record = read_fit(tmp_path / "one")
    assert record["settings"]["loss"] == "MeanSquaredError"
    assert any("repeatable() was not called" in one for one in record["not_promised"])
    # Other initial weights are seen before the first step.
    fitted(tmp_path / "seed", runtime, epochs=2, every=3, seed=1)
    found = diff(tmp_path / "one", tmp_path / "seed")["first_difference"]
    assert (found["step"], found["what"]) == (0, "weights")


def test_steps_at_a_time_are_counted_and_said(tmp_path, runtime):
    fitted(tmp_path / "one", runtime)
    fitted(tmp_path / "four", runtime, steps_per_execution=4)
    rows = read_digests(tmp_path / "four")
    assert [(row["step"], row.get("end")) for row in rows] == [
        (0, None), (4, None), (4, True),
    ]  # fmt: skip
    limits = read_fit(tmp_path / "four")["not_promised"]
    assert any("less than 4 (steps_per_execution)" in one for one in limits)
    found = diff(tmp_path / "one", tmp_path / "four")
    assert found["settings"] == [["steps_per_execution", 1, 4]]
    # An optimizer that differs in a number is named, and its first step.
    fitted(tmp_path / "rate", runtime, rate=0.02)
    found = diff(tmp_path / "one", tmp_path / "rate")
    ((name, *rates),) = found["settings"]
    assert name == "optimizer.learning_rate" and rates == pytest.approx([0.01, 0.02])
    first = found["first_difference"]
    assert (first["step"], first["what"]) == (0, "optimizer")


def shown(folder):
    """The rows and the record of a trail, and whether its last digest is of its file."""
    rows, record = read_digests(folder), read_fit(folder)
    weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    return rows, record, digest_all(weights) == rows[-1]["weights"]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("unknown", [False, True])
def test_a_shorter_last_call_is_counted_as_what_it_is(unknown, tmp_path, runtime):
    if unknown:
        pytest.importorskip("tensorflow")
    fitted(tmp_path / "one", runtime, examples=80, epochs=2, every=4, unknown=unknown,
           steps_per_execution=4)  # fmt: skip
    rows, record, same = shown(tmp_path / "one")
    assert [row["step"] for row in rows] == [0, 4, 8, 14, 18, 20, 20][: len(rows)]
    assert record["steps"] == 20 == sum(len(row["losses"]) // 8 for row in rows)
    assert same and rows[-1]["end"]


def test_metrics_and_losses_of_any_form(tmp_path, runtime):
    class Two(keras.Model):
        def train_step(self, *args):
            logs = super().train_step(*args)
            if keras.config.backend() == "jax":
                return {"d_loss": logs[0]["loss"], "g_loss": 0.0}, logs[1]
            return {"d_loss": logs["loss"], "g_loss": logs["loss"]}

    metric = [keras.metrics.F1Score(), "mse"]
    fitted(tmp_path / "list", runtime, metrics=metric)
    row = read_metrics(tmp_path / "list")[0]
    assert len(row["f1_score"]) == 2 and isinstance(row["loss"], float)
    assert read_fit(tmp_path / "list")["metrics"]["f1_score"] == row["f1_score"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fitted(tmp_path / name, runtime, kind=Two, seed=seed)
    rows, record, _ = shown(tmp_path / "a")
    assert not any(row["losses"] for row in rows) and rows[-1]["step"] == 4
    assert any(
        "loss of each step: fit reports none" in x for x in record["not_promised"]
    )
    found = diff(tmp_path / "a", tmp_path / "b")
    assert (found["verdict"], found["compared"]) == ("identical", 4)
    assert diff(tmp_path / "a", tmp_path / "c")["first_difference"]["what"] == "weights"


def test_the_weights_at_the_end_are_those_that_callbacks_leave(tmp_path, runtime):
    best = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=9, restore_best_weights=True
    )
    model, _ = fitted(tmp_path / "best", runtime, epochs=2, after=[best])
    average = keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.5)
    mean, _ = fitted(tmp_path / "mean", runtime, optimizer=average)
    for name, trained in (("best", model), ("mean", mean)):
        rows, _, same = shown(tmp_path / name)
        assert same and rows[-1]["weights"] != rows[-2]["weights"]
        assert rows[-1]["step"] == rows[-2]["step"]
        twin = net(units=2)
        gpuzoo.load_weights(twin, tmp_path / name)
        for mine, its in zip(twin.weights, trained.weights, strict=True):
            assert np.array_equal(mine, its)
    fitted(tmp_path / "plain", runtime, epochs=2)
    found = diff(tmp_path / "plain", tmp_path / "best")["first_difference"]
    assert (found["step"], found["what"]) == (8, "weights")  # and none before


def test_files_of_other_callbacks_are_set_aside(tmp_path, runtime):
    folder = tmp_path / "one"

    def put(*_):
        (folder / "weights.safetensors").write_text("mine")
        (folder / "fit.json").write_text("mine, too")

    others = [keras.callbacks.CSVLogger(folder / "metrics.jsonl"),
              keras.callbacks.LambdaCallback(on_epoch_end=put)]  # fmt: skip
    # The logger's file is there before the first row of the trail is.
    fitted(folder, runtime, after=others)
    assert shown(folder)[2] and len(read_metrics(folder)) == 1
    kept = {path.name: path.read_text() for path in folder.glob("*.kept-1.*")}
    assert kept.pop("metrics.kept-1.jsonl").startswith("epoch,")
    assert kept == {
        "weights.kept-1.safetensors": "mine",
        "fit.kept-1.json": "mine, too",
    }


def test_bias_gradients_are_kept_apart_in_a_fit_without_xla(runtime):
    """Though repeatable() has turned XLA on: a model may be compiled without."""
    if runtime.backend != "tensorflow" or runtime.device != "cpu":
        pytest.skip("of TensorFlow on a CPU")
    import tensorflow as tf

    from gpuzoo.engine.backends import bias_gradients, tensorflow

    def step(x, kernel, bias):
        with tf.GradientTape() as tape:
            tape.watch([kernel, bias])
            both = [tf.nn.bias_add(tf.nn.conv2d(x, one, 1, "SAME"), bias)
                    for one in (kernel, 2 * kernel)]  # fmt: skip
            loss = tf.reduce_sum(tf.stack(both) ** 2)
        return tape.gradient(loss, [kernel, bias])

    def ambiguous():
        forms = [tf.TensorSpec(s) for s in ((1, 4, 4, 1), (3, 3, 1, 2), (2,))]
        traced = tf.function(step).get_concrete_function(*forms)
        return bias_gradients.ambiguous(traced.graph.get_operations())

    assert ambiguous()
    with tensorflow.in_fit(dataclasses.replace(runtime, xla=True)):
        assert not ambiguous()


def test_a_hash_seed_set_in_the_script_has_no_effect(monkeypatch):
    for seed in ("0", "1"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert hash_order_is_fixed() == (not sys.flags.hash_randomization)


def test_what_cannot_be_done_with_a_trail_is_one_line(tmp_path, runtime, cli_here):
    model, trail = fitted(tmp_path / "one", runtime)
    for words in (("verify", "one"), ("resume", "one"), ("evaluate", "one")):
        done = cli_here(*words)
        assert done.returncode == 2, words
        assert "ordinary Keras fit" in done.stderr and "cannot be re-run" in done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(gpuzoo.GpuzooError, match="make a new one for each"):
        model.fit(np.zeros((8, 14, 14, 1)), np.zeros((8, 2)), callbacks=[trail])
    for every in (0, 2.5, True):
        with pytest.raises(gpuzoo.GpuzooError, match="every must be an integer"):
            Trail(tmp_path / "two", every)
    before = (tmp_path / "one/fit.json").read_bytes()
    with pytest.raises(gpuzoo.GpuzooError, match="is not empty"):
        fitted(tmp_path / "one", runtime)
    assert (tmp_path / "one/fit.json").read_bytes() == before
    done = cli_here("diff", "one", "one", "--replay")
    assert done.returncode == 2 and "leave it out" in done.stderr
    text = before.decode().replace('"MeanSquaredError"', '"Huber"')
    (tmp_path / "one/fit.json").write_text(text)
    assert cli_here("diff", "one", "one").json["changed_files"][0] == ["fit.json"]
    (tmp_path / "one/fit.json").write_text(text[:-40])
    done = cli_here("diff", "one", "one")
    assert done.returncode == 2 and "fit.json is damaged" in done.stderr


def test_a_run_and_a_trail_are_not_compared(tmp_path, runtime, train):
    fitted(tmp_path / "one", runtime)
    run = train(net(units=2))["run_dir"]
    with pytest.raises(gpuzoo.GpuzooError, match="compare two of a kind"):
        diff(run, tmp_path / "one")
