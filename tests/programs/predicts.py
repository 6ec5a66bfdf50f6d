"""Trains a run of every task, or loads those runs and predicts, in its own process.

python tests/programs/predicts.py train jax FOLDER     # keeps what it evaluated
python tests/programs/predicts.py load jax FOLDER      # prints what differs
"""

import json
import pathlib
import sys

import numpy as np

import gpuzoo
from gpuzoo.training import finish

RUNS: dict[str, dict] = {
    "mnist": {"model": "mlp", "model_options": ("units=16,16",)},
    "mnist_fast": {"tta": "flip_translate", "ema_decay": 0.5},
    "mnist_lstm": {"model_options": ("units=8",)},
    "tones": {"model_options": ("filters=4,4",)},
    "forecast": {"data": "mackey_glass", "model_options": ("units=4", "layers=1")},
    "mnist_autoencoder": {},
    "mnist_vae": {},
    "mnist_conditional_gan": {"model_options": ("filters=8,16",)},
    "mnist_diffusion": {"model_options": ("filters=8,16", "blocks=1")},
    "digit_detection": {},
    "moving_mnist": {"model_options": ("filters=4,4",)},
    "distill_mnist": {},
}


def train(top: pathlib.Path, options: dict) -> None:
    real = finish.finish

    def keep(job, result):
        np.savez(job.folder.path.with_suffix(".npz"), **result.outputs)
        real(job, result)

    finish.finish = keep
    for name, changes in RUNS.items():
        own = {"tones", "forecast"}
        changes = {**({} if name in own else {"data": "digits"}), **changes}
        gpuzoo.train(
            name,
            out=str(top / name),
            fast_dev_run=True,
            quiet=True,
            **options,
            **changes,
        )


def differing(top: pathlib.Path, name: str) -> list[str]:
    """What a loaded run gives for the test examples is compared with what it gave."""
    with np.load(top / f"{name}.npz") as file:
        before = dict(file)
    run = gpuzoo.load(top / name)
    count = len(next(iter(before.values())))
    after = {}
    if run.takes:
        after = run.predict(examples(run, count))
    if run.task.generates and "samples" in before:
        test = run.record["data"]["test_examples"]
        after["samples"] = run.sample(test)[:count]
    if name == "mnist_conditional_gan":  # the classes of an evaluation are the data's
        del after["samples"]
        after["samples"] = labelled(run, count)
    assert set(after) & set(before), f"nothing to compare: {set(after)}, {set(before)}"
    return [k for k in after if after[k].tobytes() != before[k].tobytes()]


def examples(run, count: int) -> np.ndarray:
    """The first test examples, as the task gives them to its model."""
    import keras

    from gpuzoo.tasks import augment, scenes, video_prediction

    test = gpuzoo.load_data(run.recipe.data).test
    kind = run.recipe.task
    if kind == "forecast":
        return run.unscale(test["series"][:count])
    if kind not in ("detect", "video_prediction"):
        return test[run.takes][:count]
    # Scenes and films are made of the images in the step of the evaluation.
    run.task.begin([None], gpuzoo.load_data(run.recipe.data))
    arrays = {name: test[name][:count] for name in run.task.fields}
    arrays["way"] = keras.ops.convert_to_numpy(run.task.ways[:count])

    def made(batch):
        pixels, size = augment.pixels(batch["image"]), run.task.size
        if kind == "detect":
            return {
                "x": scenes.make(pixels, batch["label"], batch["way"], size)["image"]
            }
        return {"x": video_prediction.moving(pixels, batch["way"], size)[:, :-1]}

    return run._in_batches(made, arrays, None)["x"]


def labelled(run, count: int) -> np.ndarray:
    data = gpuzoo.load_data(run.recipe.data).test
    codes = run.task.codes(len(data["label"]), run.recipe.seed)
    codes["label"] = data["label"]
    return run._in_batches(run.task.generate, codes, None)["samples"][:count]


if __name__ == "__main__":
    what, backend, top = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    options = {"backend": backend, "device": "cpu", "precision": sys.argv[4]}
    if what == "train":
        train(top, options)
    else:
        print(json.dumps({name: differing(top, name) for name in sys.argv[5:] or RUNS}))
