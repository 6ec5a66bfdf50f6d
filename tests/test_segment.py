"""Segmentation: masks move with their images, ignored pixels count nowhere, and the
figures are those of scikit-learn."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from drawn_masks import examples
from scipy import ndimage
from sklearn import metrics
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.data import balance, masks
from gpuzoo.data.masks import VOID
from gpuzoo.engine import checkpoint
from gpuzoo.report import plots
from gpuzoo.tasks import augment, augment_masks, load, scores, segment
from gpuzoo.training.build import build_model, check_recipe

SEGMENT = RECIPE.override(
    name="find", task="segment", model="unet", augment=("translate:2", "flip"), epochs=3,
    model_options=("filters=8", "depth=2"), batch_size=8,
)  # fmt: skip


def tensor(values, dtype="float32"):
    return keras.ops.convert_to_tensor(np.asarray(values, dtype))


@pytest.fixture
def squares():
    image, mask = examples(60)
    splits = {"train": slice(40), "test": slice(40, 60)}
    return masks.make_dataset(
        "squares", "made up",
        {name: {"image": image[rows], "label": mask[rows]} for name, rows in splits.items()},
    )  # fmt: skip


# --- augmentation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [("flip",), ("alternating_flip",), ("translate:3",), ("translate:3", "flip:0.7"),
     ("flip", "translate:1", "flip", "translate:4")],
)  # fmt: skip
def test_an_image_whose_pixels_are_its_mask_stays_so(texts, runtime):
    """Pixels are only moved, and those from outside are known to be unknown."""
    mask = np.random.default_rng(0).integers(1, 200, (32, 12, 9)).astype(np.uint8)
    changes = augment.parse(texts)
    draws = np.random.default_rng(1).random((32, sum(c.draws for c in changes)))
    both = augment_masks.apply(
        changes, tensor(mask[..., None], "uint8"), tensor(mask, "uint8"), tensor(draws)
    )
    image, moved = (np.array(each) for each in both)
    assert moved.dtype == np.uint8 and (moved != mask).any()
    outside = moved == VOID
    assert (image[outside] == 0).all() and (
        image[..., 0][~outside] == moved[~outside]
    ).all()
    assert outside.any() == any("translate" in text for text in texts)
    plain, _ = augment.apply(changes, tensor(mask[..., None], "uint8"), tensor(draws))
    assert (np.array(plain) == image).all()  # as without a mask


@pytest.mark.parametrize(
    "texts", [("rotate:30",), ("random_resized_crop:0.5",), ("rotate:180", "flip")]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_ramp_and_its_mask_are_sampled_at_the_same_places(texts, axis, runtime):
    """A ramp is exact under interpolation: its value is the place that it came from, of
    which the mask has the nearest whole one."""
    size = (24, 16)
    ramp = np.indices(size)[axis].astype(np.uint8) + 1
    mask = np.tile(ramp, (40, 1, 1))
    changes = augment.parse(texts)
    draws = np.random.default_rng(0).random((40, sum(c.draws for c in changes)))
    both = augment_masks.apply(
        changes, tensor(mask[..., None] / 100), tensor(mask, "uint8"), tensor(draws)
    )
    image, moved = (np.array(each) for each in both)
    image, inside = 100 * image[..., 0], moved != VOID
    # A border pixel of a turned image is blended with the black outside.
    inner = image > 1 if "crop" in texts[0] else _away_from_outside(inside)
    apart = np.abs(image - moved)[inside & inner]
    assert inside.mean() > 0.5 and apart.size > 5000 and apart.max() <= 0.502
    if "crop" in texts[0]:
        assert inside.all() and len(np.unique(moved[0])) < size[axis]


def _away_from_outside(inside: np.ndarray) -> np.ndarray:
    return ndimage.binary_erosion(inside, np.ones((1, 5, 5)))


def test_colours_do_not_change_a_mask(runtime):
    image, mask = examples(8)
    changes = augment.parse(("color_jitter:0.5",))
    draws = tensor(np.random.default_rng(0).random((8, 3)))
    made, kept = augment_masks.apply(
        changes, tensor(image, "uint8"), tensor(mask, "uint8"), draws
    )
    assert (np.array(kept) == mask).all() and (np.array(made) != image).any()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"augment": ("cutout:4",)},
            "augment cutout:4 is not for masks: it hides pixels",
        ),
        ({"augment": ("mixup",)}, "mixup and cutmix are for labels"),
        ({"augment": ("cutmix",)}, "mixup and cutmix are for labels"),
        ({"label_smoothing": 0.1}, "label_smoothing is for labels; the task segment"),
        ({"tta": "flip"}, "tta is for classifying images"),
        ({"augment": ("translate:16",)}, "leaves nothing of images of 20x16"),
    ],
)
def test_what_is_refused(changes, match, squares):
    recipe = SEGMENT.override(**changes)
    with pytest.raises(gpuzoo.GpuzooError, match=match):
        check_recipe(recipe)
        augment.check(recipe.augment, squares.input_shape)


# --- loss and figures ------------------------------------------------------------------


def test_the_loss_is_that_of_keras_without_ignored_pixels(squares, runtime):
    task = segment.Task(
        model=build_model(SEGMENT, squares),
        recipe=SEGMENT,
        dataset=squares,
        runtime=runtime,
    )
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 20, 16, 3)).astype(np.float32)
    mask = squares.train["mask"][:5].copy()
    mask[rng.random(mask.shape) < 0.3] = VOID
    losses, known = (
        np.array(a) for a in task._losses(tensor(mask, "uint8"), tensor(logits))
    )
    assert (known == (mask != VOID)).all() and (losses[mask == VOID] == 0).all()
    wanted = keras.losses.sparse_categorical_crossentropy(
        mask[mask != VOID].astype(int), logits[mask != VOID], from_logits=True
    )
    assert np.allclose(losses[mask != VOID], wanted, rtol=1e-5, atol=1e-6)
    weighted, _ = task._losses(
        tensor(mask, "uint8"), tensor(logits), tensor([2, 0.5, 1])
    )
    factors = np.array([2, 0.5, 1])[np.minimum(mask, 2)]
    assert np.allclose(np.array(weighted), losses * factors, rtol=1e-6)


def test_a_batch_of_ignored_pixels_moves_nothing(squares, runtime):
    """Not even to a loss that is not a number."""
    unknown = {k: a.copy() for k, a in squares.train.items()}
    unknown["mask"][2:] = VOID
    splits = {"train": unknown, "test": squares.test}
    data = dataclasses.replace(squares, splits=splits)
    result, rows = train(
        SEGMENT.override(epochs=1, augment=(), batch_size=2), data, runtime
    )
    assert np.isfinite(result.metrics["test_loss"])
    losses = [row["loss"] for event, row in rows if event == "train"]
    assert np.isfinite(losses).all() and 0.0 in losses


def test_the_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (7, 9, 11)).astype(np.uint8)
    told = np.where(rng.random(mask.shape) < 0.6, mask, rng.integers(0, 4, mask.shape))
    told = told.astype(np.uint8)
    mask[rng.random(mask.shape) < 0.2] = VOID
    known = mask != VOID
    found = scores.segmentation(mask, told, "abcd")
    pair = mask[known], told[known]
    jaccard = metrics.jaccard_score(*pair, average=None)
    assert [row["iou"] for row in found["per_class"]] == pytest.approx(
        jaccard, rel=1e-12
    )
    assert found["mean_iou"] == pytest.approx(jaccard.mean(), rel=1e-12)
    assert found["mean_dice"] == pytest.approx(metrics.f1_score(*pair, average="macro"))
    recall = metrics.recall_score(*pair, average=None)
    assert [row["recall"] for row in found["per_class"]] == pytest.approx(recall)
    confusion = metrics.confusion_matrix(*pair)
    assert found["confusion"] == confusion.tolist() and found["undefined"] == {}
    assert (masks.confusion_of(mask, told, 4) == confusion).all()
    assert sum(row["pixels"] for row in found["per_class"]) == known.sum()


def test_classes_that_do_not_occur():
    mask = np.zeros((3, 4, 4), np.uint8)
    mask[:, :2], mask[0, 3] = 1, VOID
    told = mask.copy()
    told[mask == VOID] = 2  # counts nowhere
    found = scores.segmentation(mask, told, "abc")
    assert found["mean_iou"] == 1.0 and found["per_class"][2]["iou"] is None
    assert found["undefined"]["iou"] == "no pixel, and never predicted: 'c'"
    told[1, 3, 3] = 2  # predicted, and so it counts as 0
    found = scores.segmentation(mask, told, "abc")
    assert found["mean_iou"] < 0.67 and found["per_class"][2]["iou"] == 0.0
    nothing = scores.segmentation(0 * mask + VOID, told, "abc")
    assert nothing["mean_iou"] is None
    assert nothing["undefined"]["mean_iou"] == "no pixel with a class"


# --- models ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 24, 1), (13, 9, 3), (1, 1, 2), (31, 8, 4)])
def test_sizes_of_the_u_net(size, runtime):
    model = gpuzoo.build("unet", input_shape=size, num_classes=5, filters=8)
    images = np.random.default_rng(0).random((2, *size), np.float32)
    assert np.array(model(images)).shape == (2, *size[:2], 5)


def test_options_that_make_no_u_net(runtime):
    with pytest.raises(
        ValueError, match=r"must be \(height, width, channels\): \(8, 0, 1\)"
    ):
        gpuzoo.build("unet", input_shape=(8, 0, 1))
    for options in ({"filters": 0}, {"depth": 9}):
        with pytest.raises(ValueError, match="filters of unet must be at least 1"):
            gpuzoo.build("unet", **options)


def own(end):
    inputs = keras.Input((20, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, end(x))


L = keras.layers


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        (L.Conv2D(3, 1), None),
        (L.Conv2D(3, 1, activation="softmax"), None),
        (keras.Sequential([L.Conv2D(3, 1), L.Softmax()]), None),
        (L.Conv2D(1, 1, activation="sigmoid"), r"puts out .*16, 1\), not .*16, 3\); end it in Conv2D\(3, 1\)"),
        (L.Conv2D(3, 1, activation="sigmoid"), r"ends in a sigmoid; end it in Conv2D\(3, 1\) without"),
        (L.Conv2D(3, 3), "puts out"),
        (keras.Sequential([L.Conv2D(3, 1), L.Softmax(axis=1)]), "ends in a softmax"),
        (keras.Sequential([L.Conv2D(3, 1, activation="softmax"), L.Rescaling(2.0)]), "ends in a softmax"),
    ],
)  # fmt: skip
def test_ends_of_a_users_model(end, fault, squares, runtime):
    found = segment.Task.check_model(own(end), squares)
    assert found is None if fault is None else re.search(fault, found), found


def test_a_softmax_is_left_out_of_the_loss(squares, runtime):
    model = own(L.Conv2D(3, 1, activation="softmax"))
    task = segment.Task(model=model, recipe=SEGMENT, dataset=squares, runtime=runtime)
    images = tensor(squares.test["image"][:4] / 255)
    logits = np.array(task._logits(images, training=False))
    told = np.array(model(images))
    assert np.allclose(
        np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), told, atol=1e-6
    )
    assert not np.allclose(logits, told)


# --- a run -----------------------------------------------------------------------------


def test_a_run_learns_repeats_and_resumes(squares, runtime, tmp_path):
    one, _ = train(SEGMENT, squares, runtime)
    asked = iter([False, False, True])
    train(SEGMENT, squares, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    resumed, _ = train(SEGMENT, squares, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    assert not same(one, train(SEGMENT.override(seed=1), squares, runtime)[0])
    how = {"optimizer": "muon", "schedule": "one_cycle", "warmup_fraction": 0.2}
    longer = SEGMENT.override(epochs=20, learning_rate=0.02, **how)
    many, rows = train(longer, squares, runtime)
    assert many.metrics["test_mean_iou"] > max(0.9, one.metrics["test_mean_iou"])
    lines = [{"split": e, **row} for e, row in rows if e in ("train", "test")]
    plots.draw_all(
        tmp_path, load("segment").pictures, "T", lines, squares, many.outputs
    )
    for name in ("segmentations", "confusion_of_pixels"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_class_weights_move_the_loss_alone(squares, runtime):
    recipe = SEGMENT.override(class_weight=("balanced",), epochs=1)
    plain, _ = train(SEGMENT.override(epochs=1), squares, runtime)
    weighted, _ = train(recipe, squares, runtime)
    assert not same(plain, weighted)
    weights = list(balance.class_weights(("balanced",), squares).values())
    counts = masks.pixels_of(squares.train["mask"]).sum(axis=0)[:3]
    assert np.allclose(counts * weights, counts.sum() / 3)
    assert "training pixels of '0'" in balance.findings(squares)[0]
