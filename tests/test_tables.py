"""Series in CSV files as programs write them: read as they are meant, or refused."""

import datetime
import re

import numpy as np
import pytest

import gpuzoo
from gpuzoo.data.table import read_column

COUNT = 420
NOISE = np.random.default_rng(11).normal(size=COUNT)
LARGE = np.round(3_200_000 + 900_000 * np.sin(np.arange(COUNT) / 8) + NOISE, 2)
SMALL = np.round(4_400 + 2_100 * np.cos(np.arange(COUNT) / 8) + NOISE, 2)
RISING = np.round(np.linspace(2_000, 9_000, COUNT), 2)
COUNTS = np.abs(np.round(300 * NOISE)).astype(int)


def read(tmp_path, lines):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return read_column(path)


def written(values, thousands, point, digits=2):
    """In groups of three digits."""
    marks = str.maketrans({",": thousands, ".": point})
    return [f"{value:,.{digits}f}".translate(marks) for value in values]


# --- numbers in groups --------------------------------------------------------------

BLANKS = (" ", "\u00a0", "\u202f", "\u2009")


@pytest.mark.parametrize("values", [LARGE, SMALL, RISING], ids=["7", "4", "rising"])
@pytest.mark.parametrize("point", ".,")
@pytest.mark.parametrize("thousands", [",", ".", "'", "\u2019", *BLANKS])
def test_a_line_that_is_one_number_is_not_taken_apart(
    thousands, point, values, tmp_path
):
    if thousands == point:
        return
    cells = written(values, thousands, point)
    assert np.array_equal(read(tmp_path, cells).values, values)
    assert np.array_equal(read(tmp_path, ["price", *cells]).values, values)
    paid = [f"\u00a3{cell}" for cell in cells]
    assert np.array_equal(read(tmp_path, paid).values, values)


@pytest.mark.parametrize("head", [[], ["price"], ["price in EUR"], ["price, EUR"]])
@pytest.mark.parametrize("thousands", [",", ".", "'", *BLANKS])
def test_groups_without_decimals_are_read_or_refused(thousands, head, tmp_path):
    whole = np.round(LARGE)
    lines = [*head, *written(whole, thousands, "?", 0)]
    try:
        values = read(tmp_path, lines).values
    except gpuzoo.GpuzooError as error:
        assert head and " " in head[0] and (thousands in " ," or "," in head[0])
        assert re.search("or two columns; write|where the first line has", str(error))
    else:
        assert np.array_equal(values, whole)


@pytest.mark.parametrize("mark", ", ")
@pytest.mark.parametrize("width", [2, 3])
def test_columns_of_three_digits_are_no_groups(width, mark, tmp_path):
    cells = np.random.default_rng(2).integers(100, 999, (COUNT, width))
    lines = [mark.join(map(str, row)) for row in cells]
    with pytest.raises(gpuzoo.GpuzooError, match="or two columns; write"):
        read(tmp_path, lines)
    with pytest.raises(gpuzoo.GpuzooError, match="or two columns; write"):
        read(tmp_path, [f"{n + 1}{mark}{line}" for n, line in enumerate(lines)])
    numbered = [f"{n + 1}{mark}{row[-1]}" for n, row in enumerate(cells)]
    assert np.array_equal(read(tmp_path, numbered).values, cells[:, -1])
    named = [",".join("abc"[:width]), *(line.replace(" ", ",") for line in lines)]
    assert np.array_equal(read(tmp_path, named).values, cells[:, -1])


