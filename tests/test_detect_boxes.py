"""Detection on own boxes: boxes move with their images, and a run on them is repeated,
evaluated, exported and served."""

import json

import keras
import numpy as np
import PIL.Image
import pytest
from drawn_boxes import CLASSES, coco, examples, yolo
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.data import boxes as data_boxes
from gpuzoo.engine import checkpoint
from gpuzoo.tasks import augment, augment_boxes, detect
from gpuzoo.training.build import build_model

BOXES = RECIPE.override(
    name="find", task="detect", model="detector", augment=("translate:2", "flip"),
    epochs=3, model_options=("filters=(4,8,16)", "depth=2"), batch_size=8,
)  # fmt: skip


def tensor(values, dtype="float32"):
    return keras.ops.convert_to_tensor(np.asarray(values, dtype))


def dataset_of(count=48):
    image, corners, labels = examples(count)
    rows = [
        data_boxes.rows(
            np.array(b, float).reshape(-1, 4)[:, [1, 0, 3, 2]], k, [0] * len(k)
        )
        for b, k in zip(corners, labels, strict=True)
    ]
    objects, cut = data_boxes.padded(rows), 2 * count // 3
    splits = {
        "train": {"image": image[:cut], "objects": objects[:cut]},
        "test": {"image": image[cut:], "objects": objects[cut:]},
    }
    return data_boxes.make_dataset("street", "made up", splits, CLASSES)


# --- augmentation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [("flip",), ("alternating_flip",), ("translate:9",), ("translate:4", "flip:0.7"),
     ("flip", "color_jitter:0.2", "translate:7")],
)  # fmt: skip
def test_boxes_stay_around_what_they_are_around(texts, runtime):
    rng, size = np.random.default_rng(0), (24, 20)
    image = np.zeros((64, *size, 1), np.uint8)
    objects = np.zeros((64, 6, 6), np.float32)
    for index in range(64):
        tall, wide = rng.integers(3, 9, 2)
        top, left = rng.integers(0, size[0] - tall), rng.integers(0, size[1] - wide)
        image[index, top : top + tall, left : left + wide] = 200
        objects[index, 2] = (top, left, top + tall, left + wide, 1, 1)
    changes = augment.parse(texts)
    draws = tensor(rng.random((64, sum(c.draws for c in changes))))
    both = augment_boxes.apply(changes, tensor(image, "uint8"), tensor(objects), draws)
    made, moved = (np.array(each) for each in both)
    plain, _ = augment.apply(changes, tensor(image, "uint8"), draws)
    assert (np.array(plain) == made).all()  # as without boxes
    empty = [0, 1, 3, 4, 5]
    assert (moved[:, empty] == 0).all() and (moved != objects).any()
    lost = 0
    for pixels, (*box, label, kind) in zip(made, moved[:, 2], strict=True):
        assert label == 1
        if kind == data_boxes.IGNORED:
            lost += 1
            continue
        seen = np.argwhere(pixels[..., 0] > 100)
        assert [*seen.min(axis=0), *(seen.max(axis=0) + 1)] == box
    assert bool(lost) == any("translate" in text for text in texts)


@pytest.mark.parametrize("text", ["rotate:9", "random_resized_crop:0.5", "cutout:4"])
def test_augmentations_that_are_refused(text, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match=f"augment {text} is not for boxes"):
        detect.Task.of_data(BOXES.override(augment=(text,)), dataset_of())


# --- loss and precision ----------------------------------------------------------------


