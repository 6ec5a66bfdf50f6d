"""Tables: what is read, what each column holds, and how rows are prepared."""

import csv
import dataclasses
import datetime
import io

import numpy as np
import pytest

import gpuzoo
from gpuzoo.data import made_tables, preparation, tabular
from gpuzoo.data.columns import as_arrays, from_file, from_memory
from gpuzoo.data.preparation import Preparation

RNG = np.random.default_rng(0)
NUMBERS = [f"{value:.4f}" for value in RNG.random(60)]
GOAL = [f"{value:.2f}" for value in RNG.random(60)]


@pytest.fixture
def load(tmp_path):
    """Load a table of 60 rows, written from columns; `y` is the target."""

    def read(columns: dict, mark=",", encoding="utf-8", **how):
        text = io.StringIO()
        writer = csv.writer(text, delimiter=mark)
        writer.writerow([*columns, *(["y"] if "y" not in columns else [])])
        writer.writerows(
            zip(*columns.values(), *([GOAL] * ("y" not in columns)), strict=True)
        )
        path = tmp_path / "mine.csv"
        path.write_bytes(text.getvalue().encode(encoding))
        return gpuzoo.load_data(str(path), **{"target": "y", **how})

    return read


def each(*words: str) -> list[str]:
    return [words[row % len(words)] for row in range(60)]


def kinds(data) -> tuple[list, list, dict]:
    table = data.table
    return ([one.name for one in table.numeric], [one.name for one in table.categorical],
            dict(table.unused))  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (NUMBERS, "number"),
        ([*NUMBERS[:50], *["NaN", "", "n/a", "null", "-"] * 2], "number"),
        (each("3", "4", "7"), "number"),
        (each("1,5 €", "2,5 €"), "number"),
        (each("1.5 km", "-2 km", ""), "number"),
        (each("USD 1.5", "USD 20"), "number"),
        (each("1.50", "(2.50)", "7-"), "number"),
        (each("١٫٥", "٢", "７"), "number"),
        ([*NUMBERS[:50], *["<NA>", "N.A.", "(null)", "\\N", "—"] * 2], "number"),
        (each("red", "green", "<NA>"), "category"),
        (each("1 Main", "2 Elm", "7 Main"), "category"),
        (each("1 km", "1 m"), "category"),
        (each("2024-01-31", "1999-12-01", ""), "number"),
        (each("31.01.2024", "02.03.2024"), "number"),
        (each("10:30", "9:05 pm"), "number"),
        (each("red", "green", "none"), "category"),
        (each("True", "False"), "category"),
        (each("yes", "no"), "category"),
        (each("東京", "Île", "ß"), "category"),
        (each("01234", "98765"), "category"),
        (each('say "no"', "two\nlines", "a,b;c"), "category"),
        (each("#1", "#2"), "category"),
        (each("1", "2", "3", "10+"), "category"),
        ([*each("a", "b")[:58], "alone", "also"], "category"),
        (each(""), "empty in all training rows"),
        (each("x"), "the same value in all training rows"),
        (each("7"), "the same value in all training rows"),
        ([str(row) for row in range(60)], "line numbers or identifiers"),
        ([f"name {row}" for row in range(60)], "text, of which most"),
        (each("01/02/2024", "03/04/2024"), "order of day and month is not clear"),
    ],
)  # fmt: skip
def test_what_a_column_holds(cells, kind, load):
    numeric, categorical, unused = kinds(load({"a": cells, "b": NUMBERS}))
    assert numeric == (["a", "b"] if kind == "number" else ["b"])
    assert categorical == (["a"] if kind == "category" else [])
    assert kind in unused["a"] if "a" in unused else kind in ("number", "category")