@pytest.mark.parametrize("mark", ";\t,")
@pytest.mark.parametrize("many", [3, 200])
def test_whole_numbers_beside_three_decimals(mark, many, tmp_path):
    """102 and 10,204: ten thousand, or ten."""
    cells = ["10,204" if n % (COUNT // many) == 0 else "102" for n in range(COUNT)]
    lines = [
        "day;v".replace(";", mark),
        *(f"{n}{mark}{c}" for n, c in enumerate(cells)),
    ]
    with pytest.raises(gpuzoo.GpuzooError, match="'10,204' may have a mark of thous"):
        read(tmp_path, lines)
    with pytest.raises(gpuzoo.GpuzooError, match=r"'10\.204' may have a mark of thous"):
        read(tmp_path, [cell.replace(",", ".") for cell in cells])


@pytest.mark.parametrize("mark", ".,")
def test_three_digits_after_every_mark_are_said(mark, tmp_path):
    lines = [f"{n}\t{60 + n % 7}{mark}{100 + n % 800}" for n in range(COUNT)]
    told = read(tmp_path, lines).findings[-1]
    assert f"'60{mark}100' is 60.1, not 60100" in told


def test_signs_that_stand_for_others(tmp_path):
    dashed = [f"\u2013{value:.2f}" for value in SMALL]
    assert np.array_equal(read(tmp_path, dashed).values, -SMALL)
    formula = ["d;v", *(f'{n};="{value:.2f}"' for n, value in enumerate(SMALL))]
    assert np.array_equal(read(tmp_path, formula).values, SMALL)
    twice = ["\ufeff\ufeffv", *map(str, SMALL)]
    assert read(tmp_path, twice).findings[0].startswith("series: column 'v': 420")


def days(newest=False):
    found = [
        datetime.datetime(2019, 1, 1) + datetime.timedelta(n) for n in range(COUNT)
    ]
    return found[::-1] if newest else found


def test_zero_has_no_sign_but_in_a_number_that_goes_on(tmp_path):
    values = np.round(NOISE, 1)
    cells = [f"{value:.1f}".replace(".", ",") for value in values]
    assert np.array_equal(read(tmp_path, cells).values, values)


@pytest.mark.parametrize("word", [".", "NA", ""])
@pytest.mark.parametrize("place", [0, 5])
def test_a_missing_value_is_named(word, place, tmp_path):
    lines = [f"{day:%Y-%m-%d},{v}" for day, v in zip(days(), SMALL, strict=True)]
    lines[place] = f"{days()[place]:%Y-%m-%d},{word}"
    fault = (
        f"line {place + 1}: '{word}' is not a number: a value of column 2 is missing"
    )
    with pytest.raises(gpuzoo.GpuzooError) as caught:
        read(tmp_path, lines)
    assert fault in str(caught.value)


@pytest.mark.parametrize("head", [["Sales of May"], ["Sales of May", "day;v"]])
def test_a_title_is_named(head, tmp_path):
    lines = [f"{day:%Y-%m-%d};{v}" for day, v in zip(days(), SMALL, strict=True)]
    with pytest.raises(gpuzoo.GpuzooError, match="2 columns.*remove any title line"):
        read(tmp_path, [*head, *lines])


# --- times --------------------------------------------------------------------------

MONTHS = [(2054 - n // 12, 12 - n % 12) for n in range(COUNT)]
NAMES = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
FALLING = {
    "seconds with a decimal": [f"{day.timestamp():.1f}" for day in days(True)],
    "days of Excel": [f"{44_000 - n / 4:.2f}" for n in range(COUNT)],
    "quarters": [f"Q{4 - n % 4} {2124 - n // 4}" for n in range(COUNT)],
    "months in words": [f"{year}{NAMES[month - 1]}" for year, month in MONTHS],
    "months": [f"{year}M{month}" for year, month in MONTHS],
    "weeks": ["{}-W{:02}".format(*(day - n * datetime.timedelta(6)).isocalendar())
              for n, day in enumerate(days(True))],
    "year and month": [f"{year};{month}" for year, month in MONTHS],
    "year and name": [f"{year};{NAMES[month - 1]}" for year, month in MONTHS],
    "day and clock": [f"2020-05-05;{23 - n // 60:02}:{59 - n % 60:02}"
                      for n in range(COUNT)],
    "days and clock": [f"{day:%d.%m.%Y;%H:%M}" for day in
                       (days()[0] - n * datetime.timedelta(hours=7)
                        for n in range(COUNT))],
    "each second twice": [f"{1_600_000_000 - n // 2 * 60}" for n in range(COUNT)],
    "year and quarter": [f"{2124 - n // 4};{4 - n % 4}" for n in range(COUNT)],
    "one day and numbers": [f"2020-05-05;{900 - n}" for n in range(COUNT)],
}  # fmt: skip


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("name", FALLING)
def test_newest_first_is_turned_round(name, headed, tmp_path):
    heads = ["year", "month"] if name.startswith("year") else ["date", "t"]
    cells = FALLING[name]
    head = ";".join([*heads[: cells[0].count(";") + 1], "v"])
    lines = [head] * headed + [f"{t};{v}" for t, v in zip(cells, SMALL, strict=True)]
    found = read(tmp_path, lines)
    assert np.array_equal(found.values, SMALL[::-1])
    (told,) = (line for line in found.findings if line.startswith("series"))
    assert "newest first in the file and reversed by times in" in told
    rising = lines[:headed] + lines[headed:][::-1]
    assert np.array_equal(read(tmp_path, rising).values, SMALL[::-1])


def test_times_that_are_not_understood_are_said(tmp_path):
    lines = [f"wave {n};{v}" for n, v in enumerate(SMALL)]
    (told,) = read(tmp_path, lines).findings
    assert "no column of times was found, so the oldest line must come" in told


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("timestamp", [f"{day.timestamp():.0f}" for day in days()]),
        ("Unix time", [f"{day.timestamp():.3f}" for day in days()]),
        ("year", [str(1500 + n) for n in range(COUNT)]),
        ("id", [str(n * n) for n in range(COUNT)]),
        ("No.", [str(n) for n in range(COUNT)]),
        ("userId", [str(n * n + 5) for n in range(COUNT)]),
        ("ts", [str(1_500_000_000_000 + 60_000 * n + n % 3) for n in range(COUNT)]),
        ("month;year", [f"{month};{year}" for year, month in MONTHS[::-1]]),
    ],
)
@pytest.mark.parametrize("newest", [True, False])
def test_times_in_the_last_column_are_not_the_series(name, cells, newest, tmp_path):
    way = -1 if newest else 1
    lines = [f"{v};{c}" for v, c in zip(SMALL, cells, strict=True)][::way]
    found = read(tmp_path, [f"v;{name}", *lines])
    assert np.array_equal(found.values, SMALL)
    assert f"column '{name.partition(';')[0]}'" in found.findings[0]
    lines = [f"{n * n + n};{c}" for n, c in enumerate(cells)]  # a total
    total = [n * n + n for n in range(COUNT)]
    assert read(tmp_path, [f"v;{name}", *lines]).values.tolist() == total
    lines = [f"{day:%Y-%m-%d};{n * n}" for n, day in enumerate(days())]
    with pytest.raises(gpuzoo.GpuzooError, match="column 'id' is named like times"):
        read(tmp_path, ["date;id", *lines])


# --- a first line of digits ---------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("form", ["{}", "{}.25"])
def test_a_header_of_digits_is_refused(width, form, tmp_path):
    head = ",".join(map(str, range(width)))
    rows = [",".join(form.format(COUNTS[n - c]) for c in range(width))
            for n in range(COUNT)]  # fmt: skip
    with pytest.raises(gpuzoo.GpuzooError, match=f"line 1: '{head}' may be a header"):
        read(tmp_path, [head, *rows])


def test_one_number_far_from_all_others_may_be_a_header(tmp_path):
    with pytest.raises(gpuzoo.GpuzooError, match="'2021' may be a header"):
        read(tmp_path, ["2021", *map(str, COUNTS % 50)])
    values = np.r_[100, SMALL[:-1] / 44]
    lines = ["100", *map(str, values[1:])]
    assert np.array_equal(read(tmp_path, lines).values, values)


# --- what is no series --------------------------------------------------------------


@pytest.mark.parametrize("labels", [NOISE[:60], np.arange(60), -NOISE[:60]])
def test_labels_that_are_no_classes(labels, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "mine.npz", x=images, y=labels)
    with pytest.raises(gpuzoo.GpuzooError, match="labels are not classes: each of the"):
        gpuzoo.load_data(str(tmp_path / "mine.npz"))


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gpuzoo.GpuzooError, match="data: the name is empty; expected"):
        gpuzoo.load_data(name)
