"""Trainings on texts: what a run holds, and all that is done with it afterwards."""

import json
import pathlib

import numpy as np
import pytest

import gpuzoo

ROWS = 240
HOW = {
    "epochs": 10, "batch_size": 16, "learning_rate": 0.02, "min_steps": 1,
    "model_options": ("width=8", "filters=16", "kernels=1,2"), "quiet": True,
}  # fmt: skip
SHORT = ("--epochs", "4", "--batch-size", "16", "--learning-rate", "0.02", "--min-steps", "1",
         "--model-options", "width=8")  # fmt: skip


def table() -> dict[str, list]:
    """Messages in three languages; "not" and "kein" turn them round."""
    rng = np.random.default_rng(1)
    begun, ended = ["the film was", "Der Film war", "電影"], ["!", ", Zoë", "…", ""]
    good, bad = ["great", "schön", "好"], ["awful", "öde", "壞"]
    texts, labels = [], []
    for n in range(ROWS):
        kind, praised, turned = rng.integers(3), rng.random() < 0.5, rng.random() < 0.3
        word = (good if praised else bad)[kind]
        no = ["not ", "kein ", "不"][kind] * bool(turned)
        texts.append(f"{begun[kind]} {no}{word}{ended[rng.integers(4)]} {n % 40}")
        labels.append("loved it" if praised != turned else "没意思")
    return {"id": list(range(ROWS)), "message": texts, "mood": labels}


def write(path: pathlib.Path, columns: dict) -> None:
    cells = [list(columns), *zip(*columns.values(), strict=True)]
    rows = [";".join(f'"{one}"' for one in row) for row in cells]
    path.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")


def record(run) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def place(runtime, tmp_path_factory):
    """A folder with a file of messages, and a run."""
    folder = tmp_path_factory.mktemp("texts")
    write(folder / "mine.csv", table())
    gpuzoo.train("text", data=str(folder / "mine.csv"), target="mood", validation=0.1,
                 keep="best", class_weight=("balanced",), out=str(folder / "run"), **HOW)  # fmt: skip
    return folder


def test_a_run(place):
    found = record(place / "run")
    assert found["data"]["classes"] == ["loved it", "没意思"]
    assert found["metrics"]["test_accuracy"] > 0.8 and found["best"]["kept"]
    known = found["data"]["text"]
    assert known["columns"] == ["message"] and known["target"] == "mood"
    assert {"film", "schön", "好", "不"} <= set(known["words"]) and known[
        "length"
    ] == 16
    told = " ".join(found["data"]["findings"])
    for words in ("not used: column 'id'", "words are known", "'mood' has 2 classes"):
        assert words in told, words
    assert "Confusion" in (place / "run" / "report.html").read_text()


def test_verified_evaluated_and_what_else_there_is(place, cli_here):
    for words in (["verify"], ["evaluate"]):
        done = cli_here(*words, place / "run")
        assert done.returncode == 0, done.stdout + done.stderr
    found = gpuzoo.evaluate(place / "run", data=str(place / "mine.csv"))
    assert found["examples"] == ROWS and found["macro"]["f1"] > 0.8
    other = cli_here("robustness", place / "run")
    assert other.returncode == 2 and len(other.stderr.splitlines()) == 1, other.stderr


