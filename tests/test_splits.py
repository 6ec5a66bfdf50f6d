"""Validation data: where they come from, and what is chosen by them, and only by them."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import environment, needs_jax, needs_tensorflow
from small import RECIPE, program, same, splits, two_classes
from test_docs import python_blocks, run_python
from test_resume import assert_same, die_at, finish

import gpuzoo
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data.dataset import fingerprint
from gpuzoo.data.series import HORIZON, WINDOW, make_series
from gpuzoo.data.validate import make_dataset
from gpuzoo.data.validation import with_validation
from gpuzoo.engine import checkpoint, loop
from gpuzoo.engine.choice import Choice, monitor_of
from gpuzoo.engine.program import Program
from gpuzoo.errors import GpuzooError
from gpuzoo.runs.record import read_run
from gpuzoo.tasks.base import ACCURACY, LOSS


def numbered(labels, test=20):
    """Images that tell their place among the training examples."""
    count = len(labels)
    images = np.zeros((count, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    images[:, 3, 3, 0] = 200
    held = np.full((test, 4, 4, 1), 255, np.uint8)
    held[:, 0, 0, 0] = np.arange(test)
    train = {"image": images, "label": np.array(labels)}
    tests = {"image": held, "label": np.array(labels)[np.arange(test) % count]}
    return make_dataset("numbered", "made up", {"train": train, "test": tests})


def places(arrays) -> list[int]:
    first = arrays["image"][:, 0, :2, 0].astype(int)
    return (first[:, 0] * 256 + first[:, 1]).tolist()


# --- the splits ------------------------------------------------------------------------


def test_a_fraction_is_stratified_and_disjoint():
    """The first nine tenths are of one class, and it is not the seed alone that cuts."""
    labels = [0] * 900 + [1] * 60 + [2] * 40
    whole = numbered(labels)
    cut = with_validation(whole, 0.25, 3)
    train, val = places(cut.train), places(cut.splits["val"])
    assert sorted(train + val) == list(range(1000)) and not set(train) & set(val)
    assert train == sorted(train)  # examples that stay keep their order
    assert np.bincount(cut.splits["val"]["label"]).tolist() == [225, 15, 10]
    assert np.array(labels)[val].tolist() == cut.splits["val"]["label"].tolist()
    assert cut.test is whole.test and cut.fingerprint == whole.fingerprint
    assert cut.counts == {"train": 750, "val": 250, "test": 20}
    assert cut.as_record()["val_examples"] == 250
    other = with_validation(whole, 0.25, 4)
    assert set(places(other.splits["val"])) != set(val)


@pytest.mark.parametrize(
    ("labels", "fraction", "wanted"),
    [
        ([i // 2 for i in range(60)], 0.1, 6),  # of 30 classes, not one of each
        ([0] * 99 + [1], 0.5, 50),  # a lone example is for training
        ([i % 3 for i in range(100)], 0.99, 97),  # and one of every class
        ([i % 7 for i in range(100)], 0.33, 33),
    ],
)
def test_a_fraction_is_that_of_all_examples(labels, fraction, wanted):
    cut = with_validation(numbered(labels), fraction, 0)
    assert cut.count("val") == wanted
    assert set(cut.train["label"]) == set(labels)
    lacking = len(set(labels)) - len(set(cut.splits["val"]["label"]))
    found = [one for one in cut.findings if "too few examples for validation" in one]
    assert len(found) == (lacking > 0)


SCRIPT = """
import hashlib, gpuzoo
data = gpuzoo.load_data("digits", validation=0.1, seed=5)
print(data.counts, hashlib.sha256(data.splits["val"]["image"].tobytes()).hexdigest())
"""


def test_the_same_in_two_processes(tmp_path):
    found = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, check=True, text=True,
            capture_output=True, env={**environment(tmp_path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1 and "'val': 144" in found.pop()


def test_of_a_series_the_last_training_values():
    values = np.cumsum(np.random.default_rng(0).normal(size=2000)) + 50
    whole, border = make_series("walk", "made up", values), 1600
    cut = with_validation(whole, 0.25, 7)
    first = border - 400
    mean, deviation = values[:first].mean(), values[:first].std()
    assert np.allclose(cut.scale, (mean, deviation), rtol=1e-6)
    ends = {"train": (0, first), "val": (first, border), "test": (border, 2000)}
    for split, (begin, end) in ends.items():
        arrays = cut.splits[split]
        assert cut.count(split) == end - begin - WINDOW - HORIZON + 1
        raw = arrays["series"][:, :, 0] * deviation + mean
        assert np.allclose(raw[0], values[begin : begin + WINDOW], atol=1e-3)
        last = arrays["target"][-1] * deviation + mean
        assert np.allclose(last, values[end - HORIZON : end], atol=1e-3)
    with pytest.raises(
        GpuzooError, match="1536 for training and 64 for validation; at"
    ):
        with_validation(whole, 0.04, 7)


def npz_with(tmp_path, **more):
    arrays = two_classes()
    np.savez(tmp_path / "three.npz", **{**arrays, **more})
    return str(tmp_path / "three.npz")


def test_validation_arrays_of_a_file(tmp_path):
    arrays, notes = two_classes(), []
    image, label = arrays["x_test"][:10], arrays["y_test"][:10]
    plain = gpuzoo.load_data(npz_with(tmp_path), note=notes.append)
    path = npz_with(tmp_path, x_val=255 - image, y_val=label)
    data = gpuzoo.load_data(path, note=notes.append)
    assert data.counts == {"train": 80, "val": 10, "test": 40} and not notes
    assert np.array_equal(data.splits["val"]["image"], 255 - image)
    assert data.fingerprint == fingerprint(data.splits, data.classes)
    assert data.fingerprint != plain.fingerprint
    twice = gpuzoo.load_data(npz_with(tmp_path, x_val=image, y_val=label))
    assert "10 of 40 test images are also validation images" in twice.findings
    with pytest.raises(GpuzooError, match="validation part of their own, of 10 "):
        gpuzoo.load_data(path, validation=0.1)
    rest = {k: v for k, v in arrays.items() if "test" not in k}
    np.savez(tmp_path / "two.npz", x_valid=image, y_valid=label, **rest)
    data = gpuzoo.load_data(str(tmp_path / "two.npz"), note=notes.append)
    assert data.counts == {"train": 80, "test": 10}
    assert notes == ["data 'two.npz': no test arrays, so x_valid is used for testing"]


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("y_val", np.arange(10) % 2 + 1, "val labels: 2 is out of range"),
        ("x_val", np.zeros((10, 8, 8), np.uint8), r"val images are \(8, 8, 1\)"),
        ("x_val", np.full((10, 14, 14), np.nan), "val images: nan at index"),
        ("y_val", np.zeros(9, int), "10 val images but 9 val labels"),
    ],
)
def test_bad_validation_arrays_are_refused(name, value, fault, tmp_path):
    good = {"x_val": np.zeros((10, 14, 14), np.uint8), "y_val": np.arange(10) % 2}
    with pytest.raises(GpuzooError, match=fault):
        gpuzoo.load_data(npz_with(tmp_path, **{**good, name: value}))


def pets(folder, shades, channels=1):
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for shade in shades:
            shape = (8, 8, 3) if channels == 3 else (8, 8)
            pixels = np.full(shape, shade + 100 * label, np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name / f"{shade}.png")


def test_validation_folders(tmp_path):
    notes = []
    pets(tmp_path / "train", range(20, 40))
    pets(tmp_path / "Valid", range(40, 45), channels=3)
    data = gpuzoo.load_data(str(tmp_path), note=notes.append)
    assert data.counts == {"train": 40, "test": 10}
    assert "no test/, so Valid/ is used for testing" in notes[0]
    pets(tmp_path / "test", range(50, 57))
    data = gpuzoo.load_data(str(tmp_path), note=notes.clear)
    assert data.counts == {"train": 40, "val": 10, "test": 14} and len(notes) == 1
    assert {a["image"].shape[1:] for a in data.splits.values()} == {(8, 8, 3)}
    assert set(data.splits["val"]["image"][:5, 0, 0, 0]) == set(range(40, 45))
    (tmp_path / "Valid" / "cow").mkdir()
    with pytest.raises(
        GpuzooError, match="val has a class that is missing in train: c"
    ):
        gpuzoo.load_data(str(tmp_path))


# --- the choice ------------------------------------------------------------------------

KEEPS = RECIPE.override(
    keep="best", epochs=6, validation=0.3, digest_every=7, log_every=3, ema_decay=0.8,
    learning_rate=0.03, early_stopping=30, model="mlp", model_options=("dropout=0.3",),
)  # fmt: skip


def other_labels(data, split):
    """The same data with the other label for each example of a split."""
    part = data.splits[split]
    part = {**part, "label": 1 - part["label"]}
    return dataclasses.replace(data, splits={**data.splits, split: part})


@pytest.fixture(scope="module")
def programs(runtime):
    """One compiled program for each: the data, and those with other labels in a split."""
    data = make_dataset("tiny", "made up", splits(two_classes()))
    data = with_validation(data, 0.3, 0)
    made, begin = {}, {}

    def get(swapped="", **changes):
        """The program, at its initial weights, and with other settings of the loop."""
        if swapped not in made:
            wrong = other_labels(data, swapped) if swapped else data
            made[swapped] = one = program(KEEPS, wrong, runtime)
            begin[swapped] = one.state.read(one.state.all)
        one = made[swapped]
        one.state.write(begin[swapped])
        recipe = KEEPS.override(**changes)
        one.session = dataclasses.replace(one.session, recipe=recipe)
        one.plan = dataclasses.replace(one.plan, epochs=recipe.epochs)
        one.monitor = monitor_of(recipe, one.judges["val"].metrics)
        return one

    return get


def rows_of(made, resume=None, **options):
    rows = []
    result = loop.run(
        made, watch=lambda *row: rows.append(row), resume=resume, **options
    )
    return result, [row for row in rows if row[0] in ("train", "val", "test", "digest")]


def in_files(rows):
    """The rows as they lie in the two files of the trail."""
    return [
        [one for one in rows if (one[0] == "digest") == digests]
        for digests in (True, False)
    ]


def test_the_best_weights_are_those_of_the_best_evaluation(programs):
    """Those that a run has that is stopped there, and keeps its last."""
    kept, rows = rows_of(programs("val"))
    losses = [row["loss"] for event, row in rows if event == "val"]
    best = int(np.argmin(losses))
    assert len(losses) == 6 and best < 5
    assert kept.best == {
        "epoch": best + 1, "step": 3 * best + 3, "monitor": "val_loss",
        "value": losses[best], "kept": True, "stopped_early": False,
    }  # fmt: skip
    assert kept.metrics["val_loss"] == losses[best] and kept.steps == 18
    last = {"keep": "last", "early_stopping": 0}
    stopped, told = rows_of(programs("val", **last), until=kept.best["step"])
    assert same(kept, stopped) and kept.metrics == stopped.metrics
    assert told[-1][1]["loss"] == rows[-1][1]["loss"]  # of the test examples
    end, told = rows_of(programs("val", **last))
    assert told[:-1] == rows[:-1] and end.best is None and not same(end, kept)
    assert told[-1][0] == rows[-1][0] == "test" and told[-1] != rows[-1]


def test_the_test_never_influences_the_choice(programs, monkeypatch):
    """With other labels of the test examples the choice stays; with other labels of the
    validation examples it is another."""
    calls, real = [], Program.evaluate

    def evaluate(self, split="test", weights=None):
        calls.append(split)
        return real(self, split, weights)

    monkeypatch.setattr(Program, "evaluate", evaluate)
    changes = {"early_stopping": 4, "monitor": "loss"}
    one, rows = rows_of(programs(**changes))
    assert calls == ["val"] * (len(calls) - 1) + ["test"]
    other, told = rows_of(programs("test", **changes))
    assert same(one, other) and one.best == other.best and rows[:-1] == told[:-1]
    assert other.metrics["test_loss"] > 2 * one.metrics["test_loss"]
    swapped, _ = rows_of(programs("val", **changes))
    assert swapped.best["epoch"] < one.best["epoch"] and not same(one, swapped)


def test_patience_is_counted(programs):
    """The more is learned the worse it gets."""
    changes = {"early_stopping": 2, "epochs": 50}
    result, rows = rows_of(programs("val", **changes))
    evaluations = [row for event, row in rows if event == "val"]
    best = result.best["epoch"]
    assert result.state == "finished" and result.best["stopped_early"]
    assert result.epochs == len(evaluations) == best + 2 < 10
    assert result.steps == 3 * result.epochs
    digests = [row for event, row in rows if event == "digest"]
    assert digests[-1]["step"] == result.steps
    # The re-run of `gpuzoo verify` is told to stop where the run has ended.
    again, told = rows_of(programs("val", **changes), until=result.steps)
    assert again.state == "finished" and same(again, result)
    assert in_files(told) == in_files(rows) and again.best == result.best
    result, rows = rows_of(programs("val", **changes, eval_every=2))
    assert result.epochs == result.best["epoch"] + 4
    assert [row["epoch"] for event, row in rows if event == "val"][:2] == [2, 4]


@pytest.mark.parametrize(
    ("metric", "delta", "values", "best", "ends"),
    [
        (LOSS, 0.0, [3, 2, 2.5, 1, 1, 1, 0], 4, 6),  # equal ones are no improvement
        (LOSS, 0.3, [3, 2.8, 2.6, 2.4, 2.2, 2.0], 6, 6),  # small steps add up
        (LOSS, 0.5, [3, 2.6, 2.55, 2.4, 2.3], 3, 3),
        (ACCURACY, 0.0, [0.2, 0.4, 0.3, 0.4, 0.9], 2, 4),
        (LOSS, 0.0, [np.nan, 5, np.inf, 6, 4], 2, 4),
        (LOSS, 0.0, [np.nan, np.nan, 1], None, 2),
    ],
)
def test_patience_and_direction(metric, delta, values, best, ends):
    """Continued from a checkpoint after every evaluation."""
    recipe = Recipe(
        name="any", early_stopping=2, min_delta=delta, keep="best", monitor=metric.name
    )
    choice, seen = Choice(recipe, metric), 0
    for epoch, value in enumerate(values, start=1):
        facts, arrays = json.loads(json.dumps(choice.facts())), choice.arrays()
        choice = Choice(recipe, metric)
        choice.restore(facts, arrays)
        now = {"w": np.array([epoch])}
        choice.see(epoch, epoch, {metric.name: value}, lambda now=now: now)
        seen = epoch
        if choice.over:
            break
    assert (choice.best and choice.best["epoch"], seen) == (best, ends)
    assert best is None or choice.weights["w"] == [best]


def test_killed_after_any_step(programs, tmp_path):
    """Before the best evaluation, at it, after it, while patience is counted, and after
    the evaluation that ends the run."""
    changes = {"early_stopping": 3, "epochs": 30, "checkpoint_every": 1}
    whole, rows = rows_of(programs("val", **changes))
    assert whole.best["stopped_early"] and whole.best["step"] < whole.steps - 6
    for at in range(1, whole.steps + 1):
        folder = tmp_path / str(at)
        folder.mkdir()

        def die(event, row, at=at):
            if event == "test" or (event == "progress" and row["step"] > at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop.run(
                programs("val", **changes), watch=die, folder=folder / "checkpoints",
                run_id="x",
            )  # fmt: skip
        start, _ = checkpoint.load(folder / "checkpoints", "x")
        there = any(name.startswith("best/") for name in start.arrays)
        assert start.step == at and there == (at > 3) == bool(start.choice["best"])
        resumed, told = rows_of(programs("val", **changes), start)
        assert same(whole, resumed) and resumed.best == whole.best
        assert resumed.metrics == whole.metrics and resumed.steps == whole.steps
        before = [tuple(row) for row in start.history]
        assert in_files(before + told) == in_files(rows)


def test_stopped_between_two_evaluations(programs, tmp_path):
    """The evaluation that a stop adds does not count, even if it would be the best one,
    or the last of the patience; until there is another, the last weights are kept."""
    changes = {"early_stopping": 2, "epochs": 30}
    whole, rows = rows_of(programs("val", **changes))
    for at in (1, 2, 4, whole.best["step"] + 1, whole.steps - 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        options = {"until": at, "folder": folder / "checkpoints", "run_id": "x"}
        made = programs("val", **changes)
        stopped, _ = rows_of(made, **options)
        assert stopped.state == "stopped" and stopped.steps == at
        assert (stopped.best is None) == (at < 3)
        if at < 3:
            last = made.weights()
            assert all(np.array_equal(last[k], a) for k, a in stopped.weights.items())
        start, _ = checkpoint.load(folder / "checkpoints", "x")
        resumed, told = rows_of(programs("val", **changes), start)
        assert same(whole, resumed) and resumed.best == whole.best
        before = [tuple(row) for row in start.history]
        assert in_files(before + told) == in_files(rows)


def test_a_program_that_chooses_needs_validation_data(dataset, runtime):
    """Or it would choose by the test examples."""
    with pytest.raises(
        GpuzooError, match="keep=best and early_stopping=30 needs a val"
    ):
        program(KEEPS, dataset, runtime)


WORDS = ["train", "mnist", "--data", "digits", "--model", "mlp", "--device", "cpu",
         "--threads", "2", "--validation", "0.15", "--keep", "best", "--monitor",
         "val_accuracy", "--early-stopping", "4", "--epochs", "40", "--schedule",
         "constant", "--learning-rate", "0.02", "--checkpoint-every", "4", "--quiet"]  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        pytest.param("tensorflow", "mixed_bfloat16", marks=needs_tensorflow),
        pytest.param("jax", "float32", marks=needs_jax),
    ],
)
def test_killed_resumed_verified_and_loaded(backend, precision, tmp_path, cli_on):
    cli = cli_on(backend, precision)
    words = [*WORDS, "--backend", backend, "--precision", precision]
    whole = cli(*words, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    best = whole.json["best"]
    assert best["stopped_early"] and best["kept"] and best["monitor"] == "val_accuracy"
    assert best["value"] == pytest.approx(whole.json["val_accuracy"], abs=1e-6)
    # Killed while the row of an evaluation in the middle is written.
    die_at("write", 20, "half", [*words, "--out", "run"], tmp_path)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    finish("run", tmp_path)
    assert_same(tmp_path / "run", tmp_path / "whole")
    ends = [read_run(tmp_path / name) for name in ("run", "whole")]
    assert ends[0]["best"] == ends[1]["best"] == best
    assert ends[0]["metrics"] == ends[1]["metrics"]
    done = cli("verify", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    done = cli("evaluate", "run", "--quiet")
    assert done.json["identical"] and done.json["examples"] == 359, done.stderr


# --- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"keep": "best"}, "keep=best needs a validation split, and data digits have"),
        ({"early_stopping": 3}, r"early_stopping=3 needs a .*; add --validation 0\.1"),
        ({"validation": 0.1, "monitor": "loss"}, "monitor=loss is for keep=best and"),
        ({"validation": 0.1, "min_delta": 0.1}, "min_delta=0.1 is for early_stopping"),
        ({"validation": 1.0}, "validation of recipe 'mnist' must be a fraction in"),
        ({"validation": 10}, "validation of recipe 'mnist' must be a fraction in"),
        ({"early_stopping": -1}, "must be 0 or more evaluations: -1"),
        ({"keep": "first"}, "keep of recipe 'mnist': "),
        ({"validation": 0.0001}, "validation=0.0001 of 1438 training examples are 0"),
        ({"validation": 0.9}, "batch_size 256 is larger than the 144 training"),
        (
            {"validation": 0.1, "keep": "best", "monitor": "test_accuracy"},
            "monitor=test_accuracy: no validation metric .*; use one of loss, accuracy",
        ),
    ],
)
def test_refusals(settings, fault, tmp_path, runtime):
    out = tmp_path / "run"
    with pytest.raises(GpuzooError, match=fault):
        gpuzoo.train(
            "mnist", data="digits", model="mlp", out=str(out), quiet=True, **settings
        )
    assert not out.exists()


def test_names_of_other_libraries():
    for theirs, ours in {
        "patience": "early_stopping", "restore_best_weights": "keep",
        "validation_split": "validation", "metric_for_best_model": "monitor",
    }.items():  # fmt: skip
        with pytest.raises(GpuzooError, match=f"nearest: {ours}"):
            gpuzoo.train("mnist", **{theirs: 1})


def test_the_page(tmp_path):
    blocks = python_blocks("howto/validation.md")
    assert all(len(block.splitlines()) <= 10 for block in blocks)
    run_python(["\n".join(blocks)], tmp_path)
    (first, second) = sorted((tmp_path / "runs").iterdir())
    assert re.match(r"mnist-digits|mnist-001", first.name), first
    assert read_run(second)["best"]["kept"] and read_run(first)["best"]["kept"]
