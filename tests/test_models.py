"""One body of tests for every model of the catalogue."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import gpuzoo
from gpuzoo.deploy.artifact import weights_bytes

MODELS = gpuzoo.list_models()
CLASSIFIERS = gpuzoo.list_models(task="classify")
AUTOENCODERS = gpuzoo.list_models(task="autoencode")
SIZES = {
    "mlp": [(28, 28, 1), (4, 4, 1), (32, 32, 3)],
    "cnn": [(28, 28, 1), (12, 12, 1), (32, 32, 1), (32, 32, 3), (224, 224, 3), (13, 40, 2)],
}  # fmt: skip
CASES = [
    (name, size) for name in CLASSIFIERS for size in SIZES.get(name, [(28, 28, 1)])
]
IMAGES = [(8, 8, 1), (13, 40, 2), (32, 32, 3)]  # 28x28 is seen below

pytestmark = pytest.mark.usefixtures("runtime")


def batch(size, count=4, classes=10):
    rng = np.random.default_rng(0)
    return (
        rng.random((count, *size), np.float32),
        rng.integers(0, classes, count).astype(np.int32),
    )


def answers(model, images) -> list[np.ndarray]:
    """Everything that a model puts out."""
    return keras.tree.flatten(model.predict(images, verbose=0))


def equal(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


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
    if info.task == "classify":
        assert "num_classes" in info.options and "(batch, num_classes)" in info.doc


@pytest.mark.parametrize(("name", "size"), CASES)
def test_builds_and_trains_at_any_sensible_size(name, size):
    model = compiled(gpuzoo.build(name, input_shape=size, num_classes=7))
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
    fitted = keras.Model(model.input, logits)
    fitted.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    before = [w.numpy().copy() for w in model.trainable_weights]
    fitted.fit(images, images, batch_size=4, epochs=1, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert not np.array_equal(old, weight.numpy()), f"{weight.path}: no gradient"


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders_say_which_sizes_do(name):
    with pytest.raises(ValueError, match=r"at least 8 pixels.*\(28, 7, 1\)"):
        gpuzoo.build(name, input_shape=(28, 7, 1))
    with pytest.raises(ValueError, match="latents and filters"):
        gpuzoo.build(name, latents=0)


def test_a_code_is_drawn_in_training_only():
    model = gpuzoo.build("vae")
    images, _ = batch((28, 28, 1))
    calm = [model(images, training=False)["reconstruction"] for _ in range(2)]
    drawn = [model(images, training=True)["reconstruction"] for _ in range(2)]
    assert np.array_equal(*calm) and not np.array_equal(*drawn)
    decoded = model.get_layer("decoder")(model(images)["mean"])
    assert np.array_equal(calm[0], decoded)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_float32_in_every_precision(name, precision):
    keras.config.set_dtype_policy(precision)
    try:
        model = gpuzoo.build(name)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.compute_dtype == precision.removeprefix("mixed_")
    for output in keras.tree.flatten(model(batch((28, 28, 1))[0])):
        assert output.dtype == "float32"
    assert {w.dtype for w in model.weights} == {"float32"}


@pytest.mark.parametrize("name", MODELS)
def test_saves_and_loads_as_keras_and_as_safetensors(name, tmp_path):
    model = gpuzoo.build(name)
    images, _ = batch((28, 28, 1))
    expected = answers(model, images)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert equal(answers(loaded, images), expected)

    weights = {v.path: v.numpy() for v in model.weights}
    (tmp_path / "weights.safetensors").write_bytes(weights_bytes(weights))
    fresh = gpuzoo.build(name)
    assert not equal(answers(fresh, images), expected)
    gpuzoo.load_weights(fresh, tmp_path / "weights.safetensors")
    assert equal(answers(fresh, images), expected)


def test_a_keras_file_needs_no_gpuzoo(tmp_path):
    """The models are plain Keras: no custom object stands in the file."""
    paths = [tmp_path / f"{name}.keras" for name in ("cnn", "vae")]
    for path in paths:
        gpuzoo.build(path.stem).save(path)
    code = (
        "import keras, sys; [keras.saving.load_model(p) for p in sys.argv[1:]];"
        "assert 'gpuzoo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *paths], check=True)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_typo_in_an_option_is_a_type_error(name):
    with pytest.raises(TypeError, match="no option 'num_clases'; nearest: num_classes"):
        gpuzoo.build(name, num_clases=3)
    with pytest.raises(TypeError, match="num_classes.*'ten'"):
        gpuzoo.build(name, num_classes="ten")


def test_unknown_model_names_the_nearest():
    with pytest.raises(gpuzoo.GpuzooError, match="no model named 'cn'; nearest: cnn"):
        gpuzoo.build("cn")


def test_cnn_says_which_sizes_do():
    with pytest.raises(ValueError, match=r"at least 12 pixels.*\(8, 8, 1\)"):
        gpuzoo.build("cnn", input_shape=(8, 8, 1))


def test_list_models_filters():
    assert gpuzoo.list_models("c*") == ["cnn"]
    assert gpuzoo.list_models("*mlp", task="classify") == ["mlp"]
    assert set(MODELS) >= {*CLASSIFIERS, *AUTOENCODERS}
    assert "vae" in AUTOENCODERS and "vae" not in CLASSIFIERS
    with pytest.raises(gpuzoo.GpuzooError, match="task must be one of"):
        gpuzoo.list_models(task="clasify")


def test_register_takes_a_users_model_and_refuses_a_bad_one():
    def shallow(*, input_shape: tuple[int, ...] = (4,), num_classes: int = 2):
        """A line."""
        inputs = keras.Input(input_shape)
        return keras.Model(inputs, keras.layers.Dense(num_classes)(inputs))

    gpuzoo.register(task="classify", reference="here")(shallow)
    assert "shallow" in gpuzoo.list_models()
    assert gpuzoo.build("shallow", num_classes=3).output_shape == (None, 3)

    def mlp(*, num_classes: int = 2): ...

    with pytest.raises(gpuzoo.GpuzooError, match="named 'mlp' (ships|exists)"):
        gpuzoo.register(task="classify", reference="here")(mlp)

    def loose(**options): ...

    with pytest.raises(gpuzoo.GpuzooError, match="keyword-only, typed"):
        gpuzoo.register(task="classify", reference="here")(loose)


@pytest.mark.parametrize("damage", ["name", "shape", "dtype", "bytes", "sha256"])
def test_weights_load_strictly(damage, tmp_path):
    model = gpuzoo.build("mlp")
    weights = {v.path: v.numpy() for v in model.weights}
    path, wanted = tmp_path / "weights.safetensors", None
    if damage == "name":
        weights["other/kernel"] = weights.pop("logits/kernel")
    elif damage == "shape":
        weights["logits/bias"] = weights["logits/bias"][:-1]
    elif damage == "dtype":
        weights["logits/bias"] = weights["logits/bias"].astype("float16")
    content = weights_bytes(weights)
    path.write_bytes(content[:-7] if damage == "bytes" else content)
    if damage == "sha256":
        wanted = "0" * 64
    before = [v.numpy() for v in model.weights]
    with pytest.raises(gpuzoo.GpuzooError, match="weights.safetensors"):
        gpuzoo.load_weights(model, path, sha256=wanted)
    after = [v.numpy() for v in model.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_max_pool_forms_give_the_same_bits(runtime, monkeypatch):
    """The form for XLA with determinism, and the native one, forward and backward."""
    import dataclasses

    import tensorflow as tf

    from gpuzoo.models import _blocks

    def train_once(xla: bool):
        with monkeypatch.context() as patch:
            changed = dataclasses.replace(runtime, xla=xla)
            patch.setattr(_blocks, "in_force", lambda: changed)
            model = gpuzoo.build("cnn", input_shape=(29, 30, 1))
        rng = np.random.default_rng(1)
        for variable in model.weights:
            variable.assign(rng.normal(0, 0.1, variable.shape))
        images, labels = batch((29, 30, 1), count=8)
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = keras.losses.sparse_categorical_crossentropy(
                labels, logits, from_logits=True
            )
        kinds = {type(layer).__name__ for layer in model.layers}
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        return kinds, [logits.numpy(), *(g.numpy() for g in gradients)]

    native, slices = train_once(False), train_once(True)
    assert "MaxPooling2D" in native[0] and "MaxPooling2D" not in slices[0]
    for one, other in zip(native[1], slices[1], strict=True):
        assert np.array_equal(one, other)


def test_the_catalogue_read_from_source_equals_the_registered_one():
    """`list` and `info` parse the files; importing them must say the same."""
    from gpuzoo import registry

    for name in ("mlp", "cnn", "vae"):
        gpuzoo.build(name)
        read, registered = registry._shipped()[name], registry._registered[name][0]
        assert json.dumps(read.options) == json.dumps(registered.options)
        for field in ("name", "task", "reference", "parameters", "doc", "module"):
            assert getattr(read, field) == getattr(registered, field)
