"""Trainings on tables: what a run holds, and all that is done with it afterwards."""

import json

import numpy as np
import pytest

import gpuzoo
from gpuzoo.tasks import scores

ROWS = 300
SHORT = ("--epochs", "6", "--batch-size", "32", "--model-options", "units=32,32")


def columns() -> dict[str, list]:
    """A price that depends on a product, and a kind that depends on it."""
    rng = np.random.default_rng(1)
    size, rooms = rng.uniform(20, 120, ROWS).round(1), rng.integers(1, 6, ROWS)
    city = rng.choice(["Oslo", "Köln", "東京"], ROWS)
    price = size * (10 + 5 * (city == "東京")) + 20 * rooms + rng.normal(0, 9, ROWS)
    gone = rng.random((2, ROWS)) < 0.1
    return {
        "id": list(range(ROWS)),
        "size": ["" if g else f"{one}" for one, g in zip(size, gone[0], strict=True)],
        "rooms": rooms.tolist(),
        "city": ["" if g else one for one, g in zip(city.tolist(), gone[1], strict=True)],
        "price": [f"{one:.2f}" for one in price],
        "dear": ["yes" if one > 900 else "no" for one in price],
    }  # fmt: skip


def write(path, table: dict) -> None:
    lines = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    path.write_text("\n".join([",".join(table), *lines]) + "\n")


@pytest.fixture(scope="module")
def homes(runtime, tmp_path_factory):
    """A folder with a table, and a run of regression and one of classification."""
    place = tmp_path_factory.mktemp("homes")
    write(place / "homes.csv", columns())
    how = {
        "epochs": 6,
        "batch_size": 32,
        "model_options": ("units=32,32",),
        "quiet": True,
    }
    data = str(place / "homes.csv")
    gpuzoo.train("table", data=data, target="price", columns=("dear:drop",),
                 out=str(place / "price"), **how)  # fmt: skip
    gpuzoo.train("table", data=data, target="dear", columns=("price:drop",), validation=0.1,
                 keep="best", class_weight=("balanced",), model="gated_table",
                 out=str(place / "dear"), **how | {"model_options": ("width=16",)})  # fmt: skip
    return place


def record(run) -> dict:
    return json.loads((run / "run.json").read_text())


def test_a_run_of_regression(homes):
    found = record(homes / "price")
    assert found["recipe"]["task"] == "regress_table" and found["data"]["classes"] == []
    assert {"predicted_true.png", "residuals.png"} <= found["files"].keys()
    told = " ".join(found["data"]["findings"])
    for words in ("'price' is a number", "read as numbers: 'size', 'rooms'", "'city' (3)",
                  "identifiers (--columns NAME:number uses them): 'id'",
                  "left out by columns: 'dear'", "missing: 'size'"):  # fmt: skip
        assert words in told, words
    figures = found["evaluation"]
    assert figures["r2"] > 0.7 and figures["mae"] < figures["rmse"]
    assert found["metrics"]["test_r2"] == pytest.approx(figures["r2"], rel=1e-6)
    report = (homes / "price" / "report.html").read_text()
    assert "Predicted and true values" in report and report.count("<img ") == 2


def test_figures_are_in_the_unit_of_the_target(homes):
    from sklearn import metrics

    trained, table = gpuzoo.load(homes / "price"), columns()
    found = gpuzoo.evaluate(homes / "price", data=str(homes / "homes.csv"))
    told = trained.predict(table)["value"]
    true = np.array(table["price"], float)
    assert found["examples"] == ROWS and found["identical"] is None
    assert found["mae"] == pytest.approx(
        metrics.mean_absolute_error(true, told), rel=1e-5
    )
    assert found["r2"] == pytest.approx(metrics.r2_score(true, told), rel=1e-5)
    assert found["rmse"] == pytest.approx(
        metrics.root_mean_squared_error(true, told), rel=1e-5
    )
    own = gpuzoo.evaluate(homes / "price")
    assert own["identical"] and own["examples"] == 60
    assert scores.regression(true, told)["r2"] == pytest.approx(found["r2"], rel=1e-5)


