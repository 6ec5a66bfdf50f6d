"""`gpuzoo compare`: what runs have in common, where they differ, and by how much."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats
from small import two_classes
from test_report import CONTRAST, opened, text_of

import gpuzoo
from gpuzoo.report.compare import compare, in_words
from gpuzoo.runs.record import seal

SEEDS = (0, 1, 5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, runtime):
    """Two settings with three seeds each; names of folders."""
    place = tmp_path_factory.mktemp("compare")
    np.savez(place / "tiny.npz", **two_classes())
    for name, rate in (("slow", 1e-5), ("fast <b>", 0.02)):
        for seed in SEEDS:
            gpuzoo.train(
                "mnist", data=str(place / "tiny.npz"), model="mlp", epochs=2, seed=seed,
                model_options=("units=(8,)",), learning_rate=rate, batch_size=16,
                checkpoint_every=100 + seed, out=str(place / f"{name}{seed}"), quiet=True,
            )  # fmt: skip
    return place


def paths(runs, name, seeds=SEEDS):
    return [runs / f"{name}{seed}" for seed in seeds]


def spoil(run, copy, **fields):
    """A copy of a run whose record differs, as gpuzoo would have written it."""
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text()) | fields
    record["seal"] = seal(record)
    (copy / "run.json").write_text(json.dumps(record))
    return copy


def test_the_difference_over_common_seeds(runs):
    found = compare([*paths(runs, "slow"), *paths(runs, "fast <b>")])
    assert found["metric"] == "test_accuracy" and found["notes"] == []
    assert [run["group"] for run in found["runs"]] == list("AAABBB")
    values = [run["metrics"]["test_accuracy"] for run in found["runs"]]
    (one,) = found["differences"]
    assert one["groups"] == ["A", "B"] and one["seeds"] == [*SEEDS]
    pairs = np.subtract(values[3:], values[:3])
    interval = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert one["mean"] == pytest.approx(pairs.mean())
    assert (one["low"], one["high"]) == pytest.approx(tuple(interval))
    settings = {row[0]: row[1:] for row in found["settings"]}
    assert settings["learning_rate"] == 3 * [1e-5] + 3 * [0.02]
    assert settings["seed"] == 2 * [*SEEDS]
    assert settings["checkpoint_every"] == 2 * [100, 101, 105]  # shown, but no setting
    assert settings.keys() <= {"learning_rate", "seed", "checkpoint_every"}


def test_order_common_seeds_and_one_pair(runs):
    """Only common seeds count, in whatever order the runs are given."""
    mixed = [*paths(runs, "fast <b>", (5, 1)), *paths(runs, "slow", (0, 1))]
    found = compare(mixed, metric="loss")
    (one,) = found["differences"]
    losses = [run["metrics"]["test_loss"] for run in found["runs"]]
    assert found["metric"] == "test_loss" and one["seeds"] == [1]
    assert one["mean"] == pytest.approx(losses[3] - losses[1])
    assert one["low"] is None and "seed 1 alone" in in_words(found)[0]
    found = compare([*paths(runs, "slow", (0,)), *paths(runs, "fast <b>", (1,))])
    assert found["differences"] == []
    assert found["notes"] == ["groups A and B have no common seed"]


def test_what_makes_a_comparison_doubtful_is_noted(runs, tmp_path):
    (slow,) = paths(runs, "slow", (0,))
    data = json.loads((slow / "run.json").read_text())["data"]
    others = [
        spoil(slow, tmp_path / "stopped", state="stopped"),
        spoil(slow, tmp_path / "data", data={**data, "fingerprint": 64 * "0"}),
        spoil(slow, tmp_path / "trial", fast_dev_run=True),
        spoil(slow, tmp_path / "no", metrics={"test_loss": 1.0}),
    ]
    found = compare([slow, *others], metric="accuracy")
    assert [one["groups"] for one in found["differences"]] == [["A", "C"]]
    notes = "\n".join(found["notes"])
    assert "no has no test_accuracy" in notes
    assert "the runs have different data: their metrics are not comparable" in notes
    assert "not trained to the end: stopped, trial" in notes
    assert "group A has seed 0 twice; the first counts" in notes
    assert [run["group"] for run in found["runs"]] == ["A", "A", "B", "C", "A"]


_NET = """
import gpuzoo, keras

