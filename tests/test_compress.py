"""`gpuzoo compress`: smaller forms of a run, and the narrower networks among them."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from conftest import ROOT, environment, needs_tensorflow
from small import two_classes

import gpuzoo
from gpuzoo.cli import compress as verb
from gpuzoo.deploy import compress as compression
from gpuzoo.deploy import form_figures, forms, latency
from gpuzoo.errors import GpuzooError

pytestmark = needs_tensorflow
for package in ("onnxruntime", "ai_edge_litert", "tf2onnx"):
    pytest.importorskip(package, reason="needs the extra export")


# --- narrower networks --------------------------------------------------------------


def randomise(model, rng) -> None:
    """Set every weight at random, so that no branch is silent."""
    for weight in model.weights:
        values = rng.normal(size=tuple(weight.shape)).astype("float32") * 0.3
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.name else values)


def silence(model, ends: str) -> None:
    """Make every second channel of all layers but the last one zero."""
    for layer in model.layers:
        if layer.name == ends:
            continue
        for weight in layer.weights:
            depthwise = "Depthwise" in type(layer).__name__ and weight.name == "kernel"
            if weight.name in ("gamma", "moving_variance", "depthwise_kernel"):
                continue
            values = np.array(weight.value)
            outputs = -1
            if weight.name == "kernel" and type(layer).__name__ == "Conv2DTranspose":
                outputs = -2
            if not depthwise:
                np.moveaxis(values, outputs, 0)[1::2] = 0
            weight.assign(values)


def every_kind_of_layer():
    """A network with all that channels can be followed through."""
    import keras
    from keras import layers as L

    image = keras.Input((12, 12, 4), name="image")
    x = L.Conv2D(8, 3, activation="relu")(image)
    x = L.SeparableConv2D(8, 3, depth_multiplier=2)(x)
    x = L.BatchNormalization()(x)
    x = L.DepthwiseConv2D(3)(x)
    y = L.Conv2D(8, 1, activation="gelu")(x)
    x = L.Concatenate()([x, y])
    gate = L.GlobalAveragePooling2D(keepdims=True)(x)
    gate = L.Conv2D(6, 1, activation="relu")(gate)
    x = L.Multiply()([x, L.Conv2D(16, 1, activation="tanh")(gate)])
    x = L.Conv2DTranspose(6, 2, activation="relu")(x)
    shared = L.Conv2D(6, 3, padding="same", activation="relu")
    x = shared(shared(x))[:, ::2, 1::2]
    x = L.LayerNormalization()(L.Dense(7)(L.Reshape((-1, 6))(x)))
    x = L.Dense(10, activation="tanh")(x)
    x = L.Dropout(0.3)(L.Flatten()(x))
    outputs = L.Dense(5, activation="softmax", name="logits")(x)
    return keras.Model(image, outputs, name="every_kind")


def sequential():
    import keras
    from keras import layers as L

    return keras.Sequential([
        keras.Input((12, 12, 4)), L.Conv2D(6, 3), L.BatchNormalization(), L.ReLU(),
        L.MaxPooling2D(), L.Flatten(), L.Dense(8, activation="relu"),
        L.Dense(3, name="logits"),
    ])  # fmt: skip


MODELS = {
    "cnn": {}, "lenet5": {}, "resnet8": {}, "wide_resnet": {"depth": 10, "width": 1},
    "speednet": {"filters": (8, 16)}, "every_kind_of_layer": None, "sequential": None,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_without_channels_that_are_zero_the_outputs_are_the_same(name, runtime):
    from gpuzoo.deploy.narrow import narrowed

    own = MODELS[name] is None
    model = globals()[name]() if own else gpuzoo.build(name, **MODELS[name])
    rng = np.random.default_rng(0)
    randomise(model, rng)
    ends = "dense" if name == "speednet" else "logits"
    silence(model, ends)
    made = narrowed(model, 0.5)
    images = rng.random((4, *model.input_shape[1:])).astype("float32")
    wide, narrow = (
        np.array(one(images, training=False)) for one in (model, made.model)
    )
    assert np.abs(wide - narrow).max() <= 3e-6 * np.abs(wide).max() and wide.std() > 0
    assert made.model.count_params() < 0.55 * model.count_params()
    whole = {layer for layer, (now, before) in made.kept.items() if now == before}
    # The layer before a LayerNormalization, which mixes all channels; a frozen one.
    assert whole == {ends, *{"every_kind_of_layer": ["dense"], "speednet": ["whiten"]}
                     .get(name, ())}  # fmt: skip


def test_heavy_channels_stay_and_of_equal_ones_the_first(runtime):
    import keras
    from keras import layers as L

    from gpuzoo.deploy.narrow import narrowed

    model = keras.Sequential([
        keras.Input((6, 6, 1)), L.Conv2D(4, 1, use_bias=False),
        L.BatchNormalization(epsilon=0.0), L.Flatten(), L.Dense(4), L.Dense(2),
    ])  # fmt: skip
    conv, norm, _, dense, last = model.layers
    conv.kernel.assign(np.array([3, 1, 1, 2], "float32").reshape(1, 1, 1, 4))
    norm.gamma.assign([0.1, 1.0, -4.0, 1.0])  # effective: 0.3, 1, 4, 2
    dense.kernel.assign(np.ones((144, 4), "float32"))
    last.kernel.assign(np.arange(8, dtype="float32").reshape(4, 2))
    made = narrowed(model, 0.5).model
    assert np.array(made.layers[1].kernel.value).ravel().tolist() == [1, 2]
    assert np.array(made.layers[2].gamma.value).tolist() == [-4, 1]
    assert np.array(made.layers[-1].kernel.value).tolist() == [[0, 1], [2, 3]]
    assert np.array(made.layers[4].kernel.value).shape == (72, 2)


def test_what_cannot_be_narrowed_is_named(runtime):
    import keras
    from keras import layers as L

    from gpuzoo.deploy.narrow import narrowed

    lstm = gpuzoo.build("lstm", units=8)
    with pytest.raises(
        GpuzooError, match=r"cannot be narrowed.*LSTM layers keep their"
    ):
        narrowed(lstm, 0.5)
    for width in (0, 1, -0.5, 2, float("nan")):
        with pytest.raises(GpuzooError, match="width must be above 0 and below 1"):
            narrowed(lstm, width)
    image = keras.Input((8, 8, 4))
    x = L.Conv2D(8, 3, groups=2)(image)
    frozen = L.Conv2D(8, 3, trainable=False)
    x = L.Dense(6, activation="relu")(L.Flatten()(frozen(x)))
    made = narrowed(keras.Model(image, L.Dense(2)(x)), 0.5)
    assert list(made.whole.values()) == ["it has groups", "it is not trained"]
    assert made.kept["dense"] == [3, 6] and made.kept["dense_1"] == [2, 2]


# --- the verb -----------------------------------------------------------------------

TRAIN = (
    "train", "mnist", "--data", "tiny.npz", "--model-options", "filters=(8,16)",
    "dense=32", "--epochs", "8", "--batch-size", "8", "--device", "cpu", "--threads",
    "2", "--precision", "float32", "--quiet", "--out", "run",
)  # fmt: skip
COMPRESS = ("compress", "run", "--int8", "--width", "0.5", "--epochs", "6")


def command(words, folder, **how):
    done = subprocess.run(
        [sys.executable, "-m", "gpuzoo", *map(str, words)], cwd=folder,
        env=environment(folder), capture_output=True, text=True, check=False, **how,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    done.json = json.loads(lines[-1]) if lines and lines[-1][:1] == "{" else None
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("compress")
    np.savez(folder / "tiny.npz", **two_classes())
    done = command(TRAIN, folder)
    assert done.returncode == 0, done.stderr
    return folder


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Return the digests of all weights and exported files."""
    wanted = ("*/weights.safetensors", "*/model.*")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in wanted
        for path in sorted(folder.glob(pattern))
    }


