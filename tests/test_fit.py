"""An ordinary Keras `fit` made repeatable, and its trail."""

import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, environment, skip_without
from small import net

import gpuzoo
from gpuzoo.callbacks import Trail
from gpuzoo.repro.diff import diff
from gpuzoo.runs.divergence import read_digests
from gpuzoo.runs.fit import read_fit
from gpuzoo.runtime.environment import is_installed
from gpuzoo.runtime.keras_state import fresh_names

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
    assert "Not promised: the same bits on another processor" in first.stderr
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


def fitted(folder, runtime, *, epochs=1, every=2, seed=0, rate=0.01, **how):
    """A fit of a fresh model with a trail."""
    keras.utils.set_random_seed(seed)
    with fresh_names():
        model = net(units=2)
    model.compile(keras.optimizers.SGD(rate), keras.losses.MeanSquaredError(), **how)
    rng = np.random.default_rng(0)
    data = rng.random((32, 14, 14, 1), np.float32), rng.random((32, 2), np.float32)
    trail = Trail(folder, every, quiet=True)
    model.fit(*data, batch_size=8, epochs=epochs, shuffle=False, verbose=0,
              callbacks=[trail])  # fmt: skip
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
    assert [row["step"] for row in rows] == [0, 4]
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
        with pytest.raises(gpuzoo.GpuzooError, match="every must be a whole number"):
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
