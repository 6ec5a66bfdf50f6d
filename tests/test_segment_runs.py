"""Trainings on images with masks: what a run holds, and all that is done with it."""

import base64
import io
import json

import numpy as np
import PIL.Image
import pytest
from drawn_masks import examples, folder

import gpuzoo
from gpuzoo.data import mask_files, masks

SHORT = (
    "--epochs", "2", "--batch-size", "4", "--model-options", "filters=8", "depth=2",
    "--augment", "translate:1",
)  # fmt: skip
HOW = {
    "epochs": 40, "batch_size": 4, "model_options": ("filters=8", "depth=2"),
    "augment": ("translate:1",), "validation": 0.2, "keep": "best", "eval_every": 5,
    "monitor": "mean_iou", "quiet": True,
}  # fmt: skip
NAMES = ("ground", "tall house", "東京")


def street(place, count=36):
    image, mask = examples(count)
    mask[:3, 0] = masks.VOID
    made = folder(place / "street", image, mask)
    (made / "classes.txt").write_text("\n".join(NAMES))
    return made


@pytest.fixture(scope="module")
def town(runtime, tmp_path_factory):
    """A folder with images and masks, and a run that chose by validation images."""
    place = tmp_path_factory.mktemp("town")
    street(place)
    gpuzoo.train(
        "segmentation", data=str(place / "street"), out=str(place / "run"), **HOW,
    )  # fmt: skip
    return place


def record(run) -> dict:
    return json.loads((run / "run.json").read_text())


def test_a_run(town):
    found = record(town / "run")
    assert found["data"]["classes"] == list(NAMES)
    assert found["metrics"]["test_mean_iou"] > 0.9 and found["best"]["kept"]
    assert found["best"]["monitor"] == "val_mean_iou"
    rows = found["evaluation"]["per_class"]
    assert [row["name"] for row in rows] == list(NAMES)
    assert found["evaluation"]["mean_iou"] == found["metrics"]["test_mean_iou"]
    assert np.sum(found["evaluation"]["confusion"]) == sum(
        row["pixels"] for row in rows
    )
    assert {"segmentations.png", "confusion_of_pixels.png"} <= set(found["files"])
    page = (town / "run" / "report.html").read_text()
    for text in ("Segmentations", "mean IoU", "tall house", "IoU", "test mean_iou"):
        assert text in page, text


def test_it_is_verified_and_evaluated(town, cli_here, tmp_path):
    assert cli_here("verify", town / "run").json["verdict"] == "identical"
    done = cli_here("evaluate", town / "run", "--out", "told")
    assert done.json["identical"] and "tall house" in done.stdout
    head, *rows = (tmp_path / "told" / "per_class.csv").read_text().splitlines()
    assert head == "name,examples,pixels,iou,precision,recall" and len(rows) == 3
    for name in ("segmentations.png", "confusion_of_pixels.png", "confusion.csv"):
        assert (tmp_path / "told" / name).exists()


def test_a_photo_is_predicted_in_its_own_size(town, cli_here, tmp_path):
    image, mask = examples(36)
    photo = PIL.Image.fromarray(image[5]).resize((48, 60), PIL.Image.Resampling.NEAREST)
    photo.save(tmp_path / "photo.png")
    done = cli_here(
        "predict", town / "run", "photo.png", "--out", "seen", "--json-lines"
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[0])
    areas = {one["class"]: one["pixels"] for one in row["areas"]}
    assert sum(areas.values()) == 48 * 60 and set(areas) <= set(NAMES)
    assert sum(one["fraction"] for one in row["areas"]) == pytest.approx(1)
    names = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert names == sorted(row["out"]) == ["00001-photo-sheet.png", "00001-photo.png"]
    written = mask_files.read_mask(tmp_path / "seen" / "00001-photo.png")
    assert written.kind == "palette" and written.values.shape == (60, 48)
    large = mask_files.nearest(mask[5], (60, 48))
    assert (written.values == large)[large != masks.VOID].mean() > 0.97
    told = gpuzoo.load(town / "run").predict(image[5])
    assert np.array_equal(
        told["predicted"][0], mask_files.nearest(written.values, (20, 16))
    )
    assert told["confidence"].shape == (1, 20, 16) and told["confidence"].min() > 1 / 3
    shown = cli_here("predict", town / "run", "photo.png").stdout
    assert "ground" in shown and "%" in shown
    done = cli_here("predict", town / "run", "photo.png", "--top", "2")
    assert done.returncode == 2 and "--top is for classifiers" in done.stderr