@pytest.mark.parametrize(
    ("columns", "how", "fault"),
    [
        ({"a": NUMBERS, "y": each("1")}, {}, "the target 'y' is the same in all 60 rows"),
        ({"a": NUMBERS, "y": each("")}, {}, "the target 'y' is empty"),
        ({"a": NUMBERS, "y": NUMBERS}, {"target": "z"}, "no column 'z'; the columns are 'a', 'y'"),
        ({"a": NUMBERS, " a ": NUMBERS}, {}, "two columns are named 'a'"),
        ({"a": [*NUMBERS[:59], "inf"]}, {}, "line 61, column 'a': 'inf' is not a number, and 59 of 60"),
        ({"a": [*NUMBERS[:59], "1e999"]}, {}, "line 61, column 'a': 1e999 is not finite"),
        ({"a": [*NUMBERS[:40], *["k.A."] * 20]}, {}, "line 42, column 'a': 'k.A.' is not a number, and 40"),
        ({"a": [*(f"{one} km" for one in NUMBERS[:59]), "5"]}, {}, "is not a number; correct it"),
        ({"a": [*NUMBERS[:59], "much"]}, {}, "'much' is not a number.*--columns 'a:category'"),
        ({"a": [*(f"2024-01-{1 + row % 28}" for row in range(59)), "soon"]}, {}, "'soon' is not a date"),
        ({"a": [f"1e{200 + row}" for row in range(60)]}, {}, "too large; rescale"),
        ({"a": [str(row) for row in range(60)]}, {}, "no column is left to predict 'y'"),
        ({"a": NUMBERS, "y": [f"name {row}" for row in range(60)]}, {}, "60 different values in 60 rows, too many"),
        ({"a": NUMBERS}, {"task": "classify_table"}, "too many for classes.*--task regress_table"),
        ({"a": NUMBERS, "y": each("u", "v")}, {"task": "regress_table"}, "'u' is not a number"),
        ({"a": each("1.234", "998")}, {}, "'1.234' may have a mark of thousands"),
        ({"a": NUMBERS}, {"kinds": ("a:text",)}, "columns must be name:kind"),
        ({"a": NUMBERS}, {"kinds": ("b:drop",)}, "columns: no column 'b'"),
        ({"a": NUMBERS}, {"kinds": ("y:drop",)}, "'y' is the target"),
        ({"a": NUMBERS}, {"kinds": ("a:drop", "a:number")}, "given twice"),
    ],
)  # fmt: skip
def test_what_is_refused(columns, how, fault, load):
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        load(columns, **how)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty; the first line must name"),
        (b"a,y\n", "0 rows below the names"),
        (b"a,y\n1,2\n", "1 rows below the names of the columns; at least 10"),
        (b"a,y\n" + b"1,2\n" * 20 + b"1,2,3\n", "line 22: 3 columns, separated by ','"),
        (b"a,y\n" + b"1,2\n" * 20 + b'"1,2\n' + b"1,2\n" * 9, "line 22: a quotation mark is opened"),
        (b"a,y\n" + b"1,2\n" * 20 + b"\x00,2\n", "line 22: .*control character"),
        (b"PK\x03\x04", "control character"),
        ("a,y\nZürich,1\n".encode() * 9 + b"K\xf6ln,1\n", "line 19: a letter is not UTF-8"),
        ("a,y\n東京,1\n大阪,2\n".encode("shift_jis") * 9, "line 3: neither UTF-8 nor Windows"),
    ],
)  # fmt: skip
def test_files_that_are_no_table(content, fault, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        gpuzoo.load_data(str(path), target="y")


def test_the_words_of_a_command_that_lacks_the_target(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,y\n" + "1,2\n" * 20)
    with pytest.raises(
        gpuzoo.GpuzooError, match="Add --target NAME; the columns are 'a', 'y'"
    ):
        gpuzoo.load_data(str(path), task="table")
    with pytest.raises(gpuzoo.GpuzooError, match="at least 400 are needed"):
        gpuzoo.load_data(str(path))  # a series, as ever
    with pytest.raises(gpuzoo.GpuzooError, match="target and columns are for a table"):
        gpuzoo.load_data("digits", target="y")
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 8, 8)))
    with pytest.raises(gpuzoo.GpuzooError, match="arrays without names"):
        gpuzoo.load_data(str(tmp_path / "x.npz"), target="y")


