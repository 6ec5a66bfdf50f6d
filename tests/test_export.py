"""`gpuzoo export`: each format equals the run, in its own runtime and without Keras."""

import hashlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, environment, needs_jax, needs_tensorflow
from small import RECIPE, splits, two_classes

import gpuzoo
from gpuzoo import workers
from gpuzoo.catalogue import registry
from gpuzoo.deploy import export as exports
from gpuzoo.deploy import parity, runtimes
from gpuzoo.errors import GpuzooError

pytestmark = needs_tensorflow
for package in ("onnxruntime", "openvino", "ai_edge_litert", "tf2onnx"):
    pytest.importorskip(package, reason="needs the extra export")
TO = ("saved_model", "onnx", "litert", "openvino")
TRAIN = (
    "train", "mnist", "--model-options", "filters=(4,8)", "dense=16", "--tta", "flip",
    "--epochs", "8", "--batch-size", "8", "--device", "cpu", "--threads", "2", "--quiet",
)  # fmt: skip


def command(words, folder, before=(), **env):
    """Run a command in a folder; return the process with its JSON line."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "gpuzoo", *map(str, words)], cwd=folder,
        env={**environment(folder), **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    done.json = json.loads(lines[-1]) if lines and lines[-1][:1] == "{" else None
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run of its own data, tta and precision: `run`."""
    folder = tmp_path_factory.mktemp("export")
    np.savez(folder / "tiny.npz", **two_classes())
    words = [*TRAIN, "--data", folder / "tiny.npz", "--out", "run"]
    done = command(words, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(home):
    """The run in every format of TensorFlow, with the calls of the export traced."""
    (home / "home").mkdir()
    trace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", home / "calls"]
    before = trace if shutil.which("strace") else []
    words = ["export", "run", "--to", ",".join(TO)]
    done = command(words, home, before, HOME=str(home / "home"))
    assert done.returncode == 0, done.stderr
    return home / "run-export", done


def test_the_record_says_what_the_files_are(home, exported):
    folder, done = exported
    record = json.loads((folder / "export.json").read_text())
    run = json.loads((home / "run" / "run.json").read_text())
    assert record["weights_sha256"] == run["weights_sha256"]
    assert record["run_id"] == run["id"] and record["schema"] == 1
    assert record["classes"] == run["data"]["classes"]
    assert record["input"]["dtype"] == "uint8"
    assert record["input"]["shape"] == [None, 14, 14, 1]
    assert "test-time augmentation: flip" in record["inside"]
    assert list(record["formats"]) == list(TO)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    named = set()
    for entry in record["formats"].values():
        for name, digest in entry["files"].items():
            content = (folder / name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest
            named.add(name)
        found = entry["parity"]
        assert found["examples"] == 40 and found["latency_us"]["batch_1"] > 0
        assert found["compared_with"] == "run"
        assert found["bounds"] == {"max_difference": 1e-3, "max_changed": 0.02}
        assert found["largest_difference"] < 1e-5 and found["changed_from_float32"] == 0
        assert found["metric"]["artefact"] == pytest.approx(
            run["metrics"]["test_accuracy"], abs=0.026
        )
    assert there == named | {"export.json"}
    assert record["formats"]["onnx"]["opset"] == 17
    assert done.json["folder"] == str(folder) and done.json["failures"] == []


def test_no_library_phones_home(home, exported):
    written = {p.name for p in (home / "home").rglob("*") if p.is_file()}
    assert written <= {"keras.json"}  # Keras's settings, written by every import
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    calls = (home / "calls").read_text()
    assert "AF_INET" not in calls, calls[:2000]


def test_other_images_in_batches_of_any_size(home, exported, runtime):
    """Images that no export has seen, through each file and through gpuzoo.load."""
    folder, _ = exported
    images = np.random.default_rng(5).integers(0, 256, (7, 14, 14, 1), np.uint8)
    wanted = gpuzoo.load(home / "run").predict(images)
    for name in TO:
        model = runtimes.open_model(folder / runtimes.FORMATS[name][0], name)
        for rows in (slice(0, 1), slice(1, 7), slice(0, 3)):
            found = model({"image": images[rows]})["probabilities"]
            assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)
            assert found.max(axis=1) == pytest.approx(
                wanted["confidence"][rows], abs=1e-5
            )
            assert (found.argmax(axis=1) == wanted["predicted"][rows]).all()


def test_again_to_the_bit_and_nothing_is_written_beyond_a_bound(home, exported):
    """A second export has the same files, and says no to an impossible bound."""
    folder, _ = exported
    words = ["export", "run", "--to", "onnx", "litert", "openvino", "--out", "no"]
    done = command([*words, "--max-difference", "0"], home)
    assert done.returncode == 1, done.stderr
    assert "above --max-difference 0" in done.stdout and not done.json["folder"]
    assert not (home / "no").exists()
    assert not [p for p in home.iterdir() if p.name.startswith(".gpuzoo")]
    first = json.loads((folder / "export.json").read_text())["formats"]
    for name in ("onnx", "litert", "openvino"):
        assert done.json["formats"][name]["files"] == first[name]["files"], name


def test_int8(home, exported):
    done = command(["export", "run", "--int8", "--to", "litert,onnx"], home)
    assert done.returncode == 0, done.stdout + done.stderr
    plain = json.loads((exported[0] / "export.json").read_text())["formats"]
    for name, entry in done.json["formats"].items():
        assert entry["quantized"] == "int8"
        assert entry["parity"]["bounds"] == {"max_loss": 1.0}
        assert entry["sha256"] != plain[name]["sha256"]
        assert entry["parity"]["largest_difference"] > 1e-5  # it is no float32
        metric = entry["parity"]["metric"]
        assert metric["artefact"] >= metric["run"] - 0.01
    assert (home / "run-export-int8" / "model.tflite").is_file()


@needs_jax
def test_stablehlo_of_a_run(home):
    done = command(["export", "run", "--to", "stablehlo", "--out", "hlo"], home)
    assert done.returncode == 0, done.stderr
    assert "in their last bits" not in done.stderr  # JAX has no oneDNN to compare
    found = done.json["formats"]["stablehlo"]["parity"]
    assert found["largest_difference"] < 1e-5 and found["examples"] == 40


def test_the_code_of_the_page(exported, tmp_path):
    """docs/howto/export.md: a prediction with ONNX Runtime and NumPy alone."""
    page = (ROOT / "docs" / "howto" / "export.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert "28, 28" in code and "mnist-export" in code
    code = code.replace("28, 28", "14, 14").replace("mnist-export", str(exported[0]))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_page_of_formats_is_that_of_the_record(runtime, monkeypatch):
    """docs/explanation/formats.md: no file in float32 is refused or fails its check."""
    monkeypatch.setattr(registry, "_registered", {})  # of other tests
    script = ROOT / "benchmarks" / "deploy" / "parity.py"
    spec = importlib.util.spec_from_file_location("deploy_parity", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    record = json.loads(module.RECORD.read_text())
    assert module.PAGE.read_text() == module.table(record)
    for key, row in record["rows"].items():
        if "float32" in key:
            assert "refused" not in row and not row["failures"], key


# --- the comparison finds what is wrong ----------------------------------------------


def compare(folder, arrays, **changes):
    """Compare the ONNX file with arrays, some of them changed."""
    for name in ("inputs", "targets", "float32", "run"):
        np.savez(arrays / f"{name}.npz", **changes.get(name, BASE[name]))
    request = {
        "path": str(folder / "model.onnx"), "format": "onnx", "arrays": str(arrays),
        "batch": 16, "threads": 1, "tolerance": 1e-3, "run_tolerance": 1e-3,
    }  # fmt: skip
    return workers.ask("gpuzoo.deploy.parity", request, environment(arrays))


BASE: dict = {}


def test_planted_changes_are_counted(exported, tmp_path):
    folder, _ = exported
    images = np.random.default_rng(3).integers(0, 256, (50, 14, 14, 1), np.uint8)
    model = runtimes.open_model(folder / "model.onnx", "onnx")
    right = model({"image": images})
    label = right["probabilities"].argmax(axis=1)
    BASE.update(inputs={"image": images}, targets={"label": label})
    BASE.update(float32=right, run=right)
    same = compare(folder, tmp_path)
    assert same["largest_difference"] < 1e-6 and same["changed_predictions"] == 0
    assert same["metric"] == {"name": "accuracy", "run": 1.0, "artefact": 1.0}
    other = {"probabilities": right["probabilities"].copy()}
    other["probabilities"][[4, 17, 49]] = other["probabilities"][[4, 17, 49], ::-1]
    found = compare(folder, tmp_path, run=other)
    assert found["changed_predictions"] == 3 and found["changed_from_float32"] == 0
    assert found["metric"]["run"] == pytest.approx(47 / 50)
    broken = {"probabilities": right["probabilities"].copy()}
    broken["probabilities"][8, 0] = np.nan
    found = compare(folder, tmp_path, float32=broken)
    assert found["largest_difference"] is None
    shape = {"probabilities": right["probabilities"][:, :1]}
    assert "has shape" in compare(folder, tmp_path, float32=shape)["error"]


def test_detections_are_matched_in_any_order():
    boxes = np.float32([[[0, 0, 8, 8], [20, 20, 30, 30], [5, 5, 9, 9]]])
    label, score = np.int32([[3, 1, 2]]), np.float32([[0.9, 0.9, 0.1]])
    one = {"boxes": boxes, "label": label, "score": score}
    turned = {name: array[:, [1, 0, 2]] for name, array in one.items()}
    assert not parity._changed(turned, one, 0).any()
    for name, at, value in (("label", 0, 7), ("score", 1, 0.05), ("boxes", 1, 0)):
        spoiled = {key: array.copy() for key, array in one.items()}
        spoiled[name][0, at] = value
        assert parity._changed(spoiled, one, 0).all(), name
    unsure = {**one, "label": np.int32([[3, 1, 9]])}  # of a detection that is no answer
    assert not parity._changed(unsure, one, 0).any()


PLAIN = {"backend": "tensorflow", "device": "cpu", "precision": "float32", "xla": False}


@pytest.mark.parametrize("formats, changes, missing, other, found", [
    (("onnx",), {}, False, False, "run"),
    (("stablehlo", "litert"), {}, False, False, "run"),
    (("stablehlo",), {}, False, True, "run"),  # float32.npz is JAX's
    (("onnx",), {"backend": "jax"}, False, True, "run"),
    (("onnx",), {"precision": "mixed_bfloat16"}, False, True, "run"),
    (("onnx",), {"xla": True}, True, False, "float32"),
    (("stablehlo",), {}, True, False, "float32"),
])  # fmt: skip
def test_whose_predictions_are_compared(
    formats, changes, missing, other, found, tmp_path, monkeypatch
):
    """Those of float32 are the run's only if the run's backend made them."""

    def ask(request):
        if missing:
            raise GpuzooError("it is not installed")
        assert request["backend"] == "" and request["predictions"] == "run"
        (tmp_path / "run.npz").write_bytes(b"the run's")

    monkeypatch.setattr(exports, "ask", ask)
    (tmp_path / "float32.npz").write_bytes(b"float32")
    job, record = {"arrays": str(tmp_path)}, {"runtime": {**PLAIN, **changes}}
    done = exports._predict_as_the_run(job, record, formats, lambda line: None)
    assert done == found
    content = (tmp_path / "run.npz").read_bytes()
    assert content == (b"the run's" if other else b"float32")


def test_a_replaced_run_has_the_tolerance_of_float32(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(exports, "ask", lambda job, _: seen.append(job) or {"n": 1})
    made = {"outputs": [{"dtype": "float32"}], "batch": 8}
    record = {"runtime": {**PLAIN, "precision": "float16"}}
    for whose, tolerance in (("run", 0.05), ("float32", 1e-3)):
        found = exports._check(
            "onnx", tmp_path, str(tmp_path), made, exports.Bounds(), record, whose
        )
        assert found == {"n": 1, "tolerance": 1e-3, "compared_with": whose}
        assert seen[-1]["run_tolerance"] == tolerance
    parity = {"largest_difference": 0, "changed_predictions": 9, "examples": 10}
    for whose, told in (
        ("run", "not the run's"),
        ("float32", "not Keras's in float32"),
    ):
        entry = {"quantized": None, "parity": {**found, **parity}}
        entry["parity"]["compared_with"] = whose
        about = {"formats": {"onnx": entry}, "generates": False,
                 "trained_with": {"precision": "float16"}}  # fmt: skip
        (line,) = exports._faults("onnx", about, exports.Bounds())
        assert f"9 of 10 predictions are {told}, above" in line


def test_a_loss_above_the_limit_fails():
    def faults(run, now, name="accuracy", **entry):
        metric = {"name": name, "run": run, "artefact": now}
        parity = {"metric": metric, "compared_with": "run"}
        entry = {"quantized": "int8", "parity": parity, **entry}
        return exports._faults("onnx", {"formats": {"onnx": entry}}, exports.Bounds())

    assert not faults(0.99, 0.981) and not faults(0.99, 0.995)
    assert "points less" in faults(0.99, 0.979)[0]
    assert not faults(0.5, 0.504, "error")
    assert "percent more" in faults(0.5, 0.506, "error")[0]
    assert faults(0.5, None, "error") and faults(0.99, None)


# --- graphs that tf2onnx does not convert ---------------------------------------------


def to_onnx(function, shape, tmp_path):
    import tensorflow as tf

    from gpuzoo.deploy.formats.tensorflow import to_onnx as convert

    spec = tf.TensorSpec([None, *shape], tf.float32, name="x")
    traced = tf.function(lambda x: {"y": function(x)}, autograph=False)
    model = convert(traced.get_concrete_function(x=spec))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return runtimes.open_model(tmp_path / "model.onnx", "onnx")


@pytest.mark.parametrize("length", [16, 30])
def test_erfc_and_the_parts_of_a_spectrum_are_repaired(length, runtime, tmp_path):
    import tensorflow as tf

    def function(x):
        spectrum = tf.signal.rfft(x, [length])
        parts = tf.concat([tf.math.real(spectrum), tf.math.imag(spectrum)], axis=-1)
        return tf.concat([parts, tf.math.erfc(x), 1 - tf.math.erfc(x * 0.3)], axis=-1)

    x = np.random.default_rng(2).normal(size=(5, 3, length)).astype(np.float32)
    found = to_onnx(function, (3, length), tmp_path)({"x": x})["y"]
    spectrum = np.fft.rfft(x)
    size = length // 2 + 1
    assert found[..., :size] == pytest.approx(spectrum.real, abs=2e-5)
    assert found[..., size : 2 * size] == pytest.approx(spectrum.imag, abs=2e-5)
    assert found[..., 2 * size :] == pytest.approx(
        np.array(function(x))[..., 2 * size :], abs=1e-6
    )


@pytest.mark.parametrize("name", ["lgamma", "igammac"])
def test_an_operation_that_onnx_lacks_is_refused(name, runtime, tmp_path):
    import tensorflow as tf

    functions = {
        "lgamma": tf.math.lgamma, "igammac": lambda x: tf.math.igammac(x, x + 1)
    }  # fmt: skip
    with pytest.raises(GpuzooError, match="^ONNX: .*[Gg]amma"):
        to_onnx(functions[name], (3,), tmp_path)


# --- what is compared ------------------------------------------------------------------


@pytest.mark.parametrize("task, model, options", [
    ("detect", "detector", ("filters=(4,8,16)", "depth=1")),
    ("video_prediction", "conv_lstm", ("filters=(4,)",)),
])  # fmt: skip
def test_the_examples_are_those_of_the_evaluation(task, model, options, runtime):
    """The scenes and films that a file is compared on are made inside the evaluation."""
    from gpuzoo import tasks
    from gpuzoo.data.validate import make_dataset
    from gpuzoo.training.build import build_model

    dataset = make_dataset("tiny", "", splits(two_classes()))
    recipe = RECIPE.override(
        task=task, model=model, model_options=options, augment=()
    )  # fmt: skip
    network = build_model(recipe, dataset)
    made = tasks.load(task)(
        model=network, recipe=recipe, dataset=dataset, runtime=runtime
    )
    made.begin([], dataset)
    rows = np.int32([3, 1, 4, 15, 9, 2])
    batch = {name: array[rows] for name, array in dataset.test.items()}
    wanted = made.evaluate({**batch, "index": rows})
    found = made.inputs({**batch, "index": rows})
    if task == "detect":
        pairs = [(found["image"], wanted["canvas"])]
    else:
        films = np.array(found["image"])
        pairs = [(films[:, -1], wanted["last"]), (found["target"], wanted["next"])]
        again = np.array(made.infer({"image": films})["forecast"]).astype(int)
        assert np.abs(again - np.array(wanted["forecast"])).max() <= 2  # rounded pixels
    for one, other in pairs:
        one = np.array(one)
        assert one.dtype == np.uint8 and one.any() and (one == np.array(other)).all()


# --- refused before anything starts ---------------------------------------------------


@pytest.mark.parametrize("options, line", [
    ({"formats": ("onxx",)}, "nearest: onnx"),
    ({"formats": ("TFLite",)}, r"to must be some of .* nearest: litert \(the new name"),
    ({"formats": ("onnx", "pb")}, "nearest: saved_model"),
    ({"formats": ("ir",)}, "nearest: openvino"),
    ({"formats": ()}, "to must name formats"),
    ({"formats": ("onnx", "onnx")}, "each once"),
    ({"formats": ("openvino",), "int8": True}, "--int8 is for litert and onnx"),
    ({"int8": True, "generate": True}, "not for generators"),
    ({"int8": True, "calibration": 0}, "calibration must be at least 1"),
    ({"bounds": exports.Bounds(max_changed=-1)}, "max_changed must be 0 or more"),
    ({"out": "."}, "exists; remove it"),
    ({"out": "nowhere/made"}, "there is no folder"),
])  # fmt: skip
def test_wrong_use_is_refused_at_once(options, line, home, monkeypatch, capfd):
    monkeypatch.chdir(home)
    monkeypatch.setattr(workers, "ask", None)  # nothing is started
    before = sorted(home.iterdir())
    with pytest.raises(GpuzooError, match=line):
        exports.export("run", **options)
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize("name, package, extra", [
    ("onnx", "tf2onnx", "export"), ("litert", "ai_edge_litert", "export"),
    ("openvino", "openvino", "export"), ("saved_model", "tensorflow", "tensorflow"),
    ("stablehlo", "jax", "jax"),
])  # fmt: skip
def test_a_missing_library_names_its_extra(name, package, extra, home, monkeypatch):
    monkeypatch.setattr(exports, "is_installed", lambda one: one != package)
    with pytest.raises(GpuzooError, match=rf"{package}, .*'gpuzoo\[{extra}\]'"):
        exports.export(home / "run", (name,))


def test_a_worker_that_fails_leaves_nothing(home, monkeypatch):
    monkeypatch.setattr(workers, "ask", lambda *_: {"error": "killed by signal 9"})
    before = sorted(home.iterdir())
    with pytest.raises(GpuzooError, match="killed by signal 9"):
        exports.export(home / "run", ("onnx",), out=home / "made")
    assert sorted(home.iterdir()) == before


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="no signals")
def test_an_export_that_is_ended_leaves_nothing(home):
    before = sorted(home.iterdir())
    words = [sys.executable, "-m", "gpuzoo", "export", "run", "--to", "saved_model"]
    process = subprocess.Popen([*words, "--out", "ended"], cwd=home, text=True,
                               stderr=subprocess.PIPE, env=environment(home))  # fmt: skip
    assert "converting" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in stderr
    assert sorted(home.iterdir()) == before
