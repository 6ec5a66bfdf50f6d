"""Scenes with exact boxes, the precision of what is found, and the detector."""

import dataclasses

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.engine import checkpoint
from gpuzoo.report import plots
from gpuzoo.tasks import detect, load, scenes
from gpuzoo.training.build import build_model

DETECT = RECIPE.override(
    name="find", task="detect", model="detector", augment=(), epochs=3,
    model_options=("filters=(4,8,16)", "depth=2"),
)  # fmt: skip


def scene(images, draws, labels=None, size=(40, 48)) -> dict:
    labels = np.arange(len(images)) if labels is None else labels
    made = scenes.make(
        keras.ops.convert_to_tensor(np.asarray(images, "f4")),
        keras.ops.convert_to_tensor(np.asarray(labels, "i4")),
        keras.ops.convert_to_tensor(np.asarray(draws, "f4")),
        (*size, images.shape[-1]),
    )
    return {name: np.array(array) for name, array in made.items()}


def test_boxes_are_exact(runtime):
    """Around all that can be seen of an object that is alone, whatever its size."""
    rng = np.random.default_rng(0)
    images = np.zeros((50, 14, 14, 1))
    for image in images:
        top, left = rng.integers(0, 7, 2)
        image[top : top + rng.integers(3, 8), left : left + rng.integers(3, 8)] = 1
    draws = rng.random((50, scenes.DRAWS))
    draws[:, 4::4] = 0.99  # nothing at the other places
    made = scene(images, draws)
    assert made["image"].shape == (50, 40, 48, 1) and made["boxes"].shape == (50, 4, 4)
    assert (made["present"] == [1, 0, 0, 0]).all()
    for canvas, box in zip(made["image"], made["boxes"][:, 0], strict=True):
        seen = np.argwhere(canvas[..., 0] > 0.5)
        found = np.concatenate([seen.min(axis=0), seen.max(axis=0) + 1])
        assert np.abs(found - box).max() <= 0.51
        outside = np.argwhere(canvas[..., 0] > 0) + 0.5
        assert (outside > box[:2] - 1.2).all() and (outside < box[2:] + 1.2).all()


@pytest.mark.parametrize("whole", [True, False])
def test_data_without_an_object_are_refused(whole, dataset, runtime):
    light = 51 if whole else np.float32(0.2)
    for part in ("train", "test"):
        splits = {name: dict(split) for name, split in dataset.splits.items()}
        image = splits[part]["image"]
        dark = (image * 0 + light) if whole else (image * light / 255)
        splits[part]["image"] = dark.astype(image.dtype if whole else np.float32)
        with pytest.raises(
            gpuzoo.GpuzooError, match=f"have no {part} image with a pix"
        ):
            build_model(DETECT, dataclasses.replace(dataset, splits=splits))
        splits[part]["image"][-1, 3, 3] = light + light / 50
        assert build_model(DETECT, dataclasses.replace(dataset, splits=splits))


