"""Batches in shards: the same bits on any number of devices (JAX)."""

import dataclasses
import json
import subprocess
import sys

import pytest
from conftest import ROOT, environment, needs_jax
from safetensors.numpy import load_file
from test_resume import die_at

from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.engine.plan import shards_of
from gpuzoo.errors import GpuzooError
from gpuzoo.runs.record import read_run

SCRIPT = ROOT / "benchmarks" / "repeatability" / "elastic.py"
WORDS = [
    "train", "mnist_mlp", "--data", "digits", "--backend", "jax", "--device", "cpu",
    "--elastic", "--epochs", "4", "--checkpoint-every", "10", "--augment",
    "translate:1", "--model-options", "units=(32,)", "dropout=0.2", "--quiet",
]  # fmt: skip


# --- a step that is cut ---------------------------------------------------------------


@needs_jax
def test_a_step_is_cut_where_the_shards_exchange():
    import jax
    import jax.numpy as jnp
    from jax.extend import core

    from gpuzoo.engine.backends import cut

    def step(weight, x):
        half = weight.astype("bfloat16")  # of the weight alone: once for all shards
        own = x * half
        (mean,) = cut.exchange.bind(own)
        (unused,) = cut.exchange.bind(weight)  # the same for all: its own mean
        return weight - mean + unused, jnp.sum(own), jnp.ones(2)

    arguments = jnp.ones(3), jnp.arange(3, dtype="float32")
    made = cut.cut(jax.make_jaxpr(step)(*arguments), [True, False])
    assert len(made.regions) == 3
    first, _, last = made.regions
    assert [len(region.exchanged) for region in made.regions] == [1, 0, 0]
    assert len(first.uniform.results) == 1  # rounded, and cast back for the product
    assert len(first.own.results) == 1  # what is exchanged, and needed later, too
    assert last.own is not None  # the sum
    assert [made.is_own(atom) for atom in made.results] == [False, True, False]
    # The pieces, one after another, are the step.
    found = dict(zip(made.arguments, arguments, strict=True))
    for region in made.regions:
        for piece in filter(None, (region.uniform, region.own)):
            given = [found[v] for v in (*piece.uniform, *piece.own)]
            results = core.jaxpr_as_fun(piece.program)(*given)
            found.update(zip(piece.results, results, strict=True))
        found.update({mean: found[own] for own, mean in region.exchanged})
    whole = [found[atom] for atom in made.results]
    expected = arguments[0] - arguments[1] + 1, 3.0, jnp.ones(2)
    for one, other in zip(whole, expected, strict=True):
        assert (one == other).all()


@needs_jax
def test_updates_within_a_loop_are_refused():
    import jax
    import jax.numpy as jnp

    from gpuzoo.engine.backends import cut

    def step(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: cut.exchange.bind(x)[0], x)

    with pytest.raises(GpuzooError, match="within a loop or a condition"):
        cut.cut(jax.make_jaxpr(step)(jnp.ones(2)), [False])


# --- trainings ------------------------------------------------------------------------


def compare(models, precision, devices, tmp_path) -> dict:
    """What the benchmark finds for some models."""
    out = tmp_path / "elastic.json"
    words = ["--models", *models, "--precisions", precision, "--devices", *devices]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words, "--out", out],
        capture_output=True, text=True, check=False, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())["modes"][precision]


@needs_jax
def test_the_bits_do_not_depend_on_the_number_of_devices(tmp_path):
    found = compare(["cnn"], "float32", ["1", "2"], tmp_path)["cnn"]
    assert found["verdict"] == "equal"
    assert len(set(found["digests"].values())) == 1
    assert set(found["without"].values()) - set(found["digests"].values())


@needs_jax
@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("resnet20", "mixed_bfloat16"),
        ("gan", "mixed_float16"),
        ("lstm", "float32"),
        ("vit_tiny", "float32"),
    ],
)
def test_every_kind_of_model(model, precision, tmp_path):
    found = compare([model], precision, ["1", "4"], tmp_path)[model]
    assert found["verdict"] == "equal"


