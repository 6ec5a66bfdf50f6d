"""`gpuzoo.load` gives what the training gave, to the bit, and refuses the rest."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, environment, skip_without
from small import two_classes

import gpuzoo
from gpuzoo.catalogue.architecture import Architecture
from gpuzoo.data import images
from gpuzoo.deploy import evaluate as evaluation
from gpuzoo.deploy import signing
from gpuzoo.deploy.serve.export import folder_of
from gpuzoo.runs.record import read_run, seal

PROGRAM = ROOT / "tests" / "programs" / "predicts.py"
HOW = {"precision": "float32", "device": "cpu", "threads": 2}


@pytest.fixture(scope="module")
def trained(runtime, tmp_path_factory) -> pathlib.Path:
    """A short run on a small .npz file."""
    top = tmp_path_factory.mktemp("loaded")
    np.savez(top / "tiny.npz", **two_classes())
    gpuzoo.train(
        "mnist_mlp", model_options=("units=8,8",), data=str(top / "tiny.npz"), epochs=4,
        batch_size=16, augment=(), learning_rate=0.003, out=str(top / "run"),
        quiet=True, **HOW,
    )  # fmt: skip
    return top / "run"


@pytest.fixture
def copy(trained, tmp_path):
    return pathlib.Path(shutil.copytree(trained, tmp_path / "copy"))


def edit(path: pathlib.Path, **changes) -> None:
    """Change the record of a run, as somebody who can seal it."""
    record = {**json.loads((path / "run.json").read_text()), **changes}
    record["seal"] = seal(record)
    (path / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_predictions_are_those_of_the_training(backend, tmp_path):
    """Every task, in fresh processes: what the training evaluated last is what the
    loaded run predicts and generates, to the bit."""
    skip_without(backend)
    for what in ("train", "load"):
        done = subprocess.run(
            [sys.executable, PROGRAM, what, backend, tmp_path, "float32"],
            capture_output=True, text=True, env=environment(tmp_path), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 5 and not any(found.values()), found


def test_what_is_loaded(trained):
    run, arrays = gpuzoo.load(trained), two_classes()
    assert run.classes == ("0", "1") and run.takes == "image"
    assert run.input_shape == (14, 14, 1) and run.batch == 40
    outputs = run.predict(arrays["x_test"])
    right = np.mean(outputs["predicted"] == arrays["y_test"])
    assert right == run.record["metrics"]["test_accuracy"]
    # One image, with or without its channel, is a batch of one; so are floats.
    for one in (arrays["x_test"][3], arrays["x_test"][3, ..., 0],
                arrays["x_test"][3:4].astype(np.int64)):  # fmt: skip
        alone = run.predict(one)
        assert alone["logits"].tobytes() == outputs["logits"][3:4].tobytes()
    near = run.predict(arrays["x_test"].astype("f4") / 255)["logits"]
    np.testing.assert_allclose(near, outputs["logits"], rtol=1e-5, atol=1e-5)
    # More than a batch: each as it is in its own batch.
    done = []
    twice = run.predict(np.concatenate([arrays["x_test"]] * 2), progress=done.append)
    assert twice["logits"][40:].tobytes() == outputs["logits"].tobytes()
    assert done == [40, 80]


@pytest.mark.parametrize(
    "examples, fault",
    [
        (np.zeros((2, 14, 15, 1), np.uint8), "shape of the examples must be"),
        (np.zeros((0, 14, 14, 1), np.uint8), "no examples"),
        (np.full((1, 14, 14, 1), np.nan, "f4"), "must be finite"),
        (np.full((1, 14, 14, 1), 1.5, "f4"), "floats in"),
        (np.full((1, 14, 14, 1), -1), "integers in"),
        (np.full((1, 14, 14, 1), "a"), "must be numbers"),
        (np.full((1, 14, 14, 1), None), "must be numbers"),
    ],
)
def test_examples_that_do_not_fit(trained, examples, fault):
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        gpuzoo.load(trained).predict(examples)


def test_a_classifier_generates_nothing(trained):
    with pytest.raises(gpuzoo.GpuzooError, match="does not generate images"):
        gpuzoo.load(trained).sample(4)


def test_an_unknown_option(trained):
    with pytest.raises(gpuzoo.GpuzooError, match="no 'prescision'; nearest: precision"):
        gpuzoo.load(trained, prescision="float32")


@pytest.mark.parametrize("state", ["running", "failed", "diverged"])
def test_a_run_that_has_not_ended(copy, state):
    edit(copy, state=state)
    with pytest.raises(gpuzoo.GpuzooError, match=f"has not finished .{state}"):
        gpuzoo.load(copy)


@pytest.mark.parametrize("damage", ["flip", "cut", "long", "missing", "link", "pipe"])
def test_weights_that_are_not_those_of_the_run(copy, damage):
    file = copy / "weights.safetensors"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flip":
        content[-3] ^= 1
    if damage == "cut":
        del content[-9:]
    if damage == "long":
        content += b"more"
    if damage == "link":
        (copy / "elsewhere").write_bytes(content)
        file.symlink_to(copy / "elsewhere")
    elif damage == "pipe":
        os.mkfifo(file)
    elif damage != "missing":
        file.write_bytes(content)
    with pytest.raises(gpuzoo.GpuzooError, match="weights.*; restore it from a copy"):
        gpuzoo.load(copy)


def test_a_path_without_a_run_names_the_runs_near_it(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/mnist-001", "runs/tones-002", "other"):
        shutil.copytree(copy, name)
    os.mkdir("runs/empty")
    near = {
        "runs/mnist-01": "there is no such folder; nearest: runs/mnist-001, ",
        "rums/mnist-001": "there is no such folder; nearest: runs/mnist-001, ",
        "runs": "it has no run.json; nearest: runs/",
        "runs/empty": "it has no run.json; nearest: runs/",
        "othr": "there is no such folder; nearest: other, ",
        "other/run.json": "it is a file; name other",
    }
    for path, text in near.items():
        with pytest.raises(gpuzoo.GpuzooError) as caught:
            gpuzoo.load(path)
        assert f"{path} is not a run folder: {text}" in str(caught.value)
    with pytest.raises(gpuzoo.GpuzooError, match="other2 is not .* nearest: other, "):
        signing._open(pathlib.Path("other2"))
    with pytest.raises(gpuzoo.GpuzooError, match="neither a run folder nor .* other, "):
        folder_of("othr")


def test_a_model_larger_than_its_weights_is_not_allocated(copy):
    """A record that asks for terabytes is refused before anything is allocated."""
    recipe = read_run(copy)["recipe"]
    edit(copy, recipe={**recipe, "model_options": ["units=2000000,2000000"]})
    with pytest.raises(gpuzoo.GpuzooError, match=r"more than [\d,]+ bytes of weights"):
        gpuzoo.load(copy)


def test_an_architecture_larger_than_its_weights(tmp_path, runtime):
    import keras

    np.savez(tmp_path / "tiny.npz", **two_classes())
    model = keras.Sequential(
        [keras.Input((14, 14, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    gpuzoo.train(model, data=str(tmp_path / "tiny.npz"), epochs=1, batch_size=16,
                 out=str(tmp_path / "run"), quiet=True, **HOW)  # fmt: skip
    run = gpuzoo.load(tmp_path / "run")
    images = two_classes()["x_test"]
    outputs = run.predict(images)["logits"]
    np.testing.assert_allclose(outputs, model(images / 255), rtol=1e-4, atol=1e-5)
    file = tmp_path / "run" / "architecture.json"
    text = file.read_text().replace('"units": 2', '"units": 2000000000')
    assert "2000000000" in text
    file.write_text(text)
    edit(
        tmp_path / "run", architecture_sha256=hashlib.sha256(text.encode()).hexdigest()
    )
    with pytest.raises(gpuzoo.GpuzooError, match=r"more than [\d,]+ bytes of weights"):
        gpuzoo.load(tmp_path / "run")


OWN = """
import keras
import gpuzoo

