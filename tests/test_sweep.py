"""Several trainings of one recipe, and the list of runs."""

import hashlib
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from small import two_classes
from test_resume import start

import gpuzoo
from gpuzoo.cli.many import parse_axis
from gpuzoo.report.compare import statistics
from gpuzoo.runs import listing
from gpuzoo.runs.record import read_run, seal
from gpuzoo.training.finish import remove_run
from gpuzoo.training.sweep import best_of, plan

MODEL = ["--model", "mlp", "--model-options", "units=(8,)"]
WORDS = [
    "mnist", "--data", "digits", *MODEL, "--device", "cpu", "--threads", "2",
    "--precision", "float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory, runtime):
    """A sweep of two settings and two seeds: its folder and its result."""
    top = tmp_path_factory.mktemp("swept")
    np.savez(top / "light.npz", **two_classes())
    found = gpuzoo.sweep(
        "mnist", {"learning_rate": [0.001, 0.02]}, seeds=2, out=str(top / "sweep"),
        quiet=True, data=str(top / "light.npz"), model="mlp", epochs=2, batch_size=20,
        model_options=("units=(8,)",), augment=(),
    )  # fmt: skip
    return top / "sweep", found


def test_every_combination_is_an_ordinary_run(swept, tmp_path):
    folder, found = swept
    rows = found["trials"]
    asked = [(row["settings"]["learning_rate"], row["seed"]) for row in rows]
    assert asked == [(0.001, 0), (0.001, 1), (0.02, 0), (0.02, 1)]
    assert found["state"] == "finished"
    for row in rows:
        record = read_run(folder / row["run"])
        assert record["recipe"]["learning_rate"] == row["settings"]["learning_rate"]
        assert record["recipe"]["seed"] == row["seed"]
        assert record["weights_sha256"] == row["weights_sha256"]
    assert len({row["weights_sha256"] for row in rows}) == 4
    recipe = {**record["recipe"], "learning_rate": 0.001, "seed": 1}
    recipe = gpuzoo.Recipe(**{k: v for k, v in recipe.items()})
    recipe = recipe.override(data=str(folder.parent / "light.npz"))
    alone = gpuzoo.train(recipe, out=str(tmp_path / "alone"), quiet=True)
    assert alone["weights_sha256"] == rows[1]["weights_sha256"]
    assert gpuzoo.verify(folder / rows[3]["run"])["verdict"] == "identical"


def test_statistics_are_those_of_the_textbook(swept):
    _, found = swept
    for group in found["groups"]:
        assert group["seeds"] == [0, 1]
        values = [
            row["metrics"]["test_loss"]
            for row in found["trials"]
            if row["settings"] == group["settings"]
        ]
        assert group["metrics"]["test_loss"]["mean"] == pytest.approx(np.mean(values))
    # t of four degrees of freedom: 2.776; sd of 1..5: sqrt(2.5)
    s = statistics([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (s["mean"], s["sd"]) == (3.0, pytest.approx(2.5**0.5))
    assert s["high"] - 3 == pytest.approx(2.7764 * (2.5 / 5) ** 0.5, rel=1e-4)
    assert 3 - s["low"] == pytest.approx(s["high"] - 3)
    assert statistics([2.0]) == {"mean": 2.0, "sd": None, "low": None, "high": None}


def test_only_validation_examples_choose(swept, tmp_path):
    _, found = swept
    assert found["best"] is None
    asked = {"data": str(swept[0].parent / "light.npz"), "model": "mlp", "epochs": 3,
             "batch_size": 20, "model_options": ("units=(8,)",), "augment": ()}  # fmt: skip
    found = gpuzoo.sweep(
        "mnist", {"learning_rate": [1e-9, 0.02]}, out=str(tmp_path / "s"), quiet=True,
        validation=0.25, **asked,
    )  # fmt: skip
    means = [g["metrics"]["val_accuracy"]["mean"] for g in found["groups"]]
    assert means[0] != means[1] and found["best"] == int(np.argmax(means))
    figures = [
        {"val_accuracy": {"mean": m}, "test_accuracy": {"mean": 1 - m}} for m in means
    ]
    recipe = gpuzoo.load_recipe("mnist")
    groups = [{"metrics": one, "seeds": [0]} for one in figures]
    assert best_of(recipe, groups, 1) == found["best"]
    losses = [
        {"metrics": {"val_loss": {"mean": m}}, "seeds": [0]} for m in (0.3, 0.1, 0.2)
    ]
    chosen = recipe.override(validation=0.1, keep="best", monitor="loss")
    assert best_of(chosen, losses, 1) == 1


def test_a_sweep_that_was_done_is_read_not_trained(swept):
    folder, found = swept
    recipe = read_run(folder / found["trials"][0]["run"])["recipe"]
    again = gpuzoo.Recipe(**recipe).override(
        data=str(folder.parent / "light.npz"), seed=0, learning_rate=0.01
    )
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(gpuzoo.GpuzooError, match="other settings"):
        gpuzoo.sweep(again, {"learning_rate": [0.001]}, out=str(folder), quiet=True)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_killed_sweep_goes_on_with_the_same_bits(tmp_path, cli_here):
    words = ["sweep", *WORDS, "--epochs", "60", "--grid", "batch_size=64,128",
             "--checkpoint-every", "20", "--quiet"]  # fmt: skip
    whole = cli_here(*words, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    process = start([*words, "--out", "cut"], tmp_path)
    second = tmp_path / "cut" / "002-batch_size=128-seed=0"
    while not list(second.glob("checkpoints/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    first = (tmp_path / "cut" / "001-batch_size=64-seed=0" / "run.json").read_bytes()
    assert read_run(second)["state"] == "running"
    again = cli_here(*words, "--out", "cut")
    assert again.returncode == 0, again.stderr
    assert (second.parent / "001-batch_size=64-seed=0/run.json").read_bytes() == first
    assert read_run(second)["resumed"]
    same = [[row["weights_sha256"] for row in d.json["trials"]] for d in (whole, again)]
    assert same[0] == same[1]


def test_ctrl_c_ends_the_sweep_and_not_only_one_training(tmp_path, cli):
    words = ["train", *WORDS, "--seeds", "3", "--epochs", "20000", "--out", "cut"]
    process = start(words, tmp_path)
    while not list(tmp_path.glob("cut/001*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert [p.name for p in (tmp_path / "cut").glob("00*")] == ["001-seed=0"]
    last = json.loads(stdout.splitlines()[-1])
    assert last["state"] == "stopped" and last["trials"][0]["state"] == "stopped"


def test_data_that_change_in_between_are_noticed(tmp_path, runtime):
    arrays = two_classes()
    asked = {"data": str(tmp_path / "d.npz"), "model": "mlp", "epochs": 1, "quiet": True,
             "batch_size": 20, "model_options": ("units=(8,)",), "augment": (),
             "out": str(tmp_path / "s")}  # fmt: skip
    np.savez(tmp_path / "d.npz", **arrays)
    found = gpuzoo.sweep("mnist", seeds=2, **asked)
    second = tmp_path / "s" / found["trials"][1]["run"]
    assert not remove_run(second)  # as if it had not been reached
    np.savez(tmp_path / "d.npz", **{**arrays, "y_train": 1 - arrays["y_train"]})
    with pytest.raises(gpuzoo.GpuzooError, match="different data, which changed"):
        gpuzoo.sweep("mnist", seeds=2, **asked)


def test_names_of_folders_do_not_name_the_home():
    recipe = gpuzoo.load_recipe("mnist")
    (one,) = plan(recipe, {"data": ["/home/somebody/secret/mine.npz"]}, 1)
    assert one.name == "001-data=mine.npz-seed=0"


def test_a_diverged_run_is_removed_with_its_weights(tmp_path, cli_here):
    words = ["train", *WORDS, "--optimizer", "sgd", "--learning-rate", "1e20"]
    assert cli_here(*words, "--out", "run").returncode == 1
    assert (tmp_path / "run" / "weights.safetensors").exists()
    assert not remove_run(tmp_path / "run") and not (tmp_path / "run").exists()


def test_one_training_that_fails_is_not_the_end(tmp_path, cli_here):
    words = ["sweep", *WORDS, "--epochs", "2", "--optimizer", "sgd", "--grid",
             "learning_rate=1e20,0.01", "--out", "some", "--quiet"]  # fmt: skip
    done = cli_here(*words)
    assert done.returncode == 1, done.stderr
    states = [row["state"] for row in done.json["trials"]]
    assert states == ["diverged", "finished"]
    assert (
        "not finite" in done.json["trials"][0]["error"]
        or "became" in (done.json["trials"][0]["error"])
    )
    assert [len(g["seeds"]) for g in done.json["groups"]] == [0, 1]
    again = cli_here(*words)  # neither is trained again
    assert (again.returncode, again.json["trials"]) == (1, done.json["trials"])
    done = cli_here("sweep", *WORDS, "--grid", "batch_size=100000", "--out", "none")
    assert done.returncode == 2 and "all trainings" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("grid", "seeds", "error"),
    [
        ({"learning_rates": [1.0]}, 1, "no 'learning_rates'; nearest: learning_rate"),
        ({"learning_rate": []}, 1, "at least one value"),
        ({"learning_rate": [1.0, 1.0]}, 1, "none twice"),
        ({"learning_rate": [1, 1.0]}, 1, "none twice"),
        ({"learning_rate": [-1.0]}, 1, "positive"),
        ({"epochs": ["two"]}, 1, "epochs"),
        ({"seed": [1, 2]}, 1, "seeds=N"),
        ({}, 0, "at least 1"),
        ({}, [3, 3], "none twice"),
        ({"epochs": range(1, 200), "batch_size": range(1, 200)}, 1, "at most 10,000"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_trained(grid, seeds, error):
    with pytest.raises(gpuzoo.GpuzooError, match=error):
        plan(gpuzoo.load_recipe("mnist"), grid, seeds)


def test_values_of_the_grid_have_the_types_of_the_fields():
    assert parse_axis("learning-rate=1e-3,0.1") == ("learning_rate", [1e-3, 0.1])
    assert parse_axis("model=cnn,mlp") == ("model", ["cnn", "mlp"])
    assert parse_axis("optimizer=adam,sgd") == ("optimizer", ["adam", "sgd"])
    assert parse_axis("augment=(),('flip',)") == ("augment", [(), ("flip",)])
    for text in ("epochs", "epochs=", "epochs=1,,2", "epochs=__import__('os')"):
        with pytest.raises(gpuzoo.GpuzooError, match="--grid"):
            parse_axis(text)


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(gpuzoo.GpuzooError, match="holds no sweep"):
        gpuzoo.sweep("mnist", out=str(tmp_path), data="digits")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_another_run_in_the_place_of_one(swept, tmp_path):
    folder, found = swept
    copy = tmp_path / "sweep"
    shutil.copytree(folder, copy)
    names = [row["run"] for row in found["trials"]]
    shutil.rmtree(copy / names[0])
    (copy / names[1]).rename(copy / names[0])
    record = json.loads((copy / listing.SWEEP).read_text())
    recipe = gpuzoo.Recipe(**record["recipe"])
    data = str(folder.parent / "light.npz")
    again = gpuzoo.sweep(
        recipe.override(data=data), {"learning_rate": [0.001, 0.02]}, seeds=2,
        out=str(copy), options=None, quiet=True,
    )  # fmt: skip
    first = again["trials"][0]
    assert first["state"] == "failed" and "another training" in first["error"]
    assert again["trials"][1]["weights_sha256"] == found["trials"][1]["weights_sha256"]


# --- the list of runs ---------------------------------------------------------------


def test_runs_are_found_filtered_and_sorted(swept):
    folder, found = swept
    rows, faults = listing.find(folder.parent)
    assert not faults and len(rows) == 4
    fast = listing.select(rows, ["learning_rate>=0.02", "state=finished", "seed!=0"])
    assert [row["run"] for row in fast] == [str(folder / found["trials"][3]["run"])]
    losses = [
        row["test_loss"] for row in listing.ordered(rows, "test-loss", descending=True)
    ]
    assert losses == sorted(r["metrics"]["test_loss"] for r in found["trials"])[::-1]
    assert listing.select(rows, ["model=mlp", "learning_rate<0.001"]) == []
    for wrong, text in (("test_los>1", "test_loss"), ("seed", "FIELD=VALUE"),
                        ("seed>x", "compares a number")):  # fmt: skip
        with pytest.raises(gpuzoo.GpuzooError, match=text):
            listing.select(rows, [wrong])


def test_the_list_of_the_command_line(swept, cli_here):
    folder, _ = swept
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text("{")
    done = cli_here(
        "runs", folder, "--where", "learning-rate=0.02", "--sort", "test_loss"
    )
    shutil.rmtree(folder / "damaged")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(done.json["runs"]) == 2 and len(lines) <= 2 + 2 + 2  # one for each run
    assert lines[-2].startswith("2 runs: recipe mnist, model mlp, data light, epochs 2")
    assert "damaged" in done.stderr and len(done.json["unreadable"]) == 1
    assert cli_here("runs", folder / "none").returncode == 2


def test_only_what_a_run_wrote_is_removed(swept, tmp_path, cli_here):
    folder, found = swept
    names = [row["run"] for row in found["trials"]]
    copy = tmp_path / "runs"
    shutil.copytree(folder, copy)
    (copy / names[0] / "notes.txt").write_text("mine")
    listed = json.loads((copy / names[0] / "run.json").read_text())
    # As if it had been there when the run ended: all files are listed then.
    mine = hashlib.sha256(b"mine").hexdigest()
    listed["files"]["notes.txt"] = mine
    listed["seal"] = seal(listed)
    (copy / names[0] / "run.json").write_text(json.dumps(listed))
    (copy / names[1] / "curves.png").write_bytes(b"drawn by me")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "epoch-001.png").write_text("mine")
    os.symlink(outside, copy / names[2] / "samples")
    os.symlink(folder / names[3], copy / "link")
    assert remove_run(copy / names[0]) == ["notes.txt"]
    # The record stays as long as one of the outputs does.
    assert sorted(remove_run(copy / names[1])) == ["curves.png", "run.json"]
    assert sorted(remove_run(copy / names[2])) == ["run.json", "samples"]
    assert (outside / "epoch-001.png").exists()
    signed = copy / names[3] / "run.json.sig"
    signed.write_bytes(bytes(64))
    whole = sorted(signed.parent.iterdir())
    done = cli_here(
        "runs", "runs", "--remove", "--yes", "--where", "learning_rate=0.02"
    )
    assert (
        done.returncode == 1
        and "is signed: to remove it, remove run.json.sig" in done.stderr
    )
    assert sorted(signed.parent.iterdir()) == whole
    signed.unlink()
    asks = cli_here("runs", "runs", "--remove", "--where", "learning_rate=0.02")
    assert asks.returncode == 2 and "--yes" in asks.stderr
    done = cli_here(
        "runs", "runs", "--remove", "--yes", "--where", "learning_rate=0.02"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.json["removed"]) == 1
    assert not (copy / names[3]).exists() or (folder / names[3]).exists()
    assert read_run(folder / names[3])["state"] == "finished"  # behind a link


def test_a_killed_run_can_be_removed_and_a_running_one_not(tmp_path, cli_here):
    words = ["train", *WORDS, "--epochs", "20000", "--checkpoint-every", "20"]
    process = start([*words, "--out", "runs/one"], tmp_path)
    run = tmp_path / "runs" / "one"
    while not list(run.glob("checkpoints/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    done = cli_here("runs", "--remove", "--yes")
    assert "locked by another process" in done.stderr and not done.json["removed"]
    assert done.returncode == 1 and done.json["runs"][0]["state"] == "running"
    process.kill()
    process.communicate()
    done = cli_here("runs", "--remove", "--yes", "--where", "state=killed")
    assert done.json["removed"] == ["runs/one"], done.stderr
    assert not run.exists()
