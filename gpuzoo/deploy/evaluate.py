"""Evaluate a trained run again, on its own data or on other data."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np

from gpuzoo.data import arrays as npz
from gpuzoo.data import (
    audio,
    box_files,
    columns,
    films,
    folders,
    identities,
    images,
    made_series,
    made_tables,
    made_texts,
    mask_files,
    series_table,
    tabular,
    texts,
)
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.masks import VOID
from gpuzoo.data.sources import GENERATED, is_folder, load_data
from gpuzoo.deploy.trained import Trained, load
from gpuzoo.errors import ExitCode, GpuzooError, remedy_of
from gpuzoo.files import expand, write_atomically
from gpuzoo.home import redact
from gpuzoo.runs import drift, evaluation
from gpuzoo.runtime.environment import environment
from gpuzoo.training import failures

CONFIDENCE = 0.95
"""Of the intervals."""


def evaluate(
    run: str | pathlib.Path,
    *,
    data: str = "",
    data_dir: str | None = None,
    allow_drift: bool = False,
    trust_code: bool = False,
    note: Callable[[str], None] = lambda text: None,
    **options,
) -> dict:
    """Evaluate the trained model of a run.

    Args:
        run: the run folder.
        data: other data, as `gpuzoo.load_data` takes them: their test examples, or all
            of a folder or file without such; default: the data of the run.
        data_dir: prepared TFDS folder; default: that of the run.
        allow_drift, trust_code, options: see `gpuzoo.load`.
        note: called with lines for the user.

    Returns:
        `run_dir`, `data`, `examples`, `metrics` (name -> value, as in run.json),
        `interval` of the mean loss or of the accuracy (95 %), `identical` (whether the
        metrics are those of the run to the bit; None for other data), `differences` of
        the environment, `exit_code` (1 if nothing has changed and they differ), and the
        figures of the task: for classifiers those of
        `gpuzoo.tasks.scores.classification`, for forecasts and numbers those of
        `regression`.
        `outputs` and `dataset` hold the arrays.

    Raises:
        GpuzooError: see `gpuzoo.load`; the data are unavailable, have changed, or do
            not fit the model.
    """
    trained = load(
        run, allow_drift=allow_drift, trust_code=trust_code, note=note, **options
    )
    record = trained.record
    if data:
        dataset = _other_data(trained, data, data_dir, note)
    else:
        dataset = _own_data(trained, data_dir, note)
    with failures.readable(trained.recipe):
        outputs, metrics, figures = _evaluate(trained, dataset)
    found = {
        "run_dir": redact(str(trained.path)),
        "data": dataset.name,
        "examples": len(next(iter(outputs.values()))),
        "metrics": {f"test_{name}": value for name, value in metrics.items()},
        "identical": None,
        "differences": [],
        "exit_code": ExitCode.DONE,
        "pictures": list(trained.task.pictures),
        **_interval(outputs, dataset),
    }
    if not data:
        tested = {k: v for k, v in record["metrics"].items() if k.startswith("test_")}
        other = evaluation.differences(record, figures)
        found["identical"] = found["metrics"] == tested and not other
        here = {
            "environment": environment(), "runtime": trained.runtime.as_record(),
            "code": None,
        }  # fmt: skip
        changes = drift.environment_differences(record, here)
        if (other := drift.other_processor(record, here)) and not (
            drift.promises(record) and not changes
        ):
            changes.insert(0, other)
        found["differences"] = list(map(str, changes))
        if not found["identical"] and not changes:
            found["exit_code"] = ExitCode.FAILED
    return {**found, **figures, "outputs": outputs, "dataset": dataset}


def _evaluate(trained: Trained, dataset: Dataset) -> tuple[dict, dict, dict]:
    """Return the outputs, one row per example, the metrics, and the figures of
    `Task.scores`, as a training does."""
    from gpuzoo.engine import backends, batches
    from gpuzoo.engine.evaluation import Evaluation

    task, backend = trained.task, backends.get(trained.runtime)
    task.begin([], dataset)
    test = {name: dataset.test[name] for name in task.fields}
    count = dataset.count("test")
    if trained.record["fast_dev_run"]:  # so was the run evaluated
        count = min(count, 2 * trained.batch)
    call = Evaluation(
        task.evaluate, test, min(trained.batch, count), backend, trained.runtime,
        trained.model.variables,
        streamed=batches.streams(
            trained.recipe, dataset.splits, task.fields, backend
        ),
    )  # fmt: skip
    outputs = call(count)
    seen = {name: array[:count] for name, array in test.items()}
    return outputs, task.summarise(outputs, seen), task.scores(outputs, seen)


def _classifies(outputs: dict, dataset: Dataset) -> bool:
    """Whether outputs are those of a classifier; the classes that a generator was asked
    for are not."""
    return {"predicted", "logits"} <= set(outputs) and "label" in dataset.test


def _interval(outputs: dict, dataset: Dataset) -> dict:
    """Return the 95 % interval of the accuracy (Wilson), or of the mean loss."""
    from scipy import stats

    # Windows of a series overlap: they are not independent.
    dependent = "count" in outputs or "series" in dataset.test
    if _classifies(outputs, dataset) and not dependent:
        labels = dataset.test["label"][: len(outputs["predicted"])]
        right = int((outputs["predicted"] == labels).sum())
        found = stats.binomtest(right, len(labels)).proportion_ci(
            CONFIDENCE, method="wilson"
        )
        return {"interval": {"of": "accuracy", "low": found.low, "high": found.high}}
    losses = outputs.get("loss")
    if losses is None or losses.ndim != 1 or dependent:
        return {"interval": None}
    mean, error = losses.mean(dtype=np.float64), losses.std(dtype=np.float64)
    error *= stats.norm.ppf((1 + CONFIDENCE) / 2) / math.sqrt(len(losses))
    return {"interval": {"of": "loss", "low": mean - error, "high": mean + error}}


def _own_data(trained: Trained, data_dir: str | None, note) -> Dataset:
    from gpuzoo.training import build

    recipe = trained.recipe
    if data_dir is not None:
        recipe = dataclasses.replace(recipe, data_dir=data_dir)
    recorded = trained.record["data"]
    dataset = build.load_data_of(recipe, note, recorded["fingerprint"])
    here = dataset.as_record()
    changes = drift.data_differences(recorded, here)
    for name in ("table", "series", "text"):
        if recorded.get(name) != here.get(name):
            raise GpuzooError(
                f"{trained.path} cannot be evaluated: data.{name} in run.json is not "
                "the preprocessing that its data give; gpuzoo verify says whether the "
                "run is what it was"
            )
    drift.refuse(
        changes,
        f"{trained.path} cannot be evaluated on its data, which have changed (--data "
        "evaluates on other data)",
    )
    return dataset


def _other_data(trained: Trained, data: str, data_dir: str | None, note) -> Dataset:
    """Return other data in the shape and with the classes of a run."""
    what, recipe = f"data {data!r}", trained.recipe
    if trained.dataset.field == "table":
        return _other_table(trained, data, note)
    if trained.dataset.series is not None:
        return _other_series(trained, data, note)
    if trained.dataset.text is not None:
        return _other_texts(trained, data, note)
    if trained.recipe.task == identities.TASK:
        return identities.other(
            data, trained.dataset.input_shape, trained.classes, note
        )
    height, *rest = trained.dataset.input_shape
    size = seconds = frames = 0
    path = expand(data)
    folder = is_folder(data, by_name=data_dir is not None)
    if not folder and not path.suffix and data not in GENERATED:
        data_dir = data_dir or recipe.data_dir
    if folder:
        if trained.dataset.field == "image" and rest[0] == height:
            size = height
        if trained.dataset.field == "film":
            frames, size = height, rest[0] if rest[0] == rest[1] else 0
        if trained.dataset.field == "audio":
            seconds = height / audio.RATE
    task = recipe.task if recipe.task in ("detect", films.TASK) else ""
    dataset = load_data(
        data, data_dir=data_dir, image_size=size, audio_seconds=seconds, note=note,
        frames=frames, task=task,
    )  # fmt: skip
    for line in dataset.findings:
        note(f"{what}: {line}")
    if dataset.field != trained.dataset.field:
        raise GpuzooError(
            f"{what} are {dataset.field}s, and {trained.path.name} was trained on "
            f"{trained.dataset.field}s"
        )
    if dataset.field in ("image", "film"):
        dataset = _with_channels(dataset, trained.dataset.input_shape[-1], what, note)
    if dataset.input_shape != trained.dataset.input_shape:
        raise GpuzooError(
            f"{what} have examples of {dataset.input_shape}, and {trained.path.name} "
            f"takes {trained.dataset.input_shape}"
        )
    train, test = dict(dataset.train), dict(dataset.test)
    if dataset.field == "series":
        train, test = (_rescaled(trained, dataset, part) for part in (train, test))
        count = len(test["series"])
        note(f"{what}: the last fifth is evaluated, as in a training, {count} windows")
    if _unsplit(path, folder, "objects" in test):
        test = {k: np.concatenate([dataset.train[k], a]) for k, a in test.items()}
        note(f"{what}: no test part, all {len(test[dataset.field])} examples are used")
    if "label" in trained.task.fields:
        test["label"] = _labels(trained, what, dataset, test)
    if "objects" in trained.task.fields:
        for part in (train, test):
            part["objects"] = _objects(trained, what, dataset, part)
    if "mask" in trained.task.fields:
        for part in (train, test):
            part["mask"] = _masks(trained, what, dataset, part)
    if "labels" in trained.task.fields:
        for part in (train, test):
            part["labels"] = _rows_of_labels(trained, what, dataset, part)
            part.pop("label", None)
    return dataclasses.replace(
        dataset, splits={"train": train, "test": test},
        classes=trained.classes, scale=trained.dataset.scale,
        name=dataset.name or recipe.data,
    )  # fmt: skip


def _other_table(trained: Trained, data: str, note) -> Dataset:
    """Return the rows of another table, prepared as those of a run."""
    if data in made_tables.TABLES:
        made = made_tables.make(data)
        name, source, table = made["name"], made["source"], made["table"]
    else:
        path = expand(data)
        if path.suffix.lower() not in (*columns.SUFFIXES, ".npz"):
            raise GpuzooError(
                f"data {data!r}: {trained.path.name} was trained on a table; expected "
                "a .csv or .parquet file"
            )
        name, source, table = tabular.from_path(path)
    prepared, scale = trained.dataset.table, trained.dataset.scale
    test, said = tabular.other(table, prepared, trained.classes, scale)
    said = [*table.findings, *said, f"all {len(test['table']):,} rows are used"]
    for line in said:
        note(f"{table.what}: {line}")
    return dataclasses.replace(
        trained.dataset, splits={"train": test, "test": test}, name=name,
        source=source, findings=tuple(said),
    )  # fmt: skip


def _other_series(trained: Trained, data: str, note) -> Dataset:
    """Return the windows of another series, prepared as those of a run."""
    path = expand(data)
    if data == made_series.NAME:
        made = made_series.make()
        name, source, table = made["name"], made["source"], made["table"]
    elif path.suffix.lower() in (*columns.SUFFIXES, ".npz"):
        name, source, table = tabular.from_path(path)
    else:
        raise GpuzooError(
            f"data {data!r}: {trained.path.name} was trained on a series with named "
            "columns; expected a .csv or .parquet file"
        )
    series, task = trained.dataset.series, trained.recipe.task
    splits, said = series_table.other(table, series, task)
    for line in said:
        note(f"{table.what}: {line}")
    return dataclasses.replace(
        trained.dataset, splits=splits, name=name, source=source, findings=tuple(said)
    )


def _other_texts(trained: Trained, data: str, note) -> Dataset:
    """Return other texts, by the words of a run."""
    path = expand(data)
    if data == made_texts.NAME:
        made = made_texts.make()
        name, source, table = made["name"], made["source"], made["table"]
    elif path.suffix.lower() in (*columns.SUFFIXES, ".npz"):
        name, source, table = tabular.from_path(path)
    else:
        raise GpuzooError(
            f"data {data!r}: {trained.path.name} was trained on texts; expected a .csv "
            "or .parquet file"
        )
    test, said = texts.other(table, trained.dataset.text, trained.classes)
    said = [*table.findings, *said, f"all {len(test['text']):,} rows are used"]
    for line in said:
        note(f"{table.what}: {line}")
    return dataclasses.replace(
        trained.dataset, splits={"train": test, "test": test}, name=name,
        source=source, findings=tuple(said),
    )  # fmt: skip


def _with_channels(dataset: Dataset, channels: int, what: str, note) -> Dataset:
    """Return images with one or three channels, converted as by `predict`."""
    there, field = dataset.input_shape[-1], dataset.field
    if {there, channels} != {1, 3}:
        return dataset
    note(f"{what}: converted to " + ("grey" if channels == 1 else "colour"))
    return dataclasses.replace(
        dataset,
        splits={
            name: {**part, field: images.with_channels(part[field], channels)}
            for name, part in dataset.splits.items()
        },
    )


def _rescaled(trained: Trained, dataset: Dataset, part: Arrays) -> Arrays:
    """Return examples of another series in the scale of the run's."""
    ours, (mean, deviation) = trained.scale, dataset.scale
    return {
        name: ((a.astype(np.float64) * deviation + mean - ours[0]) / ours[1]).astype(
            np.float32
        )
        for name, a in part.items()
    }


