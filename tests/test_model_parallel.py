"""Weights that are split over several devices (JAX)."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, environment, needs_jax
from safetensors.numpy import load_file
from test_resume import killed_after_a_checkpoint

import gpuzoo
from gpuzoo.runs.record import read_run
from gpuzoo.runtime import configure
from gpuzoo.runtime.options import Options

SCRIPT = ROOT / "benchmarks" / "repeatability" / "model_parallel.py"
WORDS = ["train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
         "units=(64,)", "--backend", "jax", "--threads", "2", "--checkpoint-every", "20",
         "--epochs", "20"]  # fmt: skip

_AXES = """
import json
import keras
from gpuzoo.runtime.split import split_axis
print(json.dumps([split_axis(*one, 4) for one in [
    ("cnn/dense/kernel", (256, 128)), ("conv/kernel", (3, 3, 64, 64)),
    ("cnn/logits/kernel", (4096, 10)), ("prime/kernel", (1031, 1033)),
    ("dense/bias", (128,)), ("vit/attention/query/kernel", (192, 4, 48)),
    ("vit/attention/attention_output/kernel", (4, 48, 192)),
    ("vit/attention/key/kernel", (192, 3, 64)), ("embedding/embeddings", (30000, 64)),
]]))
"""


@needs_jax
def test_the_axis_along_which_a_weight_is_split(cli):
    done = cli(program=("-c", _AXES), env={"KERAS_BACKEND": "jax"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 3, 0, None, None, 1, 0, 2, 1]


_HELD = """
import json
import gpuzoo
from gpuzoo.runtime.options import Options
runtime = gpuzoo.configure(backend="jax", threads=4, model_devices=4, quiet=True)
from gpuzoo.engine.program import Program
from gpuzoo.runtime.split import held_bytes
from gpuzoo.training.build import session_of
recipe = gpuzoo.load_recipe("mnist").override(model="mlp",
    model_options=("units=(4096, 4096)",), batch_size=16, epochs=1)
dataset = gpuzoo.load_data("digits")
program = Program(session_of(recipe, runtime, dataset))
program.train(0, 2)
variables = list(program.state.all.values())
print(json.dumps([held_bytes(variables), sum(v.value.nbytes for v in variables)]))
"""


@needs_jax
def test_a_device_holds_its_part_of_weights_and_optimizer(cli):
    done = cli(program=("-c", _HELD))
    assert done.returncode == 0, done.stderr
    held, whole = json.loads(done.stdout)
    assert whole / 4 < held < 0.28 * whole  # biases and the last kernel are small


@needs_jax
def test_killed_resumed_verified_and_near_one_device(tmp_path, cli):
    words = [*WORDS, "--model-devices", "2"]
    killed_after_a_checkpoint(words, tmp_path)
    resumed = cli("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert "weights split over 2 virtual devices" in resumed.stderr
    assert read_run(tmp_path / "run")["runtime"]["model_devices"] == 2
    again = cli("verify", "run")
    assert (again.returncode, again.json["verdict"]) == (0, "identical"), again.stderr
    one = cli(*WORDS, "--out", "one")
    assert one.returncode == 0, one.stderr
    both = [
        load_file(tmp_path / name / "weights.safetensors") for name in ("one", "run")
    ]
    for name, array in both[0].items():
        assert array.shape == both[1][name].shape
        np.testing.assert_allclose(array, both[1][name], rtol=0.01, atol=0.002)
    done = cli("diff", "one", "run")
    assert re.search(r"runtime.model_devices +1 +2", done.stdout), done.stdout


@needs_jax
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "2"], "model_devices=2 cannot be combined with devices=2"),
        (["--distributed"], "model_devices=2 cannot be combined with distributed"),
        (["--threads", "1"], "model_devices=2 on a CPU needs as many threads"),
    ],
)
def test_combinations_that_are_refused(words, message, cli):
    done = cli(*WORDS, *words, "--model-devices", "2", "--out", "run")
    assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.parametrize("value", [0, 1025, "two", True])
def test_a_number_of_devices(value):
    with pytest.raises(gpuzoo.GpuzooError, match="model_devices must be in 1..1024"):
        configure._check_values(Options(model_devices=value), 0)


def test_tensorflow_is_refused():
    with pytest.raises(gpuzoo.GpuzooError, match="model_devices=2 needs --backend jax"):
        configure._check_devices(Options(model_devices=2), "tensorflow")


@needs_jax
def test_kinds_of_models_repeat_on_two_and_four_devices(tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--models", "cnn", "vit_tiny", "gan", "--out", out],
        env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["models"]
    for row in rows.values():
        one, two, four = (row["digests"][count] for count in ("1", "2", "4"))
        assert one[0] == one[1] and two[0] == two[1] and four[0] == four[1]
        assert one[0] != two[0]  # the control: it does depend on the split
