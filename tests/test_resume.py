"""Killed at any instant, a run ends with the bits of the one that was never killed."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import environment

from gpuzoo.evidence.record import read_run

WORDS = [
    "train", "mnist", "--data", "digits", "--epochs", "60", "--device", "cpu",
    "--threads", "2", "--augment", "shift:1", "--model-options", "dropout=0.3",
    "--checkpoint-every", "20", "--quiet",
]  # fmt: skip
SAME = ("weights.safetensors", "metrics.jsonl", "digests.jsonl")


def start(words, tmp_path, env=None):
    return subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", *map(str, words)], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**environment(tmp_path), **(env or {})},
    )  # fmt: skip


def finish(run, tmp_path) -> dict:
    process = start(["resume", run, "--quiet"], tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1])


def assert_same(run, whole):
    for name in SAME:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_run(run)["state"] == "finished"
    assert not (run / "checkpoints").exists()


@pytest.fixture(scope="module", params=["float32", "mixed_float16"])
def whole(request, tmp_path_factory):
    """The run that is never killed, in one precision."""
    folder = tmp_path_factory.mktemp("whole")
    words = [*WORDS, "--precision", request.param]
    process = start([*words, "--out", "run"], folder)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder / "run", words, json.loads(stdout.splitlines()[-1])


def test_killed_at_random_instants(whole, tmp_path):
    """Three kills of one run: one early, two somewhere in the training."""
    unbroken, words, summary = whole
    run, kills = tmp_path / "run", 0
    chance = random.Random(summary["precision"])
    process = start([*words, "--out", run], tmp_path)
    for _ in range(3):
        deadline = time.monotonic() + 60
        while not run.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.2, summary["wall_seconds"] * 0.8))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        process = start(["resume", run, "--quiet"], tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert kills >= 1
    assert (
        json.loads(stdout.splitlines()[-1])["weights_sha256"]
        == summary["weights_sha256"]
    )
    assert_same(run, unbroken)


# A process that dies at the n-th call of one function of the operating system.
DIE_AT = """
import os, signal, sys
name, left = sys.argv[1], int(sys.argv[2])
real = getattr(os, name)
def deadly(*words, **options):
    global left
    path = str(words[0])
    watched = "step-" in path or name == "fsync"
    left -= watched
    if watched and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **options)
setattr(os, name, deadly)
sys.argv[1:] = sys.argv[3:]
from gpuzoo.cli import main
main()
"""


@pytest.mark.parametrize(
    ("call", "number"), [("replace", 1), ("replace", 3), ("fsync", 5), ("fsync", 8)]
)
def test_killed_inside_a_save(call, number, whole, tmp_path):
    unbroken, words, summary = whole
    if summary["precision"] != "mixed_float16":
        pytest.skip("one precision is enough for the file system")
    script = tmp_path / "die.py"
    script.write_text(DIE_AT)
    process = subprocess.run(
        [sys.executable, script, call, str(number), *words, "--out", "run"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert finish("run", tmp_path)["weights_sha256"] == summary["weights_sha256"]
    assert_same(tmp_path / "run", unbroken)


def test_stopped_and_resumed(whole, tmp_path):
    """Ctrl-C between two log lines leaves no trace in the resumed run."""
    unbroken, words, summary = whole
    if summary["precision"] != "mixed_float16":
        pytest.skip("one precision is enough for the signals")
    run = tmp_path / "run"
    process = start([*words, "--out", run], tmp_path)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert read_run(run)["state"] == "stopped"
    assert finish(run, tmp_path)["weights_sha256"] == summary["weights_sha256"]
    assert_same(run, unbroken)
    assert finish(run, tmp_path)["state"] == "finished"  # once more does no harm


def test_a_changed_environment_is_refused_by_name(tmp_path):
    process = start([*WORDS, "--epochs", "5000", "--out", "run"], tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    other = {"TF_ENABLE_ONEDNN_OPTS": "0"}
    refused = start(["resume", "run"], tmp_path, env=other)
    _, stderr = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert "variables.TF_ENABLE_ONEDNN_OPTS: None in the run, '0' here" in stderr
    allowed = start(["resume", "run", "--allow-drift"], tmp_path, env=other)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(5)
    allowed.send_signal(signal.SIGINT)
    _, stderr = allowed.communicate(timeout=120)
    assert allowed.returncode == 130, stderr
    (resumed,) = read_run(tmp_path / "run")["resumed"]
    assert resumed["step"] > 0 and "TF_ENABLE_ONEDNN_OPTS" in resumed["drift"][0]


def test_what_cannot_be_resumed(tmp_path, cli):
    done = cli("resume", "nowhere")
    assert done.returncode == 2 and "is no run folder" in done.stderr
    failed = cli("train", "mnist", "--data", "digits", "--learning-rate", "1e30",
                 "--optimizer", "sgd", "--out", "bad")  # fmt: skip
    assert failed.returncode == 1
    done = cli("resume", "bad")
    assert done.returncode == 2 and "bad has failed: " in done.stderr