def _unsplit(path: pathlib.Path, folder: bool, boxed: bool) -> bool:
    """Whether data of the user have no test part of their own."""
    if folder:
        if boxed:
            return box_files.is_whole(f"data folder {path.name!r}", path)
        if mask_files.both(f"data {path.name!r}", path):
            return True
        return not folders.find_splits(f"data {path.name!r}", path, lambda text: None)
    if path.suffix.lower() == ".npz":
        return "" in npz.read(path, lambda text: None)
    return False


def _labels(trained: Trained, what: str, dataset: Dataset, test: dict) -> np.ndarray:
    """Return the labels of other data as indices of the run's classes."""
    if "label" not in test:
        raise GpuzooError(f"{what} have no labels; gpuzoo predict needs none")
    return _places(trained, what, dataset)[test["label"]].astype(np.int32)


def _masks(trained: Trained, what: str, dataset: Dataset, part: dict) -> np.ndarray:
    """Return the masks of other data as numbers of the run's classes."""
    if "mask" not in part:
        raise GpuzooError(f"{what} have no masks; gpuzoo predict needs none")
    table = np.full(256, VOID, np.uint8)
    table[: len(dataset.classes)] = _places(trained, what, dataset)
    return table[part["mask"]]


def _objects(trained: Trained, what: str, dataset: Dataset, part: dict) -> np.ndarray:
    """Return the objects of other data with the numbers of the run's classes."""
    if "objects" not in part:
        raise GpuzooError(f"{what} have no boxes; gpuzoo predict needs none")
    objects = part["objects"].copy()
    places = _places(trained, what, dataset)
    objects[..., 4] = places[objects[..., 4].astype(int)]
    return objects