@gpuzoo.register(task="classify", reference="here")
def net(*, input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10):
    "A small network."
    return keras.Sequential([
        keras.Input(input_shape), keras.layers.Flatten(),
        keras.layers.Dense(WIDTH, "relu"), keras.layers.Dense(num_classes),
    ])
"""


def test_an_edited_model_is_another_setting(runs, cli_here, tmp_path):
    """Both runs have seed 0 and the same recipe; only the model's file has changed."""
    model, made = tmp_path / "net.py", []
    for width in (8, 12):
        model.write_text(_NET.replace("WIDTH", str(width)))
        made.append(tmp_path / f"w{width}")
        done = cli_here(
            "train", "mnist", "--data", runs / "tiny.npz", "--model", f"{model}:net",
            "--epochs", 1, "--batch-size", 16, "--out", made[-1],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    found = compare(made)
    assert [run["group"] for run in found["runs"]] == ["A", "B"]
    assert "user code digest" in {row[0] for row in found["settings"]}
    assert [one["groups"] for one in found["differences"]] == [["A", "B"]]


def test_other_versions_of_gpuzoo_are_noted(runs, tmp_path):
    (slow,) = paths(runs, "slow", (0,))
    code = json.loads((slow / "run.json").read_text())["code"]
    other = spoil(slow, tmp_path / "old", code={**code, "gpuzoo.engine.loop": 64 * "0"})
    assert compare([slow, other])["notes"] == [
        "the runs used different versions of gpuzoo's modules: gpuzoo.engine.loop",
        "group A has seed 0 twice; the first counts",
    ]


def test_a_folder_of_a_sweep_stands_for_its_runs(runs, tmp_path):
    for seed in SEEDS[:2]:
        (path,) = paths(runs, "slow", (seed,))
        shutil.copytree(path, tmp_path / "sweep" / f"00{seed}")
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    for given in ([tmp_path / "sweep"], sorted((tmp_path / "sweep").iterdir())):
        assert [run["run"] for run in compare(given)["runs"]] == ["000", "001"]


def test_runs_without_metrics(runs, tmp_path):
    """Of a run that is training, and of two."""
    (slow,) = paths(runs, "slow", (0,))
    early = spoil(slow, tmp_path / "early", state="running", metrics={})
    assert compare([early, slow])["metric"] == "test_accuracy"
    with pytest.raises(gpuzoo.GpuzooError, match="has been evaluated yet"):
        compare([early, early])


def test_wrong_use_is_one_line(runs, tmp_path):
    (slow,) = paths(runs, "slow", (0,))
    for words, message in (
        (([slow],), "two or more"),
        (([slow, tmp_path],), "not a run folder"),
        (([slow, slow], "beauty"), "no run has the metric 'test_beauty'; known: test_"),
        (([slow, slow], "", tmp_path / "no" / "a.html"), "--html .* cannot be written"),
        (([slow, slow], "", slow / "run.json"), "--html .*run.json exists"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=message):
            compare(*words)
    edited = shutil.copytree(slow, tmp_path / "edited") / "run.json"
    edited.write_text(edited.read_text().replace('"seed": 0', '"seed": 9'))
    with pytest.raises(gpuzoo.GpuzooError, match="has been changed since"):
        compare([slow, tmp_path / "edited"])


def test_the_command_and_the_page(runs, cli_here, tmp_path, browser):  # noqa: F811
    words = [*paths(runs, "slow"), *paths(runs, "fast <b>")]
    done = cli_here("compare", *words, "--html", "page.html")
    assert done.returncode == 0, done.stderr
    found = compare(words)
    assert done.json == found
    (line,) = in_words(found)
    assert line in done.stdout and "learning_rate" in done.stdout
    content = (tmp_path / "page.html").read_bytes()
    text = text_of(content)
    assert line in text and "fast <b>1" in text and content.count(b"<polyline") == 12
    compare(words, html=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == content
    for scheme in ("light", "dark"):
        tab, problems = opened(
            browser, tmp_path / "page.html", color_scheme=scheme,
            viewport={"width": 320, "height": 700},
        )  # fmt: skip
        assert tab.evaluate(CONTRAST) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320
        tab.locator("th button", has_text="test_loss").click()
        order = tab.locator("table >> nth=0").locator("tbody tr").all_inner_texts()
        losses = [float(row.split("\t")[3]) for row in order]
        assert losses == sorted(losses) and len(losses) == 6
        assert problems == []
        tab.close()