def test_each_place_holds_the_next_of_the_batch(runtime):
    images = np.random.default_rng(0).random((3, 14, 14, 2)) / 2 + 0.5
    draws = np.tile(np.random.default_rng(1).random(scenes.DRAWS), (3, 1))
    draws[:, ::4] = 0
    made = scene(images, draws, labels=[5, 6, 7])
    assert made["label"].tolist() == [[5, 6, 7, 5], [6, 7, 5, 6], [7, 5, 6, 7]]
    middles = (made["boxes"][..., :2] + made["boxes"][..., 2:]) / 2
    quarters = middles // [20, 24]
    assert quarters[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (
        made["boxes"].min() >= 0
        and (made["boxes"].max(axis=(0, 1)) <= [40, 48] * 2).all()
    )
    # At one scale of 1 an image stands there unchanged, from a whole pixel on.
    draws[:, 1::4] = 0.8
    draws[:, 2::4] = draws[:, 3::4] = 0
    alone = scene(images, draws)
    top, left = alone["boxes"][0, 0, :2]
    assert (top, left) == (0, 0)
    assert np.allclose(alone["image"][:, :14, :14], images, atol=1e-5)


def test_an_empty_image_is_no_object(runtime):
    images = np.zeros((2, 14, 14, 1))
    images[1] = 1
    made = scene(images, np.zeros((2, scenes.DRAWS)))
    assert made["present"].tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert np.isfinite(made["boxes"]).all()


def found(boxes, labels, scores) -> dict:
    """Outputs of two scenes with two objects each, and what was found in them."""
    truth = np.array([[[0, 0, 10, 10], [20, 20, 30, 40]]] * 2, "f4")
    count = len(scores[0])
    return {
        "boxes": truth, "label": np.array([[0, 1]] * 2), "present": np.ones((2, 2), "f4"),
        "found_boxes": np.array(boxes, "f4").reshape(2, count, 4),
        "found_label": np.array(labels), "score": np.array(scores, "f4"),
    }  # fmt: skip


BOTH = [[0, 0, 10, 10], [20, 20, 30, 40]]


def test_mean_average_precision():
    def measured(*args):
        return detect.mean_average_precision(found(*args), classes=3)[0]

    sure = [[0.9, 0.8]] * 2
    assert measured([BOTH] * 2, [[0, 1]] * 2, sure) == 1
    # Half of the objects of each class, found without a mistake: up to a recall of a
    # half, 51 of the 101 places that are looked at.
    half = measured([BOTH] * 2, [[0, 1]] * 2, [[0.9, 0.8], [0.0, 0.0]])
    assert half == pytest.approx(51 / 101)
    assert measured([BOTH] * 2, [[1, 0]] * 2, sure) == 0
    # Overlaps of 6/10 and of 4/10.
    close, far = [0, 0, 10, 6], [0, 0, 10, 4]
    assert measured([[close, BOTH[1]]] * 2, [[0, 1]] * 2, sure) == 1
    outputs = found([[close, BOTH[1]]] * 2, [[0, 1]] * 2, sure)
    # 0.6 is enough for 0.5, 0.55 and 0.6 of the ten thresholds of one of two classes.
    assert detect.mean_average_precision(outputs, 3) == (1, pytest.approx(0.65))
    assert measured([[far, BOTH[1]]] * 2, [[0, 1]] * 2, sure) == 0.5
    # A second box around the same object is a mistake; a sure one costs most.
    twice = [[BOTH[0], BOTH[0], BOTH[1]]] * 2
    late = measured(twice, [[0, 0, 1]] * 2, [[0.9, 0.1, 0.9]] * 2)
    early = measured(twice, [[0, 0, 1]] * 2, [[0.9, 0.9, 0.9]] * 2)
    assert late == 1 and early < 1
    assert measured([[BOTH[0]]] * 2, [[0]] * 2, [[0.0]] * 2) == 0
    nothing = found([BOTH] * 2, [[0, 1]] * 2, sure) | {"present": np.zeros((2, 2))}
    assert np.isnan(detect.mean_average_precision(nothing, classes=3)).all()


def test_what_the_cells_say_is_what_is_found(dataset, runtime):
    """Cells written by hand from the true boxes give those boxes back."""
    task = detect.Task(model=None, recipe=DETECT, dataset=dataset, runtime=runtime)
    ways = np.random.default_rng(0).random((6, scenes.DRAWS))
    truth = scene(dataset.train["image"][:6] / 255, ways, dataset.train["label"][:6],
                  task.size[:2])  # fmt: skip
    cells = np.zeros((6, task.size[0] // 4, task.size[1] // 4, 6), "f4")
    cells[..., :2] = -9
    for image, place in np.argwhere(truth["present"]):
        box = truth["boxes"][image, place]
        middle = (box[:2] + box[2:]) / 8
        row, column = np.floor(middle).astype(int)
        cells[image, row, column, truth["label"][image, place]] = 9
        cells[image, row, column, 2:] = [*(box[2:] - box[:2]) / 16, *(middle % 1)]
    tensors = {
        name: keras.ops.convert_to_tensor(array) for name, array in truth.items()
    }
    outputs = {k: np.array(v) for k, v in task._found(cells).items()}
    assert detect.mean_average_precision({**truth, **outputs}, 2) == (1, 1)
    good, counts = (np.array(each) for each in detect.losses_of(tensors, cells))
    assert np.array_equal(counts, truth["present"].sum(axis=1)) and good.max() < 0.1
    objects = [truth["boxes"], truth["label"][..., None], truth["present"][..., None]]
    objects = np.concatenate(objects, axis=-1, dtype="f4")
    mean = good.sum() / counts.sum()
    assert float(detect.loss(objects, cells)) == pytest.approx(mean, rel=1e-5)
    # An error of one pixel in a height is one of 1/16, and turned logits cost most.
    taller = cells.copy()
    taller[..., 2] += 1 / 16
    apart = np.array(detect.losses_of(tensors, taller)[0]) - good
    assert np.allclose(apart, counts / 16, atol=1e-4)
    turned = np.concatenate([-cells[..., :2], cells[..., 2:]], axis=-1)
    assert (np.array(detect.losses_of(tensors, turned)[0]) > 100).all()


def test_a_run_learns_repeats_and_resumes(dataset, runtime, tmp_path):
    one, rows = train(DETECT, dataset, runtime)
    asked = iter([False, False, True])
    train(DETECT, dataset, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    resumed, _ = train(DETECT, dataset, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    assert not same(one, train(DETECT.override(seed=1), dataset, runtime)[0])
    longer = DETECT.override(epochs=60, schedule="one_cycle", warmup_fraction=0.2)
    many, _ = train(longer, dataset, runtime)
    assert many.metrics["test_map50"] > max(0.6, one.metrics["test_map50"])
    lines = [{"split": e, **row} for e, row in rows if e in ("train", "test")]
    plots.draw_all(tmp_path, load("detect").pictures, "T", lines, dataset, many.outputs)
    assert (tmp_path / "detections.png").exists()


def test_sizes_that_do_not_fit_are_refused(runtime):
    with pytest.raises(ValueError, match=r"multiples of 4: \(42, 44, 1\)"):
        gpuzoo.build("detector", input_shape=(42, 44, 1))
    with pytest.raises(ValueError, match=r"of at least 1: \(4, 4, 0\), 5"):
        gpuzoo.build("detector", filters=(4, 4, 0))