def _places(trained: Trained, what: str, dataset: Dataset) -> np.ndarray:
    """Return the index in the run of each class of other data."""
    unknown = [name for name in dataset.classes if name not in trained.classes]
    if unknown:
        raise GpuzooError(
            f"{what}: class {unknown[0]!r} is not a class of {trained.path.name}: "
            f"{', '.join(trained.classes)[:200]}; rename it"
        )
    return np.array([trained.classes.index(name) for name in dataset.classes])


def _rows_of_labels(
    trained: Trained, what: str, dataset: Dataset, part: dict
) -> np.ndarray:
    """Return the labels of other data of a run with several labels per example: columns
    by name, or in their order if they have no names."""
    there, count = len(dataset.classes), len(trained.classes)
    unnamed = dataset.classes == tuple(map(str, range(there)))
    if not {"label", "labels"} & set(part) or (
        there != count and (unnamed or "labels" in part)
    ):
        raise GpuzooError(
            f"{what} have no labels of 0 and 1, (examples, {count}), as the data of "
            f"{trained.path.name}; gpuzoo predict needs none"
        )
    places = np.arange(there) if unnamed else _places(trained, what, dataset)
    if "label" in part:  # one each
        return np.eye(count, dtype=np.uint8)[places[part["label"]]]
    return part["labels"][:, np.argsort(places)]


