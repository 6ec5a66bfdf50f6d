"""Time series: where they come from, what is foretold, and the rules to beat."""

import json

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.data import series
from gpuzoo.data.series import HORIZON, WINDOW, make_series
from gpuzoo.engine import checkpoint
from gpuzoo.tasks import rules

FORECAST = RECIPE.override(
    task="forecast", model="lstm_forecaster", model_options=("units=16",), augment=(),
    epochs=3, batch_size=64,
)  # fmt: skip


def waves(count=1200, period=20, noise=0.0):
    time = np.arange(count)
    rough = np.random.default_rng(0).normal(0, 1, count)
    return 5 + 3 * np.sin(2 * np.pi * time / period) + noise * rough


@pytest.fixture
def wave():
    return make_series("wave", "made up", waves())


def test_windows_and_what_came_after(wave):
    values = waves()
    scaled = (values - values[:960].mean()) / values[:960].std()
    assert wave.train["series"].shape == (960 - WINDOW - HORIZON + 1, WINDOW, 1)
    assert wave.test["target"].shape == (240 - WINDOW - HORIZON + 1, HORIZON)
    first = wave.test["series"][5, :, 0], wave.test["target"][5]
    assert np.allclose(np.concatenate(first), scaled[965 : 965 + WINDOW + HORIZON])
    assert wave.count("train") == 881 and wave.input_shape == (WINDOW, 1)


def test_mackey_glass_obeys_its_equation():
    """Between the values, by differences of fourth order; and it is no cycle."""
    data = gpuzoo.load_data("mackey_glass")
    assert data.fingerprint == gpuzoo.load_data("mackey_glass").fingerprint
    windows = data.train["series"][:, :, 0].astype(float)
    x = np.concatenate([windows[0], windows[1:, -1]])
    assert len(x) == 8000 - HORIZON
    slope = (x[:-4] - 8 * x[1:-3] + 8 * x[3:-1] - x[4:]) / 12
    # The equation in x's own units: a x + b is the series, found by least squares.
    now, then = x[2:-2][17:], x[2:-2][:-17]

    def misfit(scale, shift):
        a, b = scale * now + shift, scale * then + shift
        return scale * slope[17:] - (0.2 * b / (1 + b**10) - 0.1 * a)

    grid = [(np.mean(misfit(s, m) ** 2), s, m) for s in np.linspace(0.15, 0.3, 31)
            for m in np.linspace(0.8, 1.05, 51)]  # fmt: skip
    least, scale, _ = min(grid)
    assert np.sqrt(least) < 0.03 * np.std(scale * slope)
    assert 45 <= rules.period(data.train["series"][:, :, 0]) <= 55


def test_rules_that_need_no_training(wave, runtime):
    """On a wave without noise one period before is exact, and so is a line."""
    result, rows = train(FORECAST.override(epochs=1), wave, runtime)
    assert rules.period(wave.train["series"][:, :, 0]) in (20, 40, 60)
    assert result.metrics["test_seasonal"] < 1e-9 > result.metrics["test_linear"]
    told = result.outputs["forecast"]
    error = np.square(told - wave.test["target"]).mean()
    assert result.metrics["test_loss"] == pytest.approx(error, rel=1e-5)
    tests = [row for event, row in rows if event == "test"]
    assert tests[0].keys() == {"epoch", "step", "loss", "seasonal", "linear"}
    walk = np.cumsum(np.random.default_rng(0).normal(0, 1, 1200))
    rough = make_series("walk", "made up", walk)
    assert rules.period(rough.train["series"][:, :, 0]) == 1
    last = rough.test["series"][:, -1] - rough.test["target"]
    found, _ = train(FORECAST.override(epochs=1), rough, runtime)
    assert found.metrics["test_seasonal"] == pytest.approx(np.square(last).mean())


