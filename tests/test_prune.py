"""Pruning while training, and starting a training from the weights of a run."""

import json
import shutil

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import needs_jax
from small import RECIPE, net, program, same
from small import run as train_in_memory
from test_resume import assert_same, die_at

import gpuzoo
from gpuzoo.engine import checkpoint, loop, pruning
from gpuzoo.engine.plan import segments
from gpuzoo.runs.record import read_run

L = keras.layers
SPARSE = RECIPE.override(sparsity=0.75, log_every=50)
STEPS = 15  # of 80 examples, 16 at a time, 3 times
END = 11  # three quarters of them


def kernels(values: dict) -> dict:
    return {name: a for name, a in values.items() if name.endswith("kernel")}


def zeros(values: dict) -> dict[str, int]:
    return {name: int((a == 0).sum()) for name, a in kernels(values).items()}


# --- the schedule ---------------------------------------------------------------------


def test_the_schedule_is_that_of_the_paper():
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, with s_i = 0 and t_0 = 0."""
    steps = pruning.steps_of(1000)
    assert steps[-1] == 750 and len(steps) == 64 and set(np.diff(steps)) == {11, 12}
    found = [pruning.fraction(0.8, step, steps[-1]) for step in steps]
    paper = [0.8 + (0 - 0.8) * (1 - t / 750) ** 3 for t in steps]
    assert np.allclose(found, paper, rtol=1e-12, atol=0)
    assert found == sorted(found) and found[0] > 0 and found[-1] == 0.8
    assert found[31] == pytest.approx(0.8 * 7 / 8)  # half of the time


@pytest.mark.parametrize("steps", [1, 2, 3, 15, 64, 100, 7_999_999])
def test_every_training_reaches_its_sparsity(steps):
    found = pruning.steps_of(steps)
    assert found[-1] == max(1, steps * 3 // 4) and found[0] >= 1
    assert list(found) == sorted(set(found)) and len(found) <= 64


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_smallest_are_chosen_and_of_equals_the_first(dtype):
    values = np.array([[-3, 1, -1, 0], [2, 1, -2, 5]]).astype(
        ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    )
    order = [3, 1, 2, 5, 4, 6, 0, 7]
    for count in range(8):
        mask = pruning.smallest(values, count)
        assert np.flatnonzero(mask).tolist() == sorted(order[:count])
    sizes = np.abs(np.random.default_rng(0).normal(size=(50, 7)).astype("f4").round(1))
    for count in (1, 40, 349):
        wanted = np.argsort(sizes.ravel(), kind="stable")[:count]
        assert set(np.flatnonzero(pruning.smallest(sizes, count))) == set(wanted)


# --- a training -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sparse(runtime):
    """A compiled training, its variables before it and its result."""
    from small import splits, two_classes

    from gpuzoo.data.validate import make_dataset

    dataset = make_dataset("tiny", "made up", splits(two_classes()))
    made = program(SPARSE, dataset, runtime)
    before = made.state.read(made.state.all)
    return made, before, loop.run(made)


def test_each_kernel_has_exactly_the_zeros_of_the_schedule(sparse):
    made, before, whole = sparse
    made.state.write(before)
    sizes = {name: a.size for name, a in kernels(before).items()}
    assert len(sizes) == 4
    gone = {name: np.zeros(a.shape, bool) for name, a in kernels(before).items()}
    for first, last, _ in made.train_parts(segments(made.plan, SPARSE, 0)):
        weights = made.state.read(made.state.weights)
        part = 0.75 * (1 - (1 - min(last, END) / END) ** 3)
        wanted = {n: min(round(part * size), size - 1) for n, size in sizes.items()}
        assert zeros(weights) == wanted, (first, last)
        for name, mask in gone.items():  # what was pruned stays pruned
            assert not weights[name][mask].any()
            gone[name] = weights[name] == 0
    assert zeros(whole.weights) == {n: round(0.75 * s) for n, s in sizes.items()}
    assert same(whole, loop_result(weights))
    others = [a for n, a in whole.weights.items() if n not in sizes]
    assert all((a != 0).any() for a in others)
    total = sum(zeros(whole.weights).values())
    assert whole.sparsity == {
        "total": round(total / sum(sizes.values()), 6),
        "kernels": {n: [zeros(whole.weights)[n], sizes[n]] for n in sizes},
    }
    assert whole.metrics["test_accuracy"] > 0.9


def loop_result(weights):
    return type("Result", (), {"weights": weights})


def test_stopped_after_any_step_it_ends_with_the_same_bits(sparse, tmp_path):
    """On a pruning step, before one, after the last."""
    made, before, whole = sparse
    for until in range(1, STEPS):
        made.state.write(before)
        folder = tmp_path / str(until)
        stopped = loop.run(made, until=until, folder=folder)
        assert stopped.state == "stopped" and not same(stopped, whole)
        made.state.write(before)
        start, _ = checkpoint.load(folder)
        assert start.step == until
        assert same(loop.run(made, resume=start), whole)


def test_a_recipe_without_it_is_the_same_program(dataset, runtime):
    """And a sparse one only differs from its first pruning on."""
    dense = train_in_memory(RECIPE, dataset, runtime)
    assert dense.sparsity is None
    assert not any(zeros(dense.weights).values())
    made = program(SPARSE, dataset, runtime)
    plain = program(RECIPE, dataset, runtime)
    assert segments(made.plan, SPARSE, 0) and plain.plan.prunings == ()
    one, other = (loop.run(p, until=1) for p in (made, plain))
    masked = {n: np.where(one.weights[n] == 0, 0, a) for n, a in other.weights.items()}
    assert all(np.array_equal(masked[n], a) for n, a in one.weights.items())
    assert not same(one, other)


def test_averaged_weights_have_the_same_zeros(dataset, runtime):
    result = train_in_memory(SPARSE.override(ema_decay=0.9), dataset, runtime)
    for name, a in kernels(result.weights).items():
        assert (a == 0).sum() == round(0.75 * a.size), name


def test_kernels_that_begin_at_zero_are_trained(dataset, runtime):
    dense = L.Dense(30, kernel_initializer="zeros", name="late")
    model = net(L.Flatten(), dense)
    result = train_in_memory(SPARSE, dataset, runtime, model=model)
    (late,) = [a for name, a in result.weights.items() if "late/kernel" in name]
    assert (late == 0).sum() == round(0.75 * late.size)


def test_only_kernels_are_pruned(runtime):
    image = keras.Input((8, 8, 2))
    x = L.BatchNormalization()(L.SeparableConv2D(4, 3, name="separable")(image))
    x = L.Conv2DTranspose(3, 3, name="wider")(x)
    x = L.DepthwiseConv2D(3, trainable=False)(L.DepthwiseConv2D(3, name="each")(x))
    x = L.Reshape((4, -1))(x)
    x = L.LayerNormalization()(L.MultiHeadAttention(1, 2, name="heads")(x, x))
    x = L.Bidirectional(L.GRU(4), name="both")(x)
    model = keras.Model(image, L.Dense(2, name="logits")(x))
    assert sorted(pruning.kernels_of(model)) == [
        "both/backward_gru/gru_cell/kernel",
        "both/backward_gru/gru_cell/recurrent_kernel",
        "both/forward_gru/gru_cell/kernel",
        "both/forward_gru/gru_cell/recurrent_kernel",
        "each/kernel",
        "heads/attention_output/kernel",
        "heads/key/kernel",
        "heads/query/kernel",
        "heads/value/kernel",
        "logits/kernel",
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
        "wider/kernel",
    ]
    words = keras.Sequential([keras.Input((3,), dtype="int32"), L.Embedding(9, 2)])
    assert pruning.kernels_of(words) == {}


PAIRS = [("tensorflow", "mixed_float16"), ("jax", "mixed_bfloat16")]


@pytest.mark.parametrize(("backend", "precision"), PAIRS)
def test_killed_resumed_and_verified(backend, precision, cli_on, tmp_path, monkeypatch):
    cli = cli_on(backend, precision)
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")  # it removes files, too
    words = [
        "train", "mnist", "--data", "digits", "--device", "cpu", "--threads", "2",
        "--backend", backend, "--precision", precision, "--model", "mlp",
        "--model-options", "units=(16,)", "dropout=0.3", "--batch-size", "64",
        "--epochs", "2", "--checkpoint-every", "6", "--sparsity", "0.8",
    ]  # fmt: skip
    whole = cli(*words, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "sparsity 80.0%: 10,163 of 12,704 weights in 2 kernels" in whole.stderr
    # As it removes the first of three checkpoints.
    die_at("unlink", 1, "before", [*words, "--out", "run"], tmp_path)
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    resumed = cli("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.json["sparsity"] == whole.json["sparsity"] == 0.799984
    assert_same(tmp_path / "run", tmp_path / "whole")
    if precision == "mixed_float16":
        verified = cli("verify", "run")
        assert (verified.returncode, verified.json["verdict"]) == (0, "identical")


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan")])
def test_a_sparsity_out_of_range_is_refused(value):
    with pytest.raises(gpuzoo.GpuzooError, match=r"sparsity .* must be in \[0, 1\)"):
        RECIPE.override(sparsity=value)


def test_what_cannot_be_pruned_is_refused(npz, train, dataset):
    with pytest.raises(gpuzoo.GpuzooError, match="sparsity .* the task adversarial"):
        gpuzoo.train("mnist_gan", data=str(npz), sparsity=0.5, out=npz.parent / "gan")
    assert not (npz.parent / "gan").exists()
    frozen = keras.Sequential([
        keras.Input((14, 14, 1)), L.Flatten(), L.Dense(2, trainable=False),
        L.Rescaling(1.0), L.BatchNormalization(), L.Rescaling(1.0),
    ])  # fmt: skip
    with pytest.raises(gpuzoo.GpuzooError, match="sparsity 0.5: .* no trainable kern"):
        train(frozen, sparsity=0.5)
    assert not train.folder().exists()


# --- starting from a run --------------------------------------------------------------

HOW = {"model": "mlp", "model_options": ("units=(8,)",), "augment": ()}


@pytest.fixture
def parent(npz, runtime):
    """A finished run of a small network."""
    recipe = RECIPE.override(**HOW, data=str(npz), epochs=2)
    gpuzoo.train(recipe, out=npz.parent / "parent", quiet=True)
    return npz.parent / "parent"


def test_it_is_the_training_of_a_model_with_those_weights(parent, npz, capsys):
    out = npz.parent / "child"
    recipe = RECIPE.override(**HOW, data=str(npz), epochs=1, sparsity=0.6)
    told = gpuzoo.train(recipe, init=parent, out=out)
    digest = read_run(parent)["weights_sha256"]
    assert (
        f"weights: those of run parent, sha256 {digest[:16]}" in capsys.readouterr().err
    )

    model = gpuzoo.build("mlp", input_shape=(14, 14, 1), num_classes=2, units=(8,))
    gpuzoo.load_weights(model, parent)
    gpuzoo.train(
        model, data=str(npz), epochs=1, sparsity=0.6, batch_size=16, quiet=True,
        learning_rate=0.01, out=npz.parent / "by hand",
    )  # fmt: skip
    one, other = (
        safetensors.numpy.load_file(folder / "weights.safetensors")
        for folder in (out, npz.parent / "by hand")
    )
    assert len(one) == 4
    for a, b in zip(sorted(one), sorted(other), strict=True):
        assert np.array_equal(one[a], other[b]), (a, b)

    recorded = read_run(out)
    assert recorded["init"] == {
        "run": "parent", "id": read_run(parent)["id"], "weights_sha256": digest,
    }  # fmt: skip
    assert recorded["initial_weights_sha256"] == digest
    shutil.rmtree(parent)  # the folder is complete without it
    assert gpuzoo.verify(out)["verdict"] == "identical"
    killed = npz.parent / "killed"
    killed.mkdir()
    shutil.copy(out / "initial_weights.safetensors", killed)
    for name in ("files", "weights_sha256", "steps", "epochs", "parameters", "seconds"):
        del recorded[name]
    recorded |= {"state": "running", "metrics": {}, "finished": None}
    from gpuzoo.runs.record import seal

    recorded["seal"] = seal(recorded)
    (killed / "run.json").write_text(json.dumps(recorded))
    again = gpuzoo.resume(killed, quiet=True)
    assert again["weights_sha256"] == told["weights_sha256"]
    assert read_run(killed)["init"]["run"] == "parent"


def test_a_named_recipe_takes_the_model_of_the_run(parent, npz, cli_here):
    words = ["train", "mnist", "--data", npz, "--batch-size", 16,
             "--device", "cpu", "--threads", 2, "--precision", "float32"]  # fmt: skip
    done = cli_here(*words, "--epochs", 1, "--init", parent)
    assert done.returncode == 0, done.stderr
    assert done.json["model"] == "mlp"
    refused = cli_here(*words, "--model", "cnn", "--init", parent)
    assert refused.returncode == 2
    assert "init parent holds the weights of another model" in refused.stderr
    how = {"data": str(npz), "batch_size": 16, "init": parent, "quiet": True}
    for named, why in (
        ({"model": "cnn"}, "'conv_1/kernel' is missing there, and float32 "),
        (
            {"model": "mlp", "model_options": ("units=(9,)",)},
            r"'dense_1/kernel' is float32 \(196, 8\) there, and float32 \(196, 9\)",
        ),
    ):
        why = f"init parent holds the weights of another model: {why}"
        with pytest.raises(gpuzoo.GpuzooError, match=why):
            gpuzoo.train("mnist", **how, **named, out=npz.parent / "none")
        assert not (npz.parent / "none").exists()


@needs_jax
def test_the_backend_is_chosen_before_one_is_imported(parent, npz, cli):
    """A run of one backend gives its weights to a training on the other."""
    script = (
        f"import sys, gpuzoo; done = gpuzoo.train('mnist', init={str(parent)!r}, "
        f"data={str(npz)!r}, batch_size=16, epochs=1, backend='jax', quiet=True); "
        "print(done['backend'], done['model'], 'tensorflow' in sys.modules)"
    )
    done = cli(program=("-c", script))
    assert done.stdout.strip() == "jax mlp False", done.stderr


def test_the_run_of_a_model_object_gives_its_layers(train, npz):
    train(net(L.Dense(4, name="mine"), name="named"), epochs=2)
    given, out = train.folder(), npz.parent / "child"
    told = gpuzoo.train("mnist", init=given, data=str(npz), epochs=1, batch_size=16,
                        out=out, quiet=True)  # fmt: skip
    assert told["steps"] == 5
    first, second = (f / "architecture.json" for f in (given, out))
    assert first.read_bytes() == second.read_bytes()
    shutil.rmtree(given)
    assert gpuzoo.verify(out)["verdict"] == "identical"


def test_what_no_training_can_start_from_is_refused(parent, npz):
    def refused(why, recipe="mnist", run=parent, **how):
        how = {"batch_size": 16, "out": npz.parent / "none", **how}
        with pytest.raises(gpuzoo.GpuzooError, match=why):
            gpuzoo.train(recipe, init=run, data=str(npz), quiet=True, **how)
        assert not (npz.parent / "none").exists()

    refused("leave one out", recipe=net())
    refused("fresh=True and init", fresh=True)
    refused("is not a run folder", run=npz.parent)
    refused("the task 'classify'", recipe="mnist_vae")
    weights = parent / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("weights.safetensors has been changed")
    weights.unlink()
    weights.symlink_to(npz)
    refused("weights.safetensors cannot be read")
    weights.unlink()
    weights.write_bytes(content)

    def edited(name, **fields):
        from gpuzoo.runs.record import seal

        folder = npz.parent / name
        shutil.copytree(parent, folder)
        record = json.loads((folder / "run.json").read_text())
        record["recipe"] |= fields.pop("recipe", {})
        record |= fields
        record["seal"] = seal(record)
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    refused(r"has not finished \(running\)", run=edited("unfinished", state="running"))
    huge = edited("huge", recipe={"model_options": ["units=(50_000_000,)"]})
    refused("does not fit its weights", run=huge)
    code = edited("code", recipe={"model": "/tmp/net.py:make", "model_options": []})
    refused(r"is user code, /tmp/net.py:make", run=code)
