"""One body of tests for every model of the catalogue."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest

import gpuzoo
from gpuzoo.runtime import configure as runtimes
from gpuzoo.tasks import autoencode
from gpuzoo.weights import weights_bytes

MODELS = gpuzoo.list_models()
CLASSIFIERS = gpuzoo.list_models(task="classify")
AUTOENCODERS = gpuzoo.list_models(task="autoencode")
# They hold functional models and draw with them.
DRAWING = [
    *gpuzoo.list_models(task="adversarial"),
    *gpuzoo.list_models(task="diffusion"),
]
# The first one of a model is for all tests that need one size only.
SIZES = {
    "mlp": [(28, 28, 1), (4, 4, 1), (32, 32, 3)],
    "cnn": [(28, 28, 1), (12, 12, 1), (32, 32, 1), (32, 32, 3), (224, 224, 3), (13, 40, 2)],
    "lenet5": [(28, 28, 1), (12, 12, 1), (13, 40, 3)],
    "tutorial_cnn": [(32, 32, 1), (4, 4, 1), (13, 40, 3)],
    "fully_convolutional": [(8, 8, 3), (13, 40, 2), (224, 224, 3)],
    "resnet8": [(8, 8, 3), (4, 4, 1), (13, 40, 2), (28, 28, 1)],
    "resnet20": [(8, 8, 3)],
    "resnet18": [(8, 8, 3), (72, 65, 1)],
    "wide_resnet": [(8, 8, 3), (13, 5, 1)],
    "convmixer": [(8, 8, 3), (13, 40, 1)],
    "vit_tiny": [(8, 8, 3), (28, 28, 1), (80, 96, 3)],
    "lstm": [(28, 28, 1), (5, 7, 3)],
    "bilstm": [(5, 7, 3)],
    "gru": [(5, 7, 3)],
    "conv_lstm": [(3, 8, 12, 1)],
    "lstm_forecaster": [(20, 1)],
    "tcn": [(20, 1), (9, 3)],
    "patch_transformer": [(20, 1), (9, 3)],
    "audio_cnn": [(1_700,)],
    "audio_rnn": [(1_700,)],
    "detector": [(16, 24, 2)],
    "unet": [(16, 24, 2), (13, 9, 3)],
    "mlp_table": [(6,)],
    "gated_table": [(6,)],
    "text_cnn": [(9,)],
    "text_gru": [(9,)],
    "conv3d_small": [(3, 8, 6, 1), (2, 5, 9, 3)],
    "embedder": [(12, 15, 2)],
}  # fmt: skip
# Options that leave the kinds of layers and take away most of the time.
SMALL = {
    "conv3d_small": {"filters": (4, 6)},
    "conv_lstm": {"filters": (4, 5)},
    "convmixer": {"width": 32, "depth": 1},
    "embedder": {"filters": (4, 8), "dimensions": 8},
    "gated_table": {"width": 16, "blocks": 1},
    "gan": {"filters": (8, 16)},
    "conditional_gan": {"filters": (8, 16)},
    "wgan_gp": {"filters": (8, 16)},
    "lstm_forecaster": {"units": 8, "layers": 2},
    "mlp_table": {"units": (16,)},
    "patch_transformer": {"width": 16, "depth": 1, "heads": 2},
    "resnet18": {"width": 8},
    "speednet": {"filters": (8, 16, 16)},
    "tcn": {"filters": 8, "levels": 2},
    "text_cnn": {"width": 8, "filters": 4},
    "text_gru": {"width": 8, "units": 4},
    "unet": {"filters": 4, "depth": 2},
    "vit_tiny": {"width": 24, "depth": 1},
    "diffusion": {"filters": (8, 16), "blocks": 1},
    "wide_resnet": {"depth": 10, "width": 1},
}
CASES = [
    (name, size) for name in CLASSIFIERS for size in SIZES.get(name, [(28, 28, 1)])
]
IMAGES = [(8, 8, 1), (13, 40, 2)]  # 28x28 is seen below

pytestmark = pytest.mark.usefixtures("runtime")


def batch(size, count=4, classes=10):
    rng = np.random.default_rng(0)
    return (
        rng.random((count, *size), np.float32),
        rng.integers(0, classes, count).astype(np.int32),
    )


def answers(model, images) -> list[np.ndarray]:
    """Everything that a model puts out."""
    return [np.array(output) for output in keras.tree.flatten(model(images))]


def equal(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def small(name, **options):
    """The model at its first size, without most of its depth."""
    size = {"input_shape": SIZES.get(name, [(28, 28, 1)])[0]}
    return gpuzoo.build(name, **{**size, **SMALL.get(name, {}), **options})


def random_batch(model, count=4):
    """Something that a model takes, or a part of one."""
    if hasattr(model, "denoiser"):
        return batch(model.denoiser.input["image"].shape[1:], count)[0]
    given = getattr(model, "discriminator", model).input
    if not isinstance(given, dict) and given.dtype == "int32":
        return np.random.default_rng(0).integers(0, 99, (count, *given.shape[1:]), "i4")
    if not isinstance(given, dict):
        return batch(given.shape[1:], count)[0]
    arrays = {name: batch(one.shape[1:], count)[0] for name, one in given.items()}
    return arrays | ({"label": np.arange(count)} if "label" in arrays else {})


def under_xla(monkeypatch, runtime, xla=True):
    """Models are built as for steps that XLA compiles."""
    changed = dataclasses.replace(runtime, xla=xla)
    monkeypatch.setattr(runtimes, "_in_force", (None, changed))


def compiled(model):
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


@pytest.mark.parametrize("name", MODELS)
def test_declared_parameter_count_is_true(name):
    assert gpuzoo.build(name).count_params() == gpuzoo.model_info(name).parameters


@pytest.mark.parametrize("name", MODELS)
def test_card_is_complete(name):
    info = gpuzoo.model_info(name)
    assert info.name == name and info.reference and len(info.summary) < 90
    assert "input_shape" in info.options and "(batch, " in info.doc
    assert "iffer" in info.doc, "what differs from the reference?"
    if info.task == "classify":
        assert "num_classes" in info.options and "(batch, num_classes)" in info.doc


@pytest.mark.parametrize(("name", "size"), CASES)
def test_builds_and_trains_at_any_sensible_size(name, size):
    model = compiled(small(name, input_shape=size, num_classes=7))
    model.run_eagerly = True  # tracing takes longer: tests/every_model.py does it
    images, labels = batch(size, classes=7)
    logits = model.predict(images, verbose=0)
    assert logits.shape == (4, 7) and logits.dtype == np.float32
    before = [w.numpy().copy() for w in model.trainable_weights]
    model.fit(images, labels, batch_size=4, epochs=1, verbose=0)
    after = [w.numpy() for w in model.trainable_weights]
    for weight, old, new in zip(model.trainable_weights, before, after, strict=True):
        assert np.isfinite(new).all()
        assert not np.array_equal(old, new), f"{weight.path} got no gradient"


@pytest.mark.parametrize("size", IMAGES, ids=str)
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_reconstructs_and_trains_at_any_sensible_size(name, size):
    model = gpuzoo.build(name, input_shape=size, latents=3, dense=16)
    images, _ = batch(size)
    outputs = model.output
    logits = outputs["reconstruction"] if isinstance(outputs, dict) else outputs
    assert logits.shape == (None, *size)
    assert model.get_layer("decoder").output.shape == (None, *size)
    first, second = (answers(model, images) for _ in range(2))
    assert equal(first, second) and {a.dtype for a in first} == {np.dtype("float32")}
    loss, goal = autoencode.cross_entropy, images
    if isinstance(outputs, dict):
        loss, goal = {"reconstruction": loss}, {"reconstruction": images}
    model.compile("adam", loss, run_eagerly=True)
    before = [w.numpy().copy() for w in model.trainable_weights]
    model.fit(images, goal, batch_size=4, epochs=1, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path}: no gradient"


@pytest.mark.parametrize("size", IMAGES, ids=str)
@pytest.mark.parametrize("name", DRAWING)
def test_draws_and_trains_at_any_sensible_size(name, size):
    model = small(name, input_shape=size)
    drawn = model.draw(*noise_for(model, size))
    assert drawn.shape == (4, *size) and drawn.dtype == "float32"
    assert np.min(drawn) >= 0 and np.max(drawn) <= 1
    model.compile("adam", run_eagerly=True)
    before = [w.numpy().copy() for w in model.trainable_weights]
    # Some weights are behind others that begin as zeros.
    model.fit(random_batch(model), batch_size=4, epochs=3, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path}: no gradient"


def noise_for(model, size):
    """What a model draws from."""
    if hasattr(model, "denoiser"):
        return (np.random.default_rng(0).normal(size=(4, *size)).astype("f4"),)
    codes = np.random.default_rng(0).uniform(-1, 1, (4, model.latents)).astype("f4")
    return (codes, np.arange(4)) if model.conditional else (codes,)


@pytest.mark.parametrize("name", MODELS)
def test_builds_in_the_form_for_xla(name, runtime, monkeypatch):
    under_xla(monkeypatch, runtime)
    model = small(name)
    for output in answers(model, random_batch(model)):
        assert np.isfinite(output).all()


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_float32_in_every_precision(name, precision):
    keras.config.set_dtype_policy(precision)
    try:
        model = small(name)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.compute_dtype == precision.removeprefix("mixed_")
    for output in answers(model, random_batch(model)):
        assert output.dtype == np.float32 and np.isfinite(output).all()
    assert {w.dtype for w in model.weights} == {"float32"}


@pytest.mark.parametrize("name", MODELS)
def test_saves_and_loads_as_safetensors(name, tmp_path):
    model = small(name)
    images = random_batch(model)
    expected = answers(model, images)
    weights = {v.path: v.numpy() for v in model.weights}
    (tmp_path / "weights.safetensors").write_bytes(weights_bytes(weights))
    fresh = small(name)
    assert not equal(answers(fresh, images), expected)
    gpuzoo.load_weights(fresh, tmp_path / "weights.safetensors")
    assert equal(answers(fresh, images), expected)


WITHOUT_GPUZOO = """
import keras, numpy, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    with numpy.load(path.with_suffix(".npz")) as file:
        model = keras.saving.load_model(path)
        names = [name for name in file.files if not name.startswith("output_")]
        given = {name: file[name] for name in names}
        given = given if isinstance(model.input, dict) else given["image"]
        for number, output in enumerate(keras.tree.flatten(model(given))):
            # With other threads than here, in other last bits.
            assert numpy.allclose(output, file[f"output_{number}"], 1e-4, 1e-5), path
        # What the model itself adds to the loss of fit.
        assert len(model.losses) == path.stem.startswith("vae-"), path
    print(path.stem)
