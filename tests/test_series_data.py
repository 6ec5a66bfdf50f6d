"""Series of several columns: their times, gaps, windows, and that nothing looks ahead."""

import csv
import datetime
import io

import numpy as np
import pytest

import gpuzoo
from gpuzoo.data import made_series, series_table
from gpuzoo.data.columns import from_memory
from gpuzoo.data.series_form import Series
from gpuzoo.data.series_table import Options, make

ROWS = 300
START = datetime.datetime(2023, 11, 6, 5)  # a Monday; seen in winter, DST plays no part
RNG = np.random.default_rng(0)
CLOSE = np.round(50 + np.cumsum(RNG.normal(0, 1, ROWS)), 3)
VOLUME = RNG.integers(100, 999, ROWS).astype(float)
HOURS = [START + datetime.timedelta(hours=hour) for hour in range(ROWS)]
DAYS = [START.date() + datetime.timedelta(days=day) for day in range(ROWS)]
SMALL = {"window": 12, "horizon": 4, "task": "forecast"}


@pytest.fixture
def load(tmp_path):
    """Load a series from columns, `close` to be predicted."""

    def read(columns: dict, mark=",", **how):
        text = io.StringIO()
        writer = csv.writer(text, delimiter=mark)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        (tmp_path / "mine.csv").write_text(text.getvalue())
        options = {"target": "close", **SMALL, **how}
        return gpuzoo.load_data(str(tmp_path / "mine.csv"), **options)

    return read


def written(pattern: str, stamps=HOURS) -> list[str]:
    return [stamp.strftime(pattern) for stamp in stamps]


