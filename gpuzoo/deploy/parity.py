"""Worker process: compare an exported model with the run's predictions.

It imports NumPy and the runtime of the format, neither Keras nor, unless the format
needs it, TensorFlow: what it computes, the file alone contains.
"""

import pathlib
import statistics
import sys
import time

import numpy as np

from gpuzoo import workers
from gpuzoo.data import masks
from gpuzoo.deploy import runtimes
from gpuzoo.tasks import pairs

Arrays = dict[str, np.ndarray]
_SURE = 0.3  # the score from which a detection counts
_PIXELS = 0.01  # fraction of pixels with another class from which a mask is another
_WARM, _CALLS, _SECONDS = 5, 100, 3.0


def check(request: dict):
    """Yield what an exported model gives for the whole test set.

    Args:
        request: `path` and `format` of the model; `arrays`, the folder with inputs.npz,
            targets.npz, float32.npz and run.npz; `tolerance`, the largest difference of
            an example that counts as unchanged; `run_tolerance`, of the run, which may
            have computed in 16 bits; `unit`, if numbers of a table are compared: the
            standard deviation of their training values; `batch`, `threads`.
    """
    folder = pathlib.Path(request["arrays"])
    inputs, targets, plain, run = (
        _load(folder / f"{name}.npz")
        for name in ("inputs", "targets", "float32", "run")
    )
    path, kind = request["path"], request["format"]
    model = runtimes.open_model(path, kind, request["threads"])
    found = _predict(model, inputs, request["batch"])
    for name in plain:
        if found[name].shape != plain[name].shape:
            raise ValueError(f"{name} has shape {found[name].shape}")
    tolerance = request["tolerance"]
    for arrays in (found, plain, run, targets):
        for name in {"value", "target"} & set(arrays) if request.get("unit") else ():
            arrays[name] = arrays[name] / request["unit"]
    differences = _differences(found, plain)
    name, metric = _metric(run, targets)
    both = {"run": run, "artefact": found}
    answer = {
        "examples": len(differences),
        "largest_difference": _finite(differences.max()),
        "changed_predictions": int(
            _changed(found, run, request["run_tolerance"]).sum()
        ),
        "changed_from_float32": int(_changed(found, plain, tolerance).sum()),
        "metric": name and {
            "name": name, **{side: _finite(metric(one)) for side, one in both.items()},
        },
        "latency_us": {"batch_1": _latency(path, kind, inputs)},
    }  # fmt: skip
    foreign = {"keras", *({"tensorflow"} if kind != "saved_model" else ())}
    if foreign := foreign & set(sys.modules):
        raise RuntimeError(f"the check of {kind} imported {', '.join(foreign)}")
    yield answer


def _finite(value) -> float | None:
    """Return a value as JSON has it: null for a difference or an error without end."""
    return float(value) if np.isfinite(value) else None


