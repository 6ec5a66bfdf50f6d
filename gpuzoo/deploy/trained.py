"""Load a trained run: its model, ready to predict as the run evaluated it."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gpuzoo.catalogue import user_files
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.data import (
    audio,
    columns,
    films,
    preparation,
    series,
    series_table,
    texts,
    validate,
)
from gpuzoo.data.dataset import Arrays, Dataset
from gpuzoo.data.preparation import Preparation
from gpuzoo.data.series_form import Series
from gpuzoo.data.vocabulary import Vocabulary
from gpuzoo.errors import GpuzooError, nearest
from gpuzoo.files import LARGEST_JSON, expand, open_inside, read_inside
from gpuzoo.report import notebook
from gpuzoo.runs import code
from gpuzoo.runs.record import (
    RESTORE,
    architecture_of,
    options_of,
    read_run,
    recipe_of,
)
from gpuzoo.runtime import configure, keras_state, portable
from gpuzoo.runtime.options import COMPARED, Options, Runtime
from gpuzoo.training import failures
from gpuzoo.training.session import check_trust, set_onednn
from gpuzoo.weights import load_weights

if TYPE_CHECKING:
    import keras

    from gpuzoo import tasks

WEIGHTS = "weights.safetensors"


@dataclasses.dataclass
class Trained:
    """A trained model with all that it needs to be used.

    Attributes:
        path: the run folder.
        record: its run.json.
        recipe, runtime: of the run; the runtime is that of this process.
        model: the trained `keras.Model`.
        dataset: name, classes and shape of the data, without examples.
        task: computes what `predict` and `sample` return.
    """

    path: pathlib.Path
    record: dict
    recipe: Recipe
    runtime: Runtime
    model: "keras.Model"
    dataset: Dataset
    task: "tasks.base.Task"

    def __repr__(self) -> str:
        data = self.dataset.name
        return f"<Trained {self.path.name}: {self.recipe.model_name} on {data}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return self.dataset.classes

    @property
    def takes(self) -> str:
        """The input of `predict`, as image or audio; "" of a generator."""
        return self.task.takes

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and deviation that the series of the run was standardized by."""
        if self.dataset.scale is None:
            raise GpuzooError(
                f"{self.path.name} was trained by an earlier version of gpuzoo, which "
                "did not record the scale of the series; train it again"
            )
        return self.dataset.scale

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example for `predict`: (height, width, channels), for sounds
        (samples,), for series (time, channels), for films (frames, height, width,
        channels), for tables (numbers,) and for texts (words,), of a row that
        `preprocess` has prepared."""
        return self.task.taken_shape(self.dataset)

    @property
    def batch(self) -> int:
        """Examples per batch: that of the run's evaluation, on which the last bits of
        the results depend."""
        from gpuzoo.engine.evaluation import batch_size

        data = self.record["data"]
        return batch_size(
            self.dataset.input_shape, data["test_examples"], self.task.expansion,
            self.record["fast_dev_run"],
        )  # fmt: skip

    def preprocess(self, examples) -> np.ndarray:
        """Check examples and return them as the training data have them.

        Args:
            examples: an array `(examples, *input_shape)` or one example; images without
                an axis for one channel, too. Images and films are uint8, other integers
                in [0, 255] or floats in [0, 1]; sounds int16 or floats in [-1, 1);
                series the raw values, which are standardized as in the training. For a
                table a data frame, a dict of columns, or the path of a .csv or .parquet
                file, with the columns of the training data; likewise for a series with
                named columns, of which the last rows are one example. For texts a str,
                a list of them, or such a table, of which the path is a pathlib.Path.

        Raises:
            GpuzooError: another shape or dtype, or values that are not finite or out of
                range.

        Warns:
            UserWarning: rows of a table have what the training had not, such as an
                unknown category.
        """
        if not self.takes:
            raise GpuzooError(
                f"{self.path.name} generates images and takes none; use sample()"
            )
        if self.takes == "table":
            return self._rows(examples)
        if self.dataset.series is not None:
            return self._window(examples)
        if self.takes == "text":
            return self._words(examples)
        values = np.asarray(examples)
        values = values.reshape(_with_batch(values.shape, self.input_shape))
        if 0 in values.shape:
            raise GpuzooError("no examples to predict")
        what = f"{self.takes}s to predict"
        if self.takes in ("image", "film"):
            flat = values.reshape(-1, *values.shape[-3:])
            return validate.clean_images(what, flat).reshape(values.shape)
        if self.takes == "audio":
            return audio.clean(what, values)
        return series.standardized(what, values, self.scale)

    def _window(self, examples) -> np.ndarray:
        """Return the last rows of a series with named columns as the model takes
        them."""
        form, what = self.dataset.series, "series to predict"
        if columns.is_table(examples):
            table = columns.from_memory(what, examples)
        elif isinstance(examples, str | os.PathLike):
            table = columns.from_file(expand(os.fspath(examples)))
        elif form.calendar:
            raise GpuzooError(
                f"{what} must be a data frame, a dict of columns, or the path of a "
                ".csv or .parquet file: the model takes the times of the rows, too"
            )
        else:
            values = np.asarray(examples)
            if values.dtype.kind not in "iuf":
                raise GpuzooError(f"{what}: must be numbers, not {values.dtype}")
            values = values.reshape(_with_batch(values.shape, self.input_shape))
            return form.scaled(what, values.astype(np.float64))
        window, said = series_table.last_window(table, form)
        for line in said[:-1]:
            warnings.warn(f"{what}: {line}", stacklevel=4)
        return window[None]

    def _rows(self, examples) -> np.ndarray:
        """Return the rows of a table as the model takes them."""
        if columns.is_table(examples):
            table = columns.from_memory("rows to predict", examples)
        elif isinstance(examples, str | os.PathLike):
            table = columns.from_file(expand(os.fspath(examples)))
        else:
            raise GpuzooError(
                f"rows to predict must be a data frame, a dict of columns, or the path "
                f"of a .csv or .parquet file, not {type(examples).__name__}: the "
                "columns are found by their names"
            )
        prepared = self.dataset.table
        readings, said = preparation.read_again(table, prepared)
        if not len(table):
            raise GpuzooError("no rows to predict")
        said += preparation.unseen(table, prepared, readings)
        for line in (*table.findings, *said):
            warnings.warn(f"rows to predict: {line}", stacklevel=4)
        return preparation.encode(prepared, readings, np.arange(len(table)))

    def _words(self, examples) -> np.ndarray:
        """Return texts as the model takes them."""
        found, said = texts.given(examples, self.dataset.text)
        for line in said:
            warnings.warn(f"texts to predict: {line}", stacklevel=4)
        return self.dataset.text.encode(found)

    def predict(self, examples, progress: Callable | None = None) -> Arrays:
        """Return what the model gives for each example.

        The results are those of the run's own evaluation to the bit on the same
        machine, with the same runtime.

        Args:
            examples: see `preprocess`.
            progress: called with the number of examples done, after each batch.

        Returns:
            name -> array (examples, ...): for classifiers `predicted` (the class
            index), `confidence` (its probability) and `logits` (examples, classes); for
            detectors `found_boxes`, `found_label` and `score`, the best 20 (of images
            with boxes of their own the best 100); for forecasts
            `forecast`, in standard deviations of the training data (`unscale`); for the
            numbers of a table `value`, float64, in the unit of the target; for
            segmentation `predicted`, the class of each pixel, uint8, and `confidence`,
            (examples, height, width); for autoencoders `reconstruction`, for films
            `forecast`, both uint8; of identities `embedding`, of length 1.

        Raises:
            GpuzooError: see `preprocess`.
        """
        return self.infer(self.preprocess(examples), progress)

    def infer(self, values: np.ndarray, progress: Callable | None = None) -> Arrays:
        """Do the same for examples that `preprocess` has returned."""
        found = self._in_batches(self.task.infer, {self.takes: values}, progress)
        return self.task.in_units(found)

    def sample(self, count: int, *, seed: int | None = None, label=None) -> np.ndarray:
        """Return generated images (count, height, width, channels), uint8.

        Args:
            seed: equal seeds give equal images; default: that of the run, whose
                evaluation generates the same images if `count` is the number of test
                images.
            label: name of the class to generate; default: all in turn.

        Raises:
            GpuzooError: the model does not generate images, or not by class.
        """
        if not self.task.generates:
            raise GpuzooError(
                f"{self.path.name} does not generate images (task {self.recipe.task})"
            )
        if type(count) is not int or not 1 <= count <= 1_000_000:
            raise GpuzooError(f"count must be in 1..1000000: {count!r}")
        index = None
        if label is not None:
            if not getattr(self.task, "conditional", False):
                raise GpuzooError(
                    f"model {self.recipe.model_name} does not generate by class; leave "
                    "label out"
                )
            index = self.class_index(label)
        seed = self.recipe.seed if seed is None else seed
        codes = self.task.codes(count, seed, index)
        return self._in_batches(self.task.generate, codes, None)["samples"]

    def show(self) -> None:
        """Show the curves and pictures of the run in a notebook; elsewhere print the
        names of their files."""
        notebook.show(self.path)

    def class_index(self, label: str) -> int:
        """Return the index of a class name."""
        if str(label) not in self.classes:
            raise GpuzooError(
                f"no class named {str(label)!r}; the classes are "
                f"{', '.join(self.classes)}"
            )
        return self.classes.index(str(label))

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Return a forecast in the units of the series."""
        if self.dataset.series is not None:
            return self.dataset.series.unscaled(values)
        mean, deviation = self.scale
        return np.asarray(values, np.float64) * deviation + mean

    def _in_batches(self, function, arrays: Arrays, progress) -> Arrays:
        with failures.readable(self.recipe):
            call = self._compiled(function, arrays)
        count, parts = len(next(iter(arrays.values()))), []
        for start in range(0, count, self.batch):
            part = {k: a[start : start + self.batch] for k, a in arrays.items()}
            with failures.readable(self.recipe):
                parts.append(call(len(next(iter(part.values()))), part))
            if progress:
                progress(min(start + self.batch, count))
        return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}

    def _compiled(self, function, arrays: Arrays):
        """Return the function, compiled for arrays of these dtypes."""
        from gpuzoo.engine import backends
        from gpuzoo.engine.evaluation import Evaluation

        key = (function.__name__, *((k, str(a.dtype)) for k, a in arrays.items()))
        if key not in self._programs:
            self._programs[key] = Evaluation(
                function, {name: array[:1] for name, array in arrays.items()},
                self.batch, backends.get(self.runtime), self.runtime,
                self.model.variables, streamed=True,
            )  # fmt: skip
        return self._programs[key]

    @functools.cached_property
    def _programs(self) -> dict:
        return {}


