"""Attacks, calibration and other data of a trained classifier; robust training."""

import base64
import importlib.metadata
import json
import re
import types

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, needs_jax
from small import RECIPE, same, texture, train

import gpuzoo
from gpuzoo import randomness
from gpuzoo.deploy import corruptions, robustness
from gpuzoo.engine import checkpoint

# --- calibration and other data -----------------------------------------------------


def test_the_calibration_error_is_that_of_the_definition():
    sure = np.array([0.55, 0.6, 0.92, 0.95, 0.98, 0.97])
    logits = np.stack([np.log(sure), np.log(1 - sure)], axis=1)
    labels = np.array([0, 1, 0, 0, 1, 0])
    found = robustness._reliability(logits, labels, 1.0)
    # 0.55 and 0.6 are in the bin to 0.6, 0.92 in that to 0.9333, the others in the last.
    wanted = (abs(1 - 1.15) + abs(1 - 0.92) + abs(2 - 2.9)) / 6
    assert found["ece"] == pytest.approx(wanted, abs=1e-9)
    assert found["examples"] == [0] * 8 + [2] + [0] * 4 + [1, 3]
    right = np.where(labels == 0, sure, 1 - sure)
    assert found["log_loss"] == pytest.approx(-np.log(right).mean())


# --- a run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(runtime, tmp_path_factory):
    """A linear classifier of digits, trained plainly, and one trained robustly."""
    top = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUZOO_CACHE", str(top / "cache"))
        common = {"data": "digits", "epochs": 10, "eval_every": 10, "quiet": True}
        linear = {"model": "mlp", "model_options": ("units=()",)}
        gpuzoo.train("mnist", out=top / "linear", **linear, **common)
        common |= {"model_options": ("filters=(8,16)", "dense=64"), "batch_size": 64}
        gpuzoo.train("mnist", out=top / "plain", **common)
        gpuzoo.train("mnist_robust", out=top / "robust", **common)
    return top


def test_fgsm_is_the_sign_of_the_gradient(trained):
    """Of a linear classifier it is known: weights times (probabilities - label)."""
    from gpuzoo.deploy.attacks import Attacks

    loaded = gpuzoo.load(trained / "linear")
    test = gpuzoo.load_data("digits").test
    images, labels = test["image"][:50], test["label"][:50]
    attacks = Attacks(loaded, images, labels, np.arange(50), 0)
    found, flat = attacks.fgsm(0.1)
    clean = images.reshape(50, -1) / 255.0
    kernel, bias = (np.asarray(weight, np.float64) for weight in loaded.model.weights)
    logits = clean @ kernel + bias
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    slope = (chances - np.eye(10)[labels]) @ kernel.T
    wanted = np.clip(clean + 0.1 * np.sign(slope), 0, 1)
    clear = np.abs(slope) > 1e-4 * np.abs(slope).max()
    assert flat == 0 and clear.mean() > 0.9
    assert np.abs(found.reshape(50, -1) - wanted)[clear].max() < 1e-6


def test_attacks_stay_within_their_bound_and_repeat(trained):
    from gpuzoo.deploy.attacks import Attacks

    loaded = gpuzoo.load(trained / "plain")
    test = gpuzoo.load_data("digits").test
    rows = np.arange(60, 120)
    images, labels = test["image"][rows], test["label"][rows]
    attacks = Attacks(loaded, images, labels, rows, 0)
    clean = images.astype(np.float32) / 255
    again = Attacks(loaded, images, labels, rows, 0)
    other = Attacks(loaded, images, labels, rows, 1)
    for epsilon in (1 / 255, 0.1, 0.3):
        attacked, _ = attacks.pgd(epsilon, 5)
        for found in (attacked, attacks.fgsm(epsilon)[0]):
            assert found.dtype == np.float32
            assert np.abs(found - clean).max() < epsilon + 1e-6
            assert found.min() >= 0 and found.max() <= 1
        assert attacked.tobytes() == again.pgd(epsilon, 5)[0].tobytes()
    # The random start, to which five steps would add.
    start = attacks._directions()
    assert start.min() < -0.99 and start.max() > 0.99 and abs(start.mean()) < 0.01
    assert start.tobytes() != other._directions().tobytes()
    part = Attacks(loaded, images[20:30], labels[20:30], rows[20:30], 0)
    assert part._directions().tobytes() == start[20:30].tobytes()
    weaker = np.mean(loaded.predict(attacks.fgsm(0.1)[0])["predicted"] == labels)
    stronger = np.mean(loaded.predict(attacks.pgd(0.1, 20)[0])["predicted"] == labels)
    assert (
        stronger
        <= weaker + 0.02
        < np.mean(loaded.predict(images)["predicted"] == labels)
    )


