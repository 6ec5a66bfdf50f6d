"""The figures of the final evaluation are those of scikit-learn, and no forgery passes."""

import copy
import hashlib
import json
import shutil
import warnings

import numpy as np
import pytest
from scipy import special
from sklearn import metrics
from small import RECIPE, program, two_classes

import gpuzoo
from gpuzoo.data.validate import make_dataset
from gpuzoo.data.validation import with_validation
from gpuzoo.engine import choice
from gpuzoo.report import compare, page
from gpuzoo.runs import evaluation
from gpuzoo.runs.record import check_record, read_run, seal
from gpuzoo.tasks import forecast, scores


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(count, classes, seed=0, digits=6):
    """Labels, and logits that are often right; with one digit some are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    logits = rng.normal(size=(count, classes)).round(digits).astype(np.float32)
    logits[np.arange(count), labels] += 1
    return labels, logits


def figures(labels, logits, **changes):
    names = [f"class {n}" for n in range(logits.shape[1])]
    return scores.classification(
        labels, logits.argmax(axis=1), logits, names, **changes
    )


# --- the numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_classifier(classes):
    labels, logits = drawn(300, classes)
    found = figures(labels, logits)
    chances = special.softmax(logits.astype(float), axis=1)
    assert found["undefined"] == {}
    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, chances), 1e-6)
    areas = [metrics.roc_auc_score(labels == n, chances[:, n]) for n in range(classes)]
    assert [row["auc"] for row in found["per_class"]] == pytest.approx(areas, 1e-4)
    assert found["auc"] == pytest.approx(np.mean(areas), 1e-4)
    theirs = metrics.classification_report(
        labels, logits.argmax(axis=1), output_dict=True
    )
    keys = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    for row, n in zip(found["per_class"], range(classes), strict=True):
        assert row["examples"] == theirs[str(n)]["support"]
        for ours, name in keys.items():
            assert row[ours] == pytest.approx(theirs[str(n)][name])
    for mean in ("macro", "weighted"):
        for ours, name in keys.items():
            assert found[mean][ours] == pytest.approx(theirs[f"{mean} avg"][name])
    for true in range(classes):
        for told in range(classes):
            both = (labels == true) & (logits.argmax(axis=1) == told)
            assert found["confusion"][true][told] == both.sum()
    if classes > scores.TOP:
        places = [
            sorted(-row).index(-row[n]) for row, n in zip(logits, labels, strict=True)
        ]
        below = np.mean(np.array(places) < scores.TOP)
        assert (
            below >= found["top_5_accuracy"] > below - 0.1
        )  # of equal logits the first


def test_the_area_is_the_chance_that_a_pair_is_ranked_right():
    labels, logits = drawn(60, 3, digits=1)
    chances = special.softmax(logits.astype(float), axis=1)[:, 1].astype(np.float32)
    yes, no = chances[labels == 1], chances[labels != 1]
    pairs = (yes[:, None] > no) + 0.5 * (yes[:, None] == no)
    assert figures(labels, logits)["per_class"][1]["auc"] == pytest.approx(pairs.mean())


def test_probabilities_near_one_are_ranked():
    """Also those that 32 bits would round to 1."""
    logits = np.zeros((40, 2), np.float32)
    logits[:, 1] = 20 + np.arange(40) / 4
    found = figures((np.arange(40) > 19).astype(np.int32), logits)
    assert found["auc"] == 1.0


def test_what_is_not_defined_says_why():
    """Class 3 is never predicted, class 4 has no example, and class 5 neither."""
    labels, logits = drawn(50, 6)
    labels[labels > 3] = 0
    logits[:, [3, 5]] -= 50
    found = figures(labels, logits)
    rows = found["per_class"]
    assert rows[3]["precision"] is None and rows[3]["recall"] == 0.0
    assert rows[4]["recall"] is None is rows[4]["auc"]
    assert rows[5]["f1"] is None and rows[4]["f1"] == 0.0
    assert found["undefined"]["precision"] == "never predicted: 'class 3', 'class 5'"
    assert found["undefined"]["auc"].startswith(
        "all or none of the test examples: 'class 4'"
    )
    theirs = metrics.precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=range(4), average="macro", zero_division=0
    )
    assert list(found["macro"].values()) == pytest.approx(list(theirs[:3]))
    json.dumps(found, allow_nan=False)
    alone = figures(np.zeros_like(labels), logits)
    assert alone["auc"] is None
    assert alone["undefined"]["auc"] == "all or none of the test examples"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite(value):
    labels, logits = drawn(40, 3)
    logits[7] = 0
    logits[7, labels[7]] = value
    found = figures(labels, logits)
    assert found["log_loss"] is None and found["undefined"]["log_loss"]
    json.dumps(found, allow_nan=False)


def test_a_forecast():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(30, 4)).astype(np.float32)
    guess = (target + rng.normal(size=(30, 4)) / 3).astype(np.float32)
    found, flat = scores.regression(target, guess), (target.ravel(), guess.ravel())
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(*flat))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(*flat))
    assert found["r2"] == pytest.approx(metrics.r2_score(*flat))
    even = scores.regression(np.ones((5, 2)), guess[:5, :2])
    assert even["r2"] is None and "equal" in even["undefined"]["r2"]


# --- in a run -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(runtime, tmp_path_factory):
    top = tmp_path_factory.mktemp("scores")
    np.savez(top / "tiny.npz", **two_classes())
    found = gpuzoo.train(
        "mnist_mlp", model_options=("units=8,",), data=str(top / "tiny.npz"), epochs=2,
        batch_size=16, augment=(), validation=0.2, keep="best", monitor="macro_f1",
        out=str(top / "run"), quiet=True, device="cpu", precision="float32", threads=2,
    )  # fmt: skip
    return top / "run", found


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def forge(run, change) -> None:
    """Change the record as somebody would who also renews its seal."""
    record = json.loads((run / "run.json").read_text())
    change(record)
    record["seal"] = seal(record)
    (run / "run.json").write_text(json.dumps(record))


def test_a_run_has_them(trained):
    path, found = trained
    record = read_run(path)
    figures = record["evaluation"]
    right = np.trace(figures["confusion"]) / np.sum(figures["confusion"])
    assert right == record["metrics"]["test_accuracy"]
    assert found["evaluation"]["macro_f1"] == round(figures["macro"]["f1"], 6)
    assert found["best"]["monitor"] == "val_macro_f1"
    assert found["val_macro_f1"] == round(found["best"]["value"], 6)
    assert "test_macro_f1" not in record["metrics"]
    lines = (path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    values = [row["macro_f1"] for row in rows if row["split"] == "val"]
    assert max(values) == found["best"]["value"]
    again = gpuzoo.evaluate(path)
    assert again["identical"] and again["per_class"] == figures["per_class"]


FORGERIES = {
    "evaluation/auc": lambda e: e.update(auc=np.nextafter(e["auc"], 0)),
    "evaluation/per_class/1/f1": lambda e: e["per_class"][0].update(f1=0.25),
    "evaluation/confusion/2": lambda e: e["confusion"][1].reverse(),
    "evaluation/undefined/ece": lambda e: (
        e["undefined"].update(ece="unknown"), e.update(ece=None)
    ),
}  # fmt: skip


def test_forged_figures_are_found(run):
    def every(record):
        for change in FORGERIES.values():
            change(record["evaluation"])

    forge(run, every)
    assert gpuzoo.evaluate(run)["identical"] is False
    found = gpuzoo.verify(run)
    named = [line.partition(":")[0] for line in found["figures"]]
    assert found["verdict"] == "differs" and {*FORGERIES} <= {*named}


def test_figures_that_were_taken_out_are_missed(run):
    def taken_out(record):
        del record["evaluation"], record["code"]["gpuzoo.tasks.scores"]

    forge(run, taken_out)
    assert gpuzoo.evaluate(run)["identical"] is False
    found = evaluation.differences(read_run(run), {"auc": 1.0, "undefined": {}})
    assert found == {"evaluation/auc": (None, 1.0), "evaluation/undefined": (None, {})}


def test_many_classes_have_a_file(trained, tmp_path):
    """run.json stays small, the file has a digest there, and a changed one is found."""
    labels, logits = drawn(400, 40)
    whole = figures(labels, logits)
    short, content = evaluation.parts(whole)
    assert (
        not {"per_class", "confusion"} & short.keys() and short["auc"] == whole["auc"]
    )
    record = copy.deepcopy(read_run(trained[0]))
    record["evaluation"] = short
    record["files"][evaluation.FILE] = hashlib.sha256(content).hexdigest()
    check_record(record)
    assert evaluation.whole(record, lambda name: content) == whole
    assert evaluation.differences(record, whole) == {}
    shown, wrong = page._figures(record, lambda name: content)
    assert len(shown["rows"]) == 42 and len(shown["confusion"]) == 40 and not wrong
    other = content.replace(b'"examples":', b'"examples":1', 1)
    shown, wrong = page._figures(record, lambda name: other)
    assert shown is None and "has been changed since the run ended" in wrong[0]
    record["files"][evaluation.FILE] = hashlib.sha256(other).hexdigest()
    assert [*evaluation.differences(record, whole)] == [evaluation.FILE]
    bad = content.replace(b'"name":', b'"nome":', 1)
    record["files"][evaluation.FILE] = hashlib.sha256(bad).hexdigest()
    shown, wrong = page._figures(record, lambda name: bad)
    assert shown is None and "is not valid" in wrong[0]


def test_the_page_and_the_comparison(run, trained):
    text = (run / "report.html").read_text()
    assert (
        "Figures of the test examples" in text and "Confusion matrix as numbers" in text
    )
    found = compare.compare([run, trained[0]], metric="auc")
    value = read_run(run)["evaluation"]["auc"]
    assert [one["metrics"]["test_auc"] for one in found["runs"]] == [value, value]


def test_a_monitor_that_is_not_defined(runtime):
    arrays = two_classes()
    parts = {
        s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]}
        for s in ("train", "test")
    }
    data = with_validation(make_dataset("tiny", "made up", parts), 0.3, 0)
    light = {
        k: a[data.splits["val"]["label"] == 1] for k, a in data.splits["val"].items()
    }
    data.splits["val"] = light
    with pytest.raises(
        gpuzoo.GpuzooError, match="monitor=auc is not defined .*: all or none"
    ):  # before the first step
        program(RECIPE.override(keep="best", monitor="auc"), data, runtime)
    program(RECIPE.override(keep="best", monitor="macro_f1"), data, runtime)


def test_a_monitor_that_is_not_defined_for_any_forecast():
    judge, r2 = object.__new__(forecast.Task), scores.FORECAST[-1]
    even = {"target": np.full((5, 3), 0.25, np.float32)}
    with pytest.raises(gpuzoo.GpuzooError, match="monitor=r2 .* values are equal"):
        choice.check_defined(r2, judge, even)
    choice.check_defined(scores.FORECAST[0], judge, even)
    even["target"][0] = 1
    choice.check_defined(r2, judge, even)