def load(
    run: str | pathlib.Path,
    *,
    allow_drift: bool = False,
    trust_code: bool = False,
    note: Callable[[str], None] = lambda text: None,
    **options,
) -> Trained:
    """Load the trained model of a run.

    The model is rebuilt from its code and options; the weights are matched by name,
    shape and dtype, and must have the digest of the record. Nothing is unpickled.

    Args:
        run: the run folder.
        allow_drift: load although the code of the model has changed.
        trust_code: execute user code, if the model is defined in a user file
            (path.py:function). Review it first if the run is not your own.
        note: called with lines for the user, for example of a differing precision.
        **options: runtime options other than those of the run, such as `device="cpu"`;
            default: those in use in this process, else those of the run. A process has
            one set of them: name them with its first load.

    Raises:
        GpuzooError: the run has not ended, its files are missing, damaged or changed,
            or the code of its model has changed, or is the user's and not trusted.
    """
    path = expand(run)
    record = read_run(path)
    if record["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"{path} has not finished ({record['state']}): it has no trained weights"
            + f"; finish it with: gpuzoo resume {path}"
            * (record["state"] != "diverged")
        )
    room = _checked_bytes(path, record["weights_sha256"]) + keras_state.SLACK_BYTES
    file = user_files.file_of(record["recipe"]["model"])
    check_trust(path, [record["recipe"]["model"]] if file else [], trust_code, note)
    runtime = _configure(record, options, note)
    recipe = recipe_of(record)
    dataset = _without_examples(record)
    with failures.readable(recipe):
        model = _build(path, record, recipe, dataset, runtime, room, allow_drift)
    load_weights(model, path, sha256=record["weights_sha256"])
    from gpuzoo import tasks
    from gpuzoo.engine import compile_config

    task = tasks.load(recipe.task)(
        model=model, recipe=recipe, dataset=dataset, runtime=runtime
    )
    compiled = (record.get("compiled") or {}).get("loss")
    if loss := compile_config.loss_of(compiled, recipe, model):
        task.compiled = loss
    return Trained(path, record, recipe, runtime, model, dataset, task)