def test_signs_of_weak_attacks_are_named():
    rows = {"fgsm": [0.5, 0.2], "pgd": [0.4, 0.3]}
    (told,) = robustness._masked((0.1, 0.2), rows, 1, 100)
    assert told.startswith("attack of 0.2: FGSM finds more mistakes than PGD")
    rows["pgd"] = [0.4, 0.1]
    (told,) = robustness._masked((0.1, 0.2), rows, 2, 100)
    assert "gradient of 2 of 100 images was zero" in told
    (told,) = robustness._rounded((8 / 255, 1 / 255), "mixed_bfloat16")
    assert "hides attacks of 0.0039; measure with precision float32" in told
    assert not robustness._rounded((8 / 255,), "mixed_bfloat16")
    assert not robustness._rounded((1 / 255,), "mixed_float16")
    assert not robustness._rounded((1e-5,), "float32")


def test_a_temperature_that_does_not_help_is_named(trained, monkeypatch):
    """The fit is steered to another temperature than the best."""
    monkeypatch.setattr(robustness, "_TEMPERATURES", (5.0, 6.0))
    notes = []
    found = gpuzoo.robustness(
        trained / "linear", only=["calibration"], note=notes.append
    )
    assert found["calibration"]["temperature"] > 4.9
    assert notes == found["calibration"]["findings"] and "worse" in notes[0]


def test_robust_training_withstands(trained):
    rows = {
        name: gpuzoo.robustness(
            trained / name, only=["attacks"], epsilons=[0.1, 0.2], pgd_steps=10
        )
        for name in ("plain", "robust")
    }
    plain, robust = (np.array(rows[name]["attacks"]["pgd"]) for name in rows)
    assert (robust > plain + 0.1).all()
    # So few steps learn little on attacked images; the recipe does more.
    assert rows["robust"]["clean"]["accuracy"] > 0.4


def test_a_report(trained, tmp_path):
    steps = []
    found = gpuzoo.robustness(
        trained / "linear", examples=40, epsilons=[0.2, 0.1], pgd_steps=3,
        out=tmp_path / "report", progress=lambda *row: steps.append(row),
    )  # fmt: skip
    again = gpuzoo.robustness(
        trained / "linear", examples=40, epsilons=[0.2, 0.1], pgd_steps=3
    )
    assert found == again and steps[-1] == ("drawing pictures", 0, 0)
    assert ("corruptions", 75, 75) in steps and ("attacks", 8, 8) in steps
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        "robustness.json", "robustness.html", "corruptions.png", "examples.png",
        "attacks.png", "reliability.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "report" / "robustness.json").read_text()) == found
    page = (tmp_path / "report" / "robustness.html").read_text()
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:)', page)
    inlined = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pictures = [base64.b64decode(text) for text in inlined]
    files = {path.read_bytes() for path in (tmp_path / "report").glob("*.png")}
    assert files == set(pictures)
    for kind in corruptions.KINDS:
        assert len(found["corruptions"]["accuracy"][kind]) == 5
    assert found["examples"] == 40 and found["test_examples"] > 300
    other = gpuzoo.robustness(
        trained / "linear", examples=40, only=["corruptions"], seed=1
    )
    assert other["corruptions"]["sha256"] != found["corruptions"]["sha256"]
    with pytest.raises(gpuzoo.GpuzooError, match="exists; name a new folder"):
        gpuzoo.robustness(trained / "linear", out=tmp_path / "report")


def test_clean_figures_are_those_of_the_run(trained):
    found = gpuzoo.robustness(trained / "plain", only=["calibration"])
    record = gpuzoo.load(trained / "plain").record
    assert found["examples"] == record["data"]["test_examples"]
    assert found["clean"]["accuracy"] == record["metrics"]["test_accuracy"]
    assert found["clean"]["log_loss"] == pytest.approx(record["metrics"]["test_loss"])
    part = found["calibration"]
    # The recipe smooths its labels, so that it is less sure than right.
    assert part["temperature"] < 0.9 and part["after"]["ece"] < part["before"]["ece"]
    assert "training examples" in part["fitted_on"]