@pytest.mark.parametrize(
    ("mark", "encoding", "decimal"),
    [
        (",", "utf-8-sig", "."),
        (";", "utf-8", ","),
        ("\t", "utf-16", ","),
        ("|", "cp1252", "."),
    ],
)
def test_a_file_as_spreadsheets_write_it(mark, encoding, decimal, load):
    columns = {"größe": NUMBERS, "ort": each("Köln", "Île")}
    plain = load(columns)
    swapped = {**columns, "größe": [one.replace(".", decimal) for one in NUMBERS]}
    other = load({**swapped, "y": [one.replace(".", decimal) for one in GOAL]},
                 mark=mark, encoding=encoding)  # fmt: skip
    for split in ("train", "test"):
        for name in ("table", "target"):
            assert np.array_equal(plain.splits[split][name], other.splits[split][name])
    said = " ".join(other.findings)
    assert ("decimal commas: 'größe'" in said) == (decimal == ",")


def test_the_target_decides_and_can_be_forced(load):
    whole = {"a": NUMBERS, "y": each("1.0", "2.0", "5.0")}
    data = load(whole)
    assert (
        data.classes == ("1", "2", "5") and "--task regress_table" in data.findings[0]
    )
    assert load(whole, task="regress_table").scale[0] == pytest.approx(8 / 3, abs=0.2)
    ten = {"a": NUMBERS, "y": [str(row % 11) for row in range(60)]}
    assert not load(ten).classes and len(load(ten, task="classify_table").classes) == 11
    assert load(ten, task="classify_table").classes[:3] == ("0", "1", "2")
    words = {"a": NUMBERS, "y": each("none", "some")}
    assert load(words).classes == ("none", "some")


def test_rows_without_a_target_are_left_out_by_number(load):
    goal = list(GOAL)
    goal[3] = goal[7] = ""
    data = load({"a": NUMBERS, "y": goal})
    assert sum(data.counts.values()) == 58
    assert (
        "2 of 60 rows have no value of the target 'y' and are left out: lines 5, 9"
        in data.findings
    )


def test_ten_thousand_categories(tmp_path):
    path = tmp_path / "mine.csv"
    lines = [f"c{row % 10_000},{row % 7},{row % 13}.5" for row in range(20_000)]
    path.write_text("\n".join(["c,b,y", *lines]))
    data = gpuzoo.load_data(str(path), target="y")
    assert data.table.vocabulary == (2 + preparation.MOST,)
    assert any(
        "taken for unknown ones" in line and "'c' 9,000" in line
        for line in data.findings
    )
    assert data.train["table"][:, -1].max() == 1 + preparation.MOST


def test_only_training_rows_are_fitted(load):
    """What test and validation rows hold moves neither the preparation nor the scale."""
    columns = {"a": NUMBERS, "c": each("p", "q"), "y": list(GOAL)}
    data = load(columns, validation=0.2, seed=3)
    table = from_memory(
        "t", {name: list(map(str, cells)) for name, cells in columns.items()}
    )
    goal = tabular.goal_of(table, table.columns["y"], "regress_table")
    arrays = {"table": goal.rows[:, None], "target": goal.values}
    rough = tabular.Dataset("", "", tabular.hold_out("t", arrays), (), "")
    rows = tabular.with_validation(rough, 0.2, 3).splits
    others = {row for split in ("val", "test") for row in rows[split]["table"][:, 0]}
    assert len(others) == 60 - data.count("train")
    for row in others:
        columns["a"][row], columns["c"][row], columns["y"][row] = "77.5", "new", "99.5"
    again = load(columns, validation=0.2, seed=3)
    assert again.table == data.table and again.scale == data.scale
    assert np.array_equal(again.train["table"], data.train["table"])
    assert (again.test["table"][:, 0] == 1).all()  # beyond all: the last place
    assert (again.test["table"][:, -1] == 2).all()  # no training row was unknown
    assert data.fingerprint != again.fingerprint