assert "gpuzoo" not in sys.modules
"""


def test_a_keras_file_needs_no_gpuzoo(runtime, monkeypatch, tmp_path):
    """The models are plain Keras, and of those that draw the part that does: no custom
    object stands in the file, neither in the form for XLA nor in the one without."""
    for name, xla in [(name, False) for name in MODELS] + [("cnn", True)]:
        under_xla(monkeypatch, runtime, xla)
        model, path = small(name), tmp_path / f"{name}-{xla}"
        for part in ("generator", "denoiser"):
            model = getattr(model, part, model)
        given = random_batch(model, count=1)
        model.save(path.with_suffix(".keras"))
        outputs = {f"output_{i}": a for i, a in enumerate(answers(model, given))}
        given = given if isinstance(given, dict) else {"image": given}
        np.savez(path.with_suffix(".npz"), **given, **outputs)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GPUZOO, tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(MODELS) + 1


@pytest.mark.parametrize("name", MODELS)
def test_all_random_weights_come_from_the_seed(name):
    """None is left as Keras drew it, and their names do not depend on what was built
    before."""
    from gpuzoo.engine import initializers

    models = [small(name), small(name), small(name)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        initializers.initialise(model, seed)
    paths = [[v.path for v in model.weights] for model in models]
    assert paths[0] == paths[1] and len(set(paths[0])) == len(paths[0])
    one, other, third = ([v.numpy() for v in model.weights] for model in models)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, third, strict=True))


REFUSED = [
    ("cnn", {"input_shape": (8, 8, 1)}, r"at least 12 pixels: \(8, 8, 1\); resize"),
    ("lenet5", {"input_shape": (11, 40, 1)}, r"lenet5.*at least 12 pixels"),
    ("tutorial_cnn", {"input_shape": (3, 3, 1)}, r"at least 4 pixels"),
    ("fully_convolutional", {"input_shape": (7, 7, 1)}, r"at least 8 pixels"),
    ("resnet8", {"input_shape": (3, 8, 1)}, r"at least 4 pixels.*\(3, 8, 1\)"),
    ("resnet20", {"input_shape": (8, 8, 0)}, r"\(height, width, channels\)"),
    ("resnet18", {"input_shape": (24, 24, 1), "large_stem": True}, r"at least 32"),
    ("wide_resnet", {"depth": 17}, r"depth of wide_resnet must be 10, 16, 22.*17"),
    ("convmixer", {"input_shape": (9, 9, 1), "patch": 3}, r"at least 12 pixels"),
    ("convmixer", {"depth": 0}, r"must be at least 1: 256, 0"),
    (
        "vit_tiny",
        {"input_shape": (30, 20, 1)},
        r"patch.* 4 for \(30, 20, 1\); patch=10 does",
    ),
    ("vit_tiny", {"heads": 5}, r"heads of vit_tiny must divide width 192: 5"),
    ("lstm", {"units": 0}, r"units and layers of lstm must be at least 1: 0, 1"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_a_model_says_which_sizes_and_options_do(name, options, words):
    with pytest.raises(ValueError, match=words):
        gpuzoo.build(name, **options)


def test_large_images_get_the_large_stem():
    for side, large in ((64, False), (65, True)):
        model = gpuzoo.build("resnet18", input_shape=(side, side, 3), width=8)
        size = model.get_layer("stem_conv").kernel.shape[0]
        assert size == (7 if large else 3)


def test_recurrent_options():
    images = batch((3, 5, 2))[0]
    for name in ("lstm", "bilstm", "gru"):
        model = gpuzoo.build(
            name, input_shape=(3, 5, 2), units=4, layers=2, dropout=0.5
        )
        one, other = (model(images, training=True).numpy() for _ in range(2))
        assert not np.array_equal(one, other)
        # The first row matters although the logits come after the last one.
        changed = images.copy()
        changed[:, 0] += 1
        assert not np.array_equal(model(images).numpy(), model(changed).numpy())


def test_weights_of_fully_convolutional_fit_every_size():
    one = gpuzoo.build("fully_convolutional", input_shape=(16, 16, 1))
    other = gpuzoo.build("fully_convolutional", input_shape=(32, 24, 1))
    other.set_weights(one.get_weights())
    assert other(batch((32, 24, 1))[0]).shape == (4, 10)


@pytest.mark.parametrize("name", DRAWING)
def test_what_draws_is_saved_loaded_and_cloned_as_a_whole(name, tmp_path):
    model = small(name)
    for number, weight in enumerate(model.weights):
        weight.assign(weight + 0.01 * number)
    given = random_batch(model)
    model.save(tmp_path / "whole.keras")
    loaded = keras.models.load_model(tmp_path / "whole.keras")
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    for other in (loaded, cloned):
        assert type(other) is type(model) and other.name == model.name
        assert [w.path for w in other.weights] == [w.path for w in model.weights]
        assert equal(other.get_weights(), model.get_weights())
        assert equal(answers(other, given), answers(model, given))
    if hasattr(model, "penalty"):
        assert (loaded.penalty, loaded.critic_steps) == (
            model.penalty, model.critic_steps
        )  # fmt: skip


@pytest.mark.parametrize(
    "policy", ["bfloat16", "float16", "float64", "mixed_bfloat16", "int8_from_bfloat16"]
)
def test_recurrent_models_are_built_under_any_policy(policy):
    """Those with orthogonal weights; the others have no such initializer."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        for name in (
            "bilstm",
            "conv_lstm",
            "lstm",
            "gru",
            "lstm_forecaster",
            "text_gru",
        ):
            for weight in small(name).weights:
                if weight.name == "recurrent_kernel" and len(weight.shape) == 2:
                    square = np.array(keras.ops.cast(weight, "float32"))
                    square = square[:, : len(square)]  # rows are orthogonal
                    assert np.isfinite(square).all() and np.abs(square).max() <= 1.01
    finally:
        keras.config.set_dtype_policy(before)


def test_what_draws_is_loaded_as_a_whole_by_another_process(tmp_path):
    model = small("wgan_gp")
    model.save(tmp_path / "whole.keras")
    code = (
        "import keras, gpuzoo.models.gan; "
        f"print(keras.models.load_model({str(tmp_path / 'whole.keras')!r}).critic_steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1:] == ["5"], done.stderr[-500:]
