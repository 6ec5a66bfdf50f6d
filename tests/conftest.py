"""Shared by all tests: one runtime for this process, and the command line in others."""

import json
import os
import pathlib
import resource
import subprocess
import sys
import traceback

import numpy as np
import pytest

import gpuzoo
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.runtime import environment as machine
from gpuzoo.runtime.options import BACKENDS

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A prepared TFDS folder with the real MNIST. Without it those tests are skipped.
REAL_DATA = os.environ.get("GPUZOO_TEST_DATA")


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
        lines = done.stdout.splitlines()
        told = lines and lines[-1].startswith("{")
        done.json = json.loads(lines[-1]) if told else None
        return done

    return run


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


def two_classes() -> dict[str, np.ndarray]:
    """A small image set that can be learned: two classes, light and dark."""
    rng = np.random.default_rng(0)
    label = np.arange(120) % 2
    image = rng.integers(0, 100, (120, 14, 14, 1)) + 120 * label[:, None, None, None]
    image = image.astype(np.uint8)
    return {
        "x_train": image[:80], "y_train": label[:80],
        "x_test": image[80:], "y_test": label[80:],
    }  # fmt: skip


def unreadable():
    """A dataset with MNIST's shape and ten classes, and nothing to read in it."""
    from gpuzoo.data.validate import make_dataset

    rng = np.random.default_rng(0)
    label = np.arange(200) % 10
    image = rng.integers(0, 256, (200, 28, 28, 1)).astype(np.uint8)
    arrays = {"x_train": image[:100], "y_train": label[:100],
              "x_test": image[100:], "y_test": label[100:]}  # fmt: skip
    return make_dataset("snow", "made up", splits(arrays))


def splits(arrays) -> dict:
    return {
        s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]}
        for s in ("train", "test")
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


# --- runs of the loop inside the test process ---------------------------------------

RECIPE = Recipe(
    name="tiny", model="cnn", data="tiny", batch_size=16, epochs=3, learning_rate=0.01,
    augment=("translate:1", "flip"), model_options=("dropout=0.2", "dense=16"),
    log_every=2, digest_every=4,
)  # fmt: skip


def program(recipe, dataset, runtime, *, fast=False, model=None):
    """A recipe on a dataset, compiled."""
    from gpuzoo.engine.program import Program, Session
    from gpuzoo.training.build import build_model

    model = model or build_model(recipe, dataset)
    return Program(Session(recipe, runtime, dataset, model, fast=fast))


def run(recipe, dataset, runtime, *, fast=False, model=None, **options):
    """The training loop, as `gpuzoo.train` calls it, without a run folder."""
    from gpuzoo.engine import loop

    made = program(recipe, dataset, runtime, fast=fast, model=model)
    return loop.run(made, **options)


def train(recipe, dataset, runtime, **options):
    """A run of the loop: its result, and what it told its watcher."""
    rows = []
    watch = lambda *event: rows.append(event)  # noqa: E731
    return run(recipe, dataset, runtime, watch=watch, **options), rows


def same(one, other) -> bool:
    return all(np.array_equal(one.weights[k], other.weights[k]) for k in one.weights)


@pytest.fixture
def dataset(arrays):
    from gpuzoo.data.validate import make_dataset

    return make_dataset("tiny", "made up", splits(arrays))
