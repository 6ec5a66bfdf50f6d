"""Model objects: the weights that they begin with, what they are compiled with, the
names of their layers, and the numbers that they are given."""

import hashlib
import json
import os
import shutil

import keras
import numpy as np
import pytest
import safetensors.numpy

import gpuzoo
from gpuzoo.catalogue import architecture
from gpuzoo.runs import record

L = keras.layers
RULES, RATES = keras.optimizers, keras.optimizers.schedules
LOSSES, SPARSE = keras.losses, keras.losses.SparseCategoricalCrossentropy


def net(*layers, units=2, **named):
    return keras.Sequential(
        [keras.Input((14, 14, 1)), *layers, L.Flatten(), L.Dense(units)], **named
    )


def arrays(model):
    return [np.array(weight) for weight in model.weights]


def equal(one, other) -> bool:
    return all(map(np.array_equal, one, other))


@pytest.fixture
def train(npz, tmp_path, runtime):
    """Trains in this process, each time into the next of the folders 1, 2, ..."""
    done = []

    def run(model, **how):
        done.append(tmp_path / str(len(done) + 1))
        how = {"epochs": 1, "batch_size": 16, "quiet": True, **how}
        return gpuzoo.train(model, data=str(npz), out=done[-1], **how)

    run.folder = lambda: done[-1]
    return run


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


# --- frozen layers and weights --------------------------------------------------------


def backbone():
    image = keras.Input((14, 14, 1))
    x = L.BatchNormalization()(L.Conv2D(4, 3, activation="relu")(image))
    x = L.BatchNormalization()(L.Conv2D(4, 3)(x))
    return keras.Model(image, L.GlobalAveragePooling2D()(x))


def frozen(how: str):
    """A model of which a part is frozen, in one of the ways of keras.io's guides."""
    base, image = backbone(), keras.Input((14, 14, 1))
    if how == "flat":
        for layer in base.layers[:-1]:
            layer.trainable = False
        return keras.Model(base.input, L.Dense(2)(base.output))
    if how == "one weight":
        model = net(L.Dense(3))
        model.layers[-1].kernel.trainable = False
        return model
    base.trainable = False
    if how == "unfrozen at its end":
        for layer in base.layers[-3:]:
            layer.trainable = True
    elif how == "statistics":  # of a normalization that computes as when it trains
        base.layers[2].trainable = True
        base.layers[2].gamma.trainable = base.layers[2].beta.trainable = False
    elif how == "sequential":
        return keras.Sequential([image, base, L.Dropout(0.2), L.Dense(2)])
    inside = {"training": False} if how == "nested" else {}
    return keras.Model(image, L.Dense(2)(base(image, **inside)))


FROZEN = (
    "nested", "flat", "sequential", "unfrozen at its end", "statistics", "one weight",
)  # fmt: skip


@pytest.mark.parametrize("how", FROZEN)
def test_what_is_frozen_stays_and_the_rest_is_trained_as_by_keras(how, train, npz):
    keras.utils.set_random_seed(3)
    model = frozen(how)
    images = np.load(npz)["x_train"] / 255
    model.compile(RULES.SGD(0.1, 0.9), SPARSE(from_logits=True))
    before = arrays(model)
    trained = {id(weight) for weight in model.trainable_weights}
    assert 0 < len(trained) < len(before)
    train(model, epochs=4, batch_size=80)
    after = arrays(model)
    for weight, old, new in zip(model.weights, before, after, strict=True):
        if id(weight) in trained:
            assert not np.array_equal(old, new), weight.path
        elif "moving" not in weight.path:
            assert np.array_equal(old, new), weight.path
    assert gpuzoo.verify(train.folder())["verdict"] == "identical"
    model.set_weights(before)
    if how == "sequential":  # whose dropout draws elsewhere in Keras
        return
    model.fit(images, np.load(npz)["y_train"], batch_size=80, epochs=4, verbose=0)
    for one, other in zip(arrays(model), after, strict=True):
        assert np.allclose(one, other, atol=2e-5)


