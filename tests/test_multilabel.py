"""Several labels per example: every command that reads such a run, and what is refused."""

import json
import pathlib
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import needs_jax
from scipy import special
from sklearn import metrics
from small import RECIPE, net, program, same, train

import gpuzoo
from gpuzoo.data.sources import load_data
from gpuzoo.data.validate import make_dataset
from gpuzoo.deploy import evaluate
from gpuzoo.engine import checkpoint
from gpuzoo.tasks import scores

HOW = {"device": "cpu", "precision": "float32", "threads": 2}


def patches(count=160, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Images with none to three light quarters, and which of them are light."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < 0.4).astype(np.int64)
    images = rng.integers(0, 90, (count, 14, 14, 1))
    for place, (top, left) in enumerate(((0, 0), (0, 7), (7, 0))):
        images[:, top : top + 7, left : left + 7] += (
            120 * labels[:, place, None, None, None]
        )
    return images.astype(np.uint8), labels


def parts() -> dict:
    x, y = patches()
    return {
        "x_train": x[:112],
        "y_train": y[:112],
        "x_test": x[112:],
        "y_test": y[112:],
    }


@pytest.fixture
def data():
    arrays = parts()
    return make_dataset(
        "patches", "made up",
        {s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]} for s in ("train", "test")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(runtime, tmp_path_factory):
    top = tmp_path_factory.mktemp("labels")
    np.savez(top / "patches.npz", **parts())
    gpuzoo.train(
        "mnist_mlp", task="multilabel", model_options=("units=16,",), epochs=12,
        data=str(top / "patches.npz"), batch_size=16, augment=(), learning_rate=0.01,
        out=str(top / "run"), quiet=True, **HOW,
    )  # fmt: skip
    return top / "run"


# --- the figures ----------------------------------------------------------------------


def test_the_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 4)) < 0.3).astype(np.uint8)
    logits = (rng.normal(size=truth.shape) + truth).astype(np.float32)
    told = (logits > 0).astype(np.uint8)
    found = scores.multilabel(truth, told, logits, "abcd")
    assert found["undefined"] == {}
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, logits))
    precision = metrics.average_precision_score(truth, logits)
    assert found["mean_average_precision"] == pytest.approx(precision)
    assert found["exact_match"] == metrics.accuracy_score(truth, told)
    losses = metrics.log_loss(
        truth.ravel(), special.expit(logits.astype(float)).ravel()
    )
    assert found["log_loss"] == pytest.approx(losses, rel=1e-6)
    for mean in ("macro", "weighted", "micro"):
        assert found[mean]["f1"] == pytest.approx(
            metrics.f1_score(truth, told, average=mean)
        )
    row, (yes, no) = found["per_class"][2], (truth[:, 2] == 1, truth[:, 2] == 0)
    assert row["true_positives"] == (told[yes, 2] == 1).sum()
    assert row["true_negatives"] == (told[no, 2] == 0).sum()
    assert (
        row["examples"] == yes.sum() == row["true_positives"] + row["false_negatives"]
    )


def test_labels_that_all_or_none_have():
    truth = np.tile(np.uint8([1, 0, 1]), (20, 1))
    truth[::2, 2] = 0
    logits = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32) - 9
    found = scores.multilabel(truth, np.zeros_like(truth), logits, "abc")
    assert found["undefined"]["auc"].startswith(
        "all or none of the test examples: 'a', 'b'"
    )
    assert found["per_class"][1]["recall"] is None and found["macro"]["f1"] == 0.0
    none = scores.multilabel(0 * truth, np.zeros_like(truth), logits, "abc")
    assert none["macro"]["f1"] is None is none["micro"]["f1"]
    json.dumps([found, none], allow_nan=False)


# --- the data -------------------------------------------------------------------------


def test_rows_of_0_and_1_are_labels_unless_all_have_one(data, tmp_path):
    assert data.train["labels"].dtype == np.uint8 and data.classes == ("0", "1", "2")
    assert (data.test["labels"] == parts()["y_test"]).all() and "label" not in data.test
    x, y = patches(60)
    np.savez(tmp_path / "whole.npz", x=x, y=y.astype(float))
    whole = load_data(str(tmp_path / "whole.npz"), validation=0.25)
    assert whole.counts == {"train": 36, "val": 12, "test": 12}
    assert sum(part["labels"].sum() for part in whole.splits.values()) == y.sum()
    one = np.eye(3)[y.argmax(axis=1)]
    np.savez(tmp_path / "one.npz", x=x, y=one)
    assert "label" in load_data(str(tmp_path / "one.npz")).train
    y[:, 1] = 0
    assert any("has the label '1'" in line for line in _with(x, y).findings)


