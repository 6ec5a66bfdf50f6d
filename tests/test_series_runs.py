"""Trainings on series of several columns, and all that is done with them afterwards."""

import json

import numpy as np
import pytest
from small import RECIPE, same, train
from test_series_data import CLOSE, HOURS, VOLUME

import gpuzoo
from gpuzoo.data.columns import from_memory
from gpuzoo.data.series_table import Options, make
from gpuzoo.engine import checkpoint
from gpuzoo.tasks import rules

SMALL = ("width=16", "depth=1", "heads=2")
HOW = {
    "model": "patch_transformer", "model_options": SMALL, "batch_size": 32,
    "learning_rate": 0.005, "window": 24, "horizon": 4, "quiet": True,
}  # fmt: skip


def columns(rows: int = 300) -> dict[str, list]:
    """A wave, what leads it by three hours, and noise; one value is missing."""
    at = np.arange(rows)
    wave = 20 + 5 * np.sin(2 * np.pi * at / 12)
    lead = 100 * np.sin(2 * np.pi * (at + 3) / 12)
    noise = np.random.default_rng(5).normal(0, 0.1, (2, rows))
    return {
        "time": [f"{HOURS[0].replace(hour=0) + (HOURS[1] - HOURS[0]) * int(n)}" for n in at],
        "lead": ["" if n == 50 else f"{v:.4f}" for n, v in enumerate(lead + noise[0])],
        "price": [f"{value:.4f}" for value in wave + noise[1]],
    }  # fmt: skip


def write(path, table: dict) -> None:
    lines = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    path.write_text("\n".join([",".join(table), *lines]) + "\n")


@pytest.fixture(scope="module")
def place(runtime, tmp_path_factory):
    """A folder with a series, a run that forecasts two columns and one of moves."""
    place = tmp_path_factory.mktemp("series")
    write(place / "wave.csv", columns())
    data = str(place / "wave.csv")
    gpuzoo.train("market", data=data, target="price,lead", calendar=("day",), epochs=12,
                 gaps="interpolate", out=str(place / "both"), **HOW)  # fmt: skip
    gpuzoo.train("next_move", data=data, target="price", columns=("lead:drop",), epochs=8,
                 validation=0.2, keep="best", out=str(place / "move"), **HOW)  # fmt: skip
    return place


def record(run) -> dict:
    return json.loads((run / "run.json").read_text())


def test_what_a_run_holds(place):
    both, move = record(place / "both"), record(place / "move")
    series = both["data"]["series"]
    assert [one["name"] for one in series["channels"]] == ["price", "lead"]
    assert series["times"] == ["time"] and series["step"] == 3600
    assert both["data"]["input_shape"] == [24, 4]
    assert {"forecasts.png", "curves.png"} <= both["files"].keys()
    assert both["metrics"]["test_loss"] < 0.2
    assert {"test_seasonal", "test_linear"} <= both["metrics"].keys()
    assert (
        move["data"]["classes"] == ["down", "up"] and "confusion.png" in move["files"]
    )
    assert move["metrics"]["test_accuracy"] > 0.8 > move["metrics"]["test_base_rate"]
    assert move["metrics"]["test_linear"] > 0.8