@gpuzoo.register(task="classify", reference="none")
def net(
    *, input_shape: tuple[int, int, int] = (14, 14, 1), num_classes: int = 2
) -> keras.Model:
    "A small network."
    x = keras.Input(input_shape)
    y = keras.layers.Dense({units})(keras.layers.Flatten()(x))
    return keras.Model(x, keras.layers.Dense(num_classes)(y))
"""


def test_code_of_the_users(tmp_path, runtime):
    """It is executed only if trusted, and not if it has changed."""
    np.savez(tmp_path / "tiny.npz", **two_classes())
    file = tmp_path / "own.py"
    file.write_text(OWN.format(units=4))
    gpuzoo.train("mnist", model=f"{file}:net", model_options=(), epochs=1, augment=(),
                 data=str(tmp_path / "tiny.npz"), batch_size=16, quiet=True,
                 out=str(tmp_path / "run"), **HOW)  # fmt: skip
    with pytest.raises(gpuzoo.GpuzooError, match="trust_code=True"):
        gpuzoo.load(tmp_path / "run")
    lines = []
    run = gpuzoo.load(tmp_path / "run", trust_code=True, note=lines.append)
    assert run.predict(two_classes()["x_test"])["logits"].shape == (40, 2)
    assert any("own code" in line for line in lines)
    file.write_text(OWN.format(units=4) + "\n\ndef other():\n    return 1\n")
    with pytest.raises(gpuzoo.GpuzooError, match="changed or missing"):
        gpuzoo.load(tmp_path / "run", trust_code=True)
    gpuzoo.load(tmp_path / "run", trust_code=True, allow_drift=True)


# --- evaluate -------------------------------------------------------------------------


def test_evaluated_again_it_is_identical(trained):
    found = gpuzoo.evaluate(trained)
    assert found["identical"] and found["exit_code"] == 0 and not found["differences"]
    confusion = np.array(found["confusion"])
    right = np.trace(confusion) / confusion.sum()
    assert right == found["metrics"]["test_accuracy"] and confusion.sum() == 40
    assert confusion.sum(axis=1).tolist() == [r["examples"] for r in found["per_class"]]
    assert found["interval"]["low"] < right <= found["interval"]["high"]
    assert found["log_loss"] == pytest.approx(found["metrics"]["test_loss"], rel=1e-5)


def test_metrics_that_differ_without_a_reason(copy):
    metrics = read_run(copy)["metrics"]
    edit(copy, metrics={**metrics, "test_loss": np.nextafter(metrics["test_loss"], 9)})
    found = gpuzoo.evaluate(copy)
    assert found["identical"] is False and found["exit_code"] == 1


def test_other_data(trained, tmp_path):
    """A file without a test part is evaluated whole; classes are matched by name."""
    arrays, lines = two_classes(), []
    names = np.array(["1", "0"])[arrays["y_test"]]  # the labels the wrong way round
    np.savez(tmp_path / "other.npz", x=arrays["x_test"], y=names)
    found = gpuzoo.evaluate(
        trained, data=str(tmp_path / "other.npz"), note=lines.append
    )
    assert found["identical"] is None and found["examples"] == 40
    right = read_run(trained)["metrics"]["test_accuracy"]
    assert found["metrics"]["test_accuracy"] == pytest.approx(1 - right)
    assert any("all 40 examples" in line for line in lines)


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"y": np.array(["0", "cat"])[np.arange(40) % 2]}, "'cat' is not a class"),
        ({"x": np.zeros((40, 13, 14, 1), np.uint8)}, "takes \\(14, 14, 1\\)"),
        ({"y": None}, "have no labels"),
    ],
)
def test_other_data_that_do_not_fit(trained, tmp_path, change, fault):
    arrays = two_classes()
    arrays = {"x": arrays["x_test"], "y": arrays["y_test"], **change}
    np.savez(tmp_path / "o.npz", **{k: a for k, a in arrays.items() if a is not None})
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        gpuzoo.evaluate(trained, data=str(tmp_path / "o.npz"))


def test_data_that_have_changed(copy):
    data = copy.parent / "other.npz"
    arrays = two_classes()
    arrays["x_test"][0, 0, 0] ^= 1
    np.savez(data, **arrays)
    edit(copy, recipe={**read_run(copy)["recipe"], "data": str(data)})
    with pytest.raises(gpuzoo.GpuzooError, match="have changed .--data evaluates"):
        gpuzoo.evaluate(copy)


def test_what_is_written(trained, tmp_path):
    found = gpuzoo.evaluate(trained)
    evaluation.write(str(tmp_path / "out"), found)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"evaluation.json", "confusion.csv", "per_class.csv"} <= written
    assert "confusion.png" in written
    read = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert read["metrics"] == found["metrics"]
    lines = (tmp_path / "out" / "confusion.csv").read_text().splitlines()
    assert lines[0] == "true class,0,1" and len(lines) == 3
    with pytest.raises(gpuzoo.GpuzooError, match="exists; name a new folder"):
        evaluation.check_new(str(tmp_path / "out"))


def test_the_command(cli, trained, tmp_path):
    done = cli("evaluate", trained, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "identical to the run's own evaluation" in done.stdout
    assert done.json["identical"] and (tmp_path / "out" / "confusion.png").exists()
    done = cli("evaluate", trained, "--precision", "mixed_bfloat16")
    assert done.returncode == 0 and done.json["identical"] is False
    assert "precision" in done.json["differences"][0]
    done = cli("evaluate", tmp_path)
    assert done.returncode == 2 and "is not a run folder" in done.stderr


def test_a_model_object_computes_in_the_precision_that_is_asked_for(cli, tmp_path):
    """Its layers hold the dtype policy that it was built for."""
    np.savez(tmp_path / "tiny.npz", **two_classes())
    program = """