def _with(x, y):
    half = len(x) // 2
    both = {"train": slice(half), "test": slice(half, None)}
    return make_dataset(
        "d", "made up", {s: {"image": x[p], "label": y[p]} for s, p in both.items()}
    )


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda y: y - 1, "of 0 and 1"),
        (lambda y: y * 0.5, "of 0 and 1"),
        (lambda y: np.where(y, np.nan, 0), "of 0 and 1"),
        (lambda y: 0 * y, "no training example has a label"),
    ],
)  # fmt: skip
def test_labels_that_are_refused(change, fault):
    x, y = patches(60)
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        _with(x, change(y))


def test_a_task_that_does_not_fit_is_refused(data, dataset, runtime):
    with pytest.raises(gpuzoo.GpuzooError, match="use the task multilabel"):
        program(RECIPE, data, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="use the task classify"):
        program(RECIPE.override(task="multilabel"), dataset, runtime)


# --- training -------------------------------------------------------------------------

RECIPE = RECIPE.override(augment=("translate:1",))
SEVERAL = RECIPE.override(task="multilabel")


def test_killed_and_resumed_it_is_the_same(data, runtime, tmp_path):
    whole, rows = train(SEVERAL, data, runtime)
    assert whole.evaluation["micro"]["f1"] > 0
    saves = SEVERAL.override(checkpoint_every=4)
    train(saves, data, runtime, folder=tmp_path, until=9)
    start, _ = checkpoint.load(tmp_path)
    assert start.step == 9
    resumed, _ = train(saves, data, runtime, folder=tmp_path, resume=start)
    assert same(whole, resumed) and whole.evaluation == resumed.evaluation
    assert whole.metrics == resumed.metrics


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_keras_gives_the_same_loss(activation, tmp_path, runtime):
    """With logits and with a sigmoid, whose training is the same to the bit."""
    np.savez(tmp_path / "patches.npz", **parts())
    keras.utils.set_random_seed(0)
    model = net(units=3)
    logits = keras.Sequential(
        [*model.layers[:-1], keras.layers.Dense(3, activation=activation)]
    )
    logits.build((None, 14, 14, 1))
    logits.set_weights(model.get_weights())
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    logits.compile("adam", loss, metrics=["binary_accuracy"])
    found = gpuzoo.train(
        logits, task="multilabel", data=str(tmp_path / "patches.npz"), epochs=3,
        batch_size=16, out=tmp_path / "run", quiet=True, **HOW,
    )  # fmt: skip
    x, y = parts()["x_test"] / np.float32(255), parts()["y_test"]
    theirs, right = logits.evaluate(x, y, verbose=0)
    assert found["test_loss"] == pytest.approx(theirs, rel=1e-4)
    if activation:  # the metric of Keras compares outputs with 0.5
        assert found["test_accuracy"] == pytest.approx(right)
    assert found["evaluation"]["log_loss"] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    "layers, loss, fault",
    [
        ("softmax", None, "ends in a softmax, and an example may have several labels"),
        (None, "categorical_crossentropy", "not for several labels per example"),
        (None, "binary_crossentropy", "takes probabilities, and the model puts out logits"),
        (4, None, "puts out \\(None, 4\\), not \\(batch, labels\\)"),
    ],
)  # fmt: skip
def test_models_that_are_refused(layers, loss, fault, tmp_path, runtime):
    np.savez(tmp_path / "patches.npz", **parts())
    units = layers if isinstance(layers, int) else 3
    end = [keras.layers.Dense(3, activation=layers)] if isinstance(layers, str) else []
    model = net(units=units)
    model = keras.Sequential([*model.layers, *end])
    model.build((None, 14, 14, 1))
    if loss:
        model.compile("adam", loss)
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        gpuzoo.train(model, task="multilabel", data=str(tmp_path / "patches.npz"),
                     epochs=1, batch_size=16, out=tmp_path / "run", quiet=True, **HOW)  # fmt: skip
    assert not (tmp_path / "run").exists()


# --- after the training -----------------------------------------------------------------