def _configure(record: dict, options: dict, note) -> Runtime:
    # A file that pins kernels for the training step does not exist everywhere.
    wanted = dataclasses.replace(
        options_of(record), autotune="", devices=1, distributed=False
    )
    known = {field.name for field in dataclasses.fields(Options)}
    if unknown := sorted(set(options) - known):
        raise GpuzooError(f"load() has no {unknown[0]!r}; {nearest(unknown[0], known)}")
    if options:
        wanted = dataclasses.replace(wanted, **options)
    else:
        wanted = configure.options_in_force() or wanted
    recorded = record["runtime"]
    set_onednn(record)
    runtime = configure.configure(wanted, seed=record["recipe"]["seed"], quiet=True)
    for name in COMPARED:
        here, there = getattr(runtime, name), recorded[name]
        if name == "level" and portable.LEVEL not in (here, there):
            continue  # the others predict the same
        if here != there and not (name == "onednn" and None in (here, there)):  # JAX
            note(
                f"{name} is {here}, and was {recorded[name]} in the run: results may "
                "differ from the run's in their last bits"
            )
    return runtime


def _checked_bytes(path: pathlib.Path, sha256: str) -> int:
    """Return the size of the weights; a damaged file is named before anything else,
    as the model is built with no more memory than this."""
    try:
        with open(open_inside(path, WEIGHTS), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = error.strerror or error
        raise GpuzooError(
            f"{path / WEIGHTS} cannot be read: {why}; {RESTORE}"
        ) from None
    if found != sha256:
        raise GpuzooError(
            f"{path / WEIGHTS} has been changed since the run finished (sha256 "
            f"{found[:16]}, recorded {sha256[:16]}); {RESTORE}"
        )
    return size


def _without_examples(record: dict) -> Dataset:
    """Return the dataset of a record, without examples."""
    data = record["data"]
    tables = dict.fromkeys(("classify_table", "regress_table"), "table")
    kinds = {
        **dict.fromkeys(series_table.TASKS, "series"),
        "classify_audio": "audio",
        films.TASK: "film",
        texts.TASK: "text",
        **tables,
    }
    field = kinds.get(record["recipe"]["task"], "image")
    empty: Arrays = {field: np.zeros((0, *data["input_shape"]), np.uint8)}
    if record["recipe"]["task"] == "multilabel":
        empty["labels"] = np.zeros((0, len(data["classes"])), np.uint8)
    elif record["recipe"]["task"] == "segment":
        empty["mask"] = np.zeros((0, *data["input_shape"][:2]), np.uint8)
    elif "most_objects" in data:
        empty["objects"] = np.zeros((0, data["most_objects"], 6), np.float32)
    elif data["classes"]:
        empty["label"] = np.zeros(0, np.int32)
    if record["recipe"]["task"] in ("forecast", "regress_table"):
        empty["target"] = np.zeros(0, np.float32)
    table = Preparation.from_record(data.get("table")) if field == "table" else None
    form = Series.from_record(data["series"]) if data.get("series") else None
    known = Vocabulary.from_record(data.get("text")) if field == "text" else None
    return Dataset(
        data["name"], data["source"], {"train": empty, "test": empty},
        tuple(data["classes"]), data["fingerprint"], scale=data.get("scale"),
        table=table, series=form, text=known,
    )  # fmt: skip


def _build(path, record: dict, recipe, dataset, runtime, room: int, allow_drift: bool):
    from gpuzoo.training import build

    described = architecture_of(
        record, path, lambda name: read_inside(path, name, LARGEST_JSON)
    )
    if described:  # it holds the dtype policies of its layers
        recorded = record["runtime"]["precision"]
        described = described.with_policy(recorded, runtime.precision)
    make = functools.partial(build.build_for_shape, recipe, dataset, described)
    with keras_state.at_most(
        room, f"the model of {path.name} does not fit its {WEIGHTS}"
    ):
        model, modules, files = code.watched(make, recipe.model)
    if not allow_drift:
        if changed := code.changed_of_model(record, modules, files):
            raise GpuzooError(
                f"{path}: changed or missing since it was trained: "
                f"{', '.join(changed)}; restore it, or pass allow_drift"
            )
    return model


def _with_batch(shape: tuple[int, ...], example: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (examples, *example) of an array of a shape."""
    forms = [example]
    if example[-1] == 1:
        forms.append(example[:-1])
    for form in forms:
        if shape == form:
            return (1, *example)
        if shape[1:] == form:
            return (shape[0], *example)
    raise GpuzooError(
        f"the shape of the examples must be (examples, "
        f"{', '.join(map(str, example))}): {shape}"
    )
