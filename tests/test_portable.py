"""Level portable: the same bits whatever the processor says it is, and refusals."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, environment, needs_tensorflow
from small import RECIPE, train
from test_levels import with_layer

import gpuzoo
from gpuzoo import elementary
from gpuzoo.runtime import environment as machine
from gpuzoo.runtime import portable
from gpuzoo.runtime.options import Options

pytestmark = [
    needs_tensorflow,
    pytest.mark.skipif(
        not {"avx2", "fma"} <= set(machine.cpu_isa()), reason="needs AVX2 and FMA"
    ),
]
FILE = pathlib.Path(__file__).parent / "portable_digests.json"
MODELS = ("cnn", "gan", "gru")  # convolutions, normalisation, recurrence
FORCED = "CPUID of AMD family 25 model 1 (AVX2)"


def compared(tmp_path, *settings) -> dict:
    """What benchmarks/repeatability/portable.py finds under these settings."""
    out = tmp_path / "portable.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "repeatability" / "portable.py",
         "--backends", "tensorflow", "--models", *MODELS, "--steps", "2",
         "--settings", *settings, "--out", out],
        env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())["backends"]["tensorflow"]


def test_the_digests_are_those_of_every_processor_and_of_every_forced_one(tmp_path):
    """The committed digests are of the class: no processor has its own."""
    found = compared(tmp_path, "as it is", FORCED)
    known = json.loads(FILE.read_text())["tensorflow"]
    versions = machine.versions()
    if any(versions.get(name) != v for name, v in known["versions"].items()):
        pytest.skip("no digests for these versions")
    assert found["weights_sha256"] == known["weights_sha256"]
    assert found["settings"]["as it is"]["equal"]
    if FORCED not in found["settings"]:
        pytest.skip("CPUID cannot be forced: no C compiler (cc) or no cpuid_fault")
    assert found["settings"][FORCED]["equal"]
    assert not found["settings"][FORCED]["not_compared"]


def test_the_record_is_merged_by_model_and_setting(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "repeatability")
    fill = importlib.import_module("portable").fill
    place = {"code_sha256": {}, "weights_sha256": {}, "settings": {}}
    fill(place, "as it is", {"a": "1", "b": "2"}, {})
    fill(place, "QEMU", {"a": "1"}, {"b": "refused: no"})
    fill(place, "as it is", {"c": "3"}, {})
    fill(place, "QEMU", {"b": "9"}, {})  # without a: its row stays
    assert place["weights_sha256"] == {"a": "1", "b": "2", "c": "3"}
    assert place["settings"]["as it is"] == {
        "equal": True, "compared": ["a", "b", "c"], "differ": {}, "not_compared": {},
    }  # fmt: skip
    assert place["settings"]["QEMU"] == {
        "equal": False, "compared": ["a", "b"], "differ": {"b": "9"},
        "not_compared": {},
    }  # fmt: skip
    # Other bits: what was compared with the old ones is dropped.
    fill(place, "as it is", {"b": "9"}, {})
    assert place["settings"]["QEMU"]["compared"] == ["a"]
    assert place["settings"]["as it is"]["compared"] == ["a", "b", "c"]
    assert set(place["code_sha256"]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "refuses device gpu.*--device cpu"),
        ({"precision": "mixed_bfloat16"}, "refuses precision.*float32"),
        ({"precision": "mixed_float16"}, "refuses precision.*float32"),
        ({"xla": "on"}, "refuses xla on.*--xla off"),
        ({"autotune": "k.txt"}, "refuses autotune k.txt.*leave it out"),
        ({}, "too late to pin.*configure"),
    ],
)
def test_what_is_not_portable_is_refused_by_name(options, message, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match=message):
        portable.settle(Options(level="portable", **options), "tensorflow")
    assert not elementary.is_exact()


def test_another_processor_is_refused(monkeypatch, runtime):
    monkeypatch.setattr(machine, "cpu_isa", lambda: ["sse4_2", "avx"])
    with pytest.raises(gpuzoo.GpuzooError, match="needs Linux.* AVX2 and FMA"):
        portable.settle(Options(level="portable"), "tensorflow")


def test_a_variable_that_moves_bits_is_refused(npz, cli):
    words = ["train", "mnist", "--data", npz, "--level", "portable"]
    done = cli(*words, env={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"})
    assert done.returncode == 2
    assert "level portable refuses ONEDNN_MAX_CPU_ISA=AVX512_CORE" in done.stderr


def test_an_operation_that_approximates_is_refused_by_name(dataset, runtime):
    import tensorflow as tf

    ours = dataclasses.replace(runtime, level="portable")
    recipe = with_layer(lambda x: tf.raw_ops.Atan(x=x), name="turned")
    with pytest.raises(gpuzoo.GpuzooError, match="layer '.*turned.*Atan.*vendor"):
        train(recipe, dataset, ours)
    train(recipe, dataset, runtime)


RECORD = ROOT / "benchmarks" / "records" / "portable_ops.json"
CASES = ("operation s", "optimizer lion", "layer LayerNorm", "model gan")


def test_the_operations_that_are_taken_are_those_that_were_compared():
    from tensorflow.python.framework import op_def_registry

    from gpuzoo.engine.backends.compared import COMPARED

    record = json.loads(RECORD.read_text())
    assert set(record["operations"]) == COMPARED
    assert all(op_def_registry.get(name.split()[0]) for name in COMPARED)
    assert all(record["operations"].values()) and len(record["processors"]) == 2
    # A case that differs has an operation that is refused.
    assert record["differ"]
    for name, kinds in record["differ"].items():
        assert kinds and not set(kinds) & COMPARED, name
    compared = {f"model {name}" for name in (*MODELS, "lstm", "resnet20", "vae")}
    assert compared <= record["cases"].keys()


def test_what_was_compared_has_the_same_bits_here(tmp_path):
    from gpuzoo.engine.backends.compared import COMPARED

    record, out = json.loads(RECORD.read_text()), tmp_path / "here.json"
    script = ROOT / "benchmarks" / "repeatability" / "portable_ops.py"
    done = subprocess.run(
        [sys.executable, script, out, "--only", *CASES],
        env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["cases"]
    assert len(found) > 30
    assert not {kind for one in found.values() for kind in one["operations"]} - COMPARED
    if any(machine.versions().get(n) != v for n, v in record["versions"].items()):
        pytest.skip("no digests for these versions")
    assert {n: record["cases"][n] for n in found} == {
        name: one["digest"] for name, one in found.items()
    }


@pytest.mark.parametrize("kind", ["BesselI0", "Lgamma", "MatrixDeterminant", "Qr",
                                  "MatrixInverse"])  # fmt: skip
def test_an_operation_that_was_not_compared_is_refused_by_name(kind, dataset, runtime):
    import tensorflow as tf

    functions = {
        "BesselI0": lambda x: tf.raw_ops.BesselI0(x=x),
        "Lgamma": tf.math.lgamma,
        "MatrixDeterminant": lambda x: x * tf.linalg.det(tf.eye(2) * x[0, 0]),
        "Qr": lambda x: x * tf.linalg.qr(tf.eye(2))[0][0, 0],
        "MatrixInverse": lambda x: x * tf.linalg.inv(tf.eye(200))[0, 0],  # not 3 x 3
    }
    ours = dataclasses.replace(runtime, level="portable")
    recipe = with_layer(functions[kind], name="special")
    with pytest.raises(gpuzoo.GpuzooError, match=f"layer '.*special.*{kind}.*compared"):
        train(recipe, dataset, ours)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16", "float16", "float64"])
def test_a_layer_with_a_dtype_of_its_own_is_refused_by_name(dtype, dataset, runtime):
    @gpuzoo.register(task="classify", reference="here")
    def own_dtypes(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
        """A model with a layer that has a dtype of its own."""
        x = keras.layers.Flatten()(inputs := keras.Input(input_shape))
        x = keras.layers.Dense(8, dtype=dtype, name="own_dtype")(x)
        return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x))

    ours = dataclasses.replace(runtime, level="portable")
    recipe = RECIPE.override(model="own_dtypes", model_options=())
    named = dtype.removeprefix("mixed_")
    with pytest.raises(gpuzoo.GpuzooError, match=f"own_dtype.*{named}.*dtype='float32"):
        train(recipe, dataset, ours)


def test_a_cast_to_16_bits_is_refused(dataset, runtime):
    ours = dataclasses.replace(runtime, level="portable")
    recipe = with_layer(
        lambda x: keras.ops.cast(keras.ops.cast(x, "bfloat16"), "float32"), name="short"
    )
    with pytest.raises(gpuzoo.GpuzooError, match="layer '.*short.*bfloat16"):
        train(recipe, dataset, ours)


FAILS = """
import os, sys
import gpuzoo
from gpuzoo import elementary
from gpuzoo.runtime import environment, tensorflow


