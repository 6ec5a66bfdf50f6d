"""Level portable: the same bits whatever the processor says it is, and refusals."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, environment, needs_tensorflow
from small import train
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
    known = json.loads(FILE.read_text())
    versions = machine.versions()
    if any(versions.get(name) != v for name, v in known["versions"].items()):
        pytest.skip("no digests for these versions")
    assert found["weights_sha256"] == known["weights_sha256"]
    assert found["settings"]["as it is"]["equal"]
    assert found["settings"].get(FORCED, {"equal": True})["equal"]


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("tensorflow", {"device": "gpu"}, "refuses device gpu.*--device cpu"),
        ("tensorflow", {"precision": "mixed_bfloat16"}, "refuses precision.*float32"),
        ("tensorflow", {"precision": "mixed_float16"}, "refuses precision.*float32"),
        ("tensorflow", {"xla": "on"}, "refuses xla on.*--xla off"),
        ("jax", {}, "refuses jax.*--backend tensorflow"),
        ("tensorflow", {}, "too late to pin.*configure"),
    ],
)
def test_what_is_not_portable_is_refused_by_name(backend, options, message, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match=message):
        portable.settle(Options(level="portable", **options), backend)
    assert not elementary.is_exact()


def test_another_processor_is_refused(monkeypatch, runtime):
    monkeypatch.setattr(machine, "cpu_isa", lambda: ["sse4_2", "avx"])
    with pytest.raises(gpuzoo.GpuzooError, match="needs .* AVX2 and FMA"):
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
    verified = cli("verify", "run")  # from the start, without the kill
    assert verified.returncode == 0, verified.stderr


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