@pytest.mark.parametrize("run", ["price", "dear"])
def test_runs_are_verified_and_evaluated(run, homes, cli_here):
    for words in (["verify"], ["evaluate"]):
        done = cli_here(*words, homes / run)
        assert done.returncode == 0, done.stdout + done.stderr
    int8 = cli_here("export", homes / run, "--int8", "--to", "litert")
    assert int8.returncode == 2 and "--int8 is not for tables" in int8.stderr
    other = cli_here("robustness", homes / run)
    assert other.returncode == 2 and len(other.stderr.splitlines()) == 1, other.stderr


@pytest.fixture(scope="module")
def exports(homes):
    """Both runs as ONNX, the regression in two further formats."""
    from gpuzoo.deploy.export import export

    for run, formats in (
        ("price", ("onnx", "litert", "openvino")),
        ("dear", ("onnx",)),
    ):
        found = export(homes / run, formats)
        assert (
            found["failures"] == []
            and found["table"] == record(homes / run)["data"]["table"]
        )
        for entry in found["formats"].values():
            parity = entry["parity"]
            assert parity["largest_difference"] < 1e-5, parity
            assert (
                parity["examples"] == ROWS // 5 and parity["changed_predictions"] == 0
            )
        inputs = {one["name"]: one["shape"] for one in found["inputs"]}
        assert inputs == {"numbers": [None, 2], "categories": [None, 1]}
    return homes


def rows_of_all_kinds() -> dict[str, list]:
    """Missing, unknown and far away, as no training row is."""
    return {
        "size": [70.5, None, -1e4, 1e30, 20.0, 119.9, "66.25"],
        "rooms": [3, 2, None, 1, 5, 10**9, 4],
        "city": ["Oslo", None, "Rome", "東京", "Köln", "oslo", ""],
    }


@pytest.mark.parametrize("run", ["price", "dear"])
def test_an_exported_table_answers_as_predict(run, exports, runtime):
    """By the service, which takes rows by the names of their columns."""
    from gpuzoo.deploy.serve import app, artefact
    from gpuzoo.deploy.serve.guard import Limits

    rows = rows_of_all_kinds()
    count = len(rows["size"])
    with pytest.warns(UserWarning) as said:
        wanted = gpuzoo.load(exports / run).predict(rows)
    assert any("unknown category" in str(one.message) for one in said)
    made = artefact.load(exports / f"{run}-export")
    each = [{name: column[n] for name, column in rows.items()} for n in range(count)]
    body = json.dumps({"inputs": each}).encode()
    number, text = app.answer(made, Limits(), "application/json", body)
    found = json.loads(text)
    assert number == count == len(found["predictions"])
    warned = " ".join(found["warnings"])
    assert "inputs[2]: unknown category from column 'city': 'Rome'" in warned
    assert "inputs[5]: unknown category from column 'city': 'oslo'" in warned
    for n, one in enumerate(found["predictions"]):
        if run == "price":
            assert one["value"] == pytest.approx(wanted["value"][n], rel=1e-4)
        else:
            assert one["index"] == wanted["predicted"][n]
            assert one["probability"] == pytest.approx(
                wanted["confidence"][n], abs=1e-5
            )


