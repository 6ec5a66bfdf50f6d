"""A student and its teacher."""

import pathlib
import shutil

import keras
import numpy as np
import pytest
from small import RECIPE, same, train, two_classes, unreadable
from test_resume import start

import gpuzoo
from gpuzoo.engine import checkpoint
from gpuzoo.runs.record import read_run
from gpuzoo.tasks import distill

DISTILL = RECIPE.override(
    name="learn", task="distill", model="mlp", augment=(), model_options=("units=(8,)",),
)  # fmt: skip


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> pathlib.Path:
    """A run that knows the two classes of the tests."""
    folder = tmp_path_factory.mktemp("taught")
    np.savez(folder / "tiny.npz", **two_classes())
    process = start(
        ["train", "mnist", "--data", "tiny.npz", "--epochs", 8, "--batch-size", 16,
         "--out", "teacher", "--model-options", "dense=16"], folder,
    )  # fmt: skip
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder / "teacher"


@pytest.fixture
def teacher(taught, tmp_path) -> str:
    """A copy of its folder."""
    return str(shutil.copytree(taught, tmp_path / "teacher"))


def probabilities(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_the_loss_is_that_of_the_paper(dataset, runtime, teacher):
    recipe = DISTILL.override(teacher=teacher, distill_alpha=0.7, temperature=2.0)
    model = gpuzoo.build("mlp", input_shape=(14, 14, 1), num_classes=2, units=(8,))
    task = distill.Task(model=model, recipe=recipe, dataset=dataset, runtime=runtime)
    task.begin([None], dataset)
    images = (dataset.train["image"][:6] / 255).astype("f4")
    labels, logits = dataset.train["label"][:6], model(images).numpy()
    told = task.teacher(images).numpy()
    assert (told.argmax(axis=1) == labels).all()
    hard = -np.log(probabilities(logits)[np.arange(6), labels]).mean()
    ours, its = probabilities(logits / 2), probabilities(told / 2)
    soft = (its * np.log(its / ours)).sum(axis=1).mean() * 4
    found = task.loss(images, labels, None, keras.ops.convert_to_tensor(logits))
    assert float(found) == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-4)


def test_a_run_learns_repeats_and_resumes(dataset, runtime, tmp_path, teacher):
    recipe = distill.settle(DISTILL.override(teacher=teacher, distill_alpha=1.0))
    one, rows = train(recipe, dataset, runtime)
    asked = iter([False, True])
    train(recipe, dataset, runtime, folder=tmp_path / "c", stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path / "c")
    resumed, _ = train(recipe, dataset, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    assert set(one.weights) == {
        f"{n}/{w}" for n in ("dense_1", "logits") for w in ("kernel", "bias")
    }
    # Of the labels it has learned nothing directly.
    assert (
        train(recipe.override(epochs=20), dataset, runtime)[0].metrics["test_accuracy"]
        == 1
    )


def test_without_imitation_no_teacher_is_needed(dataset, runtime):
    alone = distill.settle(DISTILL.override(distill_alpha=0.0))
    plain = DISTILL.override(task="classify", distill_alpha=0.9)
    one, other = (train(recipe, dataset, runtime)[0] for recipe in (alone, plain))
    assert same(one, other) and one.metrics == other.metrics


def test_teachers_that_do_not_fit(dataset, runtime, tmp_path, teacher):
    weights = pathlib.Path(teacher) / "weights.safetensors"
    for name, words in (
        ("", "teacher must be named"),
        (str(tmp_path), r"is not a run folder: it has no run.json; .*name the folder"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=words):
            distill.settle(DISTILL.override(teacher=name))
    for changes, words in (
        ({"teacher": str(tmp_path)}, "is not a run folder"),
        (
            {"teacher": "lenet5"},
            r"has 10 classes of examples \(28, 28, 1\); tiny has 2",
        ),
        ({"teacher": teacher, "teacher_sha256": "0" * 64}, "sha256 is .*, not 0000"),
        ({"teacher": teacher, "task": "classify"}, "teacher is for the task distill"),
    ):
        with pytest.raises(gpuzoo.GpuzooError, match=words):
            train(DISTILL.override(**changes), dataset, runtime)
    shipped = gpuzoo.load_recipe("distill_mnist").override(min_steps=1, epochs=1)
    words = "lenet5: reads handwritten digits, and fewer .* of snow; name the folder"
    with pytest.raises(gpuzoo.GpuzooError, match=words):
        train(shipped.override(batch_size=50), unreadable(), runtime)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(gpuzoo.GpuzooError, match="weights.safetensors: sha256 is"):
        train(DISTILL.override(teacher=teacher), dataset, runtime)


def test_a_teacher_of_other_classes_is_refused(cli_here, npz, arrays, teacher):
    """Names in another order than the numbers would swap the labels."""
    for split in ("train", "test"):
        arrays[f"y_{split}"] = np.array(["light", "dark"])[arrays[f"y_{split}"]]
    np.savez(npz, **arrays)
    done = cli_here("train", "distill_mnist", "--data", npz, "--teacher", "teacher",
               "--batch-size", 16)  # fmt: skip
    assert done.returncode == 2
    assert "has class '0' where tiny has 'dark'; name a teacher" in done.stderr


def test_the_teacher_is_recorded_and_must_be_the_same(cli_here, npz, tmp_path, teacher):
    words = ["--data", npz, "--teacher", "teacher", "--batch-size", 16, "--epochs", 2]
    done = cli_here("train", "distill_mnist", *words, "--augment", "--out", "run")
    assert done.returncode == 0, done.stderr
    recipe = read_run(tmp_path / "run")["recipe"]
    recorded = read_run(teacher)["weights_sha256"]
    assert (recipe["teacher"], recipe["teacher_sha256"]) == (teacher, recorded)
    assert cli_here("verify", "run").json["verdict"] == "identical"
    weights = tmp_path / "teacher" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = cli_here("verify", "run")
    assert done.returncode == 2 and recorded in done.stderr
