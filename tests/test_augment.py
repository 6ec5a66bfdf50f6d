"""Random changes of images: each against what it says that it does."""

import dataclasses

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.tasks import augment

pytestmark = pytest.mark.usefixtures("runtime")


def pictures(dtype="uint8", shape=(6, 9, 9, 1)):
    images = np.random.default_rng(0).integers(1, 255, shape)
    return images.astype("uint8") if dtype == "uint8" else (images / 255).astype("f4")


def changed(function, images, draws, amount) -> np.ndarray:
    draws = np.broadcast_to(np.asarray(draws, "f4"), (len(images), np.shape(draws)[-1]))
    tensors = map(keras.ops.convert_to_tensor, (images, draws))
    return keras.tree.map_structure(np.array, function(*tensors, amount))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_shift_moves_whole_pixels(channels, dtype, runtime):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 255, (50, 9, 7, channels)).astype(dtype)
    draws = rng.random((50, 2)).astype("float32")
    tensor = keras.ops.convert_to_tensor(images)
    shifted = np.array(
        augment.translate(tensor, keras.ops.convert_to_tensor(draws), 2.0)
    )
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    seen = set()
    for i, (across, down) in enumerate((draws * 5).astype(int)):
        expected = padded[i, down : down + 9, across : across + 7]
        assert np.array_equal(shifted[i], expected)
        seen.add((across, down))
    assert shifted.dtype == dtype and len(seen) > 15


def test_flip_mirrors_about_half(runtime):
    images = np.arange(200 * 4 * 5 * 1, dtype="float32").reshape(200, 4, 5, 1)
    draws = np.random.default_rng(0).random((200, 1)).astype("float32")
    flipped = np.array(augment.flip(images, draws, 0.5))
    mirrored = draws[:, 0] < 0.5
    assert 80 < mirrored.sum() < 120
    assert np.array_equal(flipped[~mirrored], images[~mirrored])
    assert np.array_equal(flipped[mirrored], images[mirrored, :, ::-1])


@pytest.mark.parametrize(
    "text",
    [
        "tranlsate:2",
        "translate",
        "translate:0",
        "translate:1.5",
        "flip:x",
        "random_resized_crop:1",
        "rotate:0",
    ],
)
def test_bad_augmentations_are_refused(text):
    with pytest.raises(gpuzoo.GpuzooError, match="augment"):
        augment.parse((text,))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("function", "draws"),
    [
        (augment.rotate, [0.5]),
        (augment.random_resized_crop, [1 - 1e-7, 0.3, 0.6]),
        (augment.color_jitter, [0.5, 0.5, 0.5]),
    ],
)
def test_a_change_of_nothing(function, draws, dtype):
    images = pictures(dtype, (6, 9, 9, 3))
    found = changed(function, images, draws, 0.7)
    assert found.dtype == images.dtype
    assert np.allclose(found.astype(float), images.astype(float), atol=1e-4)


def test_a_quarter_turn():
    images = pictures()
    for draw, turns in ((0.0, 1), (1.0, -1)):
        found = changed(augment.rotate, images, [draw], 90.0)
        wanted = np.rot90(images, turns, axes=(1, 2))
        assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_turned_bar_keeps_its_place():
    """A bar along a diagonal is what a level bar becomes by an eighth of a turn."""
    image = np.zeros((1, 21, 21, 1), "uint8")
    image[0, 10, 4:17] = 255
    found = changed(augment.rotate, image, [0.0], 45.0)[0, :, :, 0]
    rows, columns = np.nonzero(found > 100)
    assert len(rows) > 5 and np.array_equal(rows + columns, np.full(len(rows), 20))


