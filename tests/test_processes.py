"""Several processes train together (JAX): the same bits, kills, and what is refused."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, environment, needs_jax

from gpuzoo.errors import GpuzooError
from gpuzoo.runs.record import read_run
from gpuzoo.training.launch import launch

pytestmark = needs_jax
CLUSTER = ROOT / "docs" / "jobs" / "cluster"
SAME = ("weights.safetensors", "metrics.jsonl", "digests.jsonl")
WORDS = [
    "train", "mnist_mlp", "--data", "digits", "--backend", "jax", "--device", "cpu",
    "--elastic", "--epochs", "60", "--checkpoint-every", "20", "--augment",
    "translate:1", "--model-options", "units=(32,)", "dropout=0.2", "--quiet",
]  # fmt: skip


def start(words, tmp_path, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", *map(str, words)], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**environment(tmp_path), **env}, start_new_session=True,
    )  # fmt: skip


def finish(process, code=0) -> str:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    return stdout + stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of a single process."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start([*WORDS, "--out", "run"], folder))
    return folder / "run"


def assert_same(run, whole) -> None:
    for name in SAME:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_run(run)["state"] == "finished"


def ranks(run) -> dict[int, int]:
    """Rank -> process id of the processes that train into a run folder."""
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if str(run).encode() in words and b"--distributed" in words:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    variables = dict(
                        line.partition(b"=")[::2] for line in file.read().split(b"\0")
                    )
                found[int(variables[b"RANK"])] = int(pid)
    return found


def wait_for_checkpoint(run) -> None:
    deadline = time.monotonic() + 200
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_the_last(run) -> None:
    """The processes that follow have pipes of their own."""
    deadline = time.monotonic() + 60
    while left := ranks(run):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_two_processes_have_the_bits_of_one_and_any_number_verifies_them(
    whole, tmp_path, cli
):
    run = tmp_path / "run"
    said = finish(start(["launch", "--processes", "2", *WORDS, "--out", run], tmp_path))
    assert json.loads(said.splitlines()[0])["state"] == "finished"
    assert "Gloo" not in said
    assert_same(run, whole)
    runtime = read_run(run)["runtime"]
    assert (runtime["processes"], runtime["devices"]) == (2, 2)
    verified = cli("verify", run)
    assert (verified.returncode, verified.json["verdict"]) == (0, "identical")
    evaluated = cli("evaluate", run)
    assert evaluated.returncode == 0 and evaluated.json["identical"], evaluated.stderr
    longer = cli("resume", run, "--epochs", "1", "--out", "longer", "--quiet")
    assert longer.returncode == 0, longer.stderr
    again = finish(start(["launch", "resume", run, "--quiet"], tmp_path))
    assert json.loads(again.splitlines()[0])["state"] == "finished"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_is_started_again_with_all(rank, whole, tmp_path):
    run = tmp_path / "run"
    words = ["launch", "--processes", "2", "--fewer", *WORDS, "--out", run]
    process = start(words, tmp_path)
    wait_for_checkpoint(run)
    os.kill(ranks(run)[rank], signal.SIGKILL)
    said = finish(process)
    assert f"process {rank}: the process was killed by signal 9" in said
    assert "restarting from the last checkpoint, 1 process." in said
    assert_same(run, whole)
    record = read_run(run)
    assert record["resumed"][0]["step"] >= 20
    assert record["resumed"][0]["drift"] == []
    assert record["runtime"]["processes"] == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_launch_that_ends_stops_all_with_a_checkpoint(
    number, code, whole, tmp_path, cli
):
    run = tmp_path / "run"
    process = start(["launch", "--processes", "2", *WORDS, "--out", run], tmp_path)
    wait_for_checkpoint(run)
    process.send_signal(number)
    finish(process, code=code)  # until its pipes are closed, by the last process
    assert read_run(run)["state"] == "stopped"
    wait_for_the_last(run)
    resumed = cli("resume", run, "--devices", "4", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(run, whole)


def test_processes_that_differ_are_refused_by_name(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    words = [*WORDS, "--distributed"]
    other = start([*words, "--learning-rate", "0.01"], tmp_path, RANK="1", **env)
    first = start([*words, "--out", "run"], tmp_path, RANK="0", **env)
    for process in (first, other):
        said = finish(process, code=2)
        assert f"process 1 on {socket.gethostname()} has recipe.learning_rate" in said
    assert not (tmp_path / "run").exists()


def test_a_host_with_other_data_and_one_with_other_versions(tmp_path):
    """Two data files of one name, and a package that says it is another version."""
    other = tmp_path / "there"
    for number, folder in enumerate((tmp_path, other)):
        folder.mkdir(exist_ok=True)
        data = {"x_train": [[[0.0]], [[1.0]]] * 8, "x_test": [[[float(number)]]] * 4}
        data |= {"y_train": [0, 1] * 8, "y_test": [0] * 4}
        np.savez(folder / "own.npz", **{k: np.asarray(v) for k, v in data.items()})
    found = other / "site" / "pillow-0.1.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Name: pillow\nVersion: 0.1\n")
    words = [*WORDS, "--data", "own.npz", "--batch-size", "8", "--distributed"]
    words.remove("translate:1")
    for site, error in (
        (None, "data.fingerprint"),
        ("site", "version of pillow '0.1'"),
    ):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        first = start([*words, "--out", "run"], tmp_path, RANK="0", **env)
        if site:
            env["PYTHONPATH"] = str(other / site)
        second = start(words, tmp_path if site else other, RANK="1", **env)
        for process in (first, second):
            said = finish(process, code=2)
            assert f"process 1 on {socket.gethostname()} has {error}" in said
        assert not (tmp_path / "run").exists()


def test_processes_that_begin_with_other_weights_are_refused(whole, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    words = [*WORDS, "--distributed"]
    other = start([*words, "--init", whole], tmp_path, RANK="1", **env)
    first = start([*words, "--out", "run"], tmp_path, RANK="0", **env)
    for process in (first, other):
        said = finish(process, code=2)
        assert "has initial " in said and "must be the same in all processes" in said
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_ends_in_all_processes(tmp_path):
    words = [*WORDS, "--learning-rate", "1e20", "--optimizer", "sgd", "--schedule",
             "constant", "--out", "run"]  # fmt: skip
    said = finish(start(["launch", "--processes", "2", *words], tmp_path), code=1)
    assert "the loss became" in said and "restarting" not in said
    assert read_run(tmp_path / "run", sealed=False)["state"] == "diverged"


ADDRESS = {"MASTER_ADDR": "127.0.0.1"}
# What each scheduler sets, read where it had started a process; {} is the rank.
JOBS = {
    "slurm": {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "{}",
        "SLURM_LOCALID": "{}",
    },
    "openmpi": ADDRESS | {
        "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "{}",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{}",
    },
    "torchrun": ADDRESS | {"WORLD_SIZE": "2", "RANK": "{}", "LOCAL_RANK": "{}"},
    "kubernetes": ADDRESS | {"WORLD_SIZE": "2", "JOB_COMPLETION_INDEX": "{}"},
}  # fmt: skip


def of_kubernetes(words: list[str], folder) -> list[str]:
    """The command of the job file, for this training."""
    yaml = pytest.importorskip("yaml", reason="needs the extra docs")
    _, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = container["command"][-1]
    assert script.count("cifar10 --backend jax --elastic") == 1
    return ["bash", "-c", script.replace("cifar10", shlex.join(words))]


@pytest.mark.parametrize("scheduler", JOBS)
def test_the_job_files(scheduler, whole, tmp_path):
    """With the variables that a scheduler sets; first and going on."""
    given = ("train", "--backend", "jax", "--elastic")
    words = [word for word in WORDS if word not in given]
    command = ["bash", str(CLUSTER / "train.sh"), *words]
    if scheduler == "kubernetes":
        command = of_kubernetes(words, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    processes = []
    for rank in ("0", "1"):
        variables = {name: text.format(rank) for name, text in JOBS[scheduler].items()}
        if "MASTER_ADDR" in variables:
            variables["MASTER_PORT"] = port
        processes.append(subprocess.Popen(
            command, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
            env={**environment(tmp_path), **variables, "PATH": path},
        ))  # fmt: skip
    for process in processes:
        finish(process)
    assert_same(tmp_path / "run", whole)


def test_without_a_job_or_with_wrong_variables(tmp_path):
    words = [*WORDS, "--distributed", "--out", "run"]
    said = finish(start(words, tmp_path), code=2)
    assert "the processes of the job do not meet" in said
    wrong = {"MASTER_ADDR": "localhost", "MASTER_PORT": "x"}
    said = finish(start(words, tmp_path, **wrong, WORLD_SIZE="2", RANK="0"), code=2)
    assert "MASTER_PORT=x" in said and "integers" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["train", "mnist"], "launch needs --out RUN"),
        (["verify", "run"], "launch starts gpuzoo train or resume, not 'verify'"),
        ([], "launch starts gpuzoo train or resume"),
        (["resume"], "launch needs the run folder first"),
        (["resume", "--devices", "2", "run"], "launch needs the run folder first"),
        (["resume", "run", "--epochs", "2"], "leave --epochs and --out out"),
    ],
)
def test_what_launch_does_not_start(words, error):
    with pytest.raises(GpuzooError, match=error):
        launch(words, 2)


def test_a_run_that_is_there_is_not_trained_again(whole):
    with pytest.raises(GpuzooError, match="is already a run; name another"):
        launch([*WORDS, "--out", str(whole)], 2)


def test_fewer_processes_need_an_elastic_training(tmp_path):
    words = [word for word in WORDS if word != "--elastic"]
    with pytest.raises(GpuzooError, match="--fewer needs an elastic training"):
        launch([*words, "--out", str(tmp_path / "run")], 2, fewer=True)


def test_an_error_of_the_user_is_not_tried_again(tmp_path):
    words = [*WORDS, "--batch-size", "60", "--out", "run"]
    said = finish(start(["launch", "--processes", "2", *words], tmp_path), code=2)
    assert "batch_size 60 must be a multiple of 8" in said
    assert "restarting" not in said
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_not_for_several_processes(tmp_path, cli_here):
    words = ["train", "mnist", "--data", "digits", "--seeds", "2", "--distributed"]
    done = cli_here(*words)
    assert done.returncode == 2
    assert "leave distributed out" in done.stderr
    assert not (tmp_path / "runs").exists()