KILLED = """
import sys; sys.path.insert(0, {tests!r})
import gpuzoo
gpuzoo.configure(precision="float32", device="cpu", threads=2)
import keras, test_model_objects as mine
keras.utils.set_random_seed(3)
model = mine.frozen("sequential")
model.layers[-1].kernel.trainable = False
optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
optimizer.exclude_from_weight_decay(var_names=["bias"])
model.compile(optimizer)
gpuzoo.train(model, data={data!r}, out=sys.argv[1], epochs=int(sys.argv[2]),
             batch_size=16, checkpoint_every=20, quiet=True)
"""


def test_a_killed_run_with_a_frozen_backbone_ends_with_the_same_bits(npz, tmp_path):
    import subprocess
    import sys
    import time

    from conftest import ROOT, environment

    file = tmp_path / "script.py"
    file.write_text(KILLED.format(tests=str(ROOT / "tests"), data=str(npz)))
    process = subprocess.Popen(
        [sys.executable, file, "killed", "150"], cwd=tmp_path, env=environment(tmp_path)
    )
    until, saved = time.monotonic() + 120, tmp_path / "killed" / "checkpoints"
    while not list(saved.glob("step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert record.read_run(tmp_path / "killed")["state"] == "running"
    told = gpuzoo.resume(tmp_path / "killed", quiet=True)
    subprocess.run(
        [sys.executable, file, "whole", "150"],
        cwd=tmp_path, env=environment(tmp_path), check=True,
    )  # fmt: skip
    whole = record.read_run(tmp_path / "whole")
    assert told["weights_sha256"] == whole["weights_sha256"]
    begun, ended = (
        safetensors.numpy.load_file(tmp_path / "whole" / f"{name}.safetensors")
        for name in ("initial_weights", "weights")
    )
    moved = {name for name in begun if not np.array_equal(begun[name], ended[name])}
    assert len(moved) == 1 and moved.pop().endswith("dense/bias")


def test_a_frozen_weight_is_not_drawn_anew_and_nothing_to_train_is_refused(train):
    model = frozen("one weight")
    with pytest.raises(gpuzoo.GpuzooError, match="kernel of layer 'dense.* is frozen"):
        train(model, fresh=True)
    model.layers[-1].keeps_weights = True
    before = np.array(model.layers[-1].kernel)
    train(model, fresh=True)
    assert np.array_equal(before, model.layers[-1].kernel)
    model.trainable = False
    with pytest.raises(gpuzoo.GpuzooError, match="model .* has no trainable weights"):
        train(model)


def test_a_description_that_freezes_what_is_not_there_is_refused():
    parts = json.loads(architecture.describe(frozen("one weight")))
    assert parts["trainable"] == {"weights": [[2, False]]}
    for flags in (
        {"weights": [[9, False]]},
        {"layers": [0]},
        {"layers": {"a": 1}},
        [1],
    ):
        text = json.dumps({**parts, "trainable": flags})
        with pytest.raises(gpuzoo.GpuzooError, match="trainable must hold"):
            architecture.rebuild(text)


# --- what it is compiled with ---------------------------------------------------------


def excluding(optimizer, *names):
    optimizer.exclude_from_weight_decay(var_names=list(names))
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [
        (lambda: RULES.SGD(0.1, 0.8, clipnorm=0.1), lambda: SPARSE(from_logits=True)),
        (lambda: RULES.SGD(RATES.ExponentialDecay(0.001, 2, 0.5)), lambda: "mse"),
        (lambda: RULES.Adam(0.01, epsilon=0.1), LOSSES.Huber),
        (lambda: RULES.Adam(0.01, amsgrad=True, use_ema=True), lambda: ["mae"]),
        (
            lambda: RULES.AdamW(0.01, weight_decay=0.5),
            lambda: LOSSES.CategoricalCrossentropy(
                from_logits=True, label_smoothing=0.3, reduction="sum"
            ),
        ),
        (lambda: RULES.Nadam(0.01), lambda: SPARSE(from_logits=True)),
        (lambda: "rmsprop", lambda: LOSSES.CategoricalHinge()),
        (
            lambda: RULES.Lion(0.01),
            lambda: LOSSES.CategoricalFocalCrossentropy(from_logits=True),
        ),
        (lambda: RULES.SGD(0.001, gradient_accumulation_steps=2), lambda: "hinge"),
        # Not hinge: a gradient of 0 but for rounding is made large.
        (lambda: RULES.Lamb(0.01, weight_decay=0.1), lambda: "MeanSquaredError"),
        # Not poisson: the logarithm of an output below 0 is no number.
        (lambda: RULES.Lamb(RATES.CosineDecay(0.01, 9)), lambda: "huber"),
        (lambda: RULES.SGD(0.01), lambda: LOSSES.Huber(delta=0.1)),
        (lambda: RULES.SGD(0.1), lambda: LOSSES.Dice(axis=-1)),
        (lambda: excluding(RULES.AdamW(0.01, weight_decay=0.5), "bias"), lambda: "mse"),
        (lambda: excluding(RULES.SGD(0.001, weight_decay=9), "kernel"), lambda: "mse"),
    ],
)  # fmt: skip
def test_a_compiled_optimizer_and_loss_do_what_keras_does(optimizer, loss, train, npz):
    """All examples in one batch, so that their order is all that differs."""
    keras.utils.set_random_seed(0)  # the same weights in each run of the test
    model, stock = net(L.Dense(4, "tanh")), net(L.Dense(4, "tanh"))
    stock.set_weights(model.get_weights())
    for each in (model, stock):
        each.compile(optimizer(), loss())
    data = np.load(npz)
    labels, wanted = data["y_train"], data["y_test"]
    if not isinstance(loss(), SPARSE):
        labels, wanted = (keras.ops.one_hot(one, 2) for one in (labels, wanted))
    stock.fit(data["x_train"] / 255, labels, batch_size=80, epochs=6, verbose=0)
    told = train(model, epochs=6, batch_size=80)
    for one, other in zip(arrays(model), arrays(stock), strict=True):
        assert np.allclose(one, other, 5e-5, 2e-5)  # Dice makes weights of 100
    if getattr(loss(), "reduction", "") != "sum":
        figure = stock.evaluate(data["x_test"] / 255, wanted, verbose=0)
        assert np.isclose(figure, told["test_loss"], rtol=1e-3)
    assert gpuzoo.verify(train.folder())["verdict"] == "identical"


@pytest.mark.parametrize(
    ("units", "end", "loss"),
    [
        (2, "softmax", "sparse_categorical_crossentropy"),
        (2, "softmax", "mse"),
        (1, "sigmoid", "binary_crossentropy"),
        (1, "sigmoid", "mse"),
    ],
)
def test_a_compiled_loss_is_of_what_the_model_puts_out(units, end, loss, train, npz):
    def ended():
        model = net(units=units)
        return keras.Sequential([*model.layers[:-1], L.Dense(units, end)])

    model, stock = ended(), ended()
    data = np.load(npz)
    model.build((None, 14, 14, 1)), stock.build((None, 14, 14, 1))
    stock.set_weights(model.get_weights())
    for each in (model, stock):
        each.compile(RULES.SGD(0.1), loss, metrics=["accuracy"])
    labels = data["y_train"].astype("float32")[:, None]
    if units == 2 and loss == "mse":
        labels = np.eye(2)[data["y_train"]]
    stock.fit(data["x_train"] / 255, labels, batch_size=80, epochs=5, verbose=0)
    train(model, epochs=5, batch_size=80)
    for one, other in zip(arrays(model), arrays(stock), strict=True):
        assert np.allclose(one, other, atol=2e-5)


def test_a_loss_of_logits_does_not_take_probabilities(train):
    model = keras.Sequential([keras.Input((14, 14, 1)), L.Flatten()])
    model.add(L.Dense(2, "softmax"))
    model.compile(loss=SPARSE(from_logits=True))
    with pytest.raises(gpuzoo.GpuzooError, match="ends in a softmax.*logits=False"):
        train(model)


def test_what_the_user_names_goes_before_what_is_compiled(train, capsys):
    def compiled():
        keras.utils.set_random_seed(3)
        model = net()
        model.compile(RULES.SGD(0.5), steps_per_execution=4)
        return model

    def begun():
        return record.read_run(train.folder())["compiled"]["optimizer"]

    train(compiled(), quiet=False)
    first = capsys.readouterr().err
    assert "weights: as given" in first and "optimizer: SGD, learning rate 0.5" in first
    assert "loss: cross-entropy" in first and "steps_per_execution=4 of com" in first
    told = train(compiled(), learning_rate=0.25)
    assert begun()["config"]["learning_rate"] == 0.25
    assert "learning_rate named to train() replaces" in " ".join(told["findings"])
    told = train(compiled(), optimizer="adam")
    assert begun() is None
    assert "replaces the compiled SGD" in " ".join(told["findings"])
    with pytest.raises(gpuzoo.GpuzooError, match="schedule has no effect beside"):
        train(compiled(), schedule="cosine")
    model = compiled()
    model.compile("adam", SPARSE(from_logits=True))
    model.fit(np.zeros((8, 14, 14, 1)), np.zeros(8), verbose=0, epochs=3)
    assert "after 3 steps of Keras's fit is not carried" in train(model)["findings"][0]
    with pytest.raises(gpuzoo.GpuzooError, match="label_smoothing has no effect"):
        train(model, label_smoothing=0.1)


def test_what_compile_leaves_in_a_record_cannot_be_changed(train):
    """A note of compile() beside one on the images, and the name of the recipe."""
    model = net(L.Rescaling(1 / 255), name="mine")
    model.compile(RULES.SGD(0.5), steps_per_execution=4)
    train(model, name="other", learning_rate=0.1)
    file = train.folder() / "run.json"
    honest = json.loads(file.read_text())
    assert gpuzoo.verify(train.folder())["verdict"] == "identical"
    first, second, third = honest["findings"]
    assert "steps_per_execution" in first and "scaled twice" in third
    sgd = honest["compiled"]["optimizer"]
    for change, named in (
        ({"recipe": {**honest["recipe"], "name": "mine"}}, {"id"}),
        ({"findings": [second, third]}, {"id"}),
        ({"findings": [first, second]}, {"id", "findings"}),
        ({"findings": [first, first, second, third]}, {"id"}),
        ({"findings": [first, "all is well", third]}, {"id"}),
        ({"findings": []}, {"findings", "id"}),
        ({"compiled": {"loss": None, "optimizer": {**sgd, "build_config": 1}}}, {"id"}),
    ):
        changed = {**honest, **change}
        changed["seal"] = record.seal(changed)
        file.write_text(json.dumps(changed))
        found = gpuzoo.verify(train.folder())
        assert {one.partition(":")[0] for one in found["figures"]} == named
        assert (found["exit_code"], found["changed_files"]) == (1, [])


@pytest.mark.parametrize(
    ("units", "end", "metric"),
    [
        (2, "softmax", keras.metrics.SparseCategoricalAccuracy),
        (1, "sigmoid", lambda: "acc"),
    ],
)
def test_a_student_may_be_compiled_with_its_accuracy(units, end, metric, train, npz):
    train(net(L.Dense(4)), epochs=4)
    how = {"task": "distill", "teacher": str(train.folder())}
    model = keras.Sequential([*net().layers[:-1], L.Dense(units, end)])
    model.build((None, 14, 14, 1))
    model.compile(RULES.SGD(0.05), metrics=[metric()])
    told = train(model, **how)
    outputs = model.predict(np.load(npz)["x_test"] / 255, verbose=0)
    chosen = outputs.argmax(1) if units == 2 else outputs[:, 0] > 0.5
    right = (chosen == np.load(npz)["y_test"]).mean()
    assert abs(right - told["test_accuracy"]) < 1e-6
    assert gpuzoo.verify(train.folder())["verdict"] == "identical"
    for parts, words in (
        ({"metrics": ["AUC"]}, "the metric AUC, which the task distill"),
        ({"loss": "mse"}, "the task distill has its own loss"),
    ):
        model.compile("sgd", **parts)
        with pytest.raises(gpuzoo.GpuzooError, match=words):
            train(model, **how)


@pytest.mark.parametrize(
    ("end", "loss", "metric"),
    [
        (None, "mse", lambda: keras.metrics.BinaryAccuracy()),
        (None, "huber", lambda: "accuracy"),
        (None, "hinge", lambda: keras.metrics.BinaryAccuracy(threshold=0.0)),
        (None, LOSSES.BinaryCrossentropy(from_logits=True),
         lambda: keras.metrics.BinaryAccuracy(threshold=0)),
        ("sigmoid", "mse", lambda: keras.metrics.binary_accuracy),
    ],
)  # fmt: skip
def test_one_unit_is_parted_where_its_loss_parts_it(end, loss, metric, train, npz):
    """Numbers between 0 and 0.5 tell the two thresholds apart."""
    model = net(units=1)
    model = keras.Sequential([*model.layers[:-1], L.Dense(1, end)])
    model.build((None, 14, 14, 1))
    model.compile(RULES.SGD(1e-9), loss, metrics=[metric()])
    data = np.load(npz)
    kernel = np.full((196, 1), 0.3 / (data["x_test"] / 255).sum(axis=(1, 2, 3)).mean())
    kernel[:98] *= np.linspace(-4, 4, 98)[:, None]
    model.set_weights([kernel, np.float32([0.25])])
    wanted = model.evaluate(data["x_test"] / 255, data["y_test"][:, None], verbose=0)
    told = train(model, learning_rate=1e-9)
    assert np.allclose([told["test_loss"], told["test_accuracy"]], wanted, rtol=1e-4)


def own_loss(wanted, told):
    return keras.ops.mean(wanted - told)


class OwnLoss(LOSSES.Loss):
    def call(self, wanted, told):
        return told[:, 0]


def accuracy(wanted, told):
    return 0.0


class Accuracy(keras.metrics.Metric):
    def update_state(self, *given, **named):
        pass

    def result(self):
        return 0.0


def patched(part, name):
    setattr(part, name, own_loss)
    return part


class OwnSGD(RULES.SGD):
    pass


class OwnRate(RATES.LearningRateSchedule):
    def __call__(self, step):
        return 0.1

    def get_config(self):
        return {}


def two_rules():
    return RULES.OptimizerMap(RULES.SGD(0.1), {"dense/bias": RULES.Adam()})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda: {"loss": own_loss}, "loss own_loss, which is not Keras's own"),
        (lambda: {"loss": OwnLoss()}, "loss OwnLoss, which is not Keras's own"),
        (
            lambda: {"loss": SPARSE()},
            r"puts out logits; compile it with .*from_logits=True",
        ),
        (lambda: {"loss": "categorical_crossentropy"}, "takes probabilities"),
        (lambda: {"loss": SPARSE(from_logits=True, ignore_class=0)}, "ignore_class=0"),
        (lambda: {"loss": LOSSES.MeanSquaredError(None)}, "reduction=None"),
        (
            lambda: {"optimizer": RULES.MultiOptimizer(two_rules())},
            "compiled with MultiOptimizer, which is not supported.*name optimizer=",
        ),
        (
            lambda: {"optimizer": RULES.MultiOptimizer(lambda weight: RULES.SGD())},
            "compiled with MultiOptimizer, which is not supported",
        ),
        (
            lambda: {
                "optimizer": RULES.LossScaleOptimizer(RULES.MultiOptimizer(two_rules()))
            },
            "compiled with MultiOptimizer, which is not supported",
        ),
        (
            lambda: {"optimizer": OwnSGD(0.1)},
            "optimizer OwnSGD, which is not Keras's own",
        ),
        (
            lambda: {"optimizer": RULES.SGD(OwnRate())},
            "SGD with OwnRate, which is not Keras's",
        ),
        (
            lambda: {"optimizer": RULES.SGD(lambda: 0.1)},
            "SGD with a function as its learning rate, which is not Keras's",
        ),
        (
            lambda: {"metrics": ["accuracy", "AUC"]},
            "metric AUC, which the task classify",
        ),
        (
            lambda: {"metrics": [keras.metrics.TopKCategoricalAccuracy(3)]},
            "TopKCategoricalAcc",
        ),
        (lambda: {"metrics": [own_loss]}, "metric own_loss"),
        (lambda: {"metrics": [accuracy]}, "metric accuracy of your own"),
        (lambda: {"metrics": [Accuracy()]}, "metric Accuracy of your own"),
        (lambda: {"metrics": [keras.metrics.Accuracy()]}, "metric Accuracy, which"),
        (
            lambda: {
                "metrics": [patched(keras.metrics.CategoricalAccuracy(), "result")]
            },
            "metric CategoricalAccuracy of your own",
        ),
        (
            lambda: {"optimizer": patched(RULES.Adam(), "update_step")},
            "Adam with its own update_step set on it",
        ),
        (
            lambda: {
                "optimizer": RULES.LossScaleOptimizer(patched(RULES.SGD(), "apply"))
            },
            "with its own apply set on it",
        ),
        (
            lambda: {"loss": patched(LOSSES.MeanSquaredError(), "call")},
            "MeanSquaredError with its own call set on it",
        ),
        (lambda: {"loss": patched(LOSSES.Huber(), "fn")}, "Huber with its own fn"),
        (lambda: {"loss": "no_such"}, "loss 'no_such', which is not Keras's own"),
        (lambda: {"loss": "crossentropy"}, "takes probabilities"),
        (lambda: {"loss": "ctc"}, "compiled loss CTC cannot be computed"),
        (lambda: {"loss": "circle"}, "compiled loss Circle"),
        (lambda: {"loss": "dice"}, "Dice does not give one number for each example"),
        (lambda: {"loss": LOSSES.CosineSimilarity(axis=0)}, "one number for each"),
        (lambda: {"loss": "mse", "loss_weights": [2.0]}, "with loss_weights"),
        (lambda: {"weighted_metrics": ["accuracy"]}, "with weighted_metrics"),
    ],
)
def test_what_cannot_be_used_of_compile_is_refused_by_name(how, words, train):
    model = net()
    model.compile(**how())
    with pytest.raises(gpuzoo.GpuzooError, match=words) as told:
        train(model)
    assert "\n" not in str(told.value) and not train.folder().exists()