def test_crop_enlarges_a_part():
    """Of a picture that rises evenly, a part that rises more slowly."""
    ramp = np.tile(
        np.linspace(0, 1, 11, dtype="f4")[None, None, :, None], (1, 11, 1, 1)
    )
    found = changed(augment.random_resized_crop, ramp, [0.0, 0.0, 1.0], 0.5)[0, 4, :, 0]
    # The right half: from 5.5 pixels on, half a pixel at a time.
    places = np.clip(5.5 + (np.arange(11) + 0.5) / 2 - 0.5, 0, 10)
    assert np.allclose(found, places / 10, atol=1e-6)


def test_cutout_is_a_square_of_zeros():
    images = pictures(shape=(200, 9, 9, 1))
    draws = np.random.default_rng(1).random((200, 2))
    found = changed(augment.cutout, images, draws, 3)
    for before, after, (down, right) in zip(images, found, draws * 9, strict=True):
        row, column = int(down), int(right)
        wanted = before.copy()
        wanted[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 0
        assert np.array_equal(after, wanted)


def test_colour():
    images = pictures("float32", (4, 5, 5, 3)) / 2
    brighter = changed(augment.color_jitter, images, [1.0, 0.5, 0.5], 0.5)
    assert np.allclose(brighter, images * 1.5, atol=1e-6)
    grey = changed(augment.color_jitter, images, [0.5, 0.5, 0.0], 1.0)
    assert np.allclose(grey, images.mean(axis=-1, keepdims=True), atol=1e-6)
    flat = changed(augment.color_jitter, images, [0.5, 0.0, 0.5], 1.0)
    assert np.allclose(flat.mean(axis=-1), images.mean(axis=(1, 2, 3))[:, None, None])


def test_mixup_blends_with_the_image_from_the_other_end():
    images = pictures("float32")
    draws = np.array([[0.4, 0.25], [0.6, 0.25]] * 3)
    found, own = changed(augment.mixup, images, draws, 0.5)
    assert np.allclose(own, [0.25, 1] * 3)
    assert np.allclose(found[0], 0.25 * images[0] + 0.75 * images[-1], atol=1e-6)
    assert np.array_equal(found[1], images[1])


def test_cutmix_tells_how_much_is_left():
    images = np.arange(1, 51, dtype="uint8").repeat(81).reshape(50, 9, 9, 1)
    draws = np.random.default_rng(2).random((50, 4))
    found, own = changed(augment.cutmix, images, draws, 0.5)
    kept = (found == images).mean(axis=(1, 2, 3))
    assert np.allclose(kept, own, atol=1e-6)
    assert (own[draws[:, 0] >= 0.5] == 1).all() and (own < 1).sum() > 10
    assert np.isin(found, images).all()
    assert (np.isin(found[3], [images[3, 0, 0], images[-4, 0, 0]])).all()


def test_all_of_them_train_and_repeat(dataset, runtime):
    """With XLA as without, the same images to rounding, so about the same weights."""
    every = (
        "translate:1",
        "flip",
        "rotate:10",
        "random_resized_crop:0.8",
        "cutout:3",
        "color_jitter:0.2",
    )
    recipe = RECIPE.override(
        augment=(*every, "cutmix:0.5"), model="mlp", model_options=()
    )
    one, rows = train(recipe, dataset, runtime)
    assert same(one, train(recipe, dataset, runtime)[0])
    compiled, _ = train(recipe, dataset, dataclasses.replace(runtime, xla=True))
    for name, weight in one.weights.items():
        assert np.allclose(weight, compiled.weights[name], atol=0.05), name
    mixed, _ = train(recipe.override(augment=("mixup",)), dataset, runtime)
    plain, _ = train(recipe.override(augment=()), dataset, runtime)
    assert not same(mixed, plain)


def test_only_labels_can_be_mixed(dataset, runtime):
    recipe = RECIPE.override(task="autoencode", model="autoencoder", augment=("mixup",))
    with pytest.raises(gpuzoo.GpuzooError, match="mixup and cutmix are for labels"):
        train(recipe.override(model_options=()), dataset, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="one of mixup and cutmix"):
        augment.parse(("mixup", "cutmix"))
