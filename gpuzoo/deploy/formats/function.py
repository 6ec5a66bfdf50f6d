"""The function that is exported: examples as the data hold them -> finished outputs."""

import contextlib
import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.deploy.formats import rows
from gpuzoo.deploy.trained import Trained
from gpuzoo.keras_layers import layers_of
from gpuzoo.runtime.keras_state import replaced

_OUTPUTS = {
    "probabilities": "probability of each class, in the order of `classes`",
    "label_probabilities": "probability of each label, in the order of `classes`",
    "boxes": "top, left, bottom and right in pixels, of the best `score` first",
    "label": "index into `classes` of each box",
    "score": "confidence of each box, 0 to 1",
    "reconstruction": "the image again, pixels 0 to 255",
    "samples": "generated images, pixels 0 to 255",
    "embedding": "vector of length 1; of two the scalar product is the similarity",
    "mask": "index into `classes` of each pixel",
    "confidence": "probability of that class, of each pixel",
}
_GENERATED = 100  # images that a generator is checked by
_DETECTIONS = {"found_boxes": "boxes", "found_label": "label", "score": "score"}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What is exported of a trained model.

    Attributes:
        call: name -> tensor (batch, ...), to name -> tensor (batch, ...).
        inputs, outputs: what export.json says of each: name, dtype, shape, meaning.
        prepared: of a table, what `call` does from rows that gpuzoo has prepared.
    """

    call: Callable[[dict], dict]
    inputs: list[dict]
    outputs: list[dict]
    prepared: Callable[[dict], dict] | None = None


def describe(trained: Trained, arrays: Arrays, generate: bool) -> Exported:
    """Return the function that is exported of a trained model.

    Args:
        arrays: examples of its inputs.
        generate: the images from codes, of a model that also takes images.
    """
    infer = trained.task.generate if generate else trained.task.infer

    def prepared(batch: dict) -> dict:
        outputs = infer(batch)
        if trained.task.target == "labels":
            return {"label_probabilities": keras.ops.sigmoid(outputs["logits"])}
        if trained.recipe.task == "segment":
            return {"mask": outputs["predicted"], "confidence": outputs["confidence"]}
        if "logits" in outputs:
            return {"probabilities": keras.ops.softmax(outputs["logits"])}
        if trained.takes == "table":
            mean, deviation = trained.scale
            return {"value": outputs["scaled"] * deviation + mean}
        return {_DETECTIONS.get(name, name): one for name, one in outputs.items()}

    finished = prepared
    if trained.takes == "table":
        prepare = rows.preparing(trained.dataset.table)

        def finished(batch: dict) -> dict:
            return prepared({"table": prepare(batch)})

    inputs = [
        _described(name, array, _of_input(trained, name, array))
        for name, array in arrays.items()
    ]
    one = trained._in_batches(finished, {k: a[:1] for k, a in arrays.items()}, None)
    outputs = [
        _described(name, array, _OUTPUTS.get(name) or _of_forecast(trained))
        for name, array in one.items()
    ]
    return Exported(
        finished, inputs, outputs, prepared if trained.takes == "table" else None
    )


def _described(name: str, array: np.ndarray, meaning: str) -> dict:
    shape = [None, *array.shape[1:]]
    return {"name": name, "dtype": str(array.dtype), "shape": shape, "meaning": meaning}


def _of_input(trained: Trained, name: str, array: np.ndarray) -> str:
    if name in rows.MEANINGS:
        return rows.MEANINGS[name]
    if name == "label":
        return "index into `classes` of the image to generate"
    if name == "start":
        return "standard normal noise"
    if name == "code":
        normal = trained.takes == "image"
        return "standard normal numbers" if normal else "uniform numbers in [-1, 1)"
    if name == "audio":
        return "samples at 16 kHz, -32768 to 32767"
    if name == "series" and trained.dataset.series is not None:
        return (
            "rows of the past: (value - mean) / deviation of each of `series`.channels,"
            " then sine and cosine of each cycle of `series`.calendar"
        )
    if name == "series":
        return "(value - mean) / deviation, with `scale` = [mean, deviation]"
    if name == "text":
        return (
            "for each word its place in `text`.words plus 2, 1 if it is not there; "
            "0 after the last one"
        )
    what = "pixels 0 to 255" if array.dtype == np.uint8 else "pixels 0 to 1"
    return what + (", one frame after the other" if array.ndim == 5 else "")


def _of_forecast(trained: Trained) -> str:
    if trained.takes == "table":
        return f"{trained.dataset.table.target.name}, in its own unit"
    if trained.dataset.series is not None:
        return "next values of the first channels, (value - mean) / deviation"
    if trained.takes == "series":
        return "next values, (value - mean) / deviation"
    return "next frame, pixels 0 to 255"


def test_arrays(trained: Trained, dataset: Dataset, generate: bool) -> tuple:
    """Return name -> inputs of the whole test set of a run, and name -> targets; of a
    generator the codes of its first images."""
    task, test = trained.task, dataset.test
    if generate:
        count = min(_GENERATED, dataset.count("test"))
        return task.codes(count, trained.recipe.seed), {}
    if trained.takes == "table":
        if "label" in test:
            return dataset.unprepared, {"label": test["label"]}
        return dataset.unprepared, {"target": trained.unscale(test["target"])}
    task.begin([], dataset)
    inputs = examples(trained, test)
    targets = {k: test[k] for k in ("label", "labels", "target", "mask") if k in test}
    if "target" in inputs:
        targets["target"] = inputs.pop("target")
    if trained.recipe.task == "autoencode":
        targets["target"] = inputs["image"]
    return inputs, targets


def examples(trained: Trained, arrays: Arrays) -> Arrays:
    """Return what `infer` takes for examples of a dataset, and `target` if they lack
    it; `begin` of the task must have been called with as many test examples."""
    from gpuzoo.engine import backends
    from gpuzoo.engine.evaluation import Evaluation

    # Not in parts: scenes and films depend on the places in the test set.
    backend, variables = backends.get(trained.runtime), trained.model.variables
    count = len(next(iter(arrays.values())))
    return Evaluation(
        trained.task.inputs, arrays, min(count, trained.batch), backend,
        trained.runtime, variables, streamed=True,
    )(count)  # fmt: skip


def has_loops(trained: Trained) -> bool:
    """Return whether the model repeats a part of itself, see `unrolled`."""
    recurrent = any(hasattr(one, "unroll") for one in layers_of(trained.model))
    return recurrent or trained.recipe.task == "diffusion"


@contextlib.contextmanager
def unrolled(model: keras.Model):
    """Trace loops inside as copies of their body: some formats have no such loops."""

    def copies(first, last, body, value):
        for index in range(first, last):
            value = body(index, value)
        return value

    recurrent = [one for one in layers_of(model) if hasattr(one, "unroll")]
    before = [one.unroll for one in recurrent]
    for one in recurrent:
        one.unroll = True
    try:
        with replaced(keras.ops, fori_loop=copies):
            yield
    finally:
        for one, value in zip(recurrent, before, strict=True):
            one.unroll = value