def _load(path: pathlib.Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _predict(model, inputs: Arrays, batch: int) -> Arrays:
    count = len(next(iter(inputs.values())))
    parts = [
        model({name: array[at : at + batch] for name, array in inputs.items()})
        for at in range(0, count, batch)
    ]
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


def _differences(found: Arrays, wanted: Arrays) -> np.ndarray:
    """Return the largest difference of each example; of masks, of the confidence; of
    detections, of the scores from 0.1 up: boxes of equal scores may come in another
    order, and which of two equal neighbours is a weak detection is chance."""
    names = ["score"] if "score" in wanted else list(wanted)
    names = ["confidence"] if "mask" in wanted else names
    each = []
    for name in names:
        apart = np.abs(found[name].astype(np.float64) - wanted[name])
        if name == "score":
            apart[np.maximum(found[name], wanted[name]) < 0.1] = 0
        each.append(apart.reshape(len(apart), -1).max(axis=1))
    worst = np.max(each, axis=0)
    return np.where(np.isnan(worst), np.inf, worst)


def _changed(found: Arrays, wanted: Arrays, tolerance: float) -> np.ndarray:
    """Return for each example whether its prediction is another: another class, a
    missing or a further detection, another class in one pixel of a hundred, or a
    difference above the tolerance."""
    if "mask" in wanted:
        other = found["mask"] != wanted["mask"]
        return other.reshape(len(other), -1).mean(axis=1) > _PIXELS
    if "probabilities" in wanted:
        one, other = found["probabilities"], wanted["probabilities"]
        broken = ~np.isfinite(one).all(axis=-1)
        return broken | (one.argmax(axis=-1) != other.argmax(axis=-1))
    if "label_probabilities" in wanted:
        one, other = found["label_probabilities"], wanted["label_probabilities"]
        broken = ~np.isfinite(one).all(axis=-1)
        return broken | ((one > 0.5) != (other > 0.5)).any(axis=-1)
    if "score" in wanted:
        return np.array([
            _kept(found, wanted, at) < 1 or _kept(wanted, found, at) < 1
            for at in range(len(wanted["score"]))
        ])  # fmt: skip
    return _differences(found, wanted) > tolerance


def _kept(found: Arrays, wanted: Arrays, at: int) -> float:
    """Return the fraction of the sure detections of an image that are found again: same
    class, overlap (IoU) of at least 0.5."""
    sure = wanted["score"][at] >= _SURE
    if not sure.any():
        return 1.0
    near = found["score"][at] >= 0.8 * _SURE
    boxes, labels = found["boxes"][at][near], found["label"][at][near]
    again = [
        (_overlap(box, boxes[labels == label]) >= 0.5).any()
        for box, label in zip(
            wanted["boxes"][at][sure], wanted["label"][at][sure], strict=True
        )
    ]
    return float(np.mean(again))


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of a box (4,) with others (boxes, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    sizes = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return common / np.maximum(sizes - common, 1e-9)


def _metric(run: Arrays, targets: Arrays):
    """Return the name of the metric and the function that computes it, or None and
    nothing for generated images, which have no target."""
    if "probabilities" in run:
        label = targets["label"]
        return "accuracy", lambda one: float(
            np.mean(one["probabilities"].argmax(axis=-1) == label)
        )
    if "label_probabilities" in run:
        labels = targets["labels"] > 0
        return "accuracy", lambda one: float(
            np.mean((one["label_probabilities"] > 0.5) == labels)
        )
    if "mask" in run:
        wanted = targets["mask"]
        return "mean IoU", lambda one: masks.overlaps(
            masks.confusion_of(wanted, one["mask"], 256)
        )["mean_iou"]
    if "score" in run:
        count = len(run["score"])
        return "detections kept", lambda one: float(
            np.mean([_kept(one, run, at) for at in range(count)])
        )
    if "embedding" in run:
        label = targets["label"]
        return "recall at 1", lambda one: pairs.retrieval(one["embedding"], label)[
            "recall_at_1"
        ]
    if "target" not in targets:
        return None, None
    (name,), target = run, targets["target"]
    # Of images in [0, 1]; of series in standard deviations.
    scale = 255.0 if run[name].dtype == np.uint8 else 1.0
    full = 255.0 if target.dtype == np.uint8 else 1.0
    return "error", lambda one: float(
        np.mean(np.square(one[name] / scale - target / full), dtype=np.float64)
    )


def _latency(path: str, kind: str, inputs: Arrays) -> float:
    """Return the median time of one example in microseconds, on one thread where the
    runtime lets it be set twice in a process."""
    model = runtimes.open_model(path, kind, 1)
    one = {name: array[:1] for name, array in inputs.items()}
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < _WARM + _CALLS and (
        time.perf_counter() - begun < _SECONDS or len(times) <= _WARM
    ):
        start = time.perf_counter()
        model(one)
        times.append(time.perf_counter() - start)
    return round(1e6 * statistics.median(times[_WARM:]), 1)


if __name__ == "__main__":
    workers.serve(check)
