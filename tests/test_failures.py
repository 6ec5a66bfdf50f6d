"""Errors of libraries and of a user's own code, each told in one line."""

import errno
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import environment, skip_without

from gpuzoo.runtime import keras_state
from gpuzoo.training import failures

MODEL = """
import keras
import gpuzoo

class Broken(keras.layers.Layer):
    def __init__(self, how, **rest):
        super().__init__(**rest)
        self.how = how

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def call(self, x):
        if self.how == "mixes":  # as layers do that make numbers of one precision
            raise TypeError("Input 'b' has type float32 that does not match type bfloat16")
        if self.how == "divides":
            return x / (1 // 0)
        if self.how == "cuts":
            return x[:, :5]
        return keras.ops.reshape(x, (-1, 3, 11, 17))

@gpuzoo.register(task="classify", reference="none")
def net(*, input_shape: tuple = (28, 28, 1), how: str = "divides"):
    "A network with a fault that shows when it is first computed."
    image = keras.Input(input_shape)
    x = Broken(how, name="broken")(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Dense(2, name="last")(x))
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "faulty.py").write_text(MODEL)
    return f"{tmp_path / 'faulty.py'}:net"


def one_line(done) -> str:
    """The error of a command that was refused, in one line and without a traceback."""
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_an_error_in_a_layer_is_one_line_and_leaves_no_run(
    backend, model, cli_on, npz, tmp_path
):
    def run(how, precision="float32"):
        return cli_on(backend, precision)(
            "train", "mnist", "--model", model, "--data", npz, "--out", out,
            "--model-options", f"how={how}", "--fast-dev-run", "--batch-size", "8",
        )  # fmt: skip

    out = tmp_path / "new" / "run"
    told = one_line(run("divides"))
    assert re.search(
        r"fails in layer 'broken' \(Broken\) at faulty.py, line \d+: "
        "ZeroDivisionError: int",
        told,
    )
    assert not out.parent.exists()
    out.mkdir(parents=True)
    told = one_line(run("cuts"))
    assert "fails in layer 'last' (Dense): ValueError: Input 0" in told
    assert not list(out.iterdir())
    told = one_line(run("mixes", "mixed_bfloat16"))
    assert "try --precision float32" in told
    assert "try --precision" not in one_line(run("mixes"))
    assert not list(out.iterdir())


DEEP = """
import keras
import numpy as np
import gpuzoo

class Core(keras.layers.Layer):
    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def call(self, x):
        if self.fault == "values":
            return x * float(np.asarray(x).mean())
        if self.compute_dtype != "float32":
            raise ValueError("no lookup table for half of the range\\nsecond line")
        return x

class Shell(keras.layers.Layer):
    def __init__(self, inside, **rest):
        super().__init__(**rest)
        self.inside = inside

    def build(self, shape):
        self.inside.build(shape)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def call(self, x):
        return self.inside(x)

@gpuzoo.register(task="classify", reference="none")
def net(*, input_shape: tuple = (28, 28, 1), fault: str = "bits"):
    "Layers in layers, in a model in a model."
    core = Core(name="core")
    core.fault = fault
    flat = keras.Input((input_shape[0] * input_shape[1],))
    block = keras.Model(flat, Shell(Shell(core, name="middle"), name="outer")(flat))
    image = keras.Input(input_shape)
    x = block(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Dense(2)(x))
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_inmost_of_nested_layers_is_named_before_the_first_step(
    backend, cli_on, npz, tmp_path
):
    (tmp_path / "deep.py").write_text(DEEP)
    out = tmp_path / "run"

    def run(*words, precision="float32"):
        return cli_on(backend, precision)(
            "train", "mnist", "--model", f"{tmp_path / 'deep.py'}:net", "--data", npz,
            "--out", out, "--fast-dev-run", "--batch-size", "8", *words,
        )  # fmt: skip

    told = one_line(run(precision="mixed_bfloat16"))
    assert re.search(
        r"fails in layer 'core' \(Core\) at deep.py, line \d+: ValueError: no lookup "
        r"table for half of the range; try --precision float32 or give this layer "
        r"dtype='float32'",
        told,
    )
    assert not out.exists()
    told = one_line(run("--model-options", "fault=values"))
    assert "fails in layer 'core' (Core) at deep.py" in told
    assert "apply it to the data beforehand, or write it with keras.ops" in told
    assert ("train with --backend tensorflow" in told) == (backend == "jax")
    assert not out.exists()
    done = run()  # the folder is free for the remedy
    assert done.returncode == 0, done.stderr


def test_the_layer_that_failed_is_named(runtime):
    class Fails(keras.layers.Layer):
        def call(self, x):
            raise RuntimeError("first\nsecond")

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape)

    image = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), Fails(name="inmost")])
    model = keras.Model(image, inner(image))
    with keras_state.whole_tracebacks(), pytest.raises(RuntimeError) as caught:
        model(np.zeros((1, 3), "float32"))
    told = failures.in_model(caught.value, "mine", None)
    assert told.startswith(
        "model 'mine' fails in layer 'inmost' (Fails): RuntimeError: first ("
    )
    assert keras.config.is_traceback_filtering_enabled()


def test_an_error_of_ours_stays_one():
    with pytest.raises(ZeroDivisionError) as caught:
        assert 1 // 0
    assert failures.in_model(caught.value, "mine", None) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory: MemoryError; use a smaller --batch-size"),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype("f4")), "allocate 36"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 77 bytes."),
            "out of memory: allocating 77 bytes; use",
        ),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc; use"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: [Errno"),
        (ImportError("x.so: failed to map segment from shared object"), "x.so: failed"),
        (
            RuntimeError('Graph execution error:\n\nDetected at node a\n File "b", line 1'
                         "\nOOM when allocating tensor with shape[9]"),
            "out of memory: OOM when allocating tensor with shape[9]",
        ),
    ],
)  # fmt: skip
def test_a_lack_of_memory_is_told(error, told):
    assert told in failures.out_of_memory(error)


def test_other_lacks_are_none_of_memory():
    for text in ("RESOURCE_EXHAUSTED: No space left on device", "no such thing"):
        assert failures.out_of_memory(RuntimeError(text)) is None
    assert failures.out_of_memory(OSError(errno.ENOSPC, "No space left")) is None


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
@pytest.mark.parametrize("megabytes", [300, 1_500, 4_000])
def test_a_limit_of_memory_ends_in_a_line(backend, megabytes, tmp_path):
    """Of the address space; the last one is enough to begin with."""
    skip_without(backend)
    command = (
        f"ulimit -v {megabytes * 1000}; exec {sys.executable} -m gpuzoo train mnist "
        f"--data digits --model mlp --model-options units=4000000,4000000 --out {tmp_path}"
        f"/run --backend {backend} --fast-dev-run"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path,
        env=environment(tmp_path), timeout=300, check=False,
    )  # fmt: skip
    told = one_line(done)
    assert "out of memory: " in told and "ulimit -v" in told
    assert not (tmp_path / "run").exists()
