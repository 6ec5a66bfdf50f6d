"""Model objects that are compiled: their optimizer, loss and metrics."""

import json

import keras
import numpy as np
import pytest
from small import arrays, net, own_loss, patched

import gpuzoo
from gpuzoo.runs import record

L = keras.layers
RULES, RATES = keras.optimizers, keras.optimizers.schedules
LOSSES, SPARSE = keras.losses, keras.losses.SparseCategoricalCrossentropy


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
        # Not poisson: the logarithm of an output below 0 is not a number.
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
    assert "after 3 steps of Keras's fit is not used" in train(model)["findings"][0]
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