def test_it_is_evaluated_verified_and_predicted(trained, tmp_path, cli_here):
    found = gpuzoo.evaluate(trained)
    assert found["identical"] and found["auc"] > 0.95 and "confusion" not in found
    assert gpuzoo.verify(trained)["verdict"] == "identical"
    run = gpuzoo.load(trained)
    outputs = run.predict(parts()["x_test"])
    accuracy = (outputs["predicted"] == parts()["y_test"]).mean()
    assert accuracy == found["metrics"]["test_accuracy"]
    np.save(tmp_path / "one.npy", parts()["x_test"][0])
    done = cli_here(
        "predict", trained, tmp_path / "one.npy", "--top", "3", "--json-lines"
    )
    row = json.loads(done.stdout.splitlines()[0])
    chances = {one["class"]: one["probability"] for one in row["predictions"]}
    theirs = special.expit(outputs["logits"][0].astype(float))
    assert [chances[n] for n in run.classes] == pytest.approx(theirs.tolist())
    assert "true positives" in (trained / "report.html").read_text()
    done = cli_here("evaluate", trained, "--out", tmp_path / "out")
    assert done.returncode == 0 and "mean_average_precision" in done.stdout
    assert (tmp_path / "out" / "per_class.csv").exists()


def test_other_data_of_it(trained, tmp_path):
    x, y = patches(40, seed=1)
    np.savez(tmp_path / "other.npz", x=x, y=y)
    assert gpuzoo.evaluate(trained, data=str(tmp_path / "other.npz"))["auc"] > 0.9
    one = np.arange(40) % 3
    np.savez(tmp_path / "classes.npz", x=x, y=one)
    found = gpuzoo.evaluate(trained, data=str(tmp_path / "classes.npz"))
    assert [row["examples"] for row in found["per_class"]] == [14, 13, 13]
    for labels in (y[:, :2], np.eye(2)[one % 2], one % 2):
        np.savez(tmp_path / "two.npz", x=x, y=labels)
        with pytest.raises(
            gpuzoo.GpuzooError, match="labels of 0 and 1, \\(examples, 3\\)"
        ):
            gpuzoo.evaluate(trained, data=str(tmp_path / "two.npz"))


def test_other_data_have_the_names_of_its_labels():
    def rows(classes, ours=("cat", "cow", "dog"), **part):
        trained = SimpleNamespace(classes=ours, path=pathlib.Path("run"))
        there = SimpleNamespace(classes=classes)
        return evaluate._rows_of_labels(trained, "data", there, part).tolist()

    labels = np.uint8([[1, 0, 0], [0, 1, 1]])
    assert rows(("dog", "cat", "cow"), labels=labels) == [[0, 0, 1], [1, 1, 0]]
    assert rows(("0", "1", "2"), labels=labels) == labels.tolist()
    assert rows(("cat", "dog"), label=np.array([0, 1])) == [[1, 0, 0], [0, 0, 1]]
    for classes, part in (
        (("cat", "cow", "hen"), {"labels": labels}),
        (("cat", "hen"), {"label": np.array([0, 1])}),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match="class 'hen' is not a class of"):
            rows(classes, **part)
    for classes, part in (
        (("cat", "dog"), {"labels": labels[:, :2]}),
        (("0", "1"), {"label": np.array([0, 1])}),
        ((), {}),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match="labels of 0 and 1"):
            rows(classes, **part)


def test_what_does_not_take_it(trained, tmp_path):
    with pytest.raises(gpuzoo.GpuzooError, match="robustness .*classifiers"):
        gpuzoo.robustness(trained)
    with pytest.raises(gpuzoo.GpuzooError, match="multilabel"):
        gpuzoo.compress(trained, out=str(tmp_path / "forms"))


def test_it_is_exported(trained, tmp_path):
    found = gpuzoo.export(trained, ("onnx",), out=tmp_path / "exported")
    assert (
        found["outputs"][0]["name"] == "label_probabilities" and not found["failures"]
    )
    parity = found["formats"]["onnx"]["parity"]
    assert parity["changed_predictions"] == 0
    ours = gpuzoo.evaluate(trained)["metrics"]["test_accuracy"]
    assert parity["metric"] == {"name": "accuracy", "run": ours, "artefact": ours}


@needs_jax
def test_on_jax_in_16_bits(cli_on, tmp_path):
    cli = cli_on("jax", "mixed_bfloat16")
    np.savez(tmp_path / "patches.npz", **parts())
    words = ["--backend", "jax", "--device", "cpu", "--precision", "mixed_bfloat16"]
    done = cli("train", "mnist", "--task", "multilabel", "--data", "patches.npz", "--model",
               "mlp", "--epochs", "2", "--batch-size", "16", "--augment", "--validation", "0.2",
               "--keep", "best", "--monitor", "micro_f1", "--out", "run", *words)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["best"]["monitor"] == "val_micro_f1"
    done = cli("verify", "run")
    assert done.returncode == 0, done.stderr