def refused(**options):
    try:
        gpuzoo.configure(quiet=True, device="cpu", **options)
    except gpuzoo.GpuzooError as error:
        return str(error)
    raise AssertionError(options)


def nothing_set():
    return not (elementary.is_exact() or environment._expected
                or "ONEDNN_MAX_CPU_ISA" in os.environ)


assert "refuses autotune" in refused(level="portable", autotune="k.txt")
assert nothing_set()
os.environ["TF_USE_CUBLASLT"] = "1"
assert "TF_USE_CUBLASLT" in refused(level="portable")
del os.environ["TF_USE_CUBLASLT"]
assert nothing_set()
if sys.argv[1] == "late":
    tensorflow.check_limit = lambda name: (_ for _ in ()).throw(
        gpuzoo.GpuzooError("no memory"))
    assert refused(level="portable") == "no memory"
    assert "start a new process" in refused(level="repeatable")
    assert "start a new process" in refused(level="fast")
elif sys.argv[1] == "early":
    assert gpuzoo.configure(quiet=True, device="cpu").level == "repeatable"
    assert nothing_set()
else:
    gpuzoo.configure(quiet=True, level="portable")
    try:
        gpuzoo.repeatable()
    except gpuzoo.GpuzooError as error:
        assert "gpuzoo.train" in str(error)
    else:
        raise AssertionError