import sys, gpuzoo
gpuzoo.configure(precision="mixed_bfloat16", device="cpu", quiet=True)
import keras
L = keras.layers
net = keras.Sequential([keras.Input((14, 14, 1)), L.Flatten(), L.Dense(8, "relu"),
                        L.Dense(2)])
gpuzoo.train(net, data="tiny.npz", epochs=1, batch_size=16, out="run", quiet=True)
"""
    load = """
import sys, gpuzoo
run = gpuzoo.load("run", precision=sys.argv[1])
print(*{layer.compute_dtype for layer in run.model.layers})
"""
    for text, words in (
        (program, ()),
        (load, ("float32",)),
        (load, ("mixed_float16",)),
    ):
        done = cli(*words, program=("-c", text))
        assert done.returncode == 0, done.stderr
        if words:
            assert done.stdout.strip() == words[0].removeprefix("mixed_")
    text = (tmp_path / "run" / "architecture.json").read_text()
    text = text.replace("mixed_bfloat16", "float32")
    with pytest.raises(gpuzoo.GpuzooError, match="was built for float32"):
        Architecture(text).with_policy("float32", "mixed_bfloat16")


def test_another_series(tmp_path, runtime):
    """Its windows, and those that its baselines are fitted to, are in the run's scale."""
    gpuzoo.train("forecast", model_options=("units=4", "layers=1"), fast_dev_run=True,
                 out=str(tmp_path / "run"), quiet=True, **HOW)  # fmt: skip
    values = 500 + 30 * np.sin(np.arange(800) / 5)
    lines = [f"{value:.6f}" for value in values]
    (tmp_path / "sine.csv").write_text("\n".join(["value", *lines]) + "\n")
    told = []
    found = gpuzoo.evaluate(
        tmp_path / "run", data=str(tmp_path / "sine.csv"), note=told.append
    )
    # A linear rule continues a sine exactly, in any scale.
    assert found["metrics"]["test_linear"] < 1e-2 * found["metrics"]["test_seasonal"]
    assert found["interval"] is None and any("the last fifth" in line for line in told)
    edit(tmp_path / "run", data={k: v for k, v in read_run(tmp_path / "run")["data"].items()
                                 if k != "scale"})  # fmt: skip
    with pytest.raises(gpuzoo.GpuzooError, match="did not record the scale"):
        gpuzoo.evaluate(tmp_path / "run", data=str(tmp_path / "sine.csv"))


