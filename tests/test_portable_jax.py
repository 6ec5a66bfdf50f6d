"""Level portable on JAX: one form of products and convolutions, and what is refused."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT, environment, needs_jax

from gpuzoo.runtime import environment as machine
from gpuzoo.runtime import portable

pytestmark = [
    needs_jax,
    pytest.mark.skipif(
        not {"avx2", "fma"} <= set(machine.cpu_isa()), reason="needs AVX2 and FMA"
    ),
]
RECORD = ROOT / "benchmarks" / "records" / "portable_ops_jax.json"
FILE = pathlib.Path(__file__).parent / "portable_digests.json"
FORCED = "CPUID of AMD family 25 model 1 (AVX2)"

# Each function is computed as JAX does it and in our form; in one process.
_FORMS = """
import json
import numpy as np
import gpuzoo
gpuzoo.configure(backend="jax", device="cpu", threads=2, quiet=True)
import jax, jax.numpy as jnp, keras
from jax import lax
from gpuzoo.engine.backends import compared_jax, products_jax
ops, draws = keras.ops, np.random.default_rng(0)

def n(*shape):
    return draws.normal(size=shape).astype("f")

def slope(a, b):
    return jax.grad(lambda a: jnp.sum(jnp.tanh(a @ b) ** 2))(a)

def scanned(x, w):
    return lax.scan(lambda h, x: (jnp.tanh(x + h @ w), h), jnp.zeros((2, 4)), x)[1]

image, kernel, narrow = n(3, 9, 8, 6), n(3, 2, 6, 4), n(3, 2, 3, 4)
cases = {
    "vectors": (ops.matmul, n(4), n(4)), "vector": (ops.matmul, n(3, 4), n(4)),
    "transposed": (lambda a, b: a.T @ b, n(4, 3), n(4, 5)),
    "batch": (ops.matmul, n(2, 3, 4, 5), n(5, 6)),
    "long": (ops.matmul, n(2, 3, 700), n(2, 700, 5)),
    "batches": (ops.matmul, n(2, 3, 4, 5), n(2, 3, 5, 6)),
    "einsum": (lambda a, b: ops.einsum("abc,dce->eda", a, b), n(2, 3, 4), n(5, 4, 6)),
    "attention": (lambda a, b: ops.einsum("bqhc,bkhc->bhqk", a, b),
                  n(2, 3, 4, 5), n(2, 6, 4, 5)),
    "of a gradient": (slope, n(3, 4), n(4, 5)), "scanned": (scanned, n(5, 2, 4), n(4, 4)),
    "one dimension": (lambda x, k: ops.conv(x, k, padding="same", dilation_rate=2),
                      n(2, 9, 3), n(3, 3, 4)),
    "three": (ops.conv, n(2, 4, 4, 4, 3), n(2, 3, 2, 3, 4)),
    "channels first": (lambda x, k: ops.conv(x, k, data_format="channels_first"),
                       n(2, 3, 7, 7), n(2, 3, 3, 4)),
    "transposed, dilated": (lambda x, k: ops.conv_transpose(
        x, k, padding="same", dilation_rate=2), n(3, 5, 5, 6), n(3, 3, 4, 6)),
}
for how in ({}, {"padding": "same"}, {"strides": 2, "padding": "same"},
            {"strides": 2}, {"dilation_rate": 2}):
    for name, function, weights in (
        ("conv", ops.conv, kernel), ("grouped", ops.conv, narrow),
        ("depthwise", ops.depthwise_conv, n(3, 3, 6, 2)),
        ("transposed", ops.conv_transpose, n(3, 3, 4, 6)),
    ):
        if name != "transposed" or "dilation_rate" not in how:
            cases[f"{name} {how}"] = (
                lambda x, k, f=function, how=how: f(x, k, **how), image, weights)

def both(function, arrays):
    def step(*arrays):
        def loss(*arrays):
            result = function(*arrays)
            return jnp.sum(jnp.sin(result)), result
        return jax.grad(loss, (0, 1), has_aux=True)(*arrays)
    def ours(*arrays):
        with products_jax.in_one_form():
            return step(*arrays)
    traced = jax.jit(ours).trace(*arrays)
    names = compared_jax.operations_of(traced.jaxpr)
    pairs = zip(jax.tree.leaves(jax.jit(step)(*arrays)),
                jax.tree.leaves(traced.lower().compile()(*arrays)))
    near = all(a.shape == b.shape and np.allclose(a, b, rtol=2e-4, atol=2e-4)
               for a, b in pairs)
    return near, sorted(x for x in names if "conv_" in x or "form" in x)

found = {name: both(function, arrays) for name, (function, *arrays) in cases.items()}
plain = jax.jit(lambda a, b: a.T @ b).trace(n(4, 3), n(4, 5)).jaxpr
found["JAX's own"] = sorted(compared_jax.operations_of(plain))
print(json.dumps(found))
"""


def test_products_and_convolutions_have_one_form_and_the_same_values(cli):
    done = cli(program=("-c", _FORMS))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "dot_general float32 in another form" in found.pop("JAX's own")
    assert len(found) == 33
    assert {name: told for name, told in found.items() if told != [True, []]} == {}


# Each layer is in a small model of its own, in one process.
_REFUSED = """
import json
import gpuzoo
gpuzoo.configure(backend="jax", level="portable", quiet=True)
import jax.numpy as jnp, keras, numpy as np
from keras import ops
from gpuzoo.data.validate import make_dataset
from small import train, two_classes
from test_levels import with_layer
a = two_classes()
dataset = make_dataset("tiny", "memory", {
    split: {"image": a[f"x_{split}"], "label": a[f"y_{split}"]}
    for split in ("train", "test")}, ("dark", "light"))
