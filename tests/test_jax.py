"""JAX as the second backend: the same promises, in processes of its own."""

import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, environment, needs_jax
from test_resume import SAME, start

pytestmark = needs_jax
BASE = ["train", "mnist", "--data", "digits", "--device", "cpu", "--threads", "2",
        "--augment", "translate:1", "--model-options", "dropout=0.3", "--ema-decay", "0.9"]  # fmt: skip
MODELS = {"float32": "cnn", "mixed_float16": "mlp"}


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_fresh_processes_give_the_same_bits(precision, cli):
    words = [*BASE, "--backend", "jax", "--epochs", "3", "--precision", precision,
             "--model", MODELS[precision]]  # fmt: skip
    first = cli(*words)
    second = cli(*words, "--log-every", "3", env={"FORCE_COLOR": "1"})
    assert first.returncode == 0, first.stderr
    assert first.json["backend"] == "jax" and first.json["deterministic"]
    assert first.json["weights_sha256"] == second.json["weights_sha256"]
    if precision == "float32":
        control = cli(*words, "--seed", "1")
        assert first.json["weights_sha256"] != control.json["weights_sha256"]


def test_tensorflow_stays_unloaded(cli):
    """Importing it would cost seconds and half a gigabyte."""
    script = (
        "import gpuzoo, sys; gpuzoo.train('mnist', data='digits', epochs=1,"
        " backend='jax', model='mlp', quiet=True); print('tensorflow' in sys.modules)"
    )
    done = cli(program=("-c", script))
    assert done.returncode == 0 and done.stdout.strip() == "False", done.stderr


