"""Shared by all tests: one runtime for this process, and the command line in others."""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import traceback

from gpuzoo.runtime import environment as machine

# What this machine has set is no matter of the tests, which set their own; here before
# NumPy reads it.
for _name in machine.moving_variables():
    del os.environ[_name]

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from small import splits, two_classes  # noqa: E402

import gpuzoo  # noqa: E402
from gpuzoo.runtime.options import BACKENDS  # noqa: E402

# Their fixtures are of the session: a service is started once for all modules.
pytest_plugins = ("serving", "slow")

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A prepared TFDS folder with the real MNIST. Without it those tests are skipped.
REAL_DATA = os.environ.get("GPUZOO_TEST_DATA")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# One of the two backends is enough: what needs the other one is skipped.
needs_tensorflow, needs_jax = (
    pytest.mark.skipif(
        not machine.is_installed(name), reason=f"{name} is not installed"
    )
    for name in BACKENDS
)


def skip_without(*backends: str) -> None:
    """Skip the test that runs if one of them is not installed."""
    for name in BACKENDS:
        if name in backends and not machine.is_installed(name):
            pytest.skip(f"{name} is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test, or its fixture, that itself imports a backend which is not installed is
    skipped; an import by gpuzoo fails."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if pathlib.Path(frame.f_code.co_filename).parent == ROOT / "tests":
            skip_without(error.name)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    return (yield from pytest_runtest_call(request.node))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each worker takes a row of neighbours, so that the run that a module's tests share
    is trained once, and not in every worker."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


def environment(tmp_path) -> dict[str, str]:
    """What a fresh process gets: a cache of its own, and nothing that configuring the
    test process has set."""
    ours = ("KERAS_BACKEND", "NPROC", "XLA_FLAGS", *machine.DEFAULT_VARIABLES)
    dropped = (*ours, "TF_CPP_MIN_LOG_LEVEL", "TFDS_DATA_DIR")
    clean = {k: v for k, v in os.environ.items() if k not in dropped}
    return {**clean, "GPUZOO_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}


@pytest.fixture(scope="session")
def runtime():
    """The runtime of the test process: CPU, float32, two threads, deterministic."""
    return gpuzoo.configure(device="cpu", precision="float32", threads=2)


@pytest.fixture
def under_xla(runtime):
    """The runtime of the tests, as it would be under XLA."""
    return dataclasses.replace(runtime, xla=True)


def last_line(stdout: str) -> dict | None:
    """What a command has printed as JSON."""
    lines = stdout.splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


@pytest.fixture
def cli(tmp_path):
    """Run the command line in a fresh process, with a home and a cache of its own."""

    def run(*words, program=("-m", "gpuzoo"), env=None, timeout=300, file_bytes=None):
        skip_without(*map(str, words))  # --backend tensorflow

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        done = subprocess.run(
            [sys.executable, *program, *map(str, words)],
            capture_output=True, text=True, cwd=tmp_path, timeout=timeout,
            env={**environment(tmp_path), **(env or {})}, check=False,
            preexec_fn=limit if file_bytes else None,  # JAX warns of forks
        )  # fmt: skip
        done.json = last_line(done.stdout)
        return done

    return run


# Runs command lines one after the other, as `gpuzoo ...` or as `python script.py ...`.
SEVERAL = """
import contextlib, io, json, runpy, sys
from gpuzoo.cli import app

for words in json.loads(sys.argv[1]):
    script = words[0].endswith(".py")
    sys.argv = words if script else ["gpuzoo", *words]
    told, code = [io.StringIO(), io.StringIO()], None
    with contextlib.redirect_stdout(told[0]), contextlib.redirect_stderr(told[1]):
        try:
            runpy.run_path(words[0], run_name="__main__") if script else app.main(words)
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, *(text.getvalue() for text in told)]))
"""


@pytest.fixture
def cli_several(cli):
    """Run command lines with the same runtime in one fresh process, which starts the
    backend once."""

    def run(*commands, timeout=900):
        lines = json.dumps([list(map(str, words)) for words in commands])
        done = cli(
            lines, program=("-c", SEVERAL), env={"PYTHONHASHSEED": "0"}, timeout=timeout
        )
        assert done.returncode == 0, done.stderr
        results = []
        for line in done.stdout.splitlines():
            one = subprocess.CompletedProcess("gpuzoo", *json.loads(line))
            one.json = last_line(one.stdout)
            results.append(one)
        return results

    return run


# Runs command lines as they come, in a process whose backend is started once.
KEPT = """
import contextlib, io, json, os, sys
import gpuzoo
from gpuzoo.cli import app

gpuzoo.configure(device="cpu", threads=2, **json.loads(sys.argv[1]), quiet=True)
for line in sys.stdin:
    told, code, one = [io.StringIO(), io.StringIO()], None, json.loads(line)
    os.chdir(one["cwd"])
    os.environ.update(one["env"])
    sys.argv = ["gpuzoo", *one["words"]]
    with contextlib.redirect_stdout(told[0]), contextlib.redirect_stderr(told[1]):
        try:
            app.main(one["words"])
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, *(text.getvalue() for text in told)]), flush=True)
"""


def end(process) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended by itself
        process.stdin.close()
    process.wait(60)
    process.stdout.close()


@pytest.fixture(scope="session")
def kept_processes():
    """Runtime -> process, the one used last at the end; at most two, for their memory."""
    found = {}
    yield found
    for process in found.values():
        end(process)


@pytest.fixture
def cli_on(kept_processes, cli_here, tmp_path):
    """Choose where the command line runs, by backend, precision and level: in this
    process if it has that runtime, else in another one that goes on for later tests,
    where no fresh one is needed."""

    def on(backend="tensorflow", precision="float32", level="repeatable"):
        skip_without(backend)
        wanted = {"backend": backend, "precision": precision, "level": level}
        if tuple(wanted.values()) == ("tensorflow", "float32", "repeatable"):
            return cli_here
        # Level strict wants an order of sets that does not change.
        env = {**environment(tmp_path), "PYTHONHASHSEED": "0"}
        key = json.dumps(wanted)

        def run(*words):
            process = kept_processes.pop(key, None)
            if process is None:
                if len(kept_processes) == 2:
                    end(kept_processes.pop(next(iter(kept_processes))))
                process = subprocess.Popen(
                    [sys.executable, "-c", KEPT, key], env=env, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )  # fmt: skip
            kept_processes[key] = process
            ours = {k: env[k] for k in ("GPUZOO_CACHE", "COLUMNS")}
            one = {"words": list(map(str, words)), "cwd": str(tmp_path), "env": ours}
            process.stdin.write(json.dumps(one) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                end(kept_processes.pop(key))
                pytest.fail("the process has ended; standard error says why")
            told = json.loads(line)
            done = subprocess.CompletedProcess(words, *told)
            done.json = last_line(done.stdout)
            return done

        return run

    return on


@pytest.fixture
def cli_here(runtime, tmp_path, monkeypatch, capfd):
    """Run the command line in this process, which has a runtime, so that only what a
    fresh process does differently needs `cli`: a start costs as much as a small run."""
    from gpuzoo.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gpuzoo", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main(sys.argv[1:])
        stdout, stderr = capfd.readouterr()
        done = subprocess.CompletedProcess(words, ended.value.code, stdout, stderr)
        done.json = last_line(stdout)
        return done

    return run


@pytest.fixture(scope="module")
def browser():
    """A real Chromium, for the pages that gpuzoo writes and serves."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra test")
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield made
        made.close()


@pytest.fixture
def no_network():
    """Environment in which every download fails at once."""
    dead = "http://127.0.0.1:9"
    return {
        "http_proxy": dead,
        "https_proxy": dead,
        "HTTPS_PROXY": dead,
        "no_proxy": "",
    }


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture
def arrays():
    return two_classes()


@pytest.fixture
def npz(tmp_path, arrays):
    path = tmp_path / "tiny.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def dataset(arrays):
    from gpuzoo.data.validate import make_dataset

    return make_dataset("tiny", "made up", splits(arrays))


@pytest.fixture
def train(npz, tmp_path, runtime):
    """Trains a model object in this process, each time into the next of the folders 1, 2, ..."""
    done = []

    def run(model, **how):
        done.append(tmp_path / str(len(done) + 1))
        how = {"epochs": 1, "batch_size": 16, "quiet": True, **how}
        return gpuzoo.train(model, data=str(npz), out=done[-1], **how)

    run.folder = lambda: done[-1]
    return run
