"""Killed at any instant, a run ends with the bits of the one that was never killed."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, environment

from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.files import Folder
from gpuzoo.runs.folder import RunFolder
from gpuzoo.runs.record import read_run
from gpuzoo.training.interrupts import Interrupts

WORDS = [
    "train", "mnist", "--data", "digits", "--device", "cpu",
    "--threads", "2", "--augment", "translate:1", "--checkpoint-every", "20", "--quiet",
    "--model-options", "dropout=0.3",
]  # fmt: skip
# float16 is emulated on most CPUs: a small network.
SMALL = ["filters=(2,4)", "kernel_sizes=(3,3)", "dense=16"]
HALF = ".gpuzoo-tmp-0123456789abcdef"  # what a killed process was writing
SAME = ("weights.safetensors", "metrics.jsonl", "digests.jsonl")


def start(words, tmp_path, env=None):
    return subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", *map(str, words)], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**environment(tmp_path), **(env or {})},
    )  # fmt: skip


def finish(run, tmp_path) -> dict:
    process = start(["resume", run, "--quiet"], tmp_path)
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1])


def assert_same(run, whole):
    for name in SAME:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_run(run)["state"] == "finished"
    assert not (run / "checkpoints").exists()
    assert not list(run.rglob("*.kept-*"))


@pytest.fixture(scope="module")
def whole(request, tmp_path_factory):
    """The run that is never killed, in one precision."""
    folder = tmp_path_factory.mktemp("whole")
    precision, epochs = request.param
    size = [] if precision == "float32" else SMALL
    words = [*WORDS, *size, "--precision", precision, "--epochs", epochs]
    process = start([*words, "--out", "run"], folder)
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    return folder / "run", words, json.loads(stdout.splitlines()[-1])


in_both = pytest.mark.parametrize(
    "whole", [("float32", "30"), ("mixed_float16", "20")], indirect=True
)
# What the file system and the signals do is the same in both.
in_one = pytest.mark.parametrize("whole", [("float32", "30")], indirect=True)


@in_both
def test_killed_at_random_instants(whole, tmp_path):
    """Three kills of one run: one early, two somewhere in the training."""
    unbroken, words, summary = whole
    run, kills = tmp_path / "run", 0
    chance = random.Random(summary["precision"])
    process = start([*words, "--out", run], tmp_path)
    for _ in range(3):
        deadline = time.monotonic() + 300
        while not run.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.2, summary["wall_seconds"] * 0.8))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        process = start(["resume", run, "--quiet"], tmp_path)
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    assert kills >= 1
    assert (
        json.loads(stdout.splitlines()[-1])["weights_sha256"]
        == summary["weights_sha256"]
    )
    assert_same(run, unbroken)


def die_at(call, number, moment, words, tmp_path):
    """A process that dies at the n-th call that changes a file, see the script."""
    script = ROOT / "benchmarks" / "repeatability" / "die_at.py"
    process = subprocess.run(
        [sys.executable, script, ".", call, str(number), moment, *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment(tmp_path),
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr


@in_one
@pytest.mark.parametrize(
    ("call", "number", "moment"),
    [
        ("replace", 4, "before"),
        ("write", 12, "half"),
        ("unlink", 2, "after"),
        ("fsync", 9, "before"),
    ],
)
def test_killed_inside_a_save(call, number, moment, whole, tmp_path):
    unbroken, words, summary = whole
    die_at(call, number, moment, [*words, "--out", "run"], tmp_path)
    assert finish("run", tmp_path)["weights_sha256"] == summary["weights_sha256"]
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.parametrize("empty_folder", [False, True])
def test_killed_at_its_birth_and_at_its_end(empty_folder, tmp_path):
    """What is left of a run that was not born yet does not stand in the way of the
    next one, and a run that only had to tidy up is not trained again."""
    run = tmp_path / "run"
    words = [*WORDS, "--epochs", "2", "--checkpoint-every", "3", "--out", "run"]
    if empty_folder:
        run.mkdir()
    die_at("replace", 1, "before", words, tmp_path)
    assert not (run / "run.json").exists()
    die_at("unlink", 2 + empty_folder, "after", words, tmp_path)
    assert (run / "checkpoints").exists()
    assert finish("run", tmp_path)["state"] == "finished"
    assert "resumed" not in read_run(run) and not (run / "checkpoints").exists()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


NETWORK = """
import keras, gpuzoo