def test_what_rows_become():
    values = np.arange(1.0, 41.0)
    values[::5] = np.nan
    table = from_memory(
        "t", {"x": values, "c": ["a", "b", None, "a"] * 10, "y": np.arange(40.0)}
    )
    data = tabular.make("t", "here", table, target="y", task="regress_table")
    (one,), (other,) = data.table.numeric, data.table.categorical
    assert one.gaps and other.gaps and other.categories == ("a", "b")
    rows = from_memory(
        "r", {"x": [one.knots[0], one.knots[-1], None, 1e9], "c": ["b", None, "z", "a"]}
    )
    readings, _ = preparation.read_again(rows, data.table)
    made = preparation.encode(data.table, readings, np.arange(4))
    assert made[:, 0].tolist() == [0, 1, 0.5, 1]  # places
    assert made[2, 1] == 0 and made[3, 1] == preparation.FARTHEST
    assert made[:, 2].tolist() == [0, 0, 1, 0]  # gaps
    assert made[:, 3].tolist() == [3, preparation.ABSENT, 2, 2]
    told = "unknown category from column 'c': 'z': the most frequent one is taken"
    assert told in preparation.strange(rows, data.table, readings)[2]
    rare = dataclasses.replace(other, rare=True)  # as if the training had known some
    learned = dataclasses.replace(data.table, categorical=(rare,))
    made = preparation.encode(learned, readings, np.arange(4))
    assert made[2, 3] == preparation.UNKNOWN
    whole = preparation.encode(data.table, *_read(table, data.table))
    assert whole[:, 1][~np.isnan(values)].mean() == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("kinds", ["both", "numbers", "categories"])
def test_an_exported_model_prepares_rows_as_gpuzoo_does(kinds, rare, runtime):
    """The same rows, by the function that is inside the file."""
    import keras

    from gpuzoo.deploy.formats import rows

    rng = np.random.default_rng(3)
    count = 200
    columns = {"y": rng.normal(size=count)}
    if kinds != "categories":
        gaps = rng.normal(5, 2, count)
        gaps[rng.random(count) < 0.2] = np.nan
        columns |= {"even": np.arange(float(count)), "gaps": gaps,
                    "tail": np.exp(rng.normal(0, 4, count)),
                    "few": rng.integers(0, 3, count).astype(float)}  # fmt: skip
    if kinds != "numbers":
        columns |= {"c": rng.choice(["a", "b", "c", None], count).tolist(),
                    "d": rng.choice(["u", "v"], count).tolist()}  # fmt: skip
    table = from_memory("t", columns)
    data = tabular.make("t", "here", table, target="y", task="regress_table")
    prepared = data.table
    if rare:
        categorical = [
            dataclasses.replace(one, rare=True) for one in prepared.categorical
        ]
        prepared = dataclasses.replace(prepared, categorical=tuple(categorical))
    asked = {name: list(column[:50]) for name, column in columns.items()}
    for name, odd in (("even", [-1e9, 1e30, np.nan]), ("gaps", [np.nan, 0.0, 9.9]),
                      ("tail", [np.nan, 1e9, -1.0]), ("few", [1.5, -3.0, np.nan]),
                      ("c", ["z", None, "a"]), ("d", ["w", None, "U"])):  # fmt: skip
        if name in asked:
            asked[name] += odd
    asked["y"] += [0.0] * 3
    table = from_memory("r", asked)
    readings, every = _read(table, prepared)
    wanted = preparation.encode(prepared, readings, every)
    given = preparation.unprepared(prepared, readings, every)
    assert set(given) == {"numbers", "categories"} - {
        "both": set(), "numbers": {"categories"}, "categories": {"numbers"}
    }[kinds]  # fmt: skip
    found = keras.ops.convert_to_numpy(rows.preparing(prepared)(given))
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def _read(table, prepared):
    return preparation.read_again(table, prepared)[0], np.arange(len(table))