@pytest.mark.parametrize(("inputs", "fault"), [
    ([[70.5, 3]], "must be an object, column -> value; the columns are size, rooms, city"),
    ([{}], "the columns are size, rooms, city"),
    ([{"size": 1, "rooms": 2}], "inputs[0] has no 'city': null is a missing value"),
    ([{"size": " " * 101, "rooms": 2, "city": ""}], "a text of more than 100 characters"),
    ([{"size": 1, "rooms": 2, "city": ["Oslo"]}], "'city': expected a number, a text"),
    ([{"size": 2**60, "rooms": 2, "city": ""}], "integers must be below 2**53"),
    ([{"size": 10**400, "rooms": 2, "city": ""}], "integers must be below 2**53"),
    ([{"size": "large", "rooms": 2, "city": ""}], "row 0, column 'size': 'large' is not a number"),
    ([{"size": 1, "rooms": 2, "city": "x" * 5000}], "'city': a text of more than"),
    ([{"size": 1, "rooms": 2, "city": ""}, {"size": 1}], "inputs[1] has no 'rooms'"),
])  # fmt: skip
def test_rows_that_the_service_refuses(inputs, fault, exports):
    from gpuzoo.deploy.serve import app, artefact
    from gpuzoo.deploy.serve.guard import Limits
    from gpuzoo.deploy.serve.inputs import Refused

    made = artefact.load(exports / "price-export")
    body = json.dumps({"inputs": inputs}).encode()
    with pytest.raises(Refused) as refused:
        app.answer(made, Limits(), "application/json", body)
    assert refused.value.status == 422 and fault in str(refused.value)
    assert len(str(refused.value)) < 600


def test_the_service_describes_the_columns(exports):
    from gpuzoo.deploy.serve import artefact, pages
    from gpuzoo.deploy.serve.guard import Limits

    made = artefact.load(exports / "price-export")
    said = pages.summary(made)
    assert said["target"] == "price" and said["columns"] == ["size", "rooms", "city"]
    about = pages.openapi(made, Limits(), False)
    body = about["paths"]["/predict"]["post"]["requestBody"]["content"]
    row = body["application/json"]["schema"]["properties"]["inputs"]["items"]
    assert row["required"] == said["columns"]
    assert set(row["properties"]["city"]["examples"]) == {"Oslo", "Köln", "東京"}


def test_a_table_is_compressed(homes, cli_here, tmp_path):
    done = cli_here(
        "compress", homes / "price", "--epochs", "1", "--out", tmp_path / "c"
    )
    assert done.returncode in (0, 1), done.stderr  # 1: none within the bound
    found = json.loads((tmp_path / "c" / "compress.json").read_text())
    assert {one["name"] for one in found["forms"]} == {
        "original",
        "width-0.5",
        "sparsity-0.8",
    }
    assert "int8" in found["left_out"]


def test_a_run_of_classification(homes, cli_here, tmp_path):
    found = record(homes / "dear")
    assert found["recipe"]["task"] == "classify_table" and found["data"]["classes"] == [
        "no",
        "yes",
    ]
    assert found["metrics"]["test_accuracy"] > 0.7 and found["best"]["kept"]
    assert set(found["class_weights"]) == {"no", "yes"}
    table = {name: cells[:3] for name, cells in columns().items() if name != "dear"}
    write(tmp_path / "rows.csv", table)
    done = cli_here("predict", homes / "dear", "rows.csv", "--json-lines")
    rows = [json.loads(line) for line in done.stdout.splitlines()[:3]]
    assert done.returncode == 0 and [row["index"] for row in rows] == [0, 1, 2]
    assert all(
        sum(p["probability"] for p in row["predictions"]) == pytest.approx(1)
        for row in rows
    )
    assert (
        gpuzoo.evaluate(homes / "dear", data=str(homes / "homes.csv"))["macro"]["f1"]
        > 0.6
    )