def months(count: int) -> list[datetime.date]:
    return [datetime.date(1990 + n // 12, n % 12 + 1, 1) for n in range(count)]


def month_ends(count: int) -> list[datetime.date]:
    return [day - datetime.timedelta(1) for day in months(count + 1)[1:]]


def all_inputs(data) -> np.ndarray:
    return np.concatenate([part["series"] for part in data.splits.values()])


@pytest.mark.parametrize(
    ("times", "step"),
    [
        ({"when": written("%Y-%m-%d %H:%M")}, "1 hour"),
        ({"when": written("%Y-%m-%dT%H:%M:%SZ")}, "1 hour"),
        ({"when": written("%d.%m.%Y %H:%M")}, "1 hour"),
        ({"when": written("%m/%d/%Y %I:%M %p")}, "1 hour"),
        ({"Date": written("%Y-%m-%d"), "Time": written("%H:%M")}, "1 hour"),
        ({"timestamp": written("%s")}, "1 hour"),
        ({"day": written("%d %b %Y", DAYS)}, "1 day"),
        ({"day": written("%Y%m%d", DAYS)}, "1 day"),
        ({"day": written("%m/%d/%y", DAYS)}, "1 day"),
        ({"month": written("%Y-%m", months(ROWS))}, "1 month"),
        ({"month": written("%d/%m/%Y", months(ROWS))}, "1 month"),
        ({"month": written("%Y-%m-%d", month_ends(ROWS))}, "1 month"),
        ({"step": [str(5 * n) for n in range(ROWS)]}, "5"),
    ],
)
def test_times_as_they_are_written(load, times, step):
    data = load({**times, "volume": VOLUME, "close": CLOSE})
    assert data.series.times == tuple(times)
    assert f"a row every {step}," in data.findings[0]
    assert [one.name for one in data.series.channels] == ["close", "volume"]
    assert data.counts == {"train": 240 - 15, "test": 60 - 3}


def test_windows_and_what_came_after(load):
    data = load({"when": written("%Y-%m-%d %H:%M"), "volume": VOLUME, "close": CLOSE},
                calendar=("day", "week"))  # fmt: skip
    train = CLOSE[:240]
    scaled = (CLOSE - train.mean()) / train.std()
    volume = (VOLUME - VOLUME[:240].mean()) / VOLUME[:240].std()
    one = data.test["series"][5]
    assert one.shape == (12, 2 + 4) and data.series.width == 6
    # The first test window ends before the test part, whose first value it predicts.
    rows = slice(240 + 5 - 12, 240 + 5)
    assert np.allclose(one[:, 0], scaled[rows], atol=1e-6)
    assert np.allclose(one[:, 1], volume[rows], atol=1e-6)
    assert np.allclose(data.test["target"][5], scaled[245:249], atol=1e-6)
    hours = 2 * np.pi * (5 + np.arange(ROWS)[rows]) / 24
    assert np.allclose(one[:, 2], np.sin(hours), atol=1e-6)
    assert np.allclose(one[:, 5], np.cos(hours / 7), atol=1e-6)
    assert Series.from_record(data.series.as_record()) == data.series
    assert np.allclose(data.series.unscaled(data.test["target"][5]), CLOSE[245:249])


def test_several_targets_validation_and_folds(load):
    columns = {"when": written("%Y-%m-%d %H:%M"), "volume": VOLUME, "close": CLOSE}
    data = load(columns, target="close, volume", validation=0.25)
    assert data.test["target"].shape == (57, 4, 2) and data.series.names == (
        "close",
        "volume",
    )
    assert data.counts == {"train": 180 - 15, "val": 60 - 3, "test": 60 - 3}
    last = data.splits["val"]["target"][-1, -1, 0]
    assert data.series.channels[0].mean == pytest.approx(CLOSE[:180].mean())
    assert data.series.unscaled([[[last, 0]]])[0, 0, 0] == pytest.approx(
        CLOSE[239], abs=1e-4
    )
    ends = []
    for fold in ("1/3", "2/3", "3/3"):
        part = load(columns, fold=fold)
        ends.append(part.series.unscaled(part.test["target"][-1])[-1])
        assert part.count("test") == 20 - 3
        assert part.series.channels[0].mean == pytest.approx(
            CLOSE[: 220 + 20 * int(fold[0])].mean()
        )
    assert np.allclose(ends, CLOSE[[259, 279, 299]])
    assert load(columns, fold="3/3").count("train") == 280 - 15


def test_times_that_are_named_and_none(load):
    columns = {"a": written("%Y-%m-%d %H:%M"), "b": VOLUME, "c": written("%d.%m.%Y %H:%M"),
               "close": CLOSE}  # fmt: skip
    data = load(columns, kinds=("c:time",))
    assert data.series.times == ("c",) and data.series.order == "D M Y"
    assert dict(data.series.unused) == {"a": "dates besides the times"}
    none = load({"volume": VOLUME, "close": CLOSE})
    assert (
        none.series.times == () and "no column of times was found" in none.findings[0]
    )
    assert (all_inputs(none) == all_inputs(data)).all()
    # Newest first, semicolons and decimal commas; the text is no input.
    odd = load({"a": columns["a"][::-1], "kind": ["x", "y"] * 150,
                "b": [f"{v:.1f}".replace(".", ",") for v in VOLUME[::-1]],
                "close": [f"{v:.3f}".replace(".", ",") for v in CLOSE[::-1]]}, mark=";")  # fmt: skip
    assert (all_inputs(odd) == all_inputs(data)).all()
    assert dict(odd.series.unused) == {"kind": "text"}
    assert any("newest first" in line for line in odd.findings)
    alone = load({"a": columns["a"], "b": VOLUME, "close": CLOSE}, target="")
    assert alone.series.names == ("close",)  # the last one


def test_days_without_weekends_and_holidays(load):
    week = [day for day in DAYS if day.weekday() < 5]
    keep = np.array(
        [
            day not in (datetime.date(2024, 1, 1), datetime.date(2023, 12, 25))
            for day in week
        ]
    )
    columns = {"day": np.array(written("%Y-%m-%d", week))[keep], "volume": VOLUME[: len(week)][keep],
               "close": CLOSE[: len(week)][keep]}  # fmt: skip
    data = load(columns)
    assert "a row every 1 weekday," in data.findings[1]
    assert data.findings[0].startswith("2 weekdays without a row, taken for holidays")
    assert data.counts["train"] + data.counts["test"] == keep.sum() - 15 - 3


# --- gaps ---------------------------------------------------------------------------


def with_gaps(**gone) -> dict:
    columns = {"when": written("%Y-%m-%d %H:%M"), "volume": [*map(str, VOLUME)],
               "close": [*map(str, CLOSE)]}  # fmt: skip
    for name, rows in gone.items():
        for row in rows:
            columns[name][row] = ""
    return columns


def without(columns: dict, rows) -> dict:
    keep = [row for row in range(ROWS) if row not in rows]
    return {name: [cells[row] for row in keep] for name, cells in columns.items()}


def test_missing_values_are_refused_or_interpolated(load):
    with pytest.raises(
        gpuzoo.GpuzooError,
        match="line 42, column 'volume': is missing, one of 2 values; fill it in, or --gaps interpolate",
    ):
        load(with_gaps(volume=[40, 41]))
    data = load(with_gaps(volume=[40, 41]), gaps="interpolate")
    assert "2 windows are left out" in data.findings[2]
    assert data.count("train") == 240 - 15 - 2  # those that end in the two rows
    volume = VOLUME.copy()
    volume[[40, 41]] = VOLUME[39] + (VOLUME[42] - VOLUME[39]) * np.array([1, 2]) / 3
    there = np.delete(VOLUME[:240], [40, 41])
    wanted = (volume - there.mean()) / there.std()
    one = data.train["series"][42 - 11 - 2]  # ends in row 42
    assert np.allclose(one[:, 1], wanted[31:43], atol=1e-6)
    # A target that is missing is neither learned nor measured.
    data = load(with_gaps(close=[100]), gaps="interpolate")
    assert data.count("train") == 240 - 15 - 5


def test_missing_times_are_refused_interpolated_or_ignored(load):
    holes = without(with_gaps(), {50, 51, 120})
    with pytest.raises(gpuzoo.GpuzooError) as caught:
        load(holes)
    assert str(caught.value) == (
        "data 'mine.csv': line 52: 2023-11-08 09:00 comes 3 hours after the time before it, "
        "and most steps are 1 hour: 3 times are missing in all; add them, or --gaps "
        "interpolate fills them in, or --gaps ignore takes the lines one after the other"
    )
    data = load(holes, gaps="interpolate", calendar=("day",))
    whole = load(with_gaps(), calendar=("day",))
    assert np.allclose(data.test["series"][:, :, 2:], whole.test["series"][:, :, 2:])
    assert data.count("train") == 240 - 15 - (2 + 4) - (1 + 4)
    ignored = load(holes, gaps="ignore")
    assert (
        ignored.series.unit == "line" and sum(ignored.counts.values()) == 297 - 15 - 3
    )


@pytest.mark.parametrize(
    ("columns", "how", "fault"),
    [
        ({"when": written("%Y-%m-%d %H:%M")[:150] * 2}, {}, "line 152: .* comes after .*; sort the lines"),
        ({"when": ["2024-01-01 00:00"] + written("%Y-%m-%d %H:%M")[1:]}, {}, "line 3: .* comes after"),
        ({"when": [HOURS[0].isoformat(" "), *written("%Y-%m-%d %H:%M:%S")[:-1]]}, {}, "is not later than the time before it; keep one row"),
        ({"when": [*written("%Y-%m-%d %H:%M")[:-1], "2023-11-18 16:25"]}, {}, "line 301: .* comes 1.41667 hours after .* needs even steps, or --gaps ignore"),
        ({}, {"calendar": ("day",)}, "calendar needs dates, and the series has none"),
        ({"when": written("%Y-%m-%d %H:%M")}, {"calendar": ("noon",)}, "calendar must be some of day, week, month, year"),
        ({"n": range(ROWS)}, {"kinds": ("volume:time", "n:drop")}, "sort the lines by column 'volume'"),
        ({}, {"kinds": ("close:time",)}, "'close' is a target"),
        ({}, {"kinds": ("volume:category",)}, "with a kind of number, time, drop"),
        ({}, {"target": "close,opens"}, "no column 'opens'; the columns are"),
        ({}, {"target": "close,close"}, "'close' is named twice"),
        ({}, {"window": 400}, "300 rows; a window of 400 and a horizon of 4 need more"),
        ({}, {"window": 40, "horizon": 55}, "6 test windows, and at least 10 are needed"),
        ({"close": [1.0] * ROWS}, {}, "all training values of column 'close' are 1"),
        ({"close": [*CLOSE[:9], "many", *CLOSE[10:]]}, {}, "line 11, column 'close': 'many'"),
        ({"close": [*CLOSE[:9], 1e33, *CLOSE[10:]]}, {}, "values of column 'close' up to 1e.33 are too large"),
        ({}, {"task": "next_move", "target": ""}, "needs one target, .* and got none: --target NAME"),
        ({}, {"task": "next_move", "target": "close,volume"}, "and got 'close', 'volume'"),
        ({"close": np.arange(ROWS)}, {"task": "next_move"}, "every move of the training part is up"),
    ],
)  # fmt: skip
def test_what_is_refused(load, columns, how, fault):
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        load({**{k: v for k, v in columns.items() if k != "close"},
              "volume": VOLUME, "close": columns.get("close", CLOSE)}, **how)  # fmt: skip


def test_moves_and_levels_that_stay(load):
    close = CLOSE.copy()
    close[100] = close[99]
    data = load(
        {"when": written("%Y-%m-%d %H:%M"), "close": close}, task="next_move", horizon=1
    )
    assert data.classes == ("down", "up") and data.count("train") == 240 - 12 - 1
    wanted = (np.diff(close)[240 - 1 :] > 0).astype(int)
    assert (data.test["label"] == wanted).all()
    assert "or are followed by no move" in data.findings[-1]


# --- nothing looks ahead ------------------------------------------------------------


def later(columns: dict, row: int, shift: float) -> dict:
    """The same columns with other values after a row."""
    moved = {}
    for name, cells in columns.items():
        cells = np.array(cells, float)
        cells[row + 1 :] = shift + 3 * cells[row + 1 :]
        moved[name] = cells
    return moved


def made(columns: dict, **how) -> "gpuzoo.Dataset":
    table = from_memory("series", {"when": written("%Y-%m-%d %H:%M"), **columns})
    how = {"target": "close", "window": 12, "horizon": 4, "validation": 0.2, **how}
    task = how.pop("task", "forecast")
    return make("mine", "made up", table, Options(**how), task)


def looks_ahead(columns: dict, build=lambda columns: columns, **how) -> bool:
    """Whether other values after a row change a window, a target or a scale before.

    Args:
        build: makes the columns of a series from these: here a leak can be planted.
    """
    row = 270  # in the test part
    data = made(build(columns), **how)
    for shift in (-40, 1000):
        other = made(build(later(columns, row, shift)), **how)
        same = data.series == other.series and data.scale == other.scale
        for split in ("train", "val"):
            for name, array in data.splits[split].items():
                same &= np.array_equal(array, other.splits[split][name])
        # Windows that end at the row or before, and what followed by then.
        ends = 240 - 1 + np.arange(data.count("test"))
        before = ends <= row
        one, two = (d.test["series"][before] for d in (data, other))
        same &= np.array_equal(one, two) and before.sum() > 25
        told = ends + data.series.horizon <= row
        for name in set(data.test) - {"series"}:
            same &= np.array_equal(data.test[name][told], other.test[name][told])
        if not same:
            return True
    return False


@pytest.mark.parametrize(
    "how",
    [{}, {"target": "close,volume"}, {"calendar": ("week",)}, {"task": "next_move"}],
)
def test_no_value_of_the_future_enters(how):
    columns = {"volume": VOLUME, "close": CLOSE}
    assert not looks_ahead(columns, **how)

    def planted(columns):  # the close of the next hour, as a column
        return {
            "tomorrow": np.r_[columns["close"][1:], columns["close"][-1]],
            **columns,
        }

    assert looks_ahead(columns, planted, **how)  # the check can fail
    data = made(planted(columns), **how)
    assert "column 'tomorrow' is 'close' of 1 rows later" in data.findings[-1]
    assert not any("rows later" in line for line in made(columns, **how).findings)


@pytest.mark.parametrize("gone", [range(268, 274), [271], range(262, 271)])
def test_nor_through_a_gap_that_is_interpolated(gone):
    def holes(columns):
        volume = columns["volume"].copy()
        volume[list(gone)] = np.nan
        return {**columns, "volume": volume}

    columns = {"volume": VOLUME, "close": CLOSE}
    data = made(holes(columns), gaps="interpolate")
    other = made(holes(later(columns, 270, 1000)), gaps="interpolate")
    ends = [end for end in range(239, 296) if end not in gone]
    before = np.array(ends) <= 270
    assert data.count("test") == len(ends) and before.sum() > 20
    assert np.array_equal(data.test["series"][before], other.test["series"][before])
    assert data.series == other.series


def test_a_factor_of_the_future_is_seen_too():
    later_ = np.r_[CLOSE[3:], CLOSE[-3:]]
    data = made({"hint": 7 - 2 * later_, "volume": VOLUME, "close": CLOSE})
    assert "column 'hint' is 'close' of 3 rows later" in data.findings[-1]


def test_the_generated_market_is_the_same_everywhere_and_has_its_marks():
    data, again = gpuzoo.load_data("market"), gpuzoo.load_data("market")
    assert data.fingerprint == again.fingerprint
    table = made_series.make()["table"]
    close = table.columns["close"].values
    assert len(table) == 10_000 and 50 < close.min() < close.max() < 200
    returns = np.diff(close) / close[:-1]
    size = np.abs(returns) - np.abs(returns).mean()
    # Large moves come in clusters, longer than their signs remember.
    assert (size[12:] * size[:-12]).mean() > 0.08 * (size * size).mean()
    volume = table.columns["volume"].values[1:]
    busy = volume > np.median(volume)
    both = returns[1:] * returns[:-1]
    assert both[busy[1:]].sum() < 0 < both[~busy[1:]].sum()  # regimes


def test_a_series_of_one_column_with_another_window():
    data = gpuzoo.load_data("mackey_glass", window=20, horizon=3, task="forecast")
    assert data.input_shape == (20, 1) and data.test["target"].shape[1] == 3
    plain = gpuzoo.load_data("mackey_glass")
    assert plain.series is None and plain.input_shape == (64, 1)
    assert series_table.TASKS == ("forecast", "next_move")