def summary_of(found: dict) -> dict:
    """Return what `evaluate` has found without the arrays."""
    return {k: v for k, v in found.items() if k not in ("outputs", "dataset")}


def check_new(out: str) -> None:
    """Raise GpuzooError if the output folder exists."""
    if os.path.lexists(expand(out)):
        raise GpuzooError(f"out: {out} exists; name a new folder")


def write(out: str, found: dict) -> None:
    """Write what `evaluate` has found into a new folder: evaluation.json, the plots of
    the task, and of classifiers per_class.csv and confusion.csv."""
    from gpuzoo.report import plots

    path, dataset = expand(out), found["dataset"]
    summary, files = summary_of(found), {}
    files["evaluation.json"] = json.dumps(summary, indent=1).encode()
    if "per_class" in found:
        files["per_class.csv"] = _csv(
            list(found["per_class"][0]), [r.values() for r in found["per_class"]]
        )
    if "confusion" in found:
        rows = zip(dataset.classes, found["confusion"], strict=True)
        files["confusion.csv"] = _csv(
            ["true class", *dataset.classes], [[name, *row] for name, row in rows]
        )
    title = f"{pathlib.Path(found['run_dir']).name} on {found['data']}"
    pictures = plots.draw(found["pictures"], title, dataset, found["outputs"])
    try:
        path.mkdir(parents=True)
        for name, content in {**files, **pictures}.items():
            write_atomically(path / name, content, replace=False)
    except OSError as error:
        raise GpuzooError(
            f"out: {out}: {error.strerror or error}; {remedy_of(error)}"
        ) from None


def _csv(head: list[str], rows) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue().encode()