def layers():
    return [
        keras.layers.Rescaling(1 / 255, name="scale"), keras.layers.Flatten(name="flat"),
        keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(10, name="out"),
    ]

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    image = x = keras.Input(input_shape)
    for layer in layers():
        x = layer(x)
    return keras.Model(image, x)
"""
TRAINED = """
import os, signal, sys
import gpuzoo
import gpuzoo.training.train as trained

how, moment, out = sys.argv[1:]
real = trained.open_session

def dies(*words, **named):
    if moment == "end":
        real(*words, **named)
    os.kill(os.getpid(), signal.SIGKILL)

if moment != "never":
    trained.open_session = dies
gpuzoo.configure(device="cpu", threads=2, precision="float32", seed=3)
model = "mlp"
if how == "file":
    model = "network.py:net"
else:
    import keras, network
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((28, 28, 1)), *network.layers()])
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.5), run_eagerly=True,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
named = {"recipe": model} if how in ("given", "fresh") else {
    "recipe": "mnist", "model": model
}
gpuzoo.train(
    **named, data="digits", epochs=2, seed=3, digest_every=5, log_every=3, out=out,
    fresh=how == "fresh", quiet=True,
)
"""


@pytest.mark.parametrize(
    ("how", "moment"),
    [("file", "begin"), ("given", "end"), ("fresh", "begin")],
)
def test_killed_while_it_was_set_up(how, moment, tmp_path):
    """Its record names neither data, runtime nor code: it begins at step 0, and ends
    with the record, too, of a run that was never killed."""
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "trained.py").write_text(TRAINED)

    def python(*words):
        return subprocess.run(
            [sys.executable, "trained.py", how, *words], cwd=tmp_path, check=False,
            capture_output=True, text=True, timeout=300,
            env={**environment(tmp_path), "PYTHONHASHSEED": "0"},
        )  # fmt: skip

    unbroken = python("never", "whole")
    assert unbroken.returncode == 0, unbroken.stderr
    assert python(moment, "run").returncode == -signal.SIGKILL
    before = read_run(tmp_path / "run")
    assert before["code"] is before["runtime"] is before["data"] is None
    finish("run", tmp_path)
    assert_same(tmp_path / "run", tmp_path / "whole")
    ends = [read_run(tmp_path / name) for name in ("run", "whole")]
    assert ends[0].pop("resumed")[0]["step"] == 0
    for record in ends:  # all but what is another in two unbroken runs, too
        for name in ("id", "seal", "started", "finished", "seconds", "command"):
            record.pop(name)
        for name in ("peak_memory_bytes", "peak_device_bytes"):
            record.pop(name)
    assert ends[0] == ends[1]
    if how != "catalogue":
        assert any("scaled twice" in told for told in ends[0]["findings"])


@in_one
def test_stopped_and_resumed(whole, tmp_path):
    """Ctrl-C between two log lines leaves no trace in the resumed run."""
    unbroken, words, summary = whole
    run = tmp_path / "run"
    process = start([*words, "--out", run], tmp_path)
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=900)
    assert process.returncode == 130, stderr
    assert read_run(run)["state"] == "stopped"
    assert finish(run, tmp_path)["weights_sha256"] == summary["weights_sha256"]
    assert_same(run, unbroken)
    assert finish(run, tmp_path)["state"] == "finished"  # once more does no harm


def test_a_run_in_the_hands_of_another_process_is_left_alone(tmp_path):
    process = start([*WORDS, "--epochs", "5000", "--out", "run"], tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second = start(["resume", "run"], tmp_path)
    _, stderr = second.communicate(timeout=900)
    assert second.returncode == 2 and "is locked by another process" in stderr
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    third = start(["resume", "run"], tmp_path)
    while "resumed" not in read_run(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.1)
    third.send_signal(signal.SIGINT)
    _, stderr = third.communicate(timeout=900)
    assert third.returncode == 130, stderr


def test_what_a_kill_leaves_is_removed_at_every_depth(tmp_path):
    """Or a run that was killed inside of a sheet of samples would count it as its."""
    run = RunFolder.create(
        str(tmp_path / "run"), "any", recipe=load_recipe("mnist").as_record(), options={},
        fast_dev_run=False,
    )  # fmt: skip
    run.close()
    (run.path / "samples").mkdir()
    kept = [run.path / "run.json", run.path / "samples/epoch-002.png"]
    kept += [run.path / name for name in (".run.json.7", ".notes.123", ".gpuzoo-tmp-1")]
    left = [run.path / name for name in (HALF, f"samples/{HALF}")]
    for path in (*kept[1:], *left):
        path.touch()
    RunFolder.open(run.path).close()
    assert {path for path in run.path.rglob("*") if path.is_file()} == set(kept)


def test_an_empty_folder_is_taken_by_one_of_two(tmp_path, cli_here):
    run = tmp_path / "run"
    run.mkdir()
    folder = Folder(run)
    folder.lock()  # as by one that is about to write its record
    done = cli_here(*WORDS, "--out", "run")
    folder.close()
    assert done.returncode == 2 and "is locked by another" in done.stderr
    assert not list(run.iterdir())


def test_an_interrupt_that_a_library_swallows_is_not_forgotten():
    """Python ignores what is raised inside of a callback of the garbage collector."""
    with Interrupts() as interrupts:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            pytest.fail("while a run is set up it is raised")
        with pytest.raises(KeyboardInterrupt):  # once all is set up
            interrupts.end_if_asked()


def killed_after_a_checkpoint(words, tmp_path, env=None) -> None:
    process = start([*words, "--out", "run"], tmp_path, env)
    deadline = time.monotonic() + 300
    saved = tmp_path / "run" / "checkpoints"
    while not list(saved.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_changed_environment_is_refused_by_name(tmp_path):
    killed_after_a_checkpoint([*WORDS, "--epochs", "5000"], tmp_path)
    other = {"TF_ENABLE_ONEDNN_OPTS": "0"}
    refused = start(["resume", "run"], tmp_path, env=other)
    _, stderr = refused.communicate(timeout=900)
    assert refused.returncode == 2
    assert "variables.TF_ENABLE_ONEDNN_OPTS: None in the run, '0' here" in stderr
    allowed = start(["resume", "run", "--allow-drift"], tmp_path, env=other)
    deadline = time.monotonic() + 300
    while "resumed" not in read_run(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.1)
    allowed.send_signal(signal.SIGINT)
    _, stderr = allowed.communicate(timeout=900)
    assert allowed.returncode == 130, stderr
    (resumed,) = read_run(tmp_path / "run")["resumed"]
    assert resumed["step"] > 0 and "TF_ENABLE_ONEDNN_OPTS" in resumed["drift"][0]


def test_what_cannot_be_resumed(tmp_path, cli_here):
    done = cli_here("resume", "nowhere")
    assert done.returncode == 2 and "is not a run folder" in done.stderr
    failed = cli_here("train", "mnist", "--data", "digits", "--learning-rate", "1e30",
                 "--optimizer", "sgd", "--out", "bad")  # fmt: skip
    assert failed.returncode == 1
    done = cli_here("resume", "bad")
    assert done.returncode == 2 and "bad has diverged: " in done.stderr


def test_an_attempt_that_fails_loses_nothing(tmp_path, cli_here):
    """Only what has diverged has ended."""
    words = ["train", "mnist", "--data", "digits", "--epochs", "2", "--model", "mlp"]
    assert cli_here(*words, "--out", "teacher").returncode == 0
    words = ["train", "distill_mnist", "--data", "digits", "--epochs", "30",
             "--teacher", "teacher", "--checkpoint-every", "20", "--precision",
             "float32"]  # fmt: skip
    killed_after_a_checkpoint(words, tmp_path)
    (tmp_path / "teacher").rename(tmp_path / "away")
    failed = cli_here("resume", "run")
    assert failed.returncode == 2 and "teacher" in failed.stderr
    (tmp_path / "away").rename(tmp_path / "teacher")
    assert cli_here("resume", "run").returncode == 0
    assert cli_here(*words, "--out", "whole").returncode == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_run_without_its_checkpoints_is_not_begun_again(tmp_path, cli_here):
    words = [*WORDS, "--precision", "float32", "--epochs", "5000"]
    killed_after_a_checkpoint(words, tmp_path)
    trail = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    done = cli_here("resume", "run")
    assert done.returncode == 2 and "missing or damaged; restore them" in done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == trail


def test_nohup_is_respected(tmp_path):
    words = [
        sys.executable,
        "-m",
        "gpuzoo",
        *WORDS,
        "--epochs",
        "100000",
        "--out",
        "run",
    ]
    process = subprocess.Popen(["nohup", *words], cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=environment(tmp_path))  # fmt: skip
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    time.sleep(2)
    assert process.poll() is None and read_run(tmp_path / "run")["state"] == "running"
    process.kill()
    process.wait()
