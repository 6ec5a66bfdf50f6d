"""The fifteen corruptions of images."""

import io
import re

import numpy as np
import PIL.Image
import pytest
from small import texture

import gpuzoo
from gpuzoo.deploy import corruptions

SEVERITIES = corruptions.SEVERITIES


IMAGES = {
    "digits": gpuzoo.load_data("digits").test["image"][:40],
    "colour": texture(30, 32, 32, 3),
    "tiny": texture(40, 8, 8, 1),
}


# --- corruptions --------------------------------------------------------------------


def test_the_fifteen_kinds():
    assert (
        list(corruptions.KINDS)
        == (
            "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur "
            "zoom_blur snow frost fog brightness contrast elastic_transform pixelate "
            "jpeg_compression"
        ).split()
    )


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_severities_grow(kind, images):
    images = IMAGES[images]
    places = np.arange(len(images))
    distances = [
        np.sqrt(np.mean((corruptions.corrupt(images, places, kind, s, 0) / 255.0
                         - images / 255.0) ** 2))
        for s in SEVERITIES
    ]  # fmt: skip
    assert distances[0] > 0.003 and (np.diff(distances) > 0).all(), distances


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_an_image_is_changed_whatever_stands_beside_it(kind):
    """By its index and the seed alone, in uint8 and in float32."""
    images, places = IMAGES["colour"][:9], np.arange(100, 109)
    before = np.random.get_state()[1].tobytes()
    whole = corruptions.corrupt(images, places, kind, 3, 0)
    assert np.random.get_state()[1].tobytes() == before
    order = np.array([7, 2, 5])
    part = corruptions.corrupt(images[order], places[order], kind, 3, 0)
    assert part.tobytes() == whole[order].tobytes()
    floats = (images / 255).astype(np.float32)
    values = corruptions.corrupt(floats, places, kind, 3, 0)
    assert values.dtype == np.float32 and 0 <= values.min() and values.max() <= 1
    assert np.abs(values - whole / 255).max() < 0.51 / 255
    drawn = kind not in (
        "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate",
        "jpeg_compression",
    )  # fmt: skip
    other = corruptions.corrupt(images, places, kind, 3, 1)
    assert (other.tobytes() != whole.tobytes()) == drawn
    moved = corruptions.corrupt(images, places + 1, kind, 3, 0)
    assert (moved.tobytes() != whole.tobytes()) == drawn


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 40, 1), (224, 224, 3)])
def test_every_size(shape):
    image = texture(1, *shape)
    for kind in corruptions.KINDS:
        for severity in (1, 5) if shape[0] < 100 else (5,):
            found = corruptions.corrupt(image, [0], kind, severity, 0)
            assert found.shape == image.shape and found.dtype == np.uint8
            assert np.ptp(found.astype(int)) > 5, kind


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_image_breaks_nothing(value):
    for kind in corruptions.KINDS:
        image = np.full((1, 12, 12, 1), value, np.uint8)
        with np.errstate(all="raise"):
            corruptions.corrupt(image, [0], kind, 5, 0)


@pytest.mark.parametrize("shape", [(7, 20, 1), (20, 20, 2)])
def test_unsuited_images_are_refused(shape):
    with pytest.raises(gpuzoo.GpuzooError, match=re.escape(str(shape))):
        corruptions.corrupt(np.zeros((1, *shape), np.uint8), [0], "fog", 1, 0)
    with pytest.raises(gpuzoo.GpuzooError, match="severity in 1..5: 'fogg', 1"):
        corruptions.corrupt(IMAGES["tiny"], range(40), "fogg", 1, 0)


def test_noise_has_the_stated_strength():
    image = np.full((1, 200, 200, 1), 0.5, np.float32)
    for s, (deviation, photons, part) in enumerate(
        [(0.08, 60, 0.03), (0.12, 25, 0.06), (0.18, 12, 0.09)], start=1
    ):
        made = corruptions.corrupt(image, [0], "gaussian_noise", s, 0)
        assert made.std() == pytest.approx(deviation, rel=0.03)
        made = corruptions.corrupt(image, [0], "shot_noise", s, 0)
        assert made.mean() == pytest.approx(0.5, rel=0.02)
        assert made.std() == pytest.approx(np.sqrt(0.5 / photons), rel=0.03)
        made = corruptions.corrupt(image, [0], "impulse_noise", s, 0)
        assert np.mean(made == 1) == pytest.approx(part / 2, rel=0.15)
        assert np.mean(made == 0) == pytest.approx(part / 2, rel=0.15)


def test_blur_keeps_the_light_and_colour_keeps_its_hue():
    image = np.zeros((1, 64, 64, 3), np.float32)
    image[0, 32, 32] = 1, 0.5, 0
    for kind in ("defocus_blur", "motion_blur"):
        made = corruptions.corrupt(image, [0], kind, 5, 0)
        assert made.sum(axis=(0, 1, 2)) == pytest.approx([1, 0.5, 0], abs=1e-4)
    flat = np.full((1, 16, 16, 3), (0.2, 0.4, 0.1), np.float32)
    made = corruptions.corrupt(flat, [0], "brightness", 2, 0)
    assert made[0, 0, 0] == pytest.approx([0.3, 0.6, 0.15], abs=1e-6)
    made = corruptions.corrupt(image, [0], "contrast", 1, 0)
    assert np.ptp(made[..., 0]) == pytest.approx(0.4, abs=1e-6)


def test_jpeg_is_pillows():
    image = IMAGES["colour"][0]
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "jpeg", quality=7)
    made = corruptions.corrupt(image[None], [0], "jpeg_compression", 5, 0)
    assert np.array_equal(made[0], np.asarray(PIL.Image.open(file)))
