"""Networks of keras.applications, and weights from a file of the user."""

import hashlib

import keras
import numpy as np
import pytest
from small import RECIPE, train

import gpuzoo
from gpuzoo.catalogue import keras_applications
from gpuzoo.engine import initializers

SMALLEST = "keras/mobilenet_v3_small"
pytestmark = pytest.mark.usefixtures("runtime")


def test_names_are_those_of_keras():
    for name in set(keras_applications.names()) - {keras_applications.HUB}:
        class_name, _ = keras_applications._class_of(name)
        assert callable(getattr(keras.applications, class_name))
        assert gpuzoo.model_info(name).task == "classify"
    assert {"keras/mobilenet_v2", "keras/resnet50", "keras/efficientnet_v2_b0"} <= set(
        keras_applications.names()
    )
    # What Keras adds later is not forgotten.
    networks = {n for n in dir(keras.applications) if n[0].isupper()}
    assert networks == {
        n for some in keras_applications._NETWORKS.values() for n in some
    }
    with pytest.raises(gpuzoo.GpuzooError, match="nearest: keras/resnet50"):
        gpuzoo.build("keras/resnet5")


@pytest.mark.parametrize(
    ("scale", "module"),
    [("one", "mobilenet_v2"), ("deviations", "densenet"), ("bgr", "resnet")],
)
def test_images_are_scaled_as_keras_scales_them(scale, module):
    images = np.random.default_rng(0).random((2, 3, 4, 3)).astype("f4")
    inputs = keras.Input((3, 4, 3))
    model = keras.Model(inputs, keras_applications._scaled(inputs, scale))
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
        initializers.initialise(model, seed)
    (one, other) = (model.get_weights() for model in models)
    assert all(np.array_equal(a, b) for a, b in zip(one[:-2], wanted, strict=True))
    assert np.array_equal(other[0], one[0]) and not np.array_equal(other[-2], one[-2])


def test_unknown_weights_are_refused(weights, tmp_path):
    path, digest, _ = weights
    for asked, words in (
        ({"weights": "imagenet"}, "No such file.*nothing is downloaded"),
        ({"weights": path}, f"sha256={digest} is .*; pass it"),
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


@pytest.fixture
def preset(tmp_path) -> tuple[str, str, list]:
    """A small network of KerasHub in a folder, its digest, and its weights."""
    keras_hub = pytest.importorskip("keras_hub")
    body = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64], stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2], block_type="basic_block",
        use_pre_activation=False, image_shape=(None, None, 3),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    body.set_weights([w + 0.01 * rng.random(w.shape) for w in body.get_weights()])
    folder = tmp_path / "resnet"
    body.save_to_preset(str(folder))
    keras_hub.layers.ResNetImageConverter(
        scale=[0.01, 0.02, 0.03], offset=[-1.0, 0.0, 1.0]
    ).save_to_preset(str(folder))
    files = [folder / name for name in keras_applications._PRESET]
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    return str(folder), digest, body.get_weights()


def test_a_preset_of_keras_hub_trains(dataset, runtime, preset):
    folder, digest, before = preset
    options = (f"preset={folder}", f"sha256={digest!r}", "frozen=True", "side=16")
    recipe = RECIPE.override(
        model="keras/hub", epochs=1, augment=(), model_options=options
    )
    result, _ = train(recipe, dataset, runtime)
    after = list(result.weights.values())
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=False))
    assert len(after) == len(before) + 2 and np.abs(after[-1]).max() > 0


def test_images_of_a_preset_are_scaled_as_it_says(preset):
    import keras_hub

    folder, digest, before = preset
    model = gpuzoo.build(
        "keras/hub", input_shape=(8, 8, 3), preset=folder, sha256=digest
    )
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype("f4")
    converter = keras_hub.layers.ImageConverter.from_preset(folder)
    backbone = keras_hub.models.Backbone.from_preset(folder)
    wanted = backbone(converter(255 * images)).numpy().mean(axis=(1, 2))
    dense = model.get_layer("logits")
    wanted = wanted @ dense.kernel.numpy() + dense.bias.numpy()
    assert np.allclose(model(images), wanted, atol=1e-4)


def test_a_preset_takes_the_precision_of_the_run(preset):
    folder, digest, _ = preset
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = gpuzoo.build(
            "keras/hub", input_shape=(16, 16, 3), preset=folder, sha256=digest
        )
    finally:
        keras.config.set_dtype_policy(before)
    (body,) = (layer for layer in model.layers if "backbone" in layer.name)
    dtypes = {layer.compute_dtype for layer in body.layers if layer.weights}
    assert dtypes == {"bfloat16"} and model.output.dtype == "float32"


def test_unknown_presets_are_refused(preset, tmp_path):
    folder, digest, _ = preset
    for asked, words in (
        ({"preset": "resnet_50_imagenet"}, "nothing is downloaded: 'resnet_50_imag"),
        ({}, "must be a folder with config.json"),
        ({"preset": folder}, f"sha256={digest} is the digest of config.json \\+ image"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=words):
            gpuzoo.build("keras/hub", input_shape=(32, 32, 3), **asked)
    (tmp_path / "resnet" / "model.weights.json").write_text("{}")
    with pytest.raises(gpuzoo.GpuzooError, match="in several files; save it again"):
        gpuzoo.build("keras/hub", preset=folder, sha256=digest)
