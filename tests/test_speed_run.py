"""What the CIFAR-10 speed runs do: alternating flip, Muon, several views of an image."""

import keras
import numpy as np
import pytest
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.engine import checkpoint
from gpuzoo.engine.backends.optimizers import Muon
from gpuzoo.engine.plan import make_plan
from gpuzoo.errors import GpuzooError
from gpuzoo.tasks import augment
from gpuzoo.tasks.classify import Task

pytestmark = pytest.mark.usefixtures("runtime")
FAST = RECIPE.override(
    optimizer="muon", augment=("translate:1", "alternating_flip"), tta="flip_translate"
)


def test_each_image_is_mirrored_in_every_other_epoch():
    texts = ("alternating_flip", "translate:1")
    assert augment.alternating(texts) == [-3]
    plan = make_plan(RECIPE.override(augment=texts, epochs=4), 80, 3)
    images = np.arange(80, dtype=np.float32).reshape(80, 1, 1, 1) / 100
    images = np.concatenate([images, 0 * images], axis=2)  # told apart by their side
    mirrored = []
    for epoch in range(4):
        feed = plan.feed(epoch * plan.steps_per_epoch, (epoch + 1) * 5)
        indices, draws = feed["indices"].ravel(), feed["draws"].reshape(80, 3)
        (flip,) = augment.parse(("alternating_flip",))
        seen, _ = augment.apply([flip], images[indices], draws[:, :1])
        turned = np.empty(80, bool)
        turned[indices] = keras.ops.convert_to_numpy(seen)[:, 0, 1, 0] > 0
        mirrored.append(turned[1:])  # the first one is black on both sides
    assert (mirrored[0] != mirrored[1]).all()
    assert (mirrored[0] == mirrored[2]).all() and (mirrored[1] == mirrored[3]).all()
    assert 20 < mirrored[0].sum() < 60
    others = [plan.feed(5 * epoch, 5 * epoch + 5)["draws"][..., 1:] for epoch in (0, 2)]
    assert not np.array_equal(*others)


def test_muon_turns_kernels_and_leaves_the_rest_to_adam(runtime):
    kernel, bias, last = (  # named alike, as in nested models
        keras.Variable(np.full(shape, 0.5, np.float32), name="kernel")
        for shape in ((3, 3, 4, 8), (8,), (8, 10))
    )
    muon, adam = (
        kind(0.01, **named)
        for kind, named in (
            (Muon, {"weight_decay": None, "adam_weight_decay": None, "epsilon": 1e-8}),
            (keras.optimizers.Adam, {"epsilon": 1e-8}),
        )
    )
    gradients = [
        np.random.default_rng(n).normal(size=v.shape).astype(np.float32)
        for n, v in enumerate((kernel, bias, last))
    ]
    before = [keras.ops.convert_to_numpy(v) for v in (kernel, bias, last)]
    muon.build([kernel, bias, last])
    muon.apply(gradients)
    after = [keras.ops.convert_to_numpy(v) for v in (kernel, bias, last)]
    moved = (after[0] - before[0]).reshape(36, 8)
    stretched = np.linalg.svd(moved, compute_uv=False) / (0.01 * 0.2 * np.sqrt(36))
    assert stretched.min() > 0.6 and stretched.max() < 1.3, stretched
    for variable, value in zip((bias, last), before[1:], strict=True):
        variable.assign(value)
    adam.build([bias, last])
    adam.apply(gradients[1:])
    for variable, value in zip((bias, last), after[1:], strict=True):
        assert np.allclose(keras.ops.convert_to_numpy(variable), value, atol=1e-7)


@pytest.mark.parametrize(("views", "count"), [("flip", 2), ("flip_translate", 6)])
def test_tta_averages_the_logits(views, count, dataset, runtime):
    model = gpuzoo.build("mlp", input_shape=(14, 14, 1), num_classes=2, units=(8,))
    found = {}
    for kind in ("none", views):
        task = Task(
            model=model, dataset=dataset, runtime=runtime,
            recipe=RECIPE.override(tta=kind),
        )  # fmt: skip
        found[kind] = task
    images = dataset.test["image"][:5].astype("f4") / 255
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    both = [images, images[:, :, ::-1]]
    moved = [padded[:, :-2, :-2], padded[:, 2:, 2:]]
    seen, weights = list(both), [0.5, 0.5]
    if count == 6:
        weights = [0.25] * 2 + [0.125] * 4
        turned = np.pad(both[1], ((0, 0), (1, 1), (1, 1), (0, 0)))
        seen += [*moved, turned[:, :-2, :-2], turned[:, 2:, 2:]]
    logits = sum(w * model(v).numpy() for w, v in zip(weights, seen, strict=True))
    told = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    batch = {"image": dataset.test["image"][:5], "label": dataset.test["label"][:5]}
    outputs = found[views].evaluate(batch)
    assert np.allclose(outputs["confidence"], told.max(axis=1), atol=1e-5)
    assert np.array_equal(outputs["predicted"], logits.argmax(axis=1))
    one = found["none"].evaluate(batch)["confidence"]
    assert not np.allclose(one, outputs["confidence"], atol=1e-6)


def test_a_run_repeats_and_resumes(dataset, runtime, tmp_path):
    one, _ = train(FAST, dataset, runtime)
    asked = iter([False, False, True])
    train(FAST, dataset, runtime, folder=tmp_path / "c", stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path / "c")
    assert 0 < start.step < one.steps
    resumed, _ = train(FAST, dataset, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    other, _ = train(FAST.override(augment=("translate:1", "flip")), dataset, runtime)
    assert not same(one, other)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_on_jax(precision, cli):
    words = ["train", "mnist", "--data", "digits", "--epochs", "2", "--backend", "jax",
             "--optimizer", "muon", "--learning-rate", "0.01", "--tta", "flip",
             "--augment", "alternating_flip", "--model", "mlp", "--quiet",
             "--precision", precision]  # fmt: skip
    first, second = cli(*words), cli(*words, "--log-every", "3")
    assert first.returncode == 0, first.stderr
    assert first.json["weights_sha256"] == second.json["weights_sha256"]
    assert first.json["test_accuracy"] > 0.8


def test_tta_is_for_images_with_classes(cli_here):
    done = cli_here("train", "tones", "--tta", "flip")
    assert done.returncode == 2 and "tta is for classifying images" in done.stderr
    with pytest.raises(GpuzooError, match=r"alternating_flip needs 0\.5"):
        augment.parse(("alternating_flip:0.3",))