def test_a_run_learns_repeats_and_resumes(wave, runtime, tmp_path):
    one, rows = train(FORECAST, wave, runtime)
    asked = iter([False, False, True])
    train(FORECAST, wave, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    resumed, _ = train(FORECAST, wave, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    assert not same(one, train(FORECAST.override(seed=1), wave, runtime)[0])
    tests = [row["loss"] for event, row in rows if event == "test"]
    assert tests[-1] < 0.5 * tests[0]


def test_a_users_csv(cli_here, tmp_path):
    lines = ["day,value", *(f"{i},{v:.6f}" for i, v in enumerate(waves(noise=0.3)))]
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    done = cli_here("train", "forecast", "--data", "mine.csv", "--epochs", "2", "--device",
               "cpu", "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["test_linear"] < done.json["test_seasonal"] < 2
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {"forecasts.png", "curves.png"} <= run["files"].keys()
    assert run["data"]["input_shape"] == [WINDOW, 1]
    lines[700] = "699,many"
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    done = cli_here("verify", "run")
    assert done.returncode == 2
    assert "line 701: 'many' is not a number" in done.stderr


def bounces(count=2500):
    """Between two walls, from each with another speed: no line foretells the turns."""
    rng, place, speed, places = np.random.default_rng(4), 0.3, 0.04, []
    for _ in range(count):
        place += speed
        if not 0 < place < 1:
            place, speed = (-place, 1) if place < 0 else (2 - place, -1)
            speed *= rng.uniform(0.02, 0.06)
        places.append(place)
    return places


def test_a_users_csv_is_foretold_better_than_by_either_rule(cli_here, tmp_path):
    lines = ["place", *(f"{place:.5f}" for place in bounces())]
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    done = cli_here("train", "forecast", "--data", "mine.csv", "--epochs", "12", "--device",
               "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["test_loss"] < 0.9 * done.json["test_linear"]
    assert done.json["test_linear"] < done.json["test_seasonal"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (waves(300), "300 values; at least 400"),
        (np.ones(500), "all training values are 1"),
        (np.full(800, 0.1), "all training values are 0.1"),
        (np.r_[np.full(640, 0.7), np.full(160, 7.0)], "all training values are 0.7"),
        (np.r_[waves(700), np.full(100, 1e300)], "1e.300 at place 700 is too far"),
        (1e300 * waves(500), "values up to .*e.300 are too large"),
        (np.where(np.arange(500) == 44, np.nan, waves(500)), "nan at place 44"),
    ],
)
def test_bad_series_are_refused(values, fault):
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        make_series("mine", "made up", values)


def test_what_a_csv_may_be_mistaken_for(tmp_path):
    """A blank line is a value that is missing; which column is read is said."""
    file = tmp_path / "mine.csv"
    lines = [f"{value:.6f}" for value in waves()]
    file.write_text("\n".join([*lines, "", ""]))
    (told,) = series.from_csv(file).findings
    assert told == (
        "series: column 1: 1,200 values from 5 (line 1) to 4.072949 (line 1200)"
    )
    plain = series.from_csv(file).fingerprint
    file.write_text("\n".join([*lines[:9], "", *lines[9:]]))
    with pytest.raises(gpuzoo.GpuzooError, match="line 10: is blank; remove the line"):
        series.from_csv(file)
    file.write_text("\n".join(line.replace(".", ",") for line in lines))
    assert series.from_csv(file).fingerprint == plain
    assert series.from_csv(file).findings[1] == "numbers are read with decimal commas"


def test_data_of_another_kind_are_refused(dataset, wave, runtime, tmp_path):
    with pytest.raises(gpuzoo.GpuzooError, match="needs series and target of every"):
        train(FORECAST, dataset, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="needs image and label of every"):
        train(RECIPE, wave, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="augment changes images"):
        train(FORECAST.override(augment=("flip",)), wave, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="there is no such file"):
        series.from_csv(tmp_path / "missing.csv")
    assert keras.backend.backend() == runtime.backend


def test_a_series_of_one_value_has_no_period(recwarn):
    windows = np.full((5, WINDOW), 2.5, np.float32)
    assert rules.period(windows) == 1 and not list(recwarn)