@pytest.mark.parametrize("name", ["both", "move"])
def test_a_run_is_verified_and_evaluated(name, place, cli_here):
    for words in (["verify", place / name], ["evaluate", place / name]):
        done = cli_here(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    done = cli_here("evaluate", place / name, "--data", place / "wave.csv")
    assert done.returncode == 0, done.stderr
    own = record(place / name)["metrics"]
    assert done.json["metrics"]["test_loss"] == pytest.approx(
        own["test_loss"], rel=1e-5
    )


def test_a_forecast_of_each_target_in_its_unit(place, cli_here, tmp_path):
    done = cli_here(
        "predict", place / "both", place / "wave.csv", "--json-lines", "--out", "told"
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[0])
    assert [*row["forecast"]] == ["price", "lead"]
    at = 300 + np.arange(4)
    assert (
        np.abs(row["forecast"]["price"] - (20 + 5 * np.sin(2 * np.pi * at / 12))).max()
        < 2
    )
    lines = (tmp_path / "told" / "00001-wave.csv").read_text().splitlines()
    assert lines[0] == "step,price,lead" and len(lines) == 5
    trained = gpuzoo.load(place / "both")
    told = trained.unscale(trained.predict(str(place / "wave.csv"))["forecast"][0])
    assert told[:, 0].tolist() == row["forecast"]["price"]
    table = columns()
    cut = {name: cells[-40:] for name, cells in table.items()}
    again = trained.unscale(trained.predict(cut)["forecast"][0])
    assert np.array_equal(again, told)  # of a dict of columns, and fewer rows
    done = cli_here("predict", place / "move", place / "wave.csv")
    assert done.returncode == 0 and "up" in done.stdout + done.stderr
    assert gpuzoo.load(place / "move").predict(cut)["predicted"][0] == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: {k: v[-20:] for k, v in t.items()}, "20 rows; the model takes the last 24"),
        (lambda t: {k: v for k, v in t.items() if k != "lead"}, "without the column 'lead'"),
        (lambda t: t | {"lead": [*t["lead"][:-1], ""]}, "'lead' has no value in the last row"),
        (lambda t: t | {"time": t["time"][::2] + t["time"][1::2]}, "sort the lines"),
        (lambda t: t | {"time": [one.replace("-", "/")[2:] for one in t["time"]]}, None),
        (lambda t: t | {"time": ["/".join(one[:10].split("-")[::-1]) + one[10:] for one in t["time"]]},
         "are not 'Y M D', as they were in the training"),
        (lambda t: t | {"price": [one.replace(".", ",") for one in t["price"]]}, "is not a number with decimal points"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_gone_on_from(change, fault, place):
    trained = gpuzoo.load(place / "both")
    if fault is None:
        assert trained.predict(change(columns()))["forecast"].shape == (1, 4, 2)
        return
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        trained.predict(change(columns()))


def test_no_forecast_changes_by_what_comes_later(place):
    """Other values after a row: all windows and forecasts that end there are the same."""
    trained, row = gpuzoo.load(place / "both"), 270
    how = Options("price,lead", (), 24, 4, "interpolate", ("day",))
    one = columns()
    other = {
        name: cells if name == "time" else
        [*cells[: row + 1], *(f"{3 * float(cell) - 50:.4f}" for cell in cells[row + 1 :])]
        for name, cells in one.items()
    }  # fmt: skip
    told = []
    for table in (one, other):
        data = make("wave", "made up", from_memory("wave", table), how)
        assert data.series == trained.dataset.series
        told.append(trained.infer(data.test["series"])["forecast"])
    before = 239 + np.arange(len(told[0])) <= row
    assert np.array_equal(told[0][before], told[1][before])
    assert not (told[0][~before] == told[1][~before]).all(axis=(1, 2)).any()


def test_a_run_repeats_and_resumes(runtime, tmp_path):
    recipe = RECIPE.override(
        task="forecast", augment=(), epochs=3, **{k: v for k, v in HOW.items() if k != "quiet"}
    )  # fmt: skip
    table = from_memory("wave", {k: v for k, v in columns().items() if k != "lead"})
    data = make("wave", "made up", table, Options("price", window=24, horizon=4))
    one, _ = train(recipe, data, runtime)
    asked = iter([False, False, True])
    train(recipe, data, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    resumed, _ = train(recipe, data, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics


def test_a_data_frame(runtime, tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs the extra tables")
    frame = pandas.DataFrame(
        {"time": HOURS, "volume": VOLUME, "close": CLOSE}
    ).set_index("time")
    done = gpuzoo.train("market", data=frame, target="close", epochs=1, calendar=("week",),
                        out=str(tmp_path / "run"), **HOW)  # fmt: skip
    trained = gpuzoo.load(done["run_dir"])
    assert trained.dataset.series.times == ("time",)
    assert trained.predict(frame.tail(24))["forecast"].shape == (1, 4)


def test_exported_and_served_by_the_names_of_the_columns(place):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    from gpuzoo.deploy.export import export
    from gpuzoo.deploy.serve import app, artefact, pages
    from gpuzoo.deploy.serve.guard import Limits
    from gpuzoo.deploy.serve.inputs import Refused

    table = columns()
    given = {name: table[name][-30:] for name in ("time", "lead", "price")}
    answers = {}
    for name in ("both", "move"):
        found = export(place / name, ("onnx",))
        assert (
            found["failures"] == []
            and found["series"] == record(place / name)["data"]["series"]
        )
        parity = found["formats"]["onnx"]["parity"]
        assert parity["largest_difference"] < 1e-4 and parity["examples"] > 50
        made = artefact.load(place / f"{name}-export")
        sent = (
            given if name == "both" else {k: v for k, v in given.items() if k != "lead"}
        )
        body = json.dumps({"inputs": [sent, sent]}).encode()
        count, text = app.answer(made, Limits(), "application/json", body)
        answers[name] = json.loads(text)["predictions"]
        assert count == 2 and answers[name][0] == answers[name][1]
        assert "price" in json.dumps(pages.openapi(made, Limits(), False))
    trained = gpuzoo.load(place / "both")
    wanted = trained.unscale(trained.predict(table)["forecast"][0])
    told = answers["both"][0]["forecast"]
    assert (
        np.allclose(told["price"], wanted[:, 0], atol=1e-3) and len(told["lead"]) == 4
    )
    assert answers["move"][0]["class"] == "up"
    made = artefact.load(place / "both-export")
    for change, fault in (
        ({"lead": None}, "'lead': expected a list of values, oldest first"),
        ({"lead": given["lead"][:-1]}, "30 values and"),
        ({"lead": [*given["lead"][:-1], None]}, "no value in the last row"),
        ({"price": [[1]] * 30}, "expected a number, a text"),
        ({k: v[-9:] for k, v in given.items()}, "9 rows; the model takes the last 24"),
    ):
        body = json.dumps({"inputs": [given | change]}).encode()
        with pytest.raises(Refused, match=fault):
            app.answer(made, Limits(), "application/json", body)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["market", "--data", "digits"], "target, columns, window, horizon, gaps, calendar and fold are for a series"),
        (["forecast", "--data", "wave.csv", "--target", "lead"], "is missing, one of 1 values"),
        (["mnist", "--window", "5"], "window is for a series; the task classify does not use it"),
        (["market", "--fold", "3/2"], "fold of recipe 'market' must be k/m"),
        (["market", "--model-options", "targets=2"], "model_options cannot set targets"),
        (["table", "--data", "wave.csv", "--target", "price", "--horizon", "2"], "horizon is for a series"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(words, fault, place, cli_here):
    words = [place / word if word == "wave.csv" else word for word in words]
    done = cli_here("train", *words)
    assert done.returncode == 2 and fault in done.stderr


# --- rules --------------------------------------------------------------------------


def windows_of(values: np.ndarray, rows: int, ahead: int) -> tuple:
    view = np.lib.stride_tricks.sliding_window_view(values, rows + ahead, axis=0)
    view = view.swapaxes(1, 2)
    return view[:, :rows], view[:, rows:, 0] - view[:, rows - 1 : rows, 0]


def test_the_linear_rule():
    rng = np.random.default_rng(0)
    # A second column tells the next change of the first.
    told = rng.normal(0, 1, 900)
    walk = np.r_[0, np.cumsum(told)[:-1]]
    x, change = windows_of(np.stack([walk, told], 1), 8, 1)
    line = rules.Linear(x[:600], change[:600], 1)
    assert np.abs(line(x[600:]) - change[600:]).max() < 1e-3
    # On a walk that nothing tells it knows that nothing does.
    x, change = windows_of(np.stack([walk, rng.normal(0, 1, 900)], 1), 8, 1)
    line = rules.Linear(x[:600], change[:600], 1)
    error = np.square(line(x[600:]) - change[600:]).mean()
    assert error < 1.05 * np.square(change[600:]).mean()
    # It is the least-squares line where that is exact, whatever the level.
    wave = np.sin(np.arange(400) / 5)[:, None] + 100
    x, change = windows_of(wave, 8, 3)
    line = rules.Linear(x[:300], change[:300], 1)
    assert np.abs(line(x[300:]) - change[300:]).max() < 1e-3
    assert rules.period(
        np.stack([np.sin(2 * np.pi * np.arange(n, n + 40) / 12) for n in range(99)])
    ) in (12, 24, 36)
