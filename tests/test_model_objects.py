"""Model objects: the weights that they begin with, the names of their layers, and the
numbers that they are given."""

import hashlib
import json
import os
import shutil

import keras
import numpy as np
import pytest
import safetensors.numpy
from small import arrays, backbone, equal, net, patched

import gpuzoo
from gpuzoo.catalogue import architecture
from gpuzoo.runs import record

L = keras.layers


# --- the weights that it begins with --------------------------------------------------


def prepared(npz):
    """A network with a frozen layer, statistics, and weights that no seed gives."""
    images = np.load(npz)["x_train"] / 255
    norm = L.Normalization(axis=None)
    norm.adapt(images)
    model = net(norm, L.Conv2D(3, 3, trainable=False), L.BatchNormalization())
    rng = np.random.default_rng(7)
    model.set_weights([
        np.abs(rng.normal(size=w.shape)) if "norm" not in w.path.split("/")[0]
        or "batch" in w.path else np.array(w)
        for w in model.weights
    ])  # fmt: skip
    return model


def test_it_begins_with_the_weights_that_it_has(train, npz):
    model = prepared(npz)
    before = arrays(model)
    told = train(model, learning_rate=1e-12)
    kept = safetensors.numpy.load_file(train.folder() / "initial_weights.safetensors")
    for value in before:
        assert any(np.array_equal(value, one) for one in kept.values())
    assert equal(before[:5], arrays(model)[:5])  # statistics and the frozen layer
    assert np.allclose(before[-2], arrays(model)[-2], atol=1e-6)
    recorded = record.read_run(train.folder())
    assert recorded["weights"] == "as given"
    files = recorded["files"]
    wanted = recorded["initial_weights_sha256"]
    assert files["initial_weights.safetensors"] == wanted
    # The statistics of the Normalization reach the layers behind it.
    test = np.load(npz)["x_test"] / 255
    right = (model.predict(test, verbose=0).argmax(1) == np.load(npz)["y_test"]).mean()
    assert abs(right - told["test_accuracy"]) < 1e-6
    assert gpuzoo.verify(train.folder())["verdict"] == "identical"


@pytest.mark.parametrize("fresh", [False, True])
def test_it_is_done_again_from_the_folder_alone(train, npz, fresh, tmp_path):
    """After a kill before the first checkpoint, too."""
    model = net(L.Dense(4, name="kept"), L.Dropout(0.3))
    model.get_layer("kept").keeps_weights = True
    if fresh:
        model.compile(steps_per_execution=4)  # leaves a finding
    told = train(model, fresh=fresh)
    folder = train.folder()
    assert gpuzoo.verify(folder)["verdict"] == "identical"
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("initial_weights.safetensors", "architecture.json"):
        shutil.copy(folder / name, killed)
    recorded = record.read_run(folder)
    for name in ("files", "weights_sha256", "steps", "epochs", "parameters", "seconds"):
        del recorded[name]
    recorded |= {"state": "running", "metrics": {}, "finished": None}
    recorded["seal"] = record.seal(recorded)
    (killed / "run.json").write_text(json.dumps(recorded))
    again = gpuzoo.resume(killed, quiet=True)
    assert again["weights_sha256"] == told["weights_sha256"]
    assert gpuzoo.verify(killed)["verdict"] == "identical"
    damaged = killed / "initial_weights.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(gpuzoo.GpuzooError, match="has been changed since the run beg"):
        gpuzoo.verify(killed)