def test_a_threshold_that_is_not_used_is_refused_and_one_of_logits_told(train):
    kind = keras.metrics.BinaryAccuracy
    for loss, threshold in (("mse", 0.9), ("mse", 0), (None, 0.2)):
        model = net(units=1)
        model.compile("sgd", loss, metrics=[kind(threshold=threshold)])
        with pytest.raises(gpuzoo.GpuzooError, match=f"threshold={threshold}"):
            train(model)
    model.compile("sgd", metrics=[kind()])
    assert "counts logits above 0" in train(model)["findings"][0]


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


def nested(x, behind):
    inside = keras.Input(x.shape[1:])
    return keras.Model(inside, behind(keras.ops.sigmoid(inside)))(x)


@pytest.mark.parametrize(
    ("units", "end", "behind", "words"),
    [
        (
            2,
            "softmax",
            lambda x: x * 0.9 + 0.05,
            "softmax that is followed by mult.*add",
        ),
        (2, "softmax", lambda x: 2 * x - 1, "ends in a softmax that is followed by"),
        (2, "softmax", lambda x: L.Rescaling(0.5)(x), "followed by rescaling"),
        (2, "softmax", lambda x: L.Reshape((2,))(1 - x), "softmax that is followed by"),
        (1, "sigmoid", lambda x: x * 0.9 + 0.05, "ends in a sigmoid that is followed"),
        (
            1,
            "sigmoid",
            lambda x: nested(x, lambda y: y / 2),
            "sigmoid that is followed",
        ),
        (1, "sigmoid", lambda x: x * 20 - 10, None),
        (1, "sigmoid", lambda x: nested(x, lambda y: y * 20 - 10), None),
        (2, "softmax", lambda x: keras.ops.log(x * 0.9 + 0.05), None),
        (2, "tanh", lambda x: x * 9, None),
    ],
)
def test_probabilities_with_arithmetic_behind_them_are_no_logits(
    units, end, behind, words, train
):
    image = keras.Input((14, 14, 1))
    inner = "nested" in behind.__code__.co_names
    x = L.Dense(units, None if inner else end)(L.Flatten()(image))
    model = keras.Model(image, behind(x))
    binary = LOSSES.BinaryCrossentropy
    if not words:
        assert train(model, fast_dev_run=True)["state"] == "finished"
        return
    for loss in (None, binary() if units == 1 else SPARSE()):
        model.compile("sgd", loss)
        with pytest.raises(gpuzoo.GpuzooError, match=words):
            train(model)
    model.compile("sgd", "mse")  # of the probabilities themselves
    assert train(model, fast_dev_run=True)["state"] == "finished"


# --- its form and its names -----------------------------------------------------------


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
        ("Calling", "is a sub-classed keras.Model .Calling.*keras.Model.inputs, outp"),
        ("built", "is a sub-classed keras.Model .Calling.*keras.Model.inputs, outp"),
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