def test_other_data(trained, tmp_path):
    """Photographs of another size and in colour, told from digits."""
    images, label = texture(40, 10, 12, 3), np.arange(40) % 2
    np.savez(tmp_path / "<b>&other.npz", x_train=images, y_train=label,
             x_test=images, y_test=label)  # fmt: skip
    notes = []
    found = gpuzoo.robustness(
        trained / "plain", only=["calibration"], ood=str(tmp_path / "<b>&other.npz"),
        note=notes.append, out=tmp_path / "out",
    )  # fmt: skip
    part = found["ood"]
    assert part["examples"] == 40 and 0 <= part["energy"]["auroc"] <= 1
    assert any("(10, 12, 3) are brought to (28, 28, 1)" in line for line in notes)
    page = (tmp_path / "out" / "robustness.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;&amp;other" in page
    loaded = gpuzoo.load(trained / "plain")
    ours = loaded.predict(gpuzoo.load_data("digits").test["image"])["confidence"]
    resized = [robustness._as_shape(image, (28, 28, 1)) for image in images]
    theirs = loaded.predict(np.stack(resized))["confidence"]
    pairs = ours[:, None] - theirs[None, :]
    wanted = np.mean(pairs > 0) + np.mean(pairs == 0) / 2
    assert part["confidence"]["auroc"] == pytest.approx(wanted, abs=1e-3)
    with pytest.raises(gpuzoo.GpuzooError, match="are the data of the run"):
        gpuzoo.robustness(trained / "plain", ood="digits")


@pytest.mark.parametrize("shape", [(20, 20, 3), (12, 18, 1)])
def test_other_images_of_several_sizes(shape, tmp_path):
    for number in range(20):
        image = texture(1, 9 + number, 15, 3)[0]
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    run = types.SimpleNamespace(
        input_shape=shape, record={"data": {"fingerprint": "another"}}
    )
    name = str(tmp_path / "photos")
    _, images = robustness._other(name, None, run, None, 0, lambda line: None)
    assert images.shape[1:] == shape and images.dtype == np.uint8
    assert images.std() > 10


def test_a_folder_named_like_a_dataset(tmp_path, monkeypatch):
    """It is not the dataset, which needs no size."""
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    run = types.SimpleNamespace(
        input_shape=(8, 8, 1), record={"data": {"fingerprint": "another"}}
    )
    _, images = robustness._other("digits", None, run, 9, 0, lambda line: None)
    assert images.shape == (9, 8, 8, 1)


def test_packages_under_other_names_have_no_version(monkeypatch):
    """As of keras-nightly, pillow-simd, and gpuzoo in a checkout."""
    version = importlib.metadata.version

    def missing(name):
        if name in ("gpuzoo", "keras", "pillow"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    found = robustness._versions()
    assert found["gpuzoo"] == gpuzoo.__version__ and found["numpy"] == np.__version__
    assert not {"keras", "pillow"} & set(found)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"only": ["attack"]}, "only must name some of corruptions, attacks"),
        ({"only": []}, "only must name some of"),
        ({"examples": 0}, "examples must be at least 1: 0"),
        ({"examples": 10**6}, "examples must be at most the"),
        ({"epsilons": [1.5]}, r"epsilons must be in \(0, 1\]"),
        ({"epsilons": [float("nan")]}, r"epsilons must be in \(0, 1\].*nan"),
        ({"pgd_steps": 0}, "pgd_steps must be in 1..10000: 0"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"ood_data_dir": "x"}, "ood_data_dir is for ood"),
        ({"precisoin": "float32"}, "load.. has no 'precisoin'; nearest: precision"),
    ],
)
def test_wrong_arguments(words, told, trained):
    with pytest.raises(gpuzoo.GpuzooError, match=told):
        gpuzoo.robustness(trained / "plain", **words)