def test_its_architecture_is_a_file_of_the_run(train, tmp_path):
    model = net(L.Dense(4, name="mine"), name="named")
    told = train(model)
    folder = train.folder()
    recorded = json.loads((folder / "run.json").read_text())
    assert recorded["recipe"]["model"] == "architecture.json"
    assert told["model"] == "named"
    file = folder / "architecture.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert recorded["architecture_sha256"] == recorded["files"][file.name] == digest
    rebuilt = keras.models.model_from_json(file.read_text())
    assert [one.name for one in rebuilt.layers][0] == "mine"
    assert rebuilt.count_params() == model.count_params()
    text = file.read_text()
    for change, words in (
        (
            lambda: file.write_text(text.replace("mine", "nime")),
            "changed since the run",
        ),
        (file.unlink, "architecture.json cannot be read: No such file"),
    ):
        change()
        for verb in (gpuzoo.verify, gpuzoo.resume):
            with pytest.raises(gpuzoo.GpuzooError, match=words):
                verb(folder)
    file.write_text(text)
    assert gpuzoo.verify(folder)["verdict"] == "identical"


def test_fresh_draws_for_the_seed_but_what_is_kept(train):
    digests = []
    for number in range(2):
        model = scales()
        model.set_weights([one + number + 1 for one in model.get_weights()])
        digests.append(train(model, fresh=True)["weights_sha256"])
    assert digests[0] == digests[1]
    assert record.read_run(train.folder())["weights"] == "drawn for the seed"
    assert train(scales(), fresh=True)["weights_sha256"] == digests[0]
    assert train(scales(), fresh=True, seed=1)["weights_sha256"] != digests[0]
    model = scales()
    for layer in (*model.layers[:2], model.layers[-1]):
        layer.keeps_weights = True
    model.set_weights([one + 2 for one in model.get_weights()])
    before = arrays(model)
    train(model, fresh=True, learning_rate=1e-12)
    near = [
        np.allclose(*two, atol=1e-6) for two in zip(before, arrays(model), strict=True)
    ]
    # Kernel, bias, the two scales, kernel, bias.
    assert near == [True, True, True, False, True, True]
    frozen = net(L.Dense(4, trainable=False, name="ice"))
    with pytest.raises(gpuzoo.GpuzooError, match="'ice' is frozen"):
        train(frozen, fresh=True)


def test_keeps_weights_on_a_model_holds_for_its_layers(runtime):
    from gpuzoo.engine import initializers

    inside = keras.Input((14, 14, 1))
    deep = keras.Sequential([keras.Input((14, 14, 1)), L.Conv2D(2, 3), L.Conv2D(2, 3)])
    body = keras.Model(inside, deep(inside))
    body.trainable = False
    model = net(body)
    body.keeps_weights = True
    before = arrays(model)
    initializers.initialise(model, 0)
    assert equal(before[:4], arrays(model)[:4])
    assert not np.array_equal(before[4], arrays(model)[4])


def test_a_model_object_in_the_wrong_place_is_shown_the_right_one(runtime):
    for recipe in ("mnist", gpuzoo.Recipe(name="own", data="digits")):
        words = r"got a keras Sequential; pass .* first.*train\(model, task='classify'"
        with pytest.raises(gpuzoo.GpuzooError, match=words):
            gpuzoo.train(recipe, model=net())
    with pytest.raises(gpuzoo.GpuzooError, match="got the function net; decorate it"):
        gpuzoo.train("mnist", model=net)
    with pytest.raises(gpuzoo.GpuzooError, match="path.py:function, got 3"):
        gpuzoo.train("mnist", model=3)
    with pytest.raises(gpuzoo.GpuzooError, match="a model object and model='cnn'; lea"):
        gpuzoo.train(net(), model="cnn")


# --- its form and its names -----------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            lambda: L.Dense(3, activation=lambda x: x),
            "a lambda as activation of its la",
        ),
        (lambda: L.Activation(lambda x: x), "a lambda as activation of its layer"),
        (
            lambda: L.Dense(3, kernel_initializer=lambda shape, dtype: np.ones(shape)),
            "a lambda as kernel_initializer of its layer 'dense",
        ),
        (lambda: L.Lambda(lambda x: x), "a Lambda layer 'lambda.*code is not saved"),
    ],
)
def test_functions_that_a_description_leaves_out_are_named(layer, words, runtime):
    model = net(layer())
    with pytest.raises(gpuzoo.GpuzooError, match=words):
        architecture.describe(model)