def scene(count, seed=0) -> dict:
    """Objects of two classes at random places of images of 32x40 pixels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 24, (5, count, 2))
    objects = np.zeros((5, count, 6))
    objects[..., :2], objects[..., 2:4] = low, low + rng.uniform(3, 8, low.shape)
    objects[..., 4] = rng.integers(0, 2, (5, count))
    objects[..., 5] = rng.random((5, count)) < 0.7
    return objects


def test_many_objects_have_the_loss_of_few(runtime):
    few = scene(4)
    cells = tensor(np.random.default_rng(1).normal(size=(5, 8, 10, 6)))
    many = np.concatenate([few, np.zeros((5, 30, 6))], axis=1)
    losses = [detect.losses_of(detect.parts_of(tensor(o)), cells) for o in (few, many)]
    (one, count), (other, same_count) = (tuple(map(np.array, pair)) for pair in losses)
    assert np.allclose(one, other, rtol=1e-5) and (count == same_count).all()
    # Two objects of one class in one cell count as one middle, and as two boxes.
    twice = np.concatenate([many, few], axis=1)
    more = np.array(detect.losses_of(detect.parts_of(tensor(twice)), cells)[0])
    assert (more > one).all() and np.isfinite(more).all()


def test_what_is_ignored_costs_nothing(runtime):
    """Neither in the loss, where it lies, nor as a mistake in the precision."""
    objects = np.zeros((1, 6, 6))
    objects[0, 0] = (8, 8, 24, 24, 0, data_boxes.IGNORED)
    objects[0, 1] = (24, 28, 32, 36, 1, 1)
    cells = np.full((1, 8, 10, 6), -9.0)
    quiet = np.array(
        detect.losses_of(detect.parts_of(tensor(objects)), tensor(cells))[0]
    )
    cells[0, 3, 4, 0] = 9  # inside
    loud = np.array(
        detect.losses_of(detect.parts_of(tensor(objects)), tensor(cells))[0]
    )
    assert loud == quiet
    cells[0, 3, 7, 0] = 9  # outside
    assert (
        np.array(detect.losses_of(detect.parts_of(tensor(objects)), tensor(cells))[0])
        > quiet + 8
    )
    parts = {k: np.array(v) for k, v in detect.parts_of(tensor(objects)).items()}
    found = {
        "found_boxes": np.array([[[9, 9, 20, 20], [24, 28, 32, 36]]]),
        "found_label": np.array([[0, 1]]), "score": np.array([[0.9, 0.8]]),
    }  # fmt: skip
    assert detect.mean_average_precision(parts | found, 2) == (1, 1)
    objects[0, 0, 5] = 1
    parts = {k: np.array(v) for k, v in detect.parts_of(tensor(objects)).items()}
    assert detect.mean_average_precision(parts | found, 2) == (0.5, 0.5)


def test_sides_that_do_not_fit(runtime):
    image = np.full((12, 30, 41, 3), 50, np.uint8)
    objects = np.tile(np.array([2, 2, 9, 9, 0, 1], "f4"), (12, 1, 1))
    part = {"image": image, "objects": objects}
    data = data_boxes.make_dataset(
        "s", "made up", {"train": part, "test": part}, ("a",)
    )
    with pytest.raises(gpuzoo.GpuzooError, match="41x30 pixels; detection needs sides"):
        build_model(BOXES, data)


def test_a_run_repeats_and_resumes(runtime, tmp_path):
    data = dataset_of()
    one, _ = train(BOXES, data, runtime)
    asked = iter([False, False, True])
    train(BOXES, data, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    resumed, _ = train(BOXES, data, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    assert {"test_map50", "test_map"} <= set(one.metrics)


# --- runs ------------------------------------------------------------------------------

HOW = {
    "epochs": 60, "batch_size": 8, "model_options": ("filters=(8,16,24)", "depth=2"),
    "augment": ("translate:1", "flip"), "validation": 0.2, "keep": "best",
    "eval_every": 20, "monitor": "map", "quiet": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def town(runtime, tmp_path_factory):
    """A folder with images and boxes, and a run that chose by validation images."""
    place = tmp_path_factory.mktemp("town")
    coco(place / "street", *examples(60))
    gpuzoo.train("shapes", data=str(place / "street"), out=str(place / "run"), **HOW)
    return place


def test_it_is_verified_and_evaluated(town, cli_here, tmp_path):
    record = json.loads((town / "run" / "run.json").read_text())
    assert record["data"]["classes"] == list(CLASSES)
    assert record["data"]["most_objects"] == 2
    assert record["metrics"]["test_map50"] > 0.8 and record["metrics"]["test_map"] > 0.3
    assert record["best"]["monitor"] == "val_map"
    assert "detections.png" in record["files"]
    page = (town / "run" / "report.html").read_text()
    assert "test map50" in page and "Detections" in page
    assert cli_here("verify", town / "run").json["verdict"] == "identical"
    done = cli_here("evaluate", town / "run", "--out", "told")
    assert done.json["identical"], done.stderr
    assert (tmp_path / "told" / "detections.png").exists()


def test_a_photo_is_predicted_in_its_own_pixels(town, cli_here, tmp_path):
    image, corners, labels = examples(60)
    photo = PIL.Image.fromarray(image[1]).resize((80, 96), PIL.Image.Resampling.NEAREST)
    photo.save(tmp_path / "photo.png")
    done = cli_here(
        "predict", town / "run", "photo.png", "--out", "seen", "--json-lines"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[0])["boxes"]
    assert len(found) == len(corners[1]) == 2
    for box, kind in zip(corners[1], labels[1], strict=True):
        (mine,) = (one for one in found if one["class"] == CLASSES[kind])
        sides = np.array([mine[s] for s in ("left", "top", "right", "bottom")])
        assert np.abs(sides / [2, 3, 2, 3] - box).max() < 3
    assert list((tmp_path / "seen").iterdir())
    told = gpuzoo.load(town / "run").predict(image[:3])
    assert told["found_boxes"].shape == (3, 100, 4)


def test_evaluation_on_other_boxes(town, cli_here, tmp_path):
    """Classes are found by their names, whatever their numbers; in another form."""
    image, corners, labels = examples(12, seed=3)
    other = yolo(
        tmp_path / "other", image, corners, [[1 - k for k in m] for m in labels]
    )
    (other / "data.yaml").write_text("names: [bus, car]")
    done = cli_here("evaluate", town / "run", "--data", "other/")
    assert done.returncode == 0 and done.json["examples"] == 12, done.stderr
    assert done.json["metrics"]["test_map50"] > 0.7
    (other / "data.yaml").write_text("names: [bus, tram]")
    done = cli_here("evaluate", town / "run", "--data", "other/")
    assert done.returncode == 2 and "class 'tram' is not a class of run" in done.stderr
    np.savez(tmp_path / "x.npz", x=image, y=np.arange(12) % 2)
    done = cli_here("evaluate", town / "run", "--data", "x.npz")
    assert done.returncode == 2 and "have no boxes" in done.stderr


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--augment", "rotate:9"], "augment rotate:9 is not for boxes"),
        (["--model-options", "num_classes=3"], "cannot set num_classes"),
        (["--data", "digits", "--task", "segment"], "is for the task"),
    ],
)
def test_what_is_refused(words, fault, town, cli_here):
    done = cli_here("train", "shapes", "--data", f"{town}/street/", *words)
    assert done.returncode == 2, done.stdout
    assert fault in done.stderr or "no masks" in done.stderr, done.stderr


def test_exported_and_served(town):
    pytest.importorskip("tf2onnx", reason="needs the extra export")
    from gpuzoo.deploy.export import export
    from gpuzoo.deploy.serve import app, artefact
    from gpuzoo.deploy.serve.guard import Limits

    found = export(town / "run", ("onnx", "litert", "stablehlo"))
    assert not found["failures"], found["failures"]
    assert {one["name"]: one["shape"] for one in found["outputs"]} == {
        "boxes": [None, 100, 4], "label": [None, 100], "score": [None, 100]
    }  # fmt: skip
    for name, entry in found["formats"].items():
        assert entry["parity"]["changed_predictions"] == 0, name
        assert entry["parity"]["examples"] == 12
    made = artefact.load(town / "run-export")
    image, _, _ = examples(2)
    body = json.dumps({"inputs": image.tolist()}).encode()
    _, text = app.answer(made, Limits(), "application/json", body)
    rows = json.loads(text)["predictions"]
    assert len(rows) == 2 and rows[0] != rows[1]


@pytest.mark.parametrize(
    ("backend", "precision"), [("jax", "float32"), ("tensorflow", "mixed_bfloat16")]
)
def test_on_the_other_backend_and_in_16_bits(backend, precision, cli_on, tmp_path):
    coco(tmp_path / "street", *examples(24))
    cli = cli_on(backend, precision)
    done = cli(
        "train", "shapes", "--data", "street/", "--out", "run", "--epochs", "2",
        "--batch-size", "8", "--model-options", "filters=(4,8,16)", "depth=1",
        "--augment", "flip", "translate:3", "color_jitter:0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.isfinite(done.json["test_loss"]) and done.json["precision"] == precision
    for words in (["verify", "run"], ["predict", "run", "street/images"]):
        done = cli(*words)
        assert done.returncode == 0, done.stdout + done.stderr
