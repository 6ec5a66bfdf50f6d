"""Vectors of identities: the data, the losses, the figures, and all that is done with a run."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from sklearn import metrics
from small import program

import gpuzoo
from gpuzoo.data import identities, made_glyphs
from gpuzoo.engine import checkpoint
from gpuzoo.tasks import embed, pairs

HOW = {
    "epochs": 10, "batch_size": 16, "learning_rate": 0.01, "log_every": 1, "digest_every": 20, "keep_checkpoints": 3,
    "model_options": ("filters=(4,8)", "dimensions=8"), "augment": ("translate:1",),
    "quiet": True,
}  # fmt: skip


def write(folder: pathlib.Path, count: int, first: int = 0, pictures: int = 6) -> None:
    """A sub-folder of pictures for each of so many glyphs."""
    drawn = made_glyphs.draw(count, pictures, first)
    for n, (image, name) in enumerate(zip(drawn["image"], drawn["label"], strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / name / f"{n % pictures}.png")


def record(run) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def place(runtime, tmp_path_factory):
    """A folder with pictures by identity, others of other identities, and a run."""
    folder = tmp_path_factory.mktemp("identities")
    write(folder / "glyphs", 24)
    write(folder / "new", 5, first=500)
    gpuzoo.train("glyphs", data=str(folder / "glyphs"), validation=0.1, keep="best",
                 out=str(folder / "run"), **HOW)  # fmt: skip
    return folder


# --- figures --------------------------------------------------------------------------


def unit(values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def test_pairs_and_their_equal_error_rate():
    angles = np.radians([0, 10, 90, 100, 4, 200])
    labels = np.array([3, 3, 5, 5, 5, 9])
    vectors = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = pairs.pairs(vectors, labels)
    assert len(found.same) == 15 and found.same.sum() == 4
    assert (labels[found.first] == labels[found.second])[found.same].all()
    assert not (labels[found.first] == labels[found.second])[~found.same].any()
    wanted = np.sum(vectors[found.first] * vectors[found.second], axis=1)
    assert np.allclose(found.similarity, wanted, atol=1e-6)
    figures = pairs.verification(found)
    assert figures["auc"] == pytest.approx(
        metrics.roc_auc_score(found.same, found.similarity)
    )
    # Same: 10 degrees, twice, 86 and 96; different: 4, 6, 80, 90, 90, 100 and more. From
    # 10 degrees on half is missed, and from 80 to 86 3 of 11 are wrong, and half missed.
    assert 3 / 11 <= figures["eer"] <= 0.5
    # The line from (3/11, 1/2) to (3/11, 1/4): 3/11 of both.
    assert figures["eer"] == pytest.approx(3 / 11)
    with pytest.raises(ValueError):
        pairs.verification(pairs.pairs(vectors * np.nan, labels))


def test_the_threshold_is_that_of_the_two_errors():
    """On a straight part of the curve, between thresholds that are not evenly apart."""
    same = np.array([0.9, 0.8, 0.1])
    other = np.array([0.5, 0.45, 0.44, 0.43, 0.42, -0.5, -0.6, -0.7, -0.8, -0.9])
    place = np.zeros(13, int)
    found = pairs.Pairs(place, place, np.concatenate([same, other]), np.arange(13) < 3)
    figures = pairs.verification(found)
    assert figures["eer"] == pytest.approx(1 / 3)
    assert figures["threshold"] == pytest.approx(0.44 - 0.01 / 3)


def test_the_pairs_of_a_large_identity_are_not_all_made():
    labels = np.repeat([0, 1, 2], [60_000, 1, 40])  # 1.8 billion pairs of the first
    first, second = pairs._same(labels, 1000)
    assert len(first) == 1000 and (first < second).all() and second.max() < 60_000
    labels = np.array([4, 2, 4, 2, 4, 7])
    every = set(zip(*(x.tolist() for x in pairs._same(labels, 99)), strict=True))
    some = set(zip(*(x.tolist() for x in pairs._same(labels, 3)), strict=True))
    assert every == {(1, 3), (0, 2), (0, 4), (2, 4)} and some < every


def test_few_of_many_pairs_are_drawn():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 10)
    vectors = unit(rng.normal(size=(120, 4)))
    every = pairs.pairs(vectors, labels)
    some = pairs.pairs(vectors, labels, most=400)
    assert some.same.sum() == 400 and 300 < (~some.same).sum() <= 400
    known = {
        (one, other): value
        for one, other, value in zip(
            every.first, every.second, every.similarity, strict=True
        )
    }
    for one, other, value in zip(some.first, some.second, some.similarity, strict=True):
        assert known[one, other] == value
    numbers = np.arange(120 * 119 // 2)
    assert np.array_equal(pairs._of_number(numbers, 120), np.triu_indices(120, 1))


def test_retrieval_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels = np.append(np.arange(60) % 9, 77)  # one alone: it asks for nothing
    vectors = unit(rng.normal(size=(61, 3)))
    found = pairs.retrieval(vectors, labels)
    likeness = pairs.exact(vectors) @ pairs.exact(vectors).T
    precisions, hits = [], []
    for row in range(60):
        others = np.delete(np.arange(61), row)
        same = labels[others] == labels[row]
        precisions.append(metrics.average_precision_score(same, likeness[row, others]))
        hits.append(same[likeness[row, others].argmax()])
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions))
    assert found["recall_at_1"] == np.mean(hits)
    same = np.tile(unit([[1, 2, 2]]), (4, 1))  # all equal: the worst order
    assert pairs.retrieval(same, np.array([0, 0, 1, 2]))["recall_at_1"] == 0


# --- losses ---------------------------------------------------------------------------


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_arcface_is_that_of_the_paper(runtime):
    rng = np.random.default_rng(2)
    vectors, labels = unit(rng.normal(size=(7, 5))), rng.integers(0, 4, 7)
    directions = rng.normal(size=(4, 5)).astype(np.float32)
    vectors[0] = -unit(directions)[labels[0]]  # opposite: the line
    for margin in (0.0, 0.4):
        cosine = vectors.astype(float) @ unit(directions).astype(float).T
        angle = np.arccos(np.clip(cosine, -1, 1))
        moved = np.where(
            angle + margin < np.pi,
            np.cos(angle + margin),
            cosine - margin * np.sin(margin),
        )
        right = np.eye(4)[labels] > 0
        logits = 9 * np.where(right, moved, cosine)
        wanted = -log_softmax(logits)[right].mean()
        found = embed.arcface(vectors, labels, directions, margin, 9.0)
        assert float(found) == pytest.approx(wanted, rel=1e-3)


def test_contrastive_is_that_of_the_paper(runtime):
    rng = np.random.default_rng(3)
    vectors, labels = unit(rng.normal(size=(8, 5))), np.array([0, 1, 2, 1] * 2)
    each = []
    for i in range(8):
        others = [a for a in range(8) if a != i]
        likely = log_softmax(10 * (vectors[others] @ vectors[i]).astype(float))
        each.append(
            -np.mean(
                [likely[k] for k, a in enumerate(others) if labels[a] == labels[i]]
            )
        )
    found = embed.contrastive(vectors, labels, 10.0)
    assert float(found) == pytest.approx(np.mean(each), rel=1e-5)


# --- data -----------------------------------------------------------------------------


def test_the_generated_glyphs():
    data = made_glyphs.make()
    assert data.counts == {"train": 4_000, "test": 1_000} and not data.findings
    assert data.input_shape == (32, 32, 1) and len(data.classes) == 250
    assert data.fingerprint.startswith("4158bcc84cf3678c")
    assert set(data.train["label"]) == set(range(200))
    assert set(data.test["label"]) == set(range(200, 250))
    assert data.test["label"][:5].tolist() == [200, 200, 201, 201, 202]


def test_options_of_other_data_are_refused():
    for option, value in (("frames", 8), ("audio_seconds", 1.0), ("data_dir", "x")):
        with pytest.raises(gpuzoo.GpuzooError, match=f"^{option} is for "):
            gpuzoo.load_data("glyphs", task="embed", **{option: value})


def test_a_split_by_identity(place, tmp_path):
    said = []
    how = {"task": "embed", "note": said.append}
    data = gpuzoo.load_data(str(place / "glyphs"), **how)
    assert data.counts == {"train": 19 * 6, "test": 5 * 6}
    assert "split by identity: 19 identities for training, 5 others" in said[0]
    parts = gpuzoo.load_data(str(place / "glyphs"), validation=0.2, seed=3, **how)
    each = [set(part["label"].tolist()) for part in parts.splits.values()]
    assert sorted(len(one) for one in each) == [4, 5, 15]
    assert len(set.union(*each)) == 24 and parts.fingerprint == data.fingerprint
    assert parts.train["label"].max() == 14
    other = gpuzoo.load_data(str(place / "glyphs"), validation=0.2, seed=4, **how)
    names = [
        np.array(one.classes)[one.splits["val"]["label"]] for one in (parts, other)
    ]
    assert set(names[0]) != set(names[1])
    drawn = made_glyphs.draw(24, 6)
    np.savez(tmp_path / "all.npz", x=drawn["image"], y=drawn["label"])
    again = gpuzoo.load_data(str(tmp_path / "all.npz"), **how)
    assert again.fingerprint == data.fingerprint


def test_parts_that_are_there(tmp_path):
    write(tmp_path / "data/train", 4)
    write(tmp_path / "data/test", 3, first=10)
    (tmp_path / "data/test/glyph_012/0.png").rename(tmp_path / "data/test/x.png")
    for n in range(1, 5):
        (tmp_path / f"data/test/glyph_012/{n}.png").unlink()
    said = []
    data = gpuzoo.load_data(str(tmp_path / "data"), task="embed", note=said.append)
    assert data.counts == {"train": 24, "test": 13}
    assert "x.png (1 in all) is ignored" in " ".join(said)
    assert data.findings == (
        "1 test identities have one image, which counts as different from all others "
        "only: 'glyph_012'",
    )
    assert data.test["label"][-1] == 6  # alone, and the last
    write(tmp_path / "data/test", 1, first=2)
    with pytest.raises(gpuzoo.GpuzooError, match=r"'glyph_002' is in the training and in the test part \(1 of 4"):  # fmt: skip
        gpuzoo.load_data(str(tmp_path / "data"), task="embed")


def test_a_name_in_two_ways_is_one_identity(tmp_path):
    names = ["Ren\u00e9", "Rene\u0301", "Anna", "anna", "Bo", "Cleo", "Dora"]
    y = np.repeat(names, 3)
    x = np.random.default_rng(0).integers(0, 256, (len(y), 9, 9), np.uint8)
    np.savez(tmp_path / "whole.npz", x=x, y=y)
    data = gpuzoo.load_data(str(tmp_path / "whole.npz"), task="embed")
    parts = [
        {identities.plain(data.classes[one]) for one in set(part["label"].tolist())}
        for part in data.splits.values()
    ]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 5
    first = np.isin(y, names[:1] + names[2:4])
    np.savez(tmp_path / "two.npz", x_train=x[first], y_train=y[first],
             x_test=x[~first], y_test=y[~first])  # fmt: skip
    with pytest.raises(gpuzoo.GpuzooError, match="is in the training and in the test"):
        gpuzoo.load_data(str(tmp_path / "two.npz"), task="embed")
    with pytest.raises(gpuzoo.GpuzooError, match="validation must be a fraction"):
        identities.with_validation(data, -0.5, 0)


@pytest.mark.parametrize(("words", "fault"), [
    (["glyphs", "--data", "fotos/"], "there is no such file or folder"),
    (["glyphs", "--data", "digits"], "needs identities: give a folder"),
    (["glyphs", "--data", "few"], "3 identities; at least four are needed"),
    (["glyphs", "--data", "one"], "needs one sub-folder of images for each of at least two"),
    (["glyphs", "--data", "x.npz"], "has no identities: save them as y"),
    (["glyphs", "--image-size", "20"], "image_size is for folders of images"),
    (["mnist", "--data", "glyphs"], "it is for the task embed, not for classify"),
    (["mnist", "--scale", "3"], "scale is for the task embed"),
    (["glyphs", "--embed-loss", "contrastive", "--augment"], "two augmented views"),
    (["glyphs", "--margin", "2"], "margin of recipe 'glyphs' must be an angle"),
    (["glyphs", "--label-smoothing", "0.1"], "the task embed does not use it"),
    (["glyphs", "--model", "own.py:long", "--model-options"], "not 1; end it in keras.layers.Unit"),
    (["glyphs", "--model", "own.py:deep", "--model-options"], "not vectors (batch, numbers)"),
])  # fmt: skip
def test_what_is_refused(words, fault, cli_here, tmp_path):
    write(tmp_path / "few", 3, pictures=2)
    write(tmp_path / "one", 1, pictures=2)
    np.savez(tmp_path / "x.npz", x=np.zeros((12, 14, 14), np.uint8))
    (tmp_path / "own.py").write_text(OWN)
    done = cli_here("train", *words)
    assert done.returncode == 2 and fault in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


OWN = '''
import keras
from gpuzoo import register

@register(task="embed", reference="here")
def long(*, input_shape: tuple[int, ...] = (8, 8, 1)):
    """Vectors of any length."""
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))

@register(task="embed", reference="here")
def deep(*, input_shape: tuple[int, ...] = (8, 8, 1)):
    """Maps."""
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
'''


# --- a run ----------------------------------------------------------------------------


def test_a_run(place):
    found = record(place / "run")
    assert found["metrics"]["test_eer"] < 0.4 and found["best"]["monitor"] == "val_eer"
    assert found["metrics"]["test_recall_at_1"] > 0.5
    assert found["data"]["test_examples"] == 30
    figures = found["evaluation"]
    assert figures["identities"] == 5 and figures["pairs_same"] == 5 * 15
    assert -1 < figures["threshold"] < 1 and figures["auc"] > 0.7
    page = (place / "run" / "report.html").read_text()
    assert "Similarities of pairs" in page and "Worst pairs" in page
    weights = safetensors.numpy.load_file(place / "run" / "weights.safetensors")
    assert not any("head" in name for name in weights)
    state = safetensors.numpy.load_file(place / "run" / "state.safetensors")
    assert state["head/0"].shape == (17, 8)


def test_the_directions_are_trained_and_in_the_state(runtime):
    from gpuzoo.catalogue.recipe import Recipe

    drawn = [made_glyphs.draw(4, 4, first) for first in (0, 20)]
    data = identities.make_dataset("tiny", "made", dict(zip(("train", "test"), drawn, strict=True)))  # fmt: skip
    recipe = Recipe(name="tiny", task="embed", model="embedder", batch_size=8,
                    model_options=("filters=(4,)", "dimensions=4"))  # fmt: skip
    made = program(recipe, data, runtime)
    (head,) = made.task.heads
    before = np.array(head)
    assert before.shape == (4, 4) and "head/0" in made.state.others
    made.train(0, 2)
    assert np.all(np.any(np.array(head) != before, axis=1))
    vectors = made.evaluate()[0]["embedding"]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_verified_evaluated_and_others(place, cli_here, tmp_path):
    for words in (["verify"], ["evaluate"], ["audit"]):
        done = cli_here(*words, place / "run")
        assert done.returncode == 0, done.stdout + done.stderr
    done = cli_here(
        "evaluate", place / "run", "--data", place / "new", "--out", "found"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "found/evaluation.json").read_text())
    assert told["examples"] == 30 and told["identities"] == 5
    assert told["metrics"]["test_recall_at_1"] > 0.4 and told["identical"] is None
    assert (tmp_path / "found/worst_pairs.png").exists()
    done = cli_here("evaluate", place / "run", "--data", place / "glyphs")
    assert "24 identities have names that the run's data have" in done.stderr


def test_similarity_of_files(place, cli_here, tmp_path):
    one, two = (place / "new/glyph_500" / f"{n}.png" for n in (0, 1))
    done = cli_here("predict", place / "run", one, two)
    assert done.returncode == 0, done.stderr
    vectors = gpuzoo.load(place / "run").predict(
        np.stack([np.asarray(Image.open(file)) for file in (one, two)])
    )["embedding"]
    told = done.json
    assert told["similarity"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    threshold = record(place / "run")["evaluation"]["threshold"]
    assert told["threshold"] == threshold
    assert told["same"] is bool(told["similarity"] >= threshold)
    assert "taken for" in done.stderr and "nearest of these files" in done.stdout
    done = cli_here("predict", place / "run", place / "new", "--out", "v.npz")
    assert done.returncode == 0 and "similarity" not in done.json
    found = np.load(tmp_path / "v.npz")
    assert found["embedding"].shape == (30, 8) and found["name"][0].endswith("0.png")
    assert np.array_equal(found["embedding"][:2], vectors)
    done = cli_here("predict", place / "run", one, "--json-lines")
    row = json.loads(done.stdout.splitlines()[0])
    assert np.array_equal(np.float32(row["embedding"]), vectors[0])
    done = cli_here("predict", place / "run", one, "--out", "folder")
    assert done.returncode == 2 and "expected FILE.npz or FILE.jsonl" in done.stderr


def test_exported_and_served(place):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    from gpuzoo.deploy.export import export
    from gpuzoo.deploy.serve import app, artefact
    from gpuzoo.deploy.serve.guard import Limits

    found = export(place / "run", ("onnx", "litert"))
    assert found["failures"] == [] and found["classes"] == []
    assert [one["name"] for one in found["outputs"]] == ["embedding"]
    for entry in found["formats"].values():
        parity = entry["parity"]
        assert parity["largest_difference"] < 1e-5
        assert parity["metric"]["name"] == "recall at 1"
        assert parity["metric"]["run"] == parity["metric"]["artefact"] > 0
    image = made_glyphs.draw(1, 1, 600)["image"]
    body = json.dumps({"inputs": image.tolist()}).encode()
    made = artefact.load(place / "run-export")
    _, text = app.answer(made, Limits(), "application/json", body)
    (row,) = json.loads(text)["predictions"]
    wanted = gpuzoo.load(place / "run").predict(image)["embedding"][0]
    assert np.allclose(row["embedding"], wanted, atol=1e-5)


def test_a_stopped_run_goes_on_to_the_same_bits(place, cli_here, tmp_path):
    asked = iter([False] * 30 + [True])

    class Stop(Exception):
        pass

    def watch(event):
        if next(asked, False):
            raise Stop

    with pytest.raises(Stop):
        gpuzoo.train("glyphs", data=str(place / "glyphs"), validation=0.1, keep="best",
                     out=str(tmp_path / "run"), on_event=watch, **HOW)  # fmt: skip
    assert record(tmp_path / "run")["state"] == "stopped"
    start, _ = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert start.arrays["state/head/0"].shape == (17, 8)
    assert cli_here("resume", "run").returncode == 0
    ours, theirs = record(tmp_path / "run"), record(place / "run")
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert ours["evaluation"] == theirs["evaluation"]
    digests = [
        (run / "digests.jsonl").read_text() for run in (tmp_path / "run", place / "run")
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("backend", "precision", "loss"),
    [("jax", "float32", "arcface"), ("tensorflow", "mixed_bfloat16", "contrastive"),
     ("tensorflow", "mixed_float16", "arcface"), ("jax", "mixed_float16", "contrastive")],
)  # fmt: skip
def test_on_the_other_backend_and_in_16_bits(
    backend, precision, loss, cli_on, tmp_path
):
    write(tmp_path / "mine", 16, pictures=4)
    cli = cli_on(backend, precision)
    done = trained = cli("train", "glyphs", "--data", "mine", "--out", "run", "--embed-loss", loss,
               "--epochs", "12", "--batch-size", "16", "--learning-rate", "0.01", "--model-options", "filters=(4,)",
               "dimensions=8", "--augment", "translate:1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["precision"] == precision and 0 <= done.json["test_eer"] <= 1
    rows = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert f"loss: {loss}\n" in trained.stderr
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    for words in (["verify", "run"], ["predict", "run", "mine"]):
        done = cli(*words)
        assert done.returncode == 0, done.stdout + done.stderr