@pytest.mark.parametrize("place", [0, 1, None])
def test_a_method_set_on_a_layer_is_refused(place, runtime):
    model = net(backbone())
    part = model if place is None else model.layers[0].layers[place]
    patched(part, "call")
    with pytest.raises(gpuzoo.GpuzooError, match=f"{part.name}' with its own call set"):
        architecture.describe(model)


class Stepping(keras.Model):
    def train_step(self, *given):
        raise RuntimeError("called")


class Measuring(keras.Model):
    def compute_metrics(self, *given, **named):
        raise RuntimeError("called")


class Heir(Stepping):
    pass


class Calling(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.dense = L.Flatten(), L.Dense(2)

    def call(self, x):
        return self.dense(self.flat(x))


FILE = '''
import sys; sys.path.insert(0, {tests!r})
import keras, gpuzoo
import test_model_objects as mine
@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple = (14, 14, 1), num_classes: int = 2):
    """A model that is refused."""
    return mine.refused({name!r})
'''


def refused(name: str):
    if name == "Calling":
        return Calling()
    if name == "built":
        model = Calling()
        model(np.zeros((1, 14, 14, 1)))
        return model
    image = keras.Input((14, 14, 1))
    kind = {"patched": keras.Model}.get(name) or globals()[name]
    model = kind(image, L.Dense(2)(L.Flatten()(image)))
    if name == "patched":
        model.compute_loss = lambda **named: 0.0
    return model


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Stepping", "train_step of its own"),
        ("Heir", "train_step of its own"),
        ("Measuring", "compute_metrics of its own"),
        ("patched", "compute_loss of its own"),
        (
            "Calling",
            "is a subclassed keras.Model .Calling.*put a function that returns it into",
        ),
        (
            "built",
            "is a subclassed keras.Model .Calling.*put a function that returns it into",
        ),
    ],
)
def test_what_gpuzoo_would_not_call_is_refused_whichever_way_it_comes(
    name, words, train, tmp_path, npz
):
    with pytest.raises(gpuzoo.GpuzooError, match=words) as told:
        train(refused(name))
    from conftest import ROOT, splits

    from gpuzoo.data.validate import make_dataset
    from gpuzoo.training.build import build_model

    file = tmp_path / "mine.py"
    file.write_text(FILE.format(tests=str(ROOT / "tests"), name=name))
    data = make_dataset("tiny", "made up", splits(np.load(npz)))
    recipe = gpuzoo.Recipe(name="own", model=f"{file}:net", data="tiny")
    if "subclassed" in words:  # a function in a file, whose code is recorded, may be
        assert len(build_model(recipe, data).layers) == 2
        return
    with pytest.raises(gpuzoo.GpuzooError, match=words) as again:
        build_model(recipe, data)
    for error in (told, again):
        assert "\n" not in str(error.value)
    # After the name of the model it is the same text.
    assert str(told.value).split("' ")[1:] == str(again.value).split("' ")[1:]


def rich():
    """Nested, shared and wrapped layers, most without a name."""
    penalty = keras.regularizers.L2(1e-3)
    inside = keras.Input((196,))
    x = L.Dense(5, kernel_regularizer=penalty)(inside)
    body = keras.Model(inside, L.Dense(5, "relu", kernel_regularizer=penalty)(x))
    image = keras.Input((14, 14, 1))
    flat = L.Flatten()(image)
    shared = L.Dense(5, name="shared")
    rows = L.Bidirectional(L.LSTM(2))(L.Reshape((14, 14))(image))
    head = keras.Sequential([keras.Input((5,)), L.Dense(3), L.Dropout(0.1)])
    both = shared(body(flat)) + shared(body(flat / 2))
    x = L.Concatenate()([head(both), rows])
    return keras.Model(image, L.Dense(2)(x))