def test_what_predict_gives_is_what_was_evaluated(town):
    """To the bit, on the run's own test images."""
    found = gpuzoo.evaluate(town / "run")
    told = gpuzoo.load(town / "run").predict(found["dataset"].test["image"])
    for name in ("predicted", "confidence"):
        assert np.array_equal(told[name], found["outputs"][name]), name


def test_evaluation_on_other_masks(town, cli_here, tmp_path):
    """Classes are found by their names, whatever their numbers."""
    image, mask = examples(12, seed=3)
    other = folder(tmp_path / "other", image, (mask + 1) % 3)
    (other / "classes.txt").write_text("\n".join([NAMES[2], NAMES[0], NAMES[1]]))
    done = cli_here("evaluate", town / "run", "--data", "other/")
    assert done.returncode == 0 and done.json["examples"] == 12, done.stderr
    assert (
        done.json["metrics"]["test_mean_iou"] > 0.85 and done.json["interval"] is None
    )
    (other / "classes.txt").unlink()
    done = cli_here("evaluate", town / "run", "--data", "other/")
    assert done.returncode == 2 and "class '0' is not a class of run" in done.stderr
    np.savez(tmp_path / "x.npz", x=image, y=np.arange(12) % 2)
    done = cli_here("evaluate", town / "run", "--data", "x.npz")
    assert done.returncode == 2 and "have no masks" in done.stderr


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--augment", "cutout:3"], "augment cutout:3 is not for masks"),
        (["--label-smoothing", "0.1"], "label_smoothing is for labels"),
        (
            ["--model", "cnn", "--model-options", "dense=9"],
            "model 'cnn' is for the task 'classify'",
        ),
        (["--model-options", "num_classes=3"], "cannot set num_classes"),
        (["--class-weight", "car:2"], "have no class 'car'"),
        (["--task", "classify"], "a class for each pixel; use the task segment"),
    ],
)
def test_what_is_refused(words, fault, town, cli_here, tmp_path):
    done = cli_here(
        "train", "segmentation", "--data", f"{town}/street/", *SHORT, *words
    )
    assert done.returncode == 2 and fault in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_killed_run_goes_on_to_the_same_bits(town, cli_here, tmp_path):
    asked = iter([False] * 30 + [True])

    class Stop(Exception):
        pass

    def watch(event):
        if next(asked, False):
            raise Stop

    with pytest.raises(Stop):
        gpuzoo.train(
            "segmentation", data=str(town / "street"), out=str(tmp_path / "run"),
            log_every=1, on_event=watch, **HOW,
        )  # fmt: skip
    assert record(tmp_path / "run")["state"] == "stopped"
    assert cli_here("resume", "run").returncode == 0
    ours, theirs = record(tmp_path / "run"), record(town / "run")
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert ours["evaluation"] == theirs["evaluation"]


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("jax", "float32"),
        ("tensorflow", "mixed_bfloat16"),
        ("tensorflow", "mixed_float16"),
    ],
)
def test_on_the_other_backend_and_in_16_bits(backend, precision, cli_on, tmp_path):
    street(tmp_path, 24)
    cli = cli_on(backend, precision)
    words = [
        "--epochs",
        "2",
        "--augment",
        "rotate:20",
        "random_resized_crop:0.7",
        "flip",
    ]
    done = cli(
        "train", "segmentation", "--data", "street/", "--out", "run", *SHORT, *words
    )
    assert done.returncode == 0, done.stderr
    assert np.isfinite(done.json["test_loss"]) and done.json["precision"] == precision
    for words in (
        ["verify", "run"],
        ["evaluate", "run"],
        ["predict", "run", "street/images"],
    ):
        done = cli(*words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_masks_that_have_changed_are_named(cli_here, tmp_path):
    made = street(tmp_path, 24)
    done = cli_here(
        "train",
        "segmentation",
        "--data",
        "street/",
        "--out",
        "run",
        *SHORT,
        "--epochs",
        "1",
    )
    assert done.returncode == 0, done.stderr
    (made / "classes.txt").write_text("a\nb\nc")
    done = cli_here("verify", "run")
    assert done.returncode == 2 and "classes" in done.stderr + done.stdout
    (made / "classes.txt").write_text("\n".join(NAMES))
    file = made / "masks" / "004.png"
    values = mask_files.read_mask(file).values.copy()
    values[1, 1] = 1
    file.write_bytes(masks.png(values))
    done = cli_here("verify", "run")
    assert done.returncode == 2 and "fingerprint" in done.stderr + done.stdout


# --- exported and served ---------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(town):
    pytest.importorskip("tf2onnx", reason="needs the extra export")
    from gpuzoo.deploy.export import export

    formats = ("onnx", "litert", "openvino", "saved_model", "stablehlo")
    found = export(town / "run", formats)
    assert not found["failures"], found["failures"]
    return found, town / "run-export"


def test_exported_masks_are_those_of_the_run(exported):
    found, _ = exported
    assert [one["name"] for one in found["outputs"]] == ["mask", "confidence"]
    assert found["classes"] == list(NAMES)
    for name, entry in found["formats"].items():
        parity = entry["parity"]
        assert parity["largest_difference"] < 1e-4, name
        assert parity["changed_predictions"] == 0 and parity["examples"] == 7
        assert (
            parity["metric"]["name"] == "mean IoU"
            and parity["metric"]["artefact"] > 0.9
        )


def test_the_service_answers_with_a_mask(exported, town):
    from gpuzoo.deploy.serve import app, artefact, pages
    from gpuzoo.deploy.serve.guard import Limits

    made, limits = artefact.load(exported[1]), Limits()
    image, _ = examples(36)
    wanted = gpuzoo.load(town / "run").predict(image[:2])
    body = json.dumps({"inputs": image[:2].tolist()}).encode()
    _, text = app.answer(made, limits, "application/json", body)
    rows = json.loads(text)["predictions"]
    for row, mask, sure in zip(
        rows, wanted["predicted"], wanted["confidence"], strict=True
    ):
        content = base64.b64decode(row["mask"])
        assert np.array_equal(mask_files.read_mask(content).values, mask)
        assert row["areas"] == masks.areas(mask, NAMES)
        assert row["confidence"] == pytest.approx(sure.mean(), abs=1e-4)
    content = io.BytesIO()
    PIL.Image.fromarray(image[0]).save(content, "png")
    _, text = app.answer(made, limits, "image/png", content.getvalue())
    assert json.loads(text)["predictions"] == rows[:1]
    described = json.dumps(pages.openapi(made, limits, False))
    assert '"contentMediaType": "image/png"' in described and "tall house" in described


def test_8_bits(town, cli_here):
    done = cli_here(
        "export",
        town / "run",
        "--to",
        "onnx",
        "--int8",
        "--out",
        "small",
        "--max-loss",
        "20",
    )
    assert done.returncode == 0, done.stderr
    entry = done.json["formats"]["onnx"]
    assert (
        entry["quantized"] == "int8" and entry["parity"]["metric"]["name"] == "mean IoU"
    )