@pytest.mark.parametrize("recipe", ["forecast", "mnist_gan"])
def test_other_tasks_are_refused_by_name(recipe, runtime, own_cache, tmp_path):
    data = {} if recipe == "forecast" else {"data": "digits"}
    gpuzoo.train(recipe, out=tmp_path / "run", fast_dev_run=True, quiet=True, **data)
    with pytest.raises(gpuzoo.GpuzooError, match="measured of classifiers of images"):
        gpuzoo.robustness(tmp_path / "run", out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


# --- the task -----------------------------------------------------------------------

ROBUST = RECIPE.override(
    task="classify_robust", model="mlp", model_options=("units=(8,)", "dropout=0.2")
)


def test_a_robust_run_repeats_and_resumes(dataset, runtime, tmp_path):
    one, _ = train(ROBUST, dataset, runtime)
    again, _ = train(ROBUST, dataset, runtime)
    assert same(one, again)
    asked = iter([False, True])
    train(ROBUST, dataset, runtime, folder=tmp_path / "c", stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path / "c")
    resumed, _ = train(ROBUST, dataset, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    plain, _ = train(ROBUST.override(task="classify"), dataset, runtime)
    assert not same(one, plain)


def test_trained_images_are_attacked_within_the_bound(dataset, runtime):
    import keras

    from gpuzoo.engine import backends
    from gpuzoo.tasks import classify_robust

    recipe = ROBUST.override(augment=())
    model = gpuzoo.build("mlp", input_shape=(14, 14, 1), num_classes=2, units=(8,))
    task = classify_robust.Task(
        model=model, recipe=recipe, dataset=dataset, runtime=runtime
    )
    assert task.count_draws(recipe, model) == 14 * 14
    images = keras.ops.convert_to_tensor(dataset.train["image"][:20])
    labels = keras.ops.convert_to_tensor(dataset.train["label"][:20])
    draws = randomness.uniform((20, 196), 0, "test").astype(np.float32)
    found = task.disturbed(
        images, labels, keras.ops.convert_to_tensor(draws), backends.get(runtime)
    )
    found, clean = found.numpy(), images.numpy() / np.float32(255)
    assert 0.29 < np.abs(found - clean).max() < 0.3 + 1e-6
    assert found.min() >= 0 and found.max() <= 1
    loss = lambda x: float(task.attacked_loss(x, labels))  # noqa: E731
    start = np.clip(clean + 0.3 * (2 * draws.reshape(clean.shape) - 1), 0, 1)
    assert loss(found) > loss(start)
    assert "mixup" not in " ".join(task.uses)


def test_mixed_labels_are_refused(runtime, own_cache, tmp_path):
    with pytest.raises(gpuzoo.GpuzooError, match="mixup and cutmix are for labels"):
        gpuzoo.train(
            "mnist_robust", data="digits", augment=("mixup",), out=tmp_path / "r"
        )


# --- the command line ---------------------------------------------------------------


@needs_jax
def test_the_commands_of_the_page_on_jax(cli_on, tmp_path):
    cli = cli_on("jax")
    page = (ROOT / "docs/howto/robustness.md").read_text()
    (block,) = re.findall(r"```\n(gpuzoo.*?)```", page, re.S)
    train, test = (line.split()[1:] for line in block.splitlines())
    done = cli(*train, "--epochs", 1, "--model", "mlp", "--backend", "jax")
    assert done.returncode == 0, done.stderr
    assert cli("verify", "run", "--quick").returncode == 0
    words = ["--examples", 60, "--epsilons", 0.1, "--pgd-steps", 3]
    first, second = cli(*test, *words), cli(*test[:2], *words)
    assert first.returncode == 0, first.stderr
    assert first.json == second.json and first.json["backend"] == "jax"
    for text in ("mean corruption accuracy", "PGD-3", "elastic_transform"):
        assert text in first.stdout
    assert first.json["attacks"]["pgd"][0] <= first.json["clean"]["accuracy"]
    assert (tmp_path / "report" / "robustness.html").exists()
    wrong = cli("robustness", "run", "--only", "attack")
    assert wrong.returncode == 2 and "attack" in wrong.stderr
    wrong = cli("robustness", "nowhere")
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr


def test_the_page_has_the_recorded_figures():
    record = json.loads((ROOT / "benchmarks/records/robustness.json").read_text())
    page = (ROOT / "docs/howto/robustness.md").read_text()
    for run in record["runs"].values():
        for value in (
            run["clean"]["accuracy"], *run["attacks"]["pgd"],
            run["corruptions"]["mean_accuracy"],
        ):  # fmt: skip
            assert f"{100 * value:.1f}" in page