def test_rows_to_predict(homes, cli_here, tmp_path):
    table = {name: cells[:4] for name, cells in columns().items() if name != "price"}
    table |= {"city": ["Oslo", "Paris", "", "Köln"], "rooms": [1, 2, "", 3]}
    write(tmp_path / "rows.csv", table | {"more": [1, 2, 3, 4]})
    done = cli_here("predict", homes / "price", "rows.csv", "--out", "rows.jsonl")
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()
    ]
    (told,) = rows[1]["changes"]
    assert told.startswith("unknown category from column 'city': 'Paris'")
    assert "which the training always had" in rows[2]["changes"][0]
    assert "not in the training data, and ignored: column 'more'" in rows[0]["changes"]
    with pytest.warns(UserWarning) as warned:
        told = gpuzoo.load(homes / "price").predict(tmp_path / "rows.csv")["value"]
    lines = " ".join(str(one.message) for one in warned)
    assert "1 rows: unknown category from column 'city'" in lines
    assert "ignored: column 'more'" in lines
    assert [row["value"] for row in rows] == pytest.approx(told.tolist())
    shown = cli_here("predict", homes / "price", "rows.csv").stdout
    assert "price" in shown.splitlines()[0] and "rows.csv [3]" in shown
    write(
        tmp_path / "less.csv",
        {k: v for k, v in table.items() if k not in ("size", "city")},
    )
    done = cli_here("predict", homes / "price", "less.csv")
    assert done.returncode == 2
    assert (
        "without the columns 'size', 'city', on which the model was trained"
        in done.stderr
    )
    write(tmp_path / "odd.csv", table | {"size": [1, 2, "large", 3]})
    done = cli_here("predict", homes / "price", "odd.csv")
    assert "line 4, column 'size': 'large' is not a number" in done.stderr
    (tmp_path / "none.csv").write_text(",".join(table) + "\n")
    assert "no rows below" in cli_here("predict", homes / "price", "none.csv").stderr


def test_an_altered_preprocessing_is_found(homes, tmp_path, own_cache):
    """What `predict` applies is what the data give, though its seal was made anew."""
    import shutil

    from test_verify import edit_record

    run = shutil.copytree(homes / "price", tmp_path / "run")
    data = record(run)["data"]
    data["table"]["numeric"][0]["mean"] += 1.0
    edit_record(run, data=data)
    found = gpuzoo.verify(run)
    assert found["verdict"] == "differs" and "data/table" in " ".join(found["figures"])
    with pytest.raises(gpuzoo.GpuzooError, match="not the preprocessing that its data"):
        gpuzoo.evaluate(run)


def test_numbers_are_written_as_in_the_training(homes, cli_here, tmp_path):
    """One row may be ambiguous for itself; the format of the training decides."""
    table = {name: cells[:1] for name, cells in columns().items()}
    told = gpuzoo.load(homes / "price").predict(table | {"size": [50.125]})["value"]
    write(tmp_path / "row.csv", table | {"size": ["50.125"]})
    read = gpuzoo.load(homes / "price").predict(tmp_path / "row.csv")["value"]
    assert read.tolist() == told.tolist()