def test_a_preparation_is_json_and_comes_back():
    import json

    made = made_tables.make("lettings")
    prepared = tabular.make(**made).table
    told = json.loads(json.dumps(prepared.as_record()))
    assert Preparation.from_record(told) == prepared
    with pytest.raises(gpuzoo.GpuzooError, match="data.table"):
        Preparation.from_record({**told, "numeric": [{}]})


@pytest.mark.parametrize("name", made_tables.TABLES)
def test_generated_tables(name):
    data, again = gpuzoo.load_data(name), gpuzoo.load_data(name)
    assert data.fingerprint == again.fingerprint == FINGERPRINTS[name]
    numeric, categorical, unused = kinds(data)
    assert unused.keys() == {"id", "country"} and "listed" in numeric
    assert {"district", "condition", "heating", "balcony", "lift"} == set(categorical)
    assert all(np.isfinite(part["table"]).all() for part in data.splits.values())
    if data.classes:
        assert np.bincount(data.train["label"]).min() > 1_500


def test_what_may_be_meant_otherwise_is_told(load):
    cells = ["-999" if row % 9 == 0 else one for row, one in enumerate(NUMBERS)]
    data = load({"a": cells, "b": each("Yes", "no", "yes"), "y": each("u", "U")})
    said = " ".join(data.findings)
    assert "column 'a': -999 stands 7 times, far from all other values" in said
    assert "column 'b': the classes 'Yes' and 'yes' have similar names" in said
    assert "the classes 'U' and 'u' have similar names" in said
    data = load({"a": NUMBERS, "b": each("Köln", "Ulm")}, encoding="cp1252")
    assert "as Windows-1252: 'Köln' must be what you have written" in data.findings[0]


@pytest.mark.parametrize("gone", ["-", "none", "--"])
def test_a_missing_class_that_is_a_number_is_no_class(gone, load, tmp_path):
    cells = ["0", "1", "1", gone, "0", "1"] * 10
    data = load({"a": NUMBERS, "y": cells})
    assert data.classes == ("0", "1") and sum(data.counts.values()) == 50
    assert "10 of 60 rows have no value of the target" in " ".join(data.findings)
    rows = from_memory("other", {"a": [0.5] * 3, "y": ["1", gone, "0"]})
    found, said = tabular.other(rows, data.table, data.classes, None)
    assert found["label"].tolist() == [1, 0] and "1 of 3 rows" in " ".join(said)
    texts = load({"a": NUMBERS, "y": ["yes", "no", gone] * 20})
    assert set(texts.classes) == {"yes", "no", gone}  # among texts it is one


@pytest.mark.parametrize(
    ("cells", "others", "read"),
    [
        ("12,5", ["1.234"], 1234.0), ("12,5", ["1.234", "2,5"], 1234.0),
        ("12,5", ["1.234", "2,5", "3,5"], 1234.0), ("12,5", ["12.5"], None),
        ("12.5", ["1,234"], 1234.0), ("12.5", ["12,5"], None), ("125", ["12,5"], None),
        ("5%", ["8%"], 8.0), ("5%", ["0.08"], None), ("125", ["12%"], None),
        ("5 km", ["8 km"], 8.0), ("5 km", ["8 m"], None),
    ],
)  # fmt: skip
def test_the_decimal_mark_is_that_of_the_training(cells, others, read, load, tmp_path):
    """Whatever else stands in the file to predict."""
    end = [cells.replace("5", str(n % 7)) for n in range(60)]
    data = load({"a": end, "y": GOAL}, mark=";")
    path = tmp_path / "other.csv"
    path.write_text("\n".join(["a;b", *(f"{cell};x" for cell in others)]))
    if read is None:
        with pytest.raises(
            gpuzoo.GpuzooError, match="the training had|in the training"
        ):
            preparation.read_again(from_file(path), data.table)
        return
    readings, _ = preparation.read_again(from_file(path), data.table)
    assert readings["a"].values[0] == read