def test_what_the_process_has_built_before_does_not_matter(train):
    """Neither for the weights nor for their names."""
    seen, folders = [], []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        model = rich()
        seen.append(train(model)["weights_sha256"])
        folders.append(train.folder())
        rich(), net(L.Conv2D(2, 2)), L.LSTM(3)  # Keras counts on
    assert seen[0] == seen[1]
    told = gpuzoo.diff(*folders)
    assert told["verdict"] == "identical" and not told["settings"]
    clones = [keras.models.clone_model(rich()) for _ in range(2)]
    assert len(set(map(architecture.describe, clones))) == 1


def scales():
    """A layer of Keras's that makes a weight without a name."""
    from keras.src.applications.convnext import LayerScale

    return net(L.Conv2D(4, 3), LayerScale(0.5, 4), LayerScale(0.5, 4))


def named():
    return keras.Sequential(
        [keras.Input((14, 14, 1)), L.Flatten(name="f"), L.Dense(2, name="d")], name="s"
    )


@pytest.mark.parametrize("make", [rich, scales, named])
def test_weights_are_loaded_into_the_model_and_one_like_it(make, train, tmp_path):
    model = make()
    train(model)
    trained = arrays(model)
    for other in (model, make(), keras.models.clone_model(make())):
        other.set_weights([0 * one for one in trained])
        gpuzoo.load_weights(other, train.folder())
        assert equal(arrays(other), trained)


def pair(first: str, second: str):
    return net(L.Dense(1, name=first), L.Dense(1, name=second))


def test_weights_of_another_structure_are_refused(train, tmp_path):
    train(pair("a", "b"))
    path = train.folder()
    gpuzoo.load_weights(pair("a", "b"), path)
    for other in (pair("b", "c"), pair("a", "c"), net(L.Dense(1), L.Dense(1)), net()):
        before = arrays(other)
        with pytest.raises(gpuzoo.GpuzooError, match="is only in the"):
            gpuzoo.load_weights(other, path)
        assert equal(arrays(other), before)
    train(net(L.Dense(1), L.Dense(1)))
    gpuzoo.load_weights(net(L.Dense(1), L.Dense(1)), train.folder())
    alone = tmp_path / "weights.safetensors"
    shutil.copy(train.folder() / alone.name, alone)
    with pytest.raises(gpuzoo.GpuzooError, match="pass the run folder"):
        gpuzoo.load_weights(net(L.Dense(1), L.Dense(1)), alone)


# --- the numbers that it is given -----------------------------------------------------


def adapted(images):
    layer = L.Normalization(axis=None)
    layer.adapt(images)
    return layer


def nested_rescaling():
    image = keras.Input((14, 14, 1))
    x = L.Rescaling(1 / 127.5, -1)(L.RandomFlip()(image))
    return keras.Model(image, L.Conv2D(2, 3)(x))


def halved():
    image = keras.Input((14, 14, 1))
    x = L.Conv2D(2, 3)(image) + L.Conv2D(2, 3)(image / 255)
    return keras.Model(image, x)


def one_of_two_branches():
    image = keras.Input((14, 14, 1))
    x = L.Concatenate()([L.Rescaling(1 / 255)(image), L.Conv2D(2, 1)(image)])
    return keras.Model(image, x)


def with_its_mean_added():
    image = keras.Input((14, 14, 1))
    return keras.Model(image, L.Conv2D(2, 1)(image) + keras.ops.mean(image))