@needs_jax
def test_stopped_on_four_devices_and_resumed_on_two(tmp_path, cli):
    whole = cli(*WORDS, "--devices", "1", "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    die_at("replace", 3, "after", [*WORDS, "--devices", "4", "--out", "run"], tmp_path)
    assert read_run(tmp_path / "run", sealed=False)["runtime"]["devices"] == 4
    resumed = cli("resume", "run", "--devices", "2", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert "rifted" not in resumed.stderr
    record = read_run(tmp_path / "run")
    assert record["runtime"]["devices"] == 2
    assert record["resumed"][0]["drift"] == []
    for name in ("weights.safetensors", "metrics.jsonl", "digests.jsonl"):
        one, other = (tmp_path / run / name for run in ("whole", "run"))
        assert one.read_bytes() == other.read_bytes()
    again = cli("verify", "whole", "--devices", "8")
    assert (again.returncode, again.json["verdict"]) == (0, "identical")
    assert "8 virtual devices" in again.stderr


@needs_jax
def test_other_devices_are_a_difference_unless_the_run_is_elastic(tmp_path, cli):
    words = [word for word in WORDS if word != "--elastic"]
    done = cli(*words, "--devices", "2", "--epochs", "1", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert cli("verify", "run").json["verdict"] == "identical"
    other = cli("verify", "run", "--devices", "1")
    assert other.returncode == 2
    assert "runtime.devices: 2 in the run, 1 here" in other.json["environment"]


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "devices", "backend", "error"),
    [
        ({"elastic": True}, 1, "tensorflow", "elastic needs --backend jax"),
        ({"shards": 4}, 1, "jax", "shards=4 is used with elastic"),
        ({"elastic": True}, 3, "jax", "devices=3 must divide shards=8"),
        ({"elastic": True}, 16, "jax", "devices=16 must divide shards=8"),
        ({"elastic": True, "batch_size": 60}, 1, "jax", "multiple of 8, for shards=8"),
        ({"batch_size": 250}, 4, "jax", "multiple of 4, for devices=4"),
        ({"elastic": True, "accumulate": 2}, 1, "jax", "accumulate=2 cannot be"),
        ({"elastic": True, "stream": "off"}, 1, "jax", "stream=off cannot be"),
    ],
)
def test_what_does_not_fit_is_refused(changes, devices, backend, error, runtime):
    recipe = load_recipe("mnist").override(**changes)
    runtime = dataclasses.replace(runtime, backend=backend, devices=devices)
    with pytest.raises(GpuzooError, match=error):
        shards_of(recipe, runtime)


def test_parts_that_a_critic_needs(runtime):
    runtime = dataclasses.replace(runtime, backend="jax")
    recipe = load_recipe("mnist").override(elastic=True, batch_size=80)
    assert shards_of(recipe, runtime, critic_steps=5) == 8
    with pytest.raises(GpuzooError, match="batch_size 80 must be a multiple of 48"):
        shards_of(recipe, runtime, critic_steps=6)


@pytest.mark.parametrize("shards", [0, 1, 3, 2048])
def test_shards_are_a_power_of_two(shards):
    with pytest.raises(GpuzooError, match="shards of recipe 'mnist' must be a power"):
        load_recipe("mnist").override(shards=shards)


@pytest.mark.parametrize("elastic", [1, "yes", None])
def test_elastic_is_true_or_false(elastic):
    with pytest.raises(GpuzooError, match="elastic"):
        load_recipe("mnist").override(elastic=elastic)


def test_several_devices_need_jax(cli_here):
    done = cli_here("train", "mnist", "--data", "digits", "--devices", "2")
    assert done.returncode == 2
    assert "devices" in done.stderr


ODD = """
import gpuzoo

gpuzoo.configure(backend="jax", device="cpu", threads=2, quiet=True)

import keras
import numpy as np

data = np.random.default_rng(0)
x, y = data.random((160, 8, 8, 1), "float32"), np.arange(160) % 4


def train(loss, **how):
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    model.compile("sgd", loss)
    how = {"epochs": 1, **how}
    return gpuzoo.train(model, data=(x, y), batch_size=40, quiet=True, **how)


Sparse = keras.losses.SparseCategoricalCrossentropy
summed = Sparse(from_logits=True, reduction="sum")
try:
    train(summed, elastic=True)
except gpuzoo.GpuzooError as error:
    print(error)
print(train(summed)["state"])
try:
    train(Sparse(from_logits=True), elastic=True, epochs=1_000_000)
except gpuzoo.GpuzooError as error:
    print(error)
"""


@needs_jax
def test_losses_that_are_sums_and_too_many_steps_are_refused(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    done = subprocess.run(
        [sys.executable, "odd.py"], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.strip().splitlines()
    assert "reduction='sum', and elastic averages" in first
    assert second == "finished"
    assert "are the most" in third


COUNTS = """
import gpuzoo
import keras

class Seen(keras.layers.Layer):
    def build(self, shape):
        self.seen = self.add_weight(shape=(), dtype="int32", trainable=False,
                                    initializer="zeros", name="seen")

    def call(self, x):
        dark = keras.ops.cast(keras.ops.sum(x) < 100, "int32")
        self.seen.assign(self.seen + dark)
        return x

@gpuzoo.register(task="classify", reference="none")
def counts():
    layers = [keras.Input((28, 28, 1)), Seen(), keras.layers.Flatten(),
              keras.layers.Dense(10)]
    return keras.Sequential(layers)
"""


@needs_jax
def test_whole_numbers_that_depend_on_the_examples_are_refused(tmp_path, cli_on):
    (tmp_path / "counts.py").write_text(COUNTS)
    done = cli_on("jax")(
        "train", "mnist", "--data", "digits", "--model", "counts.py:counts", "--elastic",
        "--augment", "--out", "run",
    )  # fmt: skip
    assert done.returncode == 2
    assert "of integers depends on the examples" in done.stderr
    assert not (tmp_path / "run").exists()


FIXED = """
import gpuzoo
import keras
import numpy as np

class Fixed(keras.layers.Layer):
    def build(self, shape):
        self.kept = self.add_weight(shape=(3,), trainable=False, name="kept")

    def call(self, x):
        self.kept.assign(np.array([1.0, 2.0, 3.0], "float32"))
        return x

@gpuzoo.register(task="classify", reference="none")
def fixed():
    layers = [keras.Input((28, 28, 1)), Fixed(), keras.layers.Flatten(),
              keras.layers.Dense(10)]
    return keras.Sequential(layers)
"""


@needs_jax
def test_a_weight_that_is_set_to_a_constant(tmp_path, cli_on):
    (tmp_path / "fixed.py").write_text(FIXED)
    done = cli_on("jax")(
        "train", "mnist", "--data", "digits", "--model", "fixed.py:fixed", "--elastic",
        "--epochs", "1", "--augment", "--out", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    (name,) = [name for name in kept if name.endswith("kept")]
    assert kept[name].tolist() == [1.0, 2.0, 3.0]