def test_texts_to_predict(place, cli_here, tmp_path):
    trained = gpuzoo.load(place / "run")
    found = trained.predict(
        ["The FILM was great!", "Der Film war kein öde", "电 影 好"]
    )
    assert found["predicted"].tolist()[0] == 0 and found["logits"].shape == (3, 2)
    columns = {"id": [1, 2, 3], "message": ["the film was great", "", "zzz " * 30]}
    write(tmp_path / "new.csv", columns)
    done = cli_here("predict", place / "run", "new.csv", "--json-lines")
    rows = [json.loads(line) for line in done.stdout.splitlines()[:3]]
    assert done.returncode == 0 and [row["index"] for row in rows] == [0, 1, 2]
    assert rows[0]["predictions"][0]["class"] == "loved it" and "changes" not in rows[0]
    assert rows[1]["changes"] == ["no words: the text is empty"]
    assert rows[2]["changes"] == [
        "cut from 30 words to the first 16",
        "unknown words from the text: 16 of 16, as 'zzz'",
    ]
    write(tmp_path / "odd.csv", {"message": ["the new film", "a nice film", "aha"]})
    done = cli_here("predict", place / "run", "odd.csv")
    assert done.json["changes"] == {"unknown words": 3}
    assert done.stderr.count("unknown words") == 2  # the first, and how many
    done = cli_here("predict", place / "run", "the film was great")
    assert done.returncode == 2 and "from Python as they are" in done.stderr
    with pytest.warns(UserWarning) as said:
        told = trained.predict(tmp_path / "new.csv")
    assert [str(one.message) for one in said] == [
        "texts to predict: 1 of 3 texts have no words",
        "texts to predict: 1 of 3 texts are cut to the first 16 words",
        "texts to predict: 1 of 3 texts have more unknown words than known ones",
    ]
    with pytest.warns(UserWarning, match="texts have|texts are"):
        assert np.array_equal(told["logits"], trained.predict(columns)["logits"])
    best = [row["predictions"][0]["probability"] for row in rows]
    assert best == pytest.approx(told["confidence"].tolist(), rel=1e-6)
    one = trained.predict("the film was great")["logits"]
    assert np.array_equal(one[0], told["logits"][0])
    write(tmp_path / "less.csv", {"id": [1], "text": ["a"]})
    done = cli_here("predict", place / "run", "less.csv")
    assert (
        done.returncode == 2 and "has no column 'message', which holds" in done.stderr
    )
    done = cli_here("predict", place / "run", place / "run" / "curves.png")
    assert done.returncode == 2 and "image file; the model takes texts" in done.stderr


def test_exported_and_served(place):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    from gpuzoo.deploy.export import export
    from gpuzoo.deploy.serve import app, artefact, pages
    from gpuzoo.deploy.serve.guard import Limits
    from gpuzoo.deploy.serve.inputs import Refused

    found = export(place / "run", ("onnx", "litert"))
    assert (
        found["failures"] == []
        and found["text"] == record(place / "run")["data"]["text"]
    )
    for entry in found["formats"].values():
        parity = entry["parity"]
        assert (
            parity["largest_difference"] < 1e-4 and parity["changed_predictions"] == 0
        )
    made = artefact.load(place / "run-export")
    sent = ["the film was not great", {"message": "Der Film war öde"}, "", "電影 xyz"]
    count, text = app.answer(
        made, Limits(), "application/json", json.dumps({"inputs": sent}).encode()
    )
    answer = json.loads(text)
    plain = [one if isinstance(one, str) else one["message"] for one in sent]
    with pytest.warns(UserWarning, match="1 of 4 texts have no words"):
        wanted = gpuzoo.load(place / "run").predict(plain)
    assert count == 4
    for n, one in enumerate(answer["predictions"]):
        assert one["index"] == wanted["predicted"][n]
        assert one["probability"] == pytest.approx(wanted["confidence"][n], abs=1e-5)
    assert "inputs[2]: no words: the text is empty" in answer["warnings"]
    assert any("unknown words" in one for one in answer["warnings"])
    about = json.dumps(pages.openapi(made, Limits(), False))
    assert "column -> text: message" in about and pages.summary(made)["columns"] == [
        "message"
    ]
    for wrong in ([3], [None], [{"other": "a"}], [{"message": 3}], ["x" * 100_001]):
        body = json.dumps({"inputs": wrong}).encode()
        with pytest.raises(Refused, match="inputs.0."):
            app.answer(made, Limits(), "application/json", body)