def without_imagenets_mean():
    image = keras.Input((14, 14, 1))
    colours = L.Concatenate()([image] * 3)
    x = keras.applications.resnet50.preprocess_input(colours)
    return keras.Model(image, L.Conv2D(2, 3)(x))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (lambda images: [one_of_two_branches()], "scaled twice.*before 'concat"),
        (lambda images: [without_imagenets_mean()], r"mean of -1.*Rescaling\(255\)"),
        (lambda images: [L.Rescaling(255), without_imagenets_mean()], None),
        (lambda images: [L.Rescaling(1, offset=-0.5)], None),
        (lambda images: [with_its_mean_added()], None),
        (lambda images: [L.Rescaling(1 / 255)], "scaled twice.*'rescaling"),
        (lambda images: [keras.Sequential([L.Rescaling(1 / 255)])], "scaled twice"),
        (lambda images: [L.Resizing(7, 7), adapted(images * 1.0)], "'normalization"),
        (lambda images: [nested_rescaling()], "scaled twice"),
        (lambda images: [halved()], "'true_divide"),
        (lambda images: [L.RandomBrightness(0.1)], r"value_range=\(0, 1\)"),
        (lambda images: [L.RandomBrightness(0.1, value_range=(0, 1))], None),
        (lambda images: [adapted(images / 255)], None),
        (lambda images: [L.Rescaling(255), L.Rescaling(1 / 255)], None),
        (lambda images: [L.Rescaling(2, -1)], None),
        (lambda images: [L.AveragePooling2D(14)], None),
        (lambda images: [L.Conv2D(2, 3), L.Rescaling(1 / 255)], None),
    ],
)
def test_images_that_are_scaled_twice_are_told(layers, words, train, npz):
    import re

    told = train(net(*layers(np.load(npz)["x_train"])), fast_dev_run=True)
    recorded = record.read_run(train.folder())["findings"]
    assert recorded == told["findings"]
    assert bool(recorded) == bool(words)
    assert not words or re.search(words, recorded[0])


@pytest.mark.parametrize("name", ["weights.safetensors", "digests.jsonl"])
def test_load_weights_refuses_a_pipe_in_the_place_of_a_file(name, train):
    model = net(L.Dense(1))
    train(model)
    path = train.folder() / name
    path.rename(path.with_suffix(".kept"))
    os.mkfifo(path)
    other = net(L.Dense(1, name="other"))  # needs digests.jsonl for its order
    with pytest.raises(gpuzoo.GpuzooError) as told:
        gpuzoo.load_weights(other, train.folder())
    assert "\n" not in str(told.value)
    words = "not a regular file" if name.startswith("w") else "digests.jsonl has the"
    assert words in str(told.value)
    path.unlink()
    path.symlink_to(path.with_suffix(".kept"))  # a link of the user's is followed
    gpuzoo.load_weights(model, train.folder())


@pytest.mark.parametrize("name", ["pipe.npz", "pipe.csv"])
def test_data_that_is_a_pipe_is_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(gpuzoo.GpuzooError, match="not a regular file"):
        gpuzoo.load_data(str(tmp_path / name))


def test_a_file_of_a_model_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "own.py")
    with pytest.raises(gpuzoo.GpuzooError, match="own.py: it is not a regular file"):
        gpuzoo.build(f"{tmp_path / 'own.py'}:net")


def test_a_model_object_is_named_by_its_file_everywhere(train, npz):
    """Not by the text of its architecture, in memory as on disk."""
    told = train(net(L.Dense(4), name="named"))
    recorded = record.read_run(train.folder())
    assert recorded["recipe"]["model"] == "architecture.json"
    assert record.recipe_of(recorded).model_name == told["model"] == "named"
    with pytest.raises(gpuzoo.GpuzooError, match="a model object and model='cnn'"):
        gpuzoo.train(net(L.Dense(4)), model="cnn", data=str(npz))
    for build in (
        lambda: gpuzoo.build("architecture.json"),
        lambda: gpuzoo.train(
            "mnist", model="architecture.json", data=str(npz), batch_size=16
        ),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match="pass the object itself to gpuz"):
            build()


def test_the_run_of_a_model_object_teaches(train):
    train(net(L.Dense(4), name="master"))
    teacher = train.folder()
    recipe = gpuzoo.load_recipe("distill_cifar10").override(
        model="mlp", augment=(), teacher=str(teacher)
    )
    train(recipe)
    assert gpuzoo.verify(train.folder())["verdict"] == "identical"
    (teacher / "architecture.json").write_text("{}")
    with pytest.raises(gpuzoo.GpuzooError, match="architecture.json has been changed"):
        train(recipe)
