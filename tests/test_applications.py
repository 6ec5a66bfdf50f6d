"""Networks of keras.applications, and weights from a file of the user."""

import hashlib

import keras
import numpy as np
import pytest
from conftest import RECIPE, train

import gpuzoo
from gpuzoo import applications
from gpuzoo.engine import initial

SMALLEST = "keras/mobilenet_v3_small"
pytestmark = pytest.mark.usefixtures("runtime")


def test_names_are_those_of_keras():
    for name in applications.names():
        class_name, _ = applications._class_of(name)
        assert callable(getattr(keras.applications, class_name))
        assert gpuzoo.model_info(name).task == "classify"
    assert {"keras/mobilenet_v2", "keras/resnet50", "keras/efficientnet_v2_b0"} <= set(
        applications.names()
    )
    # What Keras adds later is not forgotten.
    networks = {n for n in dir(keras.applications) if n[0].isupper()}
    assert networks == {n for some in applications._NETWORKS.values() for n in some}
    with pytest.raises(gpuzoo.GpuzooError, match="nearest: keras/resnet50"):
        gpuzoo.build("keras/resnet5")


@pytest.mark.parametrize(
    ("scale", "module"),
    [("one", "mobilenet_v2"), ("deviations", "densenet"), ("bgr", "resnet")],
)
def test_images_are_scaled_as_keras_scales_them(scale, module):
    images = np.random.default_rng(0).random((2, 3, 4, 3)).astype("f4")
    inputs = keras.Input((3, 4, 3))
    model = keras.Model(inputs, applications._scaled(inputs, scale))
    wanted = getattr(keras.applications, module).preprocess_input(255 * images)
    assert np.allclose(model(images), wanted, atol=1e-3)


@pytest.fixture
def weights(tmp_path) -> tuple[str, str, list]:
    """A file with weights of the network without its head, and these."""
    body = keras.applications.MobileNetV3Small(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    rng = np.random.default_rng(0)
    body.set_weights([w + 0.01 * rng.random(w.shape) for w in body.get_weights()])
    path = tmp_path / "mine.weights.h5"
    body.save_weights(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return str(path), digest, body.get_weights()


def test_weights_of_a_file_stay_and_the_head_comes_from_the_seed(weights):
    path, digest, wanted = weights
    models = [
        gpuzoo.build(SMALLEST, input_shape=(32, 32, 1), weights=path, sha256=digest)
        for _ in range(2)
    ]
    for model, seed in zip(models, (0, 1), strict=True):
        initial.initialise(model, seed)
    (one, other) = (model.get_weights() for model in models)
    assert all(np.array_equal(a, b) for a, b in zip(one[:-2], wanted, strict=True))
    assert np.array_equal(other[0], one[0]) and not np.array_equal(other[-2], one[-2])


def test_unknown_weights_are_refused(weights, tmp_path):
    path, digest, _ = weights
    for asked, words in (
        ({"weights": "imagenet"}, "No such file.*nothing is downloaded"),
        ({"weights": path}, f"sha256={digest} is the file's; name it"),
        ({"weights": path, "sha256": "0" * 64}, f"sha256={digest} .* not 000"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=words):
            gpuzoo.build(SMALLEST, input_shape=(32, 32, 3), **asked)
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(b"no weights")
    digest = hashlib.sha256(b"no weights").hexdigest()
    with pytest.raises(gpuzoo.GpuzooError, match="does not fit, or is damaged"):
        gpuzoo.build(SMALLEST, weights=str(cut), sha256=digest)
    with pytest.raises(ValueError, match="at least 32"):
        gpuzoo.build(SMALLEST, input_shape=(28, 28, 1))


def test_only_the_head_of_a_frozen_network_moves(dataset, runtime, weights):
    path, digest, before = weights
    options = (f"weights={path}", f"sha256={digest!r}", "frozen=True", "side=32")
    recipe = RECIPE.override(
        model=SMALLEST, epochs=1, augment=(), model_options=options,
    )  # fmt: skip
    result, _ = train(recipe, dataset, runtime)
    after = list(result.weights.values())
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=False))
    assert len(after) == len(before) + 2 and np.abs(after[-1]).max() > 0