def test_killed_resumed_and_verified(tmp_path, cli_on):
    words = [*BASE, "--backend", "jax", "--epochs", "120", "--checkpoint-every", "7",
             "--model", "mlp"]  # fmt: skip
    whole = cli_on("jax")(*words, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    process = start([*words, "--out", "run"], tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = cli_on("jax")("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    for name in SAME:
        one, other = (tmp_path / run / name for run in ("run", "whole"))
        assert one.read_bytes() == other.read_bytes(), name
    assert cli_on("jax")("verify", "run").returncode == 0


def test_both_backends_start_from_the_same_bits_and_see_the_same_examples(
    cli_on, tmp_path
):
    """A rate of almost nothing leaves the initial weights; the losses then tell which
    examples, shifts and labels each step saw."""
    runs = {}
    for backend in ("tensorflow", "jax"):
        words = [
            "train", "mnist", "--data", "digits", "--epochs", "1", "--log-every", "1",
            "--backend", backend, "--precision", "float32", "--learning-rate", "1e-30",
            "--optimizer", "sgd", "--augment", "translate:2", "--batch-size", "64",
            "--device", "cpu", "--threads", "2", "--out", backend,
        ]  # fmt: skip
        done = cli_on(backend)(*words)
        assert done.returncode == 0, done.stderr
        path = tmp_path / backend / "weights.safetensors"
        runs[backend] = safetensors.numpy.load_file(path)
    for name, one in runs["tensorflow"].items():
        other = runs["jax"][name]
        if name.endswith("bias"):  # they start at zero, where the rate is not nothing
            assert np.abs([one, other]).max() < 1e-28, name
        else:
            assert one.tobytes() == other.tobytes(), name
    rows = [(tmp_path / b / "metrics.jsonl").read_text().splitlines() for b in runs]
    losses = [[float(r.split('"loss": ')[1].split(",")[0].strip("}")) for r in side]
              for side in rows]  # fmt: skip
    assert len(losses[0]) > 20 and np.ptp(losses[0]) > 1e-3
    assert np.allclose(*losses, rtol=1e-5)


def test_a_few_steps_on_both_backends_stay_close(cli_on, tmp_path):
    weights = []
    for backend in ("tensorflow", "jax"):
        words = ["train", "mnist", "--data", "digits", "--epochs", "1", "--backend",
                 backend, "--precision", "float32", "--learning-rate", "0.001",
                 "--momentum", "0.9", "--beta-2", "0.999", "--device", "cpu",
                 "--threads", "2", "--out", backend]  # fmt: skip
        done = cli_on(backend)(*words)
        assert done.returncode == 0, done.stderr
        path = tmp_path / backend / "weights.safetensors"
        weights.append(safetensors.numpy.load_file(path))
    assert weights[0].keys() == weights[1].keys()
    for name, one in weights[0].items():
        assert np.allclose(one, weights[1][name], atol=2e-4), name


OBJECTS = " or ".join([  # of these two files
    "begins_with_the_weights", "fresh_draws", "(done_again and True)", "scales",
    "(do_what_keras and Huber)", "OwnLoss", "AUC", "goes_before",
    "(puts_out and softmax-mse)", "(puts_out and binary)", "(parted and sigmoid)",
    "(arithmetic and rescaling)", "(student and softmax)",
])  # fmt: skip


def test_model_objects_are_trained_as_on_tensorflow(tmp_path):
    """The tests of model objects themselves, in one process: their weights, what they
    are compiled with, how they end, and a weight without a name."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", "-k", OBJECTS,
         "tests/test_model_objects.py", "tests/test_compile_config.py"],
        cwd=ROOT, env={**environment(tmp_path), "KERAS_BACKEND": "jax"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert " · jax · " in done.stderr + done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) == 13, done.stdout


WITHOUT = """
import sys

class Without:
    # As if they were not installed. None in sys.modules would look imported to array
    # libraries, which then test for arrays of JAX.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {missing!r}:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
sys.argv = ["gpuzoo", *sys.argv[1:]]
from gpuzoo.cli import main
main()
"""


@pytest.mark.parametrize(
    ("missing", "backend"),
    [(("tensorflow", "tensorflow_datasets"), "jax"), (("jax", "jaxlib"), "tensorflow")],
)
def test_one_backend_is_enough(missing, backend, cli):
    code = WITHOUT.format(missing=missing)
    done = cli("train", "mnist", "--fast-dev-run", program=("-c", code))
    if backend == "jax":
        assert done.returncode == 0, done.stderr
        assert "packages that are not installed; run: pip install" in done.stderr
        assert done.json["data"] == "digits"
    else:
        done = cli("train", "mnist", "--fast-dev-run", "--data", "digits",
                   program=("-c", code))  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.json["backend"] == backend
    other = "tensorflow" if backend == "jax" else "jax"
    refused = cli("train", "mnist", "--backend", other, program=("-c", code))
    assert refused.returncode == 2 and f"{other} is not installed" in refused.stderr


def test_what_jax_cannot_do_is_refused(cli):
    done = cli(*BASE, "--backend", "jax", "--xla", "off")
    assert done.returncode == 2 and "JAX compiles everything with XLA" in done.stderr
    done = cli(*BASE, env={"KERAS_BACKEND": "torch"})
    assert done.returncode == 2 and "KERAS_BACKEND=torch" in done.stderr


NOISY = '''
import keras
from gpuzoo.catalogue.registry import register

class Noise(keras.layers.Layer):
    """Draws in its call, and leaves the shape of what it returns to Keras."""
    def __init__(self, **named):
        super().__init__(**named)
        self.seed_generator = keras.random.SeedGenerator(1)

    def build(self, shape):
        # Nothing tells gpuzoo how this one is drawn: what Keras draws stays.
        self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal")

    def call(self, x, training=False):
        drawn = keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)
        return x * (1 + self.scale) + 0.1 * drawn * (1.0 if training else 0.0)

@register(task="classify", reference="none", parameters=0)
def noisy(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    """Dense layers with noise between them."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Dense(32, "relu", name="one")(keras.layers.Flatten()(inputs))
    x = Noise(name="noise")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))
'''


def test_a_layer_that_draws_and_a_second_training_in_one_process(cli, cli_on, tmp_path):
    (tmp_path / "mine.py").write_text(NOISY)
    script = (
        "import gpuzoo; from gpuzoo.repro.verify import verify\n"
        "how = dict(data='digits', model='mine.py:noisy', epochs=2, backend='jax',"
        " quiet=True)\n"
        "runs = [gpuzoo.train('mnist', out=out, **how) for out in 'ab']\n"
        "print(len({run['weights_sha256'] for run in runs}), verify('b', trust_code=True)['verdict'])"
    )
    done = cli(program=("-c", script))
    assert done.stdout.strip() == "1 identical", done.stderr + done.stdout
    assert cli_on("jax")("verify", "a", "--trust-code").returncode == 0
    other = cli_on("jax")("train", "mnist", "--data", "digits", "--model",
                     "mine.py:noisy", "--epochs", "2", "--backend", "jax", "--seed", "1",
                     "--out", "c")  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert cli_on("jax")("diff", "a", "c").returncode == 1


LOOPED = """
import sys
from gpuzoo.cli import main
from gpuzoo.engine.backends import jax as backend_jax
backend_jax.JaxBackend.looped = True
sys.argv = ["gpuzoo", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("stream", ["off", "on"])
def test_the_loop_of_a_device_is_one_program_however_it_is_cut(stream, cli, tmp_path):
    """As on a GPU: the device does many steps of a call by itself."""
    words = [*BASE, "--model", "mlp", "--epochs", "2", "--stream", stream]
    jax = {"KERAS_BACKEND": "jax"}
    rhythms = {"long": (), "short": ("--log-every", "3", "--checkpoint-every", "7")}
    looped = {
        name: cli(*words, *rhythm, "--out", name, program=("-c", LOOPED), env=jax)
        for name, rhythm in rhythms.items()
    }
    single = cli(*words, "--out", "single", env=jax)
    for done in (*looped.values(), single):
        assert done.returncode == 0, done.stderr
    for figure in ("weights_sha256", "test_loss"):
        assert looped["long"].json[figure] == looped["short"].json[figure]
    one, other = (
        safetensors.numpy.load_file(tmp_path / name / "weights.safetensors")
        for name in ("long", "single")
    )
    for name, array in one.items():
        assert np.allclose(array, other[name], atol=1e-3), name
