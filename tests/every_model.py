"""Trains small forms of the models in a process of its own, since Keras has one backend
in each: with Keras's `fit`, and with gpuzoo's loop.

    python tests/every_model.py jax mixed_bfloat16 [MODEL ...]

Prints a line of JSON for each model (all by default): what is wrong after either, by
name; nothing, if every trainable weight has moved, and they and the loss are finite.
"""

import json
import sys

import numpy as np

import gpuzoo

STEPS, CLASSES = 8, 3


def work(backend: str, precision: str, *names: str) -> None:
    runtime = gpuzoo.configure(
        backend=backend, precision=precision, device="cpu", threads=2, quiet=True
    )
    for name in names or gpuzoo.list_models():
        wrong = {}
        for way, train in (("fit", with_fit), ("loop", with_the_loop)):
            try:
                before, after, loss = train(name, runtime)
            except Exception as error:
                wrong[way] = f"{type(error).__name__}: {error}"
                continue
            still = [
                path for path, w in before.items() if np.array_equal(w, after[path])
            ]
            wild = [path for path, w in after.items() if not np.isfinite(w).all()]
            if still or wild or not np.isfinite(loss):
                wrong[way] = {"still": still, "not finite": wild, "loss": str(loss)}
        print(json.dumps({"model": name, "wrong": wrong}), flush=True)


def weights(model) -> dict[str, np.ndarray]:
    import keras

    read = keras.ops.convert_to_numpy
    return {w.path: np.copy(read(w)) for w in model.trainable_weights}


# --- plain Keras ----------------------------------------------------------------------


def with_fit(name: str, runtime) -> tuple[dict, dict, float]:
    """Trainable weights before and after, and the last loss."""
    import keras
    from test_models import small

    model = small(name)
    loss, data = goal(gpuzoo.model_info(name).task, model)
    optimizer = keras.optimizers.Adam(1e-3)
    if runtime.precision == "mixed_float16":
        # Left to itself Keras begins with a scale at which it skips the first steps.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=16.0)
    model.compile(optimizer, loss)
    before = weights(model)
    told = model.fit(*data, batch_size=4, verbose=0)
    return before, weights(model), told.history["loss"][-1]


def goal(task: str, model) -> tuple:
    """A loss, and what `fit` is given."""
    import keras
    from test_models import random_batch

    from gpuzoo.tasks import autoencode, detect

    count, rng = 4 * STEPS, np.random.default_rng(1)
    given = random_batch(model, count)
    if task in ("adversarial", "diffusion"):  # they have a loss of their own
        return None, (given,)
    if task in ("classify", "classify_audio", "classify_text", "classify_film"):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss, (given, np.arange(count) % CLASSES)
    if task == "detect":
        return detect.loss, (given, boxes(count, *given.shape[1:3]))
    if task == "segment":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss, (given, rng.integers(0, CLASSES, (count, *given.shape[1:3])))
    if task in ("forecast", "table", "embed"):
        return "mse", (given, rng.random((count, *model.output_shape[1:]), "f4"))
    loss = autoencode.cross_entropy
    if task == "video_prediction":
        return loss, (given, rng.random((count, *model.output_shape[1:]), "f4"))
    if isinstance(model.output, dict):
        return {"reconstruction": loss}, (given, {"reconstruction": given})
    return loss, (given, given)


def boxes(count: int, height: int, width: int) -> np.ndarray:
    """Two objects in each image, as the loss of detection takes them."""
    rng = np.random.default_rng(2)
    middles = rng.uniform(0.3, 0.7, (count, 2, 2)) * [height, width]
    classes, present = rng.integers(0, CLASSES, (count, 2, 1)), np.ones((count, 2, 1))
    parts = [middles - 3, middles + 3, classes, present]
    return np.concatenate(parts, axis=-1).astype("f4")


# --- gpuzoo ---------------------------------------------------------------------------