def test_the_fingerprint_depends_on_what_separates_columns(load):
    one, other = (
        load({"a": each("1,234", "2,345", "7,5"), "b": NUMBERS}, mark=mark).fingerprint
        for mark in (";", "\t")
    )
    assert one == other != load({"a": each("1,234", "2,345"), "b": NUMBERS}).fingerprint


# --- data frames ----------------------------------------------------------------------


def frame():
    return {
        "n": [1, 2.5, None, 4], "whole": np.arange(4), "text": ["a", None, " b ", "3"],
        "flag": [True, False, None, True], "day": np.array(["2024-01-01"] * 4, "datetime64[D]"),
    }  # fmt: skip


def test_columns_from_python(tmp_path):
    table = from_memory("data", frame())
    assert np.array_equal(
        table.columns["n"].values, [1, 2.5, np.nan, 4], equal_nan=True
    )
    assert table.columns["text"].texts == ["a", "", "b", "3"]
    assert table.columns["flag"].texts == ["True", "False", "", "True"]
    assert table.columns["day"].texts[0] == "2024-01-01"
    np.savez(tmp_path / "t.npz", **as_arrays(table))
    kept = from_file(tmp_path / "t.npz").columns
    assert kept["text"] == table.columns["text"]
    assert np.array_equal(kept["n"].values, table.columns["n"].values, equal_nan=True)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"a": [1, 2], "b": [1]}, "column 'a' has 2 values and 'b' 1"),
        ({"a": [1, np.inf]}, "row 1, column 'a': inf is not a finite number"),
        ({"a": [{}, 1]}, "row 0, column 'a': a dict; expected numbers, texts or dates"),
        ({"a": np.zeros((2, 2))}, "an array of shape"),
        ({"a ": [1], "a": [2]}, "two columns are named 'a'"),
        ({}, "has no columns"),
        ({"a": [2**53 + 1, 1]}, "row 0, column 'a': 9007199254740992 is not below"),
        ({"a": np.array([1, 2**60])}, "row 1, column 'a': .* integers are exact"),
        ({"a": np.array([1, 2], "timedelta64[s]")}, "are lengths of time"),
        ({"a": [[1, 2], [3]]}, "row 0, column 'a': a list; expected numbers"),
    ],
)
def test_columns_from_python_that_are_refused(data, fault):
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        from_memory("data", data)


@pytest.mark.parametrize(
    "beside", [[], [""], ["5,5"], ["n/a", "5,5"], [None, "1.000,5"]]
)
def test_a_number_is_not_read_by_the_marks_of_the_texts_beside_it(beside):
    rng = np.random.default_rng(0)
    cells = [f"{x:.1f}".replace(".", ",") for x in rng.normal(50, 9, 40)]
    cells[:2] = ["1.050,5", "1.234,5"]
    table = from_memory("t", {"x": cells, "y": rng.normal(size=40)})
    how = {"target": "y", "task": "regress_table", "kinds": ("x:number",)}
    prepared = tabular.make("t", "h", table, **how).table
    (one,) = prepared.numeric
    assert one.form == (".", ",")
    rows = from_memory("r", {"x": [1.234, 7, *beside]})
    readings, _ = preparation.read_again(rows, prepared)
    assert readings["x"].values[:2].tolist() == [1.234, 7]