"""


@pytest.mark.parametrize("case", ["early", "late", "fit"])
def test_a_refusal_leaves_nothing_of_the_level_behind(case, cli):
    done = cli(case, program=("-c", FAILS))
    assert done.returncode == 0, done.stderr


def test_what_replaces_approximations_is_rounded_correctly(runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends import portable as exact

    x = np.exp(np.random.default_rng(0).normal(size=10_000)).astype(np.float32)
    ours = dataclasses.replace(runtime, level="portable")

    def step(x):
        log = keras.ops.log(x)  # its gradient is a reciprocal
        (slope,) = tf.gradients(log, x)
        return keras.ops.rsqrt(x), keras.ops.reciprocal(x), slope

    wanted = [1 / np.sqrt(x), 1 / x, 1 / x]
    for folding in (False, True):
        tf.config.optimizer.set_experimental_options({"constant_folding": folding})
        compiled = tf.function(step, autograph=False)
        with exact.exact(ours):
            traced = compiled.get_concrete_function(tf.TensorSpec(x.shape))
        kinds = {one.type for one in traced.graph.get_operations()}
        assert not kinds & {"Rsqrt", "Reciprocal", "Inv"}
        found = [one.numpy() for one in traced(tf.constant(x))]
        # Folding turns 1/x into a reciprocal again: level portable leaves it out.
        assert all(map(np.array_equal, found, wanted)) != folding


def test_the_exact_gelu_is_that_of_tensorflow(runtime):
    import tensorflow as tf

    from gpuzoo.engine.backends import portable as exact

    x = np.linspace(-6, 6, 10_001, dtype="f")
    step = tf.function(
        lambda x: (keras.activations.gelu(x), keras.ops.gelu(x)), autograph=False
    )
    with exact.exact(dataclasses.replace(runtime, level="portable")):
        traced = step.get_concrete_function(tf.TensorSpec(x.shape))
    assert "Erfc" not in {one.type for one in traced.graph.get_operations()}
    found, near = traced(tf.constant(x))
    np.testing.assert_allclose(found, tf.nn.gelu(x), rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(near, tf.nn.gelu(x, approximate=True))
    assert np.abs(found - near).max() > 1e-4


LOADS = """
import sys
import gpuzoo