def test_evaluation_on_other_rows(homes, cli_here, tmp_path):
    table = columns()
    table["price"][4] = ""
    write(tmp_path / "other.csv", {k: v[:50] for k, v in table.items()})
    done = cli_here("evaluate", homes / "price", "--data", "other.csv")
    assert (
        done.json["examples"] == 49
        and "1 of 50 rows have no value" in done.stderr + done.stdout
    )
    write(tmp_path / "bad.csv", {k: v[:50] for k, v in table.items() if k != "price"})
    done = cli_here("evaluate", homes / "price", "--data", "bad.csv")
    assert done.returncode == 2 and "no column 'price'" in done.stderr
    table["dear"][3] = "perhaps"
    write(tmp_path / "class.csv", table)
    done = cli_here("evaluate", homes / "dear", "--data", "class.csv")
    assert (
        "line 5, column 'dear': 'perhaps' is not a class of the training: no, yes"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("backend", "precision"), [("jax", "float32"), ("tensorflow", "mixed_bfloat16")]
)
def test_on_the_other_backend_and_in_16_bits(backend, precision, cli_on, tmp_path):
    write(tmp_path / "homes.csv", columns())
    cli = cli_on(backend, precision)
    done = cli("train", "table", "--data", "homes.csv", "--target", "price", "--out", "run",
               *SHORT, "--columns", "dear:drop")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["test_r2"] > 0.7 and done.json["precision"] == precision
    for words in (
        ["verify", "run"],
        ["evaluate", "run"],
        ["predict", "run", "homes.csv"],
    ):
        done = cli(*words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_data_that_have_changed_are_named(homes, cli_here, tmp_path, monkeypatch):
    """Also a cell that is not used: what a run was trained on is the whole file."""
    write(tmp_path / "homes.csv", columns())
    done = cli_here("train", "table", "--data", "homes.csv", "--target", "price", "--epochs", "1",
                    "--batch-size", "32", "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = columns()
    table["id"][0] = 77
    write(tmp_path / "homes.csv", table)
    done = cli_here("verify", "run")
    assert done.returncode == 2 and "fingerprint" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["table", "--data", "homes.csv"], "Add --target NAME; the columns are 'id', 'size'"),
        (["table", "--data", "homes.csv", "--target", "dear", "--task", "regress_table"], "is not a number"),
        (["mnist", "--target", "price"], "target names a column of a table"),
        (["table", "--data", "homes.csv", "--target", "price", "--class-weight", "balanced"], "class_weight weighs classes"),
        (["table", "--data", "homes.csv", "--target", "price", "--augment", "flip"], "augment changes images"),
        (["table", "--data", "homes.csv", "--target", "price", "--image-size", "9"], "image_size is for a folder"),
        (["table", "--data", "digits", "--target", "price"], "target and columns are for a table"),
        (["mnist", "--data", "t.parquet"], "is a table: name the column to predict"),
        (["table", "--data", "homes.csv", "--target", "price", "--model-options", "numbers=3"], "model_options cannot set numbers"),
    ],
)  # fmt: skip
def test_what_is_refused(words, fault, cli_here, tmp_path):
    write(tmp_path / "homes.csv", columns())
    done = cli_here("train", *words)
    assert done.returncode == 2 and fault in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_killed_run_goes_on_to_the_same_bits(homes, cli_here, tmp_path):
    asked = iter([False] * 30 + [True])
    how = {
        "epochs": 6,
        "batch_size": 32,
        "model_options": ("units=32,32",),
        "quiet": True,
    }

    class Stop(Exception):
        pass

    def watch(event):
        if next(asked, False):
            raise Stop

    with pytest.raises(Stop):
        gpuzoo.train("table", data=str(homes / "homes.csv"), target="price", log_every=1,
                     columns=("dear:drop",), out=str(tmp_path / "run"), on_event=watch, **how)  # fmt: skip
    assert record(tmp_path / "run")["state"] == "stopped"
    assert cli_here("resume", "run").returncode == 0
    ours, theirs = record(tmp_path / "run"), record(homes / "price")
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert ours["evaluation"] == theirs["evaluation"]


def test_a_data_frame_in_python(runtime, tmp_path, own_cache):
    pandas = pytest.importorskip("pandas", reason="needs the extra tables")
    table = columns()
    frame = pandas.DataFrame(table | {"size": pandas.to_numeric(table["size"])})
    frame["price"] = frame["price"].astype(float)
    found = gpuzoo.train("table", data=frame, target="price", columns=["dear:drop"], epochs=2,
                         batch_size=32, out=str(tmp_path / "run"), quiet=True)  # fmt: skip
    trained = gpuzoo.load(tmp_path / "run")
    assert gpuzoo.evaluate(tmp_path / "run")["identical"] and found["test_r2"] < 1
    one = trained.predict(frame.head(2))["value"]
    other = trained.predict({name: frame[name].tolist()[0] for name in frame})["value"]
    assert one.shape == (2,) and one[0] == pytest.approx(other[0], rel=1e-6)
    for rows, fault in ((np.zeros((2, 5)), "must be a data frame"), (frame.head(0), "no rows"),
                        (frame.drop(columns="size"), "without the column 'size'")):  # fmt: skip
        with pytest.raises(gpuzoo.GpuzooError, match=fault):
            trained.predict(rows)
    with pytest.raises(gpuzoo.GpuzooError, match="name a fraction, as validation=0.1"):
        gpuzoo.train("table", data=frame, target="price", test=frame)