def test_dates_of_python_have_one_reading(load):
    data = load({"a": each("31.01.2024", "02.03.2024"), "b": NUMBERS})
    days = [datetime.date(2024, 1, 31), "31.01.2024", "2024-01-31", "01/31/2024"]
    rows = from_memory("r", {"a": days[:3], "b": [0.5] * 3})
    readings, _ = preparation.read_again(rows, data.table)
    assert len(set(readings["a"].values)) == 1
    rows = from_memory("r", {"a": days, "b": [0.5] * 4})
    with pytest.raises(
        gpuzoo.GpuzooError, match="row 3.*is not a date in the order D M Y"
    ):
        preparation.read_again(rows, data.table)


def test_texts_among_the_numbers_of_a_data_frame(tmp_path):
    """Also after they were kept for other processes; a gap may be written."""
    numbers = list(map(float, NUMBERS))
    for words, fault in (
        (["-"] * 9, ""), (["abc", "0.5"], "row 58, column 'a': 'abc' is a text, and"),
    ):  # fmt: skip
        cells = [*numbers[: 60 - len(words)], *words]
        table = from_memory("t", {"a": cells, "y": GOAL})
        np.savez(tmp_path / "t.npz", **as_arrays(table))
        kept = from_file(tmp_path / "t.npz")
        how = {"target": "y", "task": "regress_table"}
        if fault:
            with pytest.raises(gpuzoo.GpuzooError, match=fault):
                tabular.make("t", "h", kept, **how)
        else:
            made = tabular.make("t", "h", kept, **how).table
            assert [one.gaps for one in made.numeric] == [True]


def test_columns_of_different_indexes_are_refused():
    pandas = pytest.importorskip("pandas")
    one, other = pandas.Series([1, 2]), pandas.Series([1, 2], index=[1, 0])
    assert len(from_memory("t", {"a": one, "y": one})) == 2
    with pytest.raises(gpuzoo.GpuzooError, match="with different indexes; make a data"):
        from_memory("t", {"a": one, "y": other})


@pytest.mark.parametrize("unit", ["ns", "us", "s", "D"])
def test_dates_of_numpy_are_dates(unit):
    days = np.array(["2024-01-05", "NaT", "2024-02-05"], f"datetime64[{unit}]")
    texts = from_memory("t", {"d": days}).columns["d"].texts
    assert [text[:10] for text in texts] == ["2024-01-05", "", "2024-02-05"]


def test_an_index_with_a_name_is_a_column():
    pandas = pytest.importorskip("pandas", reason="needs the extra tables")
    table = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert list(from_memory("t", table).columns) == ["a", "b"]
    assert list(from_memory("t", table.set_index("b")).columns) == ["b", "a"]
    assert from_memory("t", {"d": [pandas.NaT, None]}).columns["d"].texts == ["", ""]


def test_parquet_and_pandas_say_the_same(tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs the extra tables")
    pytest.importorskip("pyarrow", reason="needs the extra tables")
    table = pandas.DataFrame({
        "n": [1.5, None, 3], "i": pandas.array([1, None, 3], "Int64"),
        "c": pandas.Categorical(["x", "y", None]), "f": [True, False, True],
        "d": pandas.to_datetime(["2024-01-05 00:00", None, "2024-02-05 10:30"]),
    })  # fmt: skip
    table.to_parquet(tmp_path / "t.parquet")
    ours, theirs = from_memory("t", table), from_file(tmp_path / "t.parquet")
    for name, column in ours.columns.items():
        other = theirs.columns[name]
        assert column.texts == other.texts, name
        assert column.values is None or np.array_equal(
            column.values, other.values, equal_nan=True
        )
    assert ours.columns["c"].texts == ["x", "y", ""]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(gpuzoo.GpuzooError, match="not a readable Parquet file"):
        from_file(tmp_path / "bad.parquet")


FINGERPRINTS = {
    "flats": "343100ad998a7bbfccdba34af0a9680620375e333c9e3d109581cad4022d04f5",
    "lettings": "75195c0547bd22fea131e284238f78aecb9094cde7b20627da0fdaf5c168e22f",
}