def with_the_loop(name: str, runtime) -> tuple[dict, dict, float]:
    """Trainable weights before and after, and the loss of the test examples."""
    from small import run
    from test_models import SMALL

    from gpuzoo.catalogue.recipe import Recipe
    from gpuzoo.training.build import build_model

    task = gpuzoo.model_info(name).task
    task = "regress_table" if task == "table" else task
    options = {k: v for k, v in SMALL.get(name, {}).items()}
    batch = 32 if task == "forecast" else 5 if name == "wgan_gp" else 4
    recipe = Recipe(
        name="tiny", task=task, model=name, data="tiny", batch_size=batch, epochs=1,
        model_options=tuple(f"{k}={v}" for k, v in options.items()),
        learning_rate=1e-3,
    )  # fmt: skip
    dataset = examples(name, task, batch)
    model, before = build_model(recipe, dataset), {}

    def watch(event: str, row: dict) -> None:
        if event == "start":
            before.update(weights(model))

    result = run(recipe, dataset, runtime, watch=watch, model=model)
    after = {path: result.weights[path] for path in before}
    of = "eer" if task == "embed" else "loss"
    return before, after, result.metrics[f"test_{of}"]


def examples(name: str, task: str, batch: int):
    """Random ones, for so many steps and one batch for testing."""
    from test_models import SIZES

    from gpuzoo.data import masks
    from gpuzoo.data.series import make_series
    from gpuzoo.data.validate import label_examples, make_dataset

    rng = np.random.default_rng(3)
    if task == "forecast":
        return make_series("tiny", "made up", rng.random(420))
    if task == "regress_table":
        return rows(batch)
    if task == "classify_text":
        return sentences(batch)
    if task == "embed":
        return pictures(batch, SIZES[name][0])
    # Scenes and films are made of images, and larger.
    made = task in ("detect", "video_prediction")
    size = (8, 8, 1) if made else SIZES.get(name, [(28, 28, 1)])[0]
    counts = {"train": STEPS * batch, "test": batch}
    labels = {split: np.arange(count) % CLASSES for split, count in counts.items()}
    if task == "classify_film":
        films = {
            split: rng.integers(0, 256, (count, *size)).astype(np.uint8)
            for split, count in counts.items()
        }
        splits = {s: {"film": films[s], "label": labels[s]} for s in counts}
        return label_examples("tiny", "made up", splits)
    if task == "classify_audio":
        splits = {
            split: {
                "audio": rng.integers(-9999, 9999, (count, *size)).astype(np.int16),
                "label": labels[split],
            }
            for split, count in counts.items()
        }
        return label_examples("tiny", "made up", splits)
    splits = {
        split: {
            "image": rng.integers(0, 256, (count, *size)).astype(np.uint8),
            "label": labels[split],
        }
        for split, count in counts.items()
    }
    if task == "segment":
        for part in splits.values():
            part["label"] = rng.integers(0, CLASSES, part["image"].shape[:3])
        return masks.make_dataset("tiny", "made up", splits)
    return make_dataset("tiny", "made up", splits)


def rows(batch: int):
    """A table with a number, a category and a number to predict."""
    from gpuzoo.data.columns import from_memory
    from gpuzoo.data.tabular import make

    rng, count = np.random.default_rng(3), (STEPS + STEPS // 4) * batch
    columns = {"x": rng.random(count), "c": rng.choice(["a", "b", "c"], count)}
    columns["y"] = columns["x"] + (columns["c"] == "a")
    return make("tiny", "made up", from_memory("tiny", columns), target="y")


def sentences(batch: int):
    """Texts of nine words at most."""
    from gpuzoo.data.columns import from_memory
    from gpuzoo.data.texts import make

    rng, count = np.random.default_rng(3), (STEPS + STEPS // 4) * batch
    words = rng.choice([f"w{n}" for n in range(20)], (count, 9))
    columns = {"x": list(map(" ".join, words)), "y": np.arange(count) % CLASSES}
    return make("tiny", "made up", from_memory("tiny", columns), target="y")


def pictures(batch: int, size: tuple[int, ...]):
    """Images of two identities for training, and of two others for testing."""
    from gpuzoo.data.identities import make_dataset

    rng, splits = np.random.default_rng(3), {}
    for split, count in (("train", STEPS * batch), ("test", batch)):
        label = np.char.add(split, (np.arange(count) % 2).astype(str))
        image = rng.integers(0, 255, (count, *size), "u1")
        splits[split] = {"image": image, "label": label}
    return make_dataset("tiny", "made up", splits)


if __name__ == "__main__":
    work(*sys.argv[1:])
