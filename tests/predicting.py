"""Fixtures of the tests of `gpuzoo predict`."""

import io
import json
import signal
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT

import gpuzoo
from gpuzoo.cli.predict import Predict

SMALL = {"fast_dev_run": True, "quiet": True}


@pytest.fixture
def quick():
    """Hanging, as before a pipe, is failing."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(250)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def runs(runtime, tmp_path_factory):
    """Recipe -> folder of a short run of it."""
    top = tmp_path_factory.mktemp("runs")
    made = {}

    def run(recipe: str, **changes) -> str:
        if recipe not in made:
            made[recipe] = str(top / recipe)
            gpuzoo.train(recipe, out=made[recipe], **SMALL, **changes)
        return made[recipe]

    return run


@pytest.fixture
def classifier(runs):
    return runs("mnist", data="digits", model="mlp")


@pytest.fixture
def here(tmp_path, monkeypatch, own_cache):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def predict(capsys):
    """Call the command in this process: its code, rows, last line and notes."""

    def call(run, *files, **options):
        code = Predict(run, files, json_lines=True, **options)()
        said = capsys.readouterr()
        *rows, last = map(json.loads, said.out.splitlines())
        return code, rows, last, said.err

    return call


def picture(size=(28, 28), mode="L", seed=0, **exif):
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return PIL.Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8))


def piped(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def fuzz():
    import importlib.util

    path = ROOT / "benchmarks" / "repeatability" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