@pytest.mark.parametrize(
    ("backend", "precision", "model"),
    [("jax", "float32", "text_gru"), ("tensorflow", "mixed_bfloat16", "text_gru"),
     ("tensorflow", "mixed_float16", "text_cnn")],
)  # fmt: skip
def test_on_the_other_backend_and_in_16_bits(
    backend, precision, model, cli_on, tmp_path
):
    write(tmp_path / "mine.csv", table())
    cli = cli_on(backend, precision)
    done = cli("train", "text", "--data", "mine.csv", "--target", "mood", "--out", "run",
               "--model", model, *SHORT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["test_accuracy"] > 0.6 and done.json["precision"] == precision
    for words in (["verify", "run"], ["predict", "run", "mine.csv"]):
        done = cli(*words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_killed_run_goes_on_to_the_same_bits(place, cli_here, tmp_path):
    asked = iter([False] * 30 + [True])

    class Stop(Exception):
        pass

    def watch(event):
        if next(asked, False):
            raise Stop

    with pytest.raises(Stop):
        gpuzoo.train("text", data=str(place / "mine.csv"), target="mood", validation=0.1,
                     keep="best", class_weight=("balanced",), log_every=1,
                     out=str(tmp_path / "run"), on_event=watch, **HOW)  # fmt: skip
    assert record(tmp_path / "run")["state"] == "stopped"
    assert cli_here("resume", "run").returncode == 0
    ours, theirs = record(tmp_path / "run"), record(place / "run")
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert ours["evaluation"] == theirs["evaluation"]


def test_an_altered_vocabulary_is_found(place, tmp_path, own_cache):
    """What `predict` reads by is what the data give, though its seal was made anew."""
    import shutil

    from test_verify import edit_record

    run = shutil.copytree(place / "run", tmp_path / "run")
    data = record(run)["data"]
    words = data["text"]["words"]
    words[0], words[1] = words[1], words[0]
    edit_record(run, data=data)
    found = gpuzoo.verify(run)
    assert found["verdict"] == "differs" and "data/text" in " ".join(found["figures"])
    with pytest.raises(gpuzoo.GpuzooError, match="not the preprocessing that its data"):
        gpuzoo.evaluate(run)


def test_texts_and_labels_from_python(runtime, tmp_path, own_cache):
    columns = table()
    found = gpuzoo.train("text", data=(columns["message"], columns["mood"]),
                         out=str(tmp_path / "run"), **HOW | {"epochs": 1})  # fmt: skip
    assert (
        found["state"] == "finished" and gpuzoo.evaluate(tmp_path / "run")["identical"]
    )
    frame = {name: columns[name] for name in ("message", "mood")}
    again = gpuzoo.train("text", data=frame, target="mood", out=str(tmp_path / "two"),
                         **HOW | {"epochs": 1})  # fmt: skip
    assert again["weights_sha256"] == found["weights_sha256"]
    with pytest.raises(gpuzoo.GpuzooError, match="name a fraction, as validation=0.1"):
        gpuzoo.train(
            "text", data=(columns["message"], columns["mood"]), test=(["a"], ["b"])
        )


@pytest.mark.parametrize(("words", "fault"), [
    (["text", "--data", "mine.csv"], "Add --target NAME; the columns are 'id', 'message'"),
    (["text", "--data", "mine.csv", "--target", "message"], "too many for classes"),
    (["text", "--data", "mine.csv", "--target", "mood", "--augment", "flip"], "augment changes images"),
    (["text", "--model-options", "words=3"], "model_options cannot set words"),
    (["text", "--model-options", "kernels=()"], "kernels of text_cnn must not be empty"),
    (["text", "--model", "cnn"], "model 'cnn' is for the task 'classify'"),
    (["mnist", "--data", "reviews"], "needs image and label of every example; data reviews have text"),
    (["text", "--model", "float.py:net", "--model-options"], "write keras.Input(input_shape, dtype='int32')"),
])  # fmt: skip
def test_what_is_refused(words, fault, cli_here, tmp_path):
    write(tmp_path / "mine.csv", table())
    (tmp_path / "float.py").write_text(FLOAT)
    done = cli_here("train", *words)
    assert done.returncode == 2 and fault in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


FLOAT = """
import keras
from gpuzoo import register

@register(task="classify_text", reference="here")
def net(*, input_shape: tuple[int, ...] = (8,), num_classes: int = 2, words: int = 9):
    "Takes numbers of words as floats, which 16 bits do not hold."
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(keras.layers.Embedding(words, 4)(inputs))
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))
"""