gpuzoo.configure(device="cpu", precision="float32", threads=2, level=sys.argv[1])
gpuzoo.load("run", note=print)
"""


def test_verified_and_resumed_after_a_kill(tmp_path, cli):
    from test_resume import killed_after_a_checkpoint

    words = ["train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
             "units=(16,)", "--epochs", "30", "--checkpoint-every", "20", "--level",
             "portable"]  # fmt: skip
    killed_after_a_checkpoint(words, tmp_path)
    resumed = cli("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert portable.CLASS in resumed.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    runtime = record["runtime"]
    assert runtime["level"] == "portable" and runtime["threads"] == portable.THREADS
    assert runtime["variables"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "ONEDNN_MAX_CPU_ISA" not in record["environment"]["variables"]
    # From the start, without the kill, by a child of a process at this level.
    verified = cli("verify", "run", env={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert verified.returncode == 0, verified.stderr
    assert verified.json["environment"] == []
    for level in ("portable", "repeatable"):  # of the process that loads it
        loaded = cli(level, program=("-c", LOADS))
        assert loaded.returncode == 0, loaded.stderr
        told = "level is repeatable, and was portable in the run: results may differ"
        assert (told in loaded.stdout) == (level == "repeatable")


# --- elementary functions -------------------------------------------------------------


@pytest.fixture
def both():
    def forms(function, *given):
        usual = function(*given)
        elementary.use_exact(True)
        try:
            return usual, function(*given)
        finally:
            elementary.use_exact(False)

    return forms


def test_exact_forms_are_as_near_as_numpys(both):
    draws = np.random.default_rng(1)
    u = draws.random(100_000)
    for function, x in (
        (elementary.log1p, -u),
        (elementary.cos_turns, u),
        (elementary.sin_turns, u),
    ):
        usual, ours = both(function, x)
        assert np.max(np.abs(usual - ours)) < 4e-15 and not np.array_equal(usual, ours)
    usual, ours = both(elementary.orthonormal, draws.normal(size=(60, 40)))
    assert np.allclose(usual, ours, rtol=0, atol=1e-14)
    assert np.allclose(ours.T @ ours, np.eye(40), rtol=0, atol=1e-14)
    rows = draws.random((2_000, 12))
    (mean, values, vectors), (mine, own, axes) = both(elementary.principal_axes, rows)
    assert np.allclose(mean, mine, rtol=1e-14) and np.allclose(values, own, rtol=1e-12)
    assert np.allclose(np.abs(vectors.T @ axes), np.eye(12), rtol=0, atol=1e-9)
    usual, ours = both(elementary.product, rows[0], axes)
    assert np.allclose(usual, ours, rtol=0, atol=1e-14)


def test_a_column_of_zeros_has_no_direction(both):
    with pytest.raises(gpuzoo.GpuzooError, match="column 1 is 0 long"):
        both(elementary._gram_schmidt, np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))


def test_exact_forms_do_not_follow_numpys_dispatch(tmp_path):
    code = (
        "import hashlib, gpuzoo.randomness as r, gpuzoo.elementary as e; "
        "e.use_exact(True); x = r.normal((200, 100), 1, 'x'); "
        "q = e.orthonormal(x); p = e.principal_axes(x[:, :9]); "
        "print(hashlib.sha256(b''.join(a.tobytes() for a in (x, q, *p))).hexdigest())"
    )
    found = set()
    off = "AVX2 FMA3 AVX512F AVX512_SKX X86_V3 X86_V4"
    for words in ("", off):
        known = [w for w in words.split() if w in dispatched()]
        env = {**environment(tmp_path), "NPY_DISABLE_CPU_FEATURES": " ".join(known)}
        if known:
            env["OPENBLAS_CORETYPE"] = "Sandybridge"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=False, env=env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def dispatched() -> list[str]:
    """Names of the instruction sets that NumPy chooses between when it starts."""
    from numpy._core._multiarray_umath import __cpu_dispatch__

    return __cpu_dispatch__