def killed(words, folder, when) -> None:
    """Start a command and kill it when a path exists."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuzoo", *words], cwd=folder, env=environment(folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    begun = time.monotonic()
    while not list(folder.glob(when)) and time.monotonic() - begun < 300:
        time.sleep(0.02)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def compressed(home):
    """The forms of the run, made by a command that was killed in a training."""
    killed(COMPRESS, home, "run-compressed/width-0.5/digests.jsonl")
    state = json.loads((home / "run-compressed/width-0.5/run.json").read_text())[
        "state"
    ]
    assert state == "running"
    done = command(COMPRESS, home)
    assert done.returncode == 0, done.stderr
    return done


def test_the_table_the_record_and_the_picture(home, compressed):
    folder = home / "run-compressed"
    found = json.loads((folder / "compress.json").read_text())
    assert found == compressed.json
    rows = {row["name"]: row for row in found["forms"]}
    assert list(rows) == ["original", "width-0.5", "int8", "width-0.5-int8"]
    lines = compressed.stdout.splitlines()
    for row in found["forms"]:
        (line,) = (one for one in lines if one.split(" ")[0] == row["name"])
        assert line.split() == " ".join(verb.cells(row, "accuracy")).split()
        export = json.loads((home / row["export"] / "export.json").read_text())
        entry = export["formats"]["litert"]
        file = home / row["export"] / "model.tflite"
        assert file.stat().st_size == row["bytes"] == entry["bytes"]
        assert row["gzip_bytes"] < row["bytes"] and row["latency_us"] > 0
        assert row["value"] == entry["parity"]["metric"]["artefact"]
        assert entry["quantized"] == ("int8" if row["int8"] else None)
        run = json.loads((home / row["run"] / "run.json").read_text())
        assert export["weights_sha256"] == run["weights_sha256"]
    assert rows["original"]["times_faster"] == rows["original"]["times_smaller"] == 1
    assert rows["width-0.5"]["times_smaller"] > 1.5
    assert rows["width-0.5-int8"]["times_smaller"] > rows["int8"]["times_smaller"] > 1.2
    assert rows["width-0.5"]["parameters"] < 0.5 * rows["original"]["parameters"]
    assert found["narrowed"]["width-0.5"]["kept"]["conv_1"] == [4, 8]
    run = json.loads((home / "run" / "run.json").read_text())
    wanted = run["metrics"]["test_accuracy"]
    for row in found["forms"]:
        assert row["lost"] == pytest.approx(100 * (wanted - row["value"]))
    with PIL.Image.open(folder / "frontier.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def job_of(home, out, record=None, **options):
    """What a call of the verb works on."""
    record = record or json.loads((home / "run" / "run.json").read_text())
    fields = {"epochs": 6, "learning_rate": None, "student_options": (), **options}
    return forms.Job(
        run=home / "run", record=record, out=out, runtime="litert", quiet=True,
        load={"allow_drift": False, "trust_code": False}, note=lambda line: None,
        **fields,
    )  # fmt: skip


def test_killed_and_called_again_it_ends_with_the_same_digests(home, compressed):
    """As trained in another process, at once; and no temporary folder is left."""
    out = home / "whole"
    out.mkdir()
    with contextlib.chdir(home):  # where the data of the run are
        forms.train_form(job_of(home, out), forms.Form("width-0.5", "width", 0.5))
    there = digests(home / "run-compressed")
    assert digests(out) == {
        k: v for k, v in there.items() if k.startswith("width-0.5/")
    }
    assert len(digests(out)) == 1 and len(there) == 5
    names = {path.name for path in (home / "run-compressed").iterdir()}
    made = {"original", "int8", "width-0.5", "width-0.5-int8"}
    assert names == {
        "compress.json", "frontier.png", "width-0.5", *(f"{n}-litert" for n in made)
    }  # fmt: skip


def test_sparse_and_distilled_forms_are_runs_of_the_engine(home, compressed):
    out = home / "others"
    out.mkdir()
    job = job_of(home, out, student_options=("filters=(2,4)", "dense=8"))
    sparse = forms.Form("sparsity-0.75", "sparsity", 0.75)
    student = forms.Form("student-cnn", "student", "cnn")
    with contextlib.chdir(home):
        for form in (sparse, student):
            forms.train_form(job, form)
            forms.train_form(job, form)  # it has finished, and is kept
        with pytest.raises(GpuzooError, match=r"another training \(sparsity 0.75"):
            forms.train_form(job, dataclasses.replace(sparse, value=0.5))
    weights = safetensors.numpy.load_file(out / "sparsity-0.75/weights.safetensors")
    for name, values in weights.items():
        if "kernel" in name:
            assert np.mean(values == 0) == pytest.approx(0.75, abs=0.02)
    records = [
        json.loads((out / form.name / "run.json").read_text())
        for form in (sparse, student)
    ]
    assert records[0]["init"]["weights_sha256"] == job.record["weights_sha256"]
    recipe = records[1]["recipe"]
    assert recipe["task"] == "distill" and recipe["epochs"] == 6
    assert recipe["teacher_sha256"] == job.record["weights_sha256"]
    assert records[1]["parameters"] < 0.5 * job.record["parameters"]


def test_finished_forms_are_kept_and_a_bound_is_kept(home, compressed):
    folder = home / "run-compressed"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    found = json.loads((folder / "compress.json").read_text())
    lost, said = max(row["lost"] for row in found["forms"]), []
    how = {"width": (0.5,), "epochs": 6, "note": said.append}
    done = compress_in(home, max_loss=max(0.0, lost), **how)
    assert done["failures"] == []
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == before
    # The forms of the earlier call are in the record, too, and nothing is left to do.
    assert json.loads((folder / "compress.json").read_text()) == done
    kept = ("name", "value", "lost", "bytes", "sha256", "weights_sha256", "of")
    assert [[row[key] for key in kept] for row in done["forms"]] == [
        [row[key] for key in kept] for row in found["forms"]
    ]
    assert done["narrowed"] == found["narrowed"]
    plan = "width-0.5 (kept), int8 (kept), width-0.5-int8 (kept); about 1 min"
    assert any(plan in line for line in said), said
    said.clear()
    with pytest.raises(GpuzooError, match=r"another training \(epochs 6, not 7"):
        compress_in(home, **how | {"epochs": 7})
    assert not any("about" in line for line in said)  # before the plan
    # An export of other weights is not taken for this form's.
    copy = home / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "int8-litert")
    rest = compress_in(home, **how, out=copy)
    assert [row["name"] for row in rest["forms"]] == [
        "original", "width-0.5", "width-0.5-int8"
    ]  # fmt: skip
    assert any("int8, made earlier, is left out" in line for line in said)
    path = copy / "width-0.5-litert" / "export.json"
    path.write_text(
        path.read_text().replace(_weights(home / "run-compressed"), "0" * 64)
    )
    with pytest.raises(GpuzooError, match="is not this variant, or was changed"):
        compress_in(home, width=(0.5,), epochs=6, out=copy)


def _weights(folder) -> str:
    record = json.loads((folder / "width-0.5" / "run.json").read_text())
    return record["weights_sha256"]


def compress_in(home, width=(), **how):
    with contextlib.chdir(home):  # where the data of the run are
        return gpuzoo.compress("run", forms.Forms(width=width), **how)


def test_a_narrow_run_is_a_run(home, compressed):
    """verify repeats it to the bit; load predicts with it."""
    done = command(["verify", "run-compressed/width-0.5", "--quiet"], home)
    assert done.returncode == 0 and done.json["verdict"] == "identical", done.stderr
    trained = gpuzoo.load(home / "run-compressed/width-0.5")
    images = two_classes()["x_test"].astype(np.uint8)
    right = trained.predict(images)["predicted"] == two_classes()["y_test"]
    row = next(r for r in compressed.json["forms"] if r["name"] == "width-0.5")
    assert right.mean() == pytest.approx(row["value"], abs=0.026)


def test_a_form_that_loses_too_much_is_refused():
    def row(name, value, run=0.9):
        metric = {"name": "accuracy", "run": run, "artefact": value}
        return form_figures._verdict(name, metric, 1.0)

    assert row("width-0.5", 0.895) == (pytest.approx(0.5), "")
    lost, why = row("width-0.5", 0.85)
    assert lost == pytest.approx(5) and why.startswith("width-0.5: 5.00 points lost")
    assert "--max-loss" in why
    assert row("width-0.5", None)[1] and row("width-0.5", 0.95)[1] == ""


def test_the_frontier():
    rows = [
        {"name": "a", "bytes": 100, "value": 0.9},
        {"name": "b", "bytes": 50, "value": 0.9},
        {"name": "c", "bytes": 20, "value": 0.5},
        {"name": "d", "bytes": 60, "value": 0.95},
        {"name": "e", "bytes": 20, "value": 0.4},
    ]
    assert form_figures._frontier(rows, "bytes", "accuracy") == ["b", "c", "d"]
    assert form_figures._frontier(rows, "bytes", "error") == ["e"]


def test_latencies_are_measured_in_turns(monkeypatch):
    """A machine that slows down in the middle slows all of them alike."""
    from gpuzoo.deploy import runtimes

    clock = [0.0]
    cost = {"fast": 1e-4, "slow": 3e-4}

    class Model:
        def __init__(self, path):
            self.path = path

        def __call__(self, batch):
            assert batch["image"].shape == (1, 4, 4, 1)
            clock[0] += cost[self.path] * (10 if 0.5 < clock[0] < 1 else 1)

    monkeypatch.setattr(runtimes, "open_model", lambda path, *_: Model(path))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    inputs = [{"name": "image", "dtype": "uint8", "shape": [None, 4, 4, 1]}]
    words = {"name": "text", "dtype": "int32", "shape": [None, 99]}
    assert {*latency._example(words, np.random.default_rng(0)).flat} == {0, 1}
    request = {"format": "onnx", "paths": ["slow", "fast"], "inputs": inputs}
    slow, fast = next(latency.measure(request))["seconds"]
    assert len(slow) == len(fast) == 200
    found = form_figures._latency(slow, fast)
    assert found["times_faster"] == pytest.approx(3, rel=0.1)
    assert found["latency_us"] == pytest.approx(100, rel=0.1)


def test_a_sparse_form_keeps_its_last_weights(home, tmp_path):
    job = job_of(home, tmp_path)
    choice = {"keep": "best", "early_stopping": 2, "validation": 0.25, "min_delta": 0.1}
    job.record["recipe"] |= choice
    changes = forms._changes(job, forms.Form("sparsity-0.8", "sparsity", 0.8))
    made = job.recipe.override(**changes)
    assert made.chooses == "" and made.validation == 0.25 and made.sparsity == 0.8
    made.check_choice()
    narrow = forms._changes(job, forms.Form("width-0.5", "width", 0.5))
    assert narrow["keep"] == "best" and narrow["early_stopping"] == 2


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, fault",
    [
        ({"width": (1.5,)}, "width must be above 0 and below 1: 1.5"),
        ({"sparsity": (0.0,)}, "sparsity must be above 0 and below 1: 0"),
        ({"width": (0.5, 0.5)}, "each variant must be named once"),
        ({"student_options": ("dense=3",)}, "student_options needs student"),
        ({"student": "nothing_of_that_name"}, "no model named"),
        ({"student": "cnn", "student_options": ("filters=3",)}, r"filters=\(3,\)"),
    ],
)  # fmt: skip
def test_wrong_forms_are_refused_before_anything_is_made(how, fault, home, tmp_path):
    with pytest.raises(GpuzooError, match=fault):
        gpuzoo.compress(home / "run", forms.Forms(**how), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_wrong_use_is_refused(home, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for how, fault in (
        ({"out": tmp_path / "mine"}, "has no variants of this run"),
        ({"to": "stablehlo"}, "to must be litert, onnx or openvino"),
        ({"to": "openvino"}, "--int8 is for litert and onnx"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"max_loss": -1.0}, "max_loss must be 0 or more"),
        ({"run": tmp_path / "none"}, "is not a run folder"),
    ):
        run = how.pop("run", home / "run")
        with pytest.raises(GpuzooError, match=fault):
            gpuzoo.compress(
                run, forms.Forms(int8=True), **{"out": tmp_path / "x", **how}
            )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "notes").read_text() == "mine"
    with pytest.raises(RuntimeError), compression._folder(job_of(home, tmp_path / "x")):
        assert (tmp_path / "x" / "compress.json").is_file()
        raise RuntimeError  # nothing was made: nothing is left
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_two_equal_calls_at_once(home, tmp_path, monkeypatch):
    """The second one, which saw no folder either, leaves that of the first alone."""
    job = job_of(home, tmp_path / "x")
    with compression._folder(job) as folder:
        monkeypatch.setattr(os.path, "lexists", lambda path: False)
        with pytest.raises(GpuzooError, match="locked"), compression._folder(job):
            pass
        assert folder.names() == ["compress.json"]


def test_what_a_model_does_not_have_is_left_out_unless_it_was_named(home, tmp_path):
    """A run with the wrong task, and one whose channels cannot be removed."""
    job = job_of(home, tmp_path)
    planned = forms.planned_forms(forms.DEFAULT)

    def start(job, form, note):
        if form.kind == "width":
            raise GpuzooError("nothing can be removed")
        return None, {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "start_of", start)
        left, _, faults = compression._feasible(job, planned, False)
        assert faults == {"width-0.5": "nothing can be removed"}
        names = [form.name for form in left]
        assert names == ["original", "sparsity-0.8", "int8", "sparsity-0.8-int8"]
        with pytest.raises(GpuzooError, match=r"width-0.5: nothing can be removed"):
            compression._feasible(job, planned, True)
    job.record["recipe"]["task"] = "diffusion"
    with pytest.raises(GpuzooError, match="compress is not for generators"):
        compression._check(job, planned, 1.0)
    job.record["recipe"]["task"] = "forecast"
    with pytest.raises(GpuzooError, match="student needs a run that classifies images"):
        compression._check(job, forms.planned_forms(forms.Forms(student="mlp")), 1.0)


def test_the_page_states_what_the_record_holds():
    file = ROOT / "benchmarks" / "deploy" / "compress.py"
    spec = importlib.util.spec_from_file_location("compress_benchmark", file)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    record = json.loads(benchmark.RECORD.read_text())
    assert benchmark.table(record) in benchmark.PAGE.read_text()
    assert benchmark.broken(record["found"]) == []
    rows = {row["name"]: row for row in record["found"]["forms"]}
    rows["int8"]["times_smaller"], rows["width-0.25"]["lost"] = 3.4, 0.6
    faults = [line.split(":")[0] for line in benchmark.broken(record["found"])]
    assert faults == ["int8", "width-0.25"]