def test_a_folder_of_the_name_of_a_dataset(trained, tmp_path, monkeypatch):
    """It is not what is evaluated."""
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gpuzoo.GpuzooError, match="takes .14, 14, 1."):
        gpuzoo.evaluate(trained, data="digits")


def test_colour_images_for_a_model_of_grey_ones(trained, tmp_path):
    """They are converted, as Pillow does it but for rounding, and that is said."""
    arrays, lines = two_classes(), []
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 256, (40, 14, 14, 3)).astype(np.uint8)
    np.savez(tmp_path / "colour.npz", x=colour, y=arrays["y_test"])
    found = gpuzoo.evaluate(
        trained, data=str(tmp_path / "colour.npz"), note=lines.append
    )
    assert found["examples"] == 40 and any("converted to grey" in x for x in lines)
    grey = [PIL.Image.fromarray(image).convert("L") for image in colour]
    ours = images.with_channels(colour, 1)[..., 0].astype(int)
    assert np.abs(ours - np.stack(grey).astype(int)).max() <= 1
    assert images.with_channels(ours[..., None], 3).shape == colour.shape


def test_generators_and_others_are_evaluated(tmp_path, runtime):
    """Whatever the task, the metrics are those of the run."""
    changes = {
        "mnist_gan": {"model_options": ("filters=8,16",)},
        "mnist_autoencoder": {}, "forecast": {"model_options": ("units=4",)},
    }  # fmt: skip
    for name, more in changes.items():
        data = {} if name == "forecast" else {"data": "digits"}
        gpuzoo.train(name, fast_dev_run=True, quiet=True, out=str(tmp_path / name),
                     **data, **more, **HOW)  # fmt: skip
        found = gpuzoo.evaluate(tmp_path / name)
        assert found["identical"] and "per_class" not in found
        assert repr(gpuzoo.load(tmp_path / name)).startswith(f"<Trained {name}: ")
