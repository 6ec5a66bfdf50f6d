"""Audits: segments of a run, trained again, have its bits; forged ones have not."""

import dataclasses
import json
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import ROOT, needs_tensorflow
from small import two_classes
from test_resume import start

import gpuzoo
from gpuzoo import GpuzooError, events
from gpuzoo.engine import checkpoint
from gpuzoo.files import Folder
from gpuzoo.repro.audit import draw, would_pass
from gpuzoo.runs import chain
from gpuzoo.runs.divergence import read_digests
from gpuzoo.runs.record import read_run
from gpuzoo.training.finish import remove_run

HOW = {
    "model": "mlp", "model_options": ("units=(16,)", "dropout=0.2"), "batch_size": 8,
    "epochs": 4, "augment": ("translate:1",), "log_every": 4, "digest_every": 7,
    "keep_checkpoints": 3, "quiet": True,
}  # fmt: skip
# What the state of a training can hold besides weights and an optimizer.
MORE = {
    "best": {"keep": "best", "validation": 0.2, "monitor": "accuracy"},
    "stopped early": {"early_stopping": 1, "min_delta": 9.0, "validation": 0.2,
                      "keep_checkpoints": 5},
    "plateau": {"schedule": "reduce_on_plateau", "plateau_patience": 1, "min_delta": 9.0,
                "validation": 0.2, "warmup_fraction": 0.0},
    "plateau, stopped early": {
        "schedule": "reduce_on_plateau", "plateau_patience": 1, "early_stopping": 2,
        "min_delta": 9.0, "validation": 0.2, "warmup_fraction": 0.0,
        "keep_checkpoints": 5, "digest_every": 1000,
    },
    "averages, in parts": {"ema_decay": 0.9, "accumulate": 2},
    "zeros": {"sparsity": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def forge():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks" / "repeatability")
        import forge

        yield forge


@pytest.fixture(scope="module")
def place(tmp_path_factory, runtime):
    """A folder with data, and an honest run of 40 steps, in segments of ten."""
    place = tmp_path_factory.mktemp("honest")
    np.savez(place / "tiny.npz", **two_classes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUZOO_CACHE", str(place / "cache"))
        gpuzoo.train("mnist", data=str(place / "tiny.npz"), out=place / "run", **HOW)
    return place


@pytest.fixture
def run(place, tmp_path, own_cache):
    """A copy of the run, to be spoiled."""
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def make(place, tmp_path, own_cache):
    def run(name, **how):
        how = {**HOW, "data": str(place / "tiny.npz"), **how}
        gpuzoo.train("mnist", out=tmp_path / name, **how)
        return tmp_path / name

    return run


def test_an_honest_run_passes(run, cli_here):
    done = cli_here("audit", run, "--segments", "9", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.json["verdict"] == "identical" and done.json["segments"] == 4
    drawn = [(one["first"], one["last"]) for one in done.json["drawn"]]
    assert drawn == [(1, 10), (11, 20), (21, 30), (31, 40)]
    assert done.json["steps"] == 40 and done.json["would_pass"]["1"] == 0
    assert "segments 1, 2, 3, 4 of 4, drawn with seed 1" in done.stderr
    assert gpuzoo.verify(run)["verdict"] == "identical"


def test_the_segments_follow_from_the_seed(run, cli_here):
    first = gpuzoo.audit(run, segments=2)
    again = cli_here("audit", run, "--segments", "2", "--seed", first["seed"])
    assert again.json["drawn"] == first["drawn"] and len(first["drawn"]) == 2
    assert again.json["would_pass"] == {"1": 0.5, "2": 1 / 6}
    words = "segments of which 1 is forged passes with probability 0.5 if 2 are drawn"
    assert words in again.stderr
    with pytest.raises(GpuzooError, match="segments must be 1 or more"):
        gpuzoo.audit(run, segments=0)


def test_the_probability_is_the_hypergeometric_one():
    assert would_pass(10, 3) == {"1": 0.7, "3": 35 / 120, "5": 10 / 120}
    assert would_pass(100, 5)["25"] == pytest.approx(0.2292, abs=1e-4)
    assert would_pass(1, 1) == {"1": 0.0}


def test_all_segments_are_drawn_alike():
    counts = np.zeros(11)
    for seed in range(5000):
        drawn = draw(10, 3, seed)
        assert len(set(drawn)) == 3
        counts[drawn] += 1
    assert counts[0] == 0 and np.allclose(counts[1:] / 5000, 0.3, atol=0.025)


def test_what_a_run_keeps(run):
    record = read_run(run)
    assert [one["step"] for one in record["checkpoints"]] == [10, 20, 30]
    names = [one["file"] for one in record["checkpoints"]]
    assert names[0] == "checkpoints/kept-000000010.safetensors"
    assert set(names) <= record["files"].keys()
    there = {f"checkpoints/{path.name}" for path in (run / "checkpoints").iterdir()}
    assert there == set(names)
    rows = read_digests(run)
    assert [row["step"] for row in rows] == [7, 10, 14, 20, 21, 28, 30, 35, 40]
    assert record["trail"] == chain.record(rows)


@pytest.mark.parametrize("more", MORE)
def test_whatever_the_state_holds(more, make):
    run = make("run", **MORE[more])
    record, found = read_run(run), gpuzoo.audit(run, segments=99)
    assert found["verdict"] == "identical", found
    assert len(found["drawn"]) == found["segments"] >= 2
    assert gpuzoo.verify(run)["verdict"] == "identical"
    if more.endswith("stopped early"):
        assert record["best"]["stopped_early"] and record["steps"] < 32


def test_adversarial_networks(tmp_path, runtime, own_cache):
    small = ("filters=(4,8)", "latents=8")
    how = {"batch_size": 256, "epochs": 2, "keep_checkpoints": 2, "quiet": True}
    gpuzoo.train("mnist_gan", data="digits", model_options=small, out=tmp_path / "run",
                 **how)  # fmt: skip
    found = gpuzoo.audit(tmp_path / "run")
    assert found["verdict"] == "identical" and len(found["drawn"]) == 3, found


def test_a_run_that_goes_on_with_another(run, tmp_path):
    gpuzoo.resume(run, epochs=3, out=tmp_path / "more", quiet=True)
    found = gpuzoo.audit(tmp_path / "more", segments=4)
    assert found["verdict"] == "identical", found
    assert [one["last"] for one in found["drawn"]] == [47, 55, 62, 70]


def test_a_stopped_run(make, tmp_path):
    def stop(event):
        if isinstance(event, events.Progress) and event.step >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("run", on_event=stop)
    found = gpuzoo.audit(tmp_path / "run", segments=9)
    assert found["verdict"] == "identical", found
    record = read_run(tmp_path / "run")
    assert [one["last"] for one in found["drawn"]] == [10, 20, record["steps"]]
    assert record["trail"]["rows"] == len(read_digests(tmp_path / "run"))
    gpuzoo.resume(tmp_path / "run", quiet=True)
    assert gpuzoo.audit(tmp_path / "run", segments=9)["verdict"] == "identical"


@pytest.mark.parametrize(
    ("backend", "precision"), [("tensorflow", "mixed_float16"), ("jax", "float32")]
)
def test_killed_and_resumed(backend, precision, place, tmp_path, cli_several):
    """On either backend, with a scaled loss too: the same trail and the same states."""
    words = [
        "train", "mnist", "--data", place / "tiny.npz", "--model", "mlp", "--backend",
        backend, "--precision", precision, "--batch-size", "8", "--epochs", "60",
        "--keep-checkpoints", "4", "--checkpoint-every", "17", "--model-options",
        "units=(16,)", "dropout=0.2", "--quiet", "--threads", "2",
    ]  # fmt: skip
    process, saved = start([*words, "--out", "run"], tmp_path), tmp_path / "run"
    deadline = time.monotonic() + 120
    while not list(saved.glob("checkpoints/kept-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole, resumed, done = cli_several(
        [*words, "--out", "whole"],
        ["resume", "run"],
        ["audit", "run", "--segments", "2"],
    )
    assert whole.returncode == resumed.returncode == 0, whole.stderr + resumed.stderr
    for name in ("digests.jsonl", "metrics.jsonl", "weights.safetensors"):
        one, other = (tmp_path / run / name for run in ("whole", "run"))
        assert one.read_bytes() == other.read_bytes(), name
    kept = [read_run(tmp_path / run) for run in ("whole", "run")]
    assert len(kept[0]["checkpoints"]) == 4 and kept[0]["trail"] == kept[1]["trail"]
    assert kept[0]["checkpoints"] == kept[1]["checkpoints"]
    assert done.returncode == 0, done.stderr
    assert done.json["verdict"] == "identical" and len(done.json["drawn"]) == 2


@needs_tensorflow
@pytest.mark.parametrize(
    ("kind", "segment"),
    [("other data order", 2), ("other seed", 4), ("fewer epochs", 2),
     ("swapped weights", 4), ("edited trail", 3)],
)  # fmt: skip
def test_a_forged_run_is_caught_if_the_segment_is_drawn(
    kind, segment, forge, run, place, tmp_path
):
    out, how = tmp_path / "forged", {k: v for k, v in HOW.items() if k != "quiet"}
    how |= {"recipe": "mnist", "data": str(place / "tiny.npz"), "seed": 5}
    forge.forged(kind, segment, run, out, **how)
    found = gpuzoo.audit(out, segments=4, seed=0)
    assert found["verdict"] == "differs" and found["exit_code"] == 1
    assert found["faults"] == found["changed_files"] == found["environment"] == []
    wrong = [one["segment"] for one in found["drawn"] if one["differences"]]
    assert wrong == [segment], found
    seed = next(seed for seed in range(99) if segment not in draw(4, 1, seed))
    assert gpuzoo.audit(out, segments=1, seed=seed)["verdict"] == "identical"


def test_forgeries_that_need_no_training(run, forge, tmp_path):
    """Whatever is drawn."""
    record = read_run(run)

    def found(**fields):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        forge.reseal(copy, **fields)
        told = gpuzoo.audit(copy, segments=1, seed=0)
        assert told["verdict"] == "differs" and not told["changed_files"], told
        return " ".join(told["faults"])

    better = {**record["metrics"], "test_accuracy": 0.999}
    assert "test_accuracy: 0.999 in the run, and the weights" in found(metrics=better)
    longer = {**record["recipe"], "epochs": 8}
    assert "40 steps are recorded, and the recipe has 80" in found(recipe=longer)
    other = {**record["trail"], "root": "0" * 64}
    assert "its root is not the one in run.json" in found(trail=other)
    assert "2 epochs are recorded, and 40 steps" in found(epochs=2)


def test_rows_after_the_last_step(run, forge):
    with open(run / "metrics.jsonl", "a") as file:
        row = {"split": "test", "epoch": 9, "step": 999, "loss": 0.0, "accuracy": 1.0}
        file.write(json.dumps(row) + "\n")
    forge.reseal(run)
    found = gpuzoo.audit(run, segments=9)
    assert found["verdict"] == "differs" and "after the last one" in found["faults"][0]


def test_a_trail_without_its_chain(run, forge):
    """The record has its root."""
    rows = [chain.without(row) for row in read_digests(run)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "digests.jsonl").write_text(text)
    forge.reseal(run)
    for verb in (gpuzoo.audit, gpuzoo.verify):
        assert verb(run)["verdict"] == "differs"


def test_weights_that_the_record_does_not_name(run, make, forge):
    """A training from a file, recorded as one that began with the seed's weights."""
    other = make("other", init=str(run))
    assert gpuzoo.audit(other, segments=9)["verdict"] == "identical"
    record = json.loads((other / "run.json").read_text())
    record.pop("init")
    record["weights"] = "drawn for the seed"
    (other / "run.json").write_text(json.dumps(record))
    forge.reseal(other)
    found = gpuzoo.audit(other, segments=9)
    assert found["verdict"] == "differs"
    assert any(
        "names neither a model object nor a run" in one for one in found["faults"]
    )
    assert gpuzoo.verify(other)["verdict"] == "differs"


def test_a_state_that_is_not_of_the_training(run, forge):
    """A kept checkpoint whose choice is incomplete, with every digest made anew."""
    path = run / "checkpoints" / "kept-000000010.safetensors"
    one = checkpoint.parse(path.read_bytes())
    arrays = {name: a for name, a in one.arrays.items() if "journal" not in name}
    made = dataclasses.replace(one, arrays=arrays, choice={"best": None})
    path.write_bytes(checkpoint.content_of(made))
    listed = read_run(run)["checkpoints"]
    listed[0]["state_sha256"] = checkpoint.state_sha256(made)
    forge.reseal(run, checkpoints=listed)
    found = gpuzoo.audit(run, segments=9)
    assert found["verdict"] == "differs"
    wrong = [one["segment"] for one in found["drawn"] if one["differences"]]
    assert wrong == [1, 2]


def test_a_checkpoint_that_was_lost_in_training(run, make, tmp_path, forge, capfd):
    """It is said at the end; verify works, an audit cannot."""

    def lose(event):
        if isinstance(event, events.Progress) and event.step >= 24:
            for path in (tmp_path / "lost" / "checkpoints").glob("kept-000000010*"):
                path.unlink()

    lost = make("lost", on_event=lose, quiet=False)
    assert "The checkpoint of step 10 that keep_checkpoints" in capfd.readouterr().err
    assert [one["step"] for one in read_run(lost)["checkpoints"]] == [20, 30]
    assert gpuzoo.verify(lost)["verdict"] == "identical"
    found = gpuzoo.audit(lost)
    assert found["exit_code"] == 2 and "step 10 was lost" in found["faults"][0]


def test_checkpoints_of_later_steps_are_not_listed(make, tmp_path):
    """Killed after some were written, resumed from before them, and stopped."""

    def stop(event):
        if isinstance(event, events.Progress) and event.step >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("run", on_event=stop)
    shutil.copytree(tmp_path / "run", tmp_path / "early")
    gpuzoo.resume(tmp_path / "run", quiet=True)
    shutil.copy(tmp_path / "run" / "checkpoints" / "kept-000000030.safetensors",
                tmp_path / "early" / "checkpoints")  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        gpuzoo.resume(tmp_path / "early", on_event=stop, quiet=True)
    assert read_run(tmp_path / "early")["steps"] < 30
    assert gpuzoo.verify(tmp_path / "early")["verdict"] == "identical"
    assert gpuzoo.audit(tmp_path / "early", segments=9)["verdict"] == "identical"


def test_a_changed_checkpoint_is_named(run):
    path = run / "checkpoints" / "kept-000000020.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    name = f"checkpoints/{path.name}"
    assert gpuzoo.verify(run)["changed_files"] == [name]
    found = gpuzoo.audit(run)
    assert found["verdict"] == "differs" and found["changed_files"] == [name]
    path.unlink()
    found = gpuzoo.audit(run)
    assert found["verdict"] == "cannot compare" and found["exit_code"] == 2


def test_a_chain_that_does_not_hold(run, forge, cli_here):
    rows = read_digests(run)
    rows[2]["optimizer"] = rows[3]["optimizer"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "digests.jsonl").write_text(text)
    forge.reseal(run)
    told = "digests.jsonl is damaged: line 3 (step 14): its chain does not follow"
    for verb, code in (("verify", 2), ("diff", 2), ("audit", 1)):
        done = cli_here(verb, run, *([run] if verb == "diff" else []))
        assert done.returncode == code and told in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_a_run_without_a_chain(run, forge):
    """Of an earlier version: verify goes on working, audit refuses."""
    rows = [chain.without(row) for row in read_digests(run)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "digests.jsonl").write_text(text)
    forge.reseal(run, trail=None)
    assert gpuzoo.verify(run)["verdict"] == "identical"
    with pytest.raises(GpuzooError, match="has no chain of digests"):
        gpuzoo.audit(run)


def test_what_cannot_be_audited_is_refused(make):
    run = make("none", keep_checkpoints=0)
    assert not (run / "checkpoints").exists()
    with pytest.raises(
        GpuzooError, match="without --keep-checkpoints 9; gpuzoo verify"
    ):
        gpuzoo.audit(run)
    with pytest.raises(GpuzooError, match="must be less than the 40 steps"):
        make("many", keep_checkpoints=40)


def test_a_run_at_level_fast_is_refused(run, forge):
    runtime = {**read_run(run)["runtime"], "deterministic": False}
    forge.reseal(run, runtime=runtime)
    with pytest.raises(GpuzooError, match="level fast, which is not deterministic"):
        gpuzoo.audit(run)


def test_whoever_has_the_data_can_audit(make, tmp_path, cli_here):
    """A run folder without its data: they are elsewhere, under another name."""
    arrays = two_classes()
    np.savez(tmp_path / "mine.npz", **arrays)
    run = make("run", data=str(tmp_path / "mine.npz"))
    (tmp_path / "mine.npz").rename(tmp_path / "yours.npz")
    assert cli_here("audit", run).returncode == 2
    for verb in ("audit", "verify"):
        done = cli_here(verb, run, "--data", "yours.npz")
        assert done.returncode == 0, done.stderr
    arrays["x_train"][5, 3, 3, 0] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    for verb in ("audit", "verify"):
        done = cli_here(verb, run, "--data", "other.npz")
        assert done.returncode == 2 and done.json["verdict"] == "cannot compare"
        fields = [line.partition(":")[0] for line in done.json["environment"]]
        assert fields == ["data.fingerprint"]


def test_a_run_is_removed_with_its_checkpoints(run, tmp_path):
    shutil.copytree(run, tmp_path / "spoiled")
    assert remove_run(run) == [] and not run.exists()
    mine = tmp_path / "spoiled" / "checkpoints" / "kept-000000020.safetensors"
    with open(mine, "ab") as file:
        file.write(b"mine")
    assert remove_run(tmp_path / "spoiled") == ["checkpoints", "run.json"]
    assert Folder(tmp_path / "spoiled" / "checkpoints").names() == [mine.name]


def test_the_root_is_that_of_rfc_6962():
    """The tree of Certificate Transparency, over the leaves of its reference tests."""
    leaves = [
        b"", b"\0", b"\x10", b"\x20\x21", b"\x30\x31", b"\x40\x41\x42\x43",
        bytes(range(0x50, 0x58)), bytes(range(0x60, 0x70)),
    ]  # fmt: skip
    roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    assert [chain.merkle_root(leaves[:count]) for count in range(9)] == roots