square = lambda x: ops.eye(8) + 0.01 * ops.matmul(ops.transpose(x), x)

def told(function, **changes):
    try:
        train(with_layer(function, name="special").override(epochs=1, **changes),
              dataset, gpuzoo.configure(backend="jax", level="portable"))
    except gpuzoo.GpuzooError as error:
        return str(error)

print(json.dumps({
    "qr": told(lambda x: x * ops.qr(ops.stop_gradient(square(x)))[0][0, 0]),
    "qr's gradient": told(lambda x: x * ops.qr(square(x))[0][0, 0]),
    "lgamma": told(lambda x: x * ops.cast(jnp.sum(__import__("jax").lax.lgamma(
        jnp.abs(x) + 1)), "float32")),
    "bfloat16": told(lambda x: ops.cast(ops.cast(x, "bfloat16"), "float32")),
    "solved": told(lambda x: x * ops.solve(square(x), square(x))[0, 0]),
    "tanh": told(ops.tanh),
}))
"""


def test_what_was_not_compared_is_refused_by_name(cli):
    done = cli(program=("-c", _REFUSED), env={"PYTHONPATH": str(ROOT / "tests")})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("tanh") is None
    for name, words in {
        "qr": "layer '.*special.*operation qr: a library",
        "lgamma": "layer '.*special.*operation lgamma: its bits have not been compared",
        "bfloat16": "layer '.*special.*compute it in bfloat16.*dtype='float32'",
        "solved": "system of linear equations",
        "qr's gradient": "cannot compute a gradient through a product",
    }.items():
        assert re.search(words, found[name]), (name, found[name])


WORDS = ["--backend", "jax", "--level", "portable"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "refuses device gpu.*--device cpu"),
        ({"precision": "mixed_bfloat16"}, "refuses precision.*float32"),
        ({"devices": 2}, "refuses devices 2.*--devices 1"),
        ({"model_devices": 2}, "refuses model_devices 2.*--model-devices 1"),
        ({"distributed": True}, "refuses distributed True.*one process"),
    ],
)
def test_options_that_are_not_portable_are_refused(options, message):
    import gpuzoo
    from gpuzoo.runtime.options import Options

    with pytest.raises(gpuzoo.GpuzooError, match=message):
        portable.settle(Options(level="portable", **options), "jax")


def compared(tmp_path, *settings, models) -> dict:
    out = tmp_path / "portable.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "repeatability" / "portable.py",
         "--backends", "jax", "--models", *models, "--steps", "2", "--batch", "10",
         "--settings", *settings, "--out", out],
        env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())["backends"]["jax"]


def test_the_digests_are_those_of_every_processor_and_of_a_forced_one(tmp_path):
    known = json.loads(FILE.read_text())["jax"]
    models = sorted(known["weights_sha256"])
    found = compared(tmp_path, "as it is", FORCED, models=models)
    versions = machine.versions()
    if any(versions.get(name) != v for name, v in known["versions"].items()):
        pytest.skip("no digests for these versions")
    assert found["weights_sha256"] == known["weights_sha256"]
    assert found["settings"]["as it is"]["compared"] == models
    if FORCED not in found["settings"]:
        pytest.skip("CPUID cannot be forced: no C compiler (cc) or no cpuid_fault")
    assert found["settings"][FORCED]["equal"]
    assert found["settings"][FORCED]["compared"] == models


def test_the_operations_that_are_taken_are_those_that_were_compared():
    from gpuzoo.engine.backends.compared_jax import COMPARED, LIBRARIES

    record = json.loads(RECORD.read_text())
    assert set(record["operations"]) == COMPARED
    assert not {name.split()[0] for name in COMPARED} & LIBRARIES
    assert not [name for name in COMPARED if "form" in name or "conv_" in name]
    assert all(record["operations"].values()) and len(record["processors"]) == 2
    for name, kinds in record["differ"].items():
        assert kinds and not set(kinds) & COMPARED, name


def test_verified_and_resumed_after_a_kill(tmp_path, cli):
    from test_resume import killed_after_a_checkpoint

    words = ["train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
             "units=(16,)", "--epochs", "30", "--checkpoint-every", "20", *WORDS]  # fmt: skip
    killed_after_a_checkpoint(words, tmp_path)
    resumed = cli("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert portable.CLASS in resumed.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    runtime = record["runtime"]
    assert runtime["level"] == "portable" and runtime["threads"] == portable.THREADS
    assert runtime["variables"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "--xla_cpu_max_isa=AVX2" in runtime["variables"]["XLA_FLAGS"].split()
    assert (
        not {"XLA_FLAGS", "ONEDNN_MAX_CPU_ISA"}
        & record["environment"]["variables"].keys()
    )
    # From the start, without the kill, by a child of a process at this level.
    verified = cli("verify", "run", env=portable.VARIABLES)
    assert verified.returncode == 0, verified.stderr
    assert verified.json["environment"] == []
