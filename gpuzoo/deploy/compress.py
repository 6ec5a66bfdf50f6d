"""`gpuzoo compress`: smaller and faster forms of a trained run, and what each costs.

A form is a run folder, trained from weights of the run, or an export folder. Forms that
are finished are recognized by their records and kept, so that a command that was
interrupted continues when it is called again.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from gpuzoo.catalogue.registry import model_info
from gpuzoo.deploy import export as exports
from gpuzoo.deploy.form_figures import (
    IDENTITY,
    SCHEMA,
    export_form,
    figures,
    kept_export,
)
from gpuzoo.deploy.forms import (
    DEFAULT,
    Form,
    Forms,
    Job,
    check_same,
    epochs_of,
    is_finished,
    planned_forms,
    start_of,
    train_form,
)  # fmt: skip
from gpuzoo.errors import GpuzooError
from gpuzoo.files import Folder, expand, is_temporary, parse_json
from gpuzoo.runs.record import read_run
from gpuzoo.runs.teacher import CLASSIFIERS

RECORD, PICTURE = "compress.json", "frontier.png"
_EXPORT_SECONDS = 20


def compress(
    run: str | pathlib.Path,
    forms: Forms | None = None,
    *,
    out: str | pathlib.Path | None = None,
    to: str = "",
    epochs: int | None = None,
    learning_rate: float | None = None,
    max_loss: float = 1.0,
    allow_drift: bool = False,
    trust_code: bool = False,
    quiet: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> dict:
    """Make smaller forms of a trained run; measure size, latency and quality of each.

    Args:
        run: the run folder.
        forms: which ones; default: int8, half of the width and 80 % zeros, without
            those that the model does not have.
        out: folder for all of it; default: beside the run. One with forms of the same
            run is continued, and its record goes on to hold its earlier forms.
        to: runtime: litert, onnx or openvino; default: litert, for sounds onnx.
        epochs: of the training of each form; default: half of the run's, at least 5; of
            a student twice as many as the run's, at least 8.
        learning_rate: its peak; default: that of the run.
        max_loss: accuracy in points that a form may lose; of an error, growth in
            percent.
        allow_drift, trust_code: see `gpuzoo.load`.
        quiet: print nothing of the trainings.
        note: called with lines of progress.

    Returns:
        What compress.json holds: `forms`, a list with `name`, `bytes`, `gzip_bytes`,
        `latency_us` (median of one example), `value` (the accuracy, or the error, of
        the exported file on the test set), `lost`, `refused` (why it exceeds max_loss,
        or ""), the folders `run` and `export`; `frontier`, the names of the forms that
        no other one beats in quality and size or latency; `left_out`; `failures`.

    Raises:
        GpuzooError: a form that was named cannot be made of this run, or `out` holds
            something else.
        CheckFailed: the exported file of a form does not agree with its run.
    """
    path = expand(run).resolve()
    record = read_run(path)
    named = forms is not None and forms != Forms()
    forms = forms if named else DEFAULT
    audio = record["recipe"]["task"] == "classify_audio"
    table = "table" in (record.get("data") or {})
    job = Job(
        path, record, expand(out or f"{path}-compressed").absolute(),
        to or ("onnx" if audio else "litert"), epochs, learning_rate,
        forms.student_options, {"allow_drift": allow_drift, "trust_code": trust_code},
        quiet, note,
    )  # fmt: skip
    without = {}
    no_int8 = table or job.runtime == "openvino" or (audio and job.runtime == "litert")
    if not named and no_int8:
        forms = dataclasses.replace(forms, int8=False)
        without = {"int8": f"{job.runtime} has no int8 version of this run"}
    planned = planned_forms(forms)
    _check(job, planned, max_loss)
    planned, about, left_out = _feasible(job, planned, named)
    left_out = without | left_out
    with _folder(job) as folder:
        earlier, narrowed = _earlier(job, folder, planned)
        every = sorted(planned + earlier, key=lambda form: form.int8)
        _announce(job, every, left_out)
        export_form(job, every[0])  # first: it refuses data that have changed
        for form in planned:
            if form.kind and not form.int8:
                train_form(job, form)
        entries = {form.name: export_form(job, form) for form in every}
        found = figures(job, every, entries, max_loss)
        found |= {"narrowed": narrowed | about, "left_out": left_out}
        _write(folder, found)
    return found


def _check(job: Job, forms: list[Form], max_loss: float) -> None:
    """Raise GpuzooError for what is wrong without looking at the model."""
    recipe = job.recipe
    if recipe.task in exports.GENERATORS:
        raise GpuzooError(
            f"compress is not for generators (task {recipe.task}): generated images "
            "have no target, so that a loss of quality cannot be measured"
        )
    if recipe.task == "multilabel":
        raise GpuzooError(
            "compress is not for the task multilabel; gpuzoo export --int8 makes a "
            "smaller file of it"
        )
    if job.record["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"{job.run} has not finished ({job.record['state']}): it has no trained "
            "weights"
        )
    if job.runtime not in ("litert", "onnx", "openvino"):
        raise GpuzooError(f"to must be litert, onnx or openvino: {job.runtime!r}")
    for int8 in {form.int8 for form in forms}:
        exports.check_options(
            job.record, (job.runtime,), False, int8, 300, exports.Bounds()
        )
    names = [form.name for form in forms]
    if len(set(names)) < len(names):
        raise GpuzooError(f"each variant must be named once: {', '.join(names)}")
    for form in forms:
        if form.kind in ("width", "sparsity") and not 0 < form.value < 1:
            raise GpuzooError(
                f"{form.kind} must be above 0 and below 1: {form.value:g}"
            )
        if form.kind == "student" and recipe.task not in CLASSIFIERS:
            raise GpuzooError(
                f"student needs a run that classifies images, not {recipe.task}"
            )
        if form.kind == "student" and model_info(form.value).task != "classify":
            raise GpuzooError(f"student must be a classifier of images: {form.value}")
    if job.student_options and not any(form.kind == "student" for form in forms):
        raise GpuzooError("student_options needs student, the name of a model")
    if job.epochs is not None and (type(job.epochs) is not int or job.epochs < 1):
        raise GpuzooError(f"epochs must be at least 1: {job.epochs}")
    if job.learning_rate is not None and not job.learning_rate > 0:
        raise GpuzooError(f"learning_rate must be above 0: {job.learning_rate}")
    if not 0 <= max_loss < math.inf:
        raise GpuzooError(f"max_loss must be 0 or more, and finite: {max_loss}")


def _feasible(job: Job, forms: list[Form], named: bool):
    """Return the forms that the model of the run has; name -> channels of each layer,
    of narrower ones; name -> why not, of the others.

    Raises:
        GpuzooError: one that was named is not among them, or its folder holds something
            else.
    """
    faults, about = {}, {}
    for form in forms:
        if form.kind and not form.int8:
            try:
                start, facts = start_of(job, form, job.note)
                about |= {form.name: facts} if facts else {}
            except GpuzooError as error:
                if named:
                    raise GpuzooError(f"{form.name}: {error}") from None
                faults[form.name] = str(error)
            else:
                check_same(job, form, start)
    left = [one for one in forms if not {one.name, one.base} & set(faults)]
    for form in left:
        if job.folder(form) == job.run or is_finished(job, form):
            kept_export(job, form)
    return left, about, faults


def _earlier(job: Job, folder: Folder, planned: list[Form]) -> tuple[list[Form], dict]:
    """Return the forms of earlier calls that are still there, unchanged, and name ->
    channels of the narrower ones. The others are named in a line."""
    record = parse_json(folder.read_file(RECORD).decode())
    found, narrowed, names = [], {}, {form.name for form in planned}
    for row in record.get("forms") or ():
        if (name := row["name"]) in names:
            continue
        base = "original" if name == "int8" else name.removesuffix("-int8")
        form = Form(name, "" if name == "int8" else row["kind"], row["of"],
                    base if row["int8"] else "", row["int8"])  # fmt: skip
        try:
            if record["runtime"] != job.runtime:
                raise GpuzooError(f"its figures are of {record['runtime']}")
            export = kept_export(job, form)
            if not export or export["formats"][job.runtime]["sha256"] != row["sha256"]:
                raise GpuzooError("its export is not there any more")
        except GpuzooError as error:
            job.note(f"{name}, made earlier, is left out of {RECORD}: {error}")
        else:
            found.append(form)
            if name in record["narrowed"]:
                narrowed[name] = record["narrowed"][name]
    return found, narrowed


def _announce(job: Job, forms: list[Form], left_out: dict) -> None:
    """Say what will be made, and how long it will take."""
    for name, why in left_out.items():
        job.note(f"left out: {name}: {why}")
    record = job.record
    epoch = record["seconds"]["train"] / max(1, record["epochs"])
    lines, total = [], 0.0
    for form in forms:
        done = os.path.lexists(job.exported(form))
        total += _EXPORT_SECONDS * (not done)
        if form.kind and not form.int8 and not is_finished(job, form):
            epochs = epochs_of(job, form)
            total += epochs * epoch
            lines.append(f"{form.name} ({epochs} epochs)")
        elif form.name != "original":
            lines.append(form.name + " (kept)" * done)
    job.note(
        f"{job.run.name}: {', '.join(lines)}; about {max(1, round(total / 60))} min, "
        f"by the speed of the run, into {job.out}/"
    )


@contextlib.contextmanager
def _folder(job: Job) -> Iterator[Folder]:
    """Hold the folder of the forms, made if it is missing.

    Raises:
        GpuzooError: it holds something else than forms of this run.
    """
    out, record = job.out, job.record
    mine = {name: record[key] for name, key in IDENTITY.items()}
    new = not os.path.lexists(out)
    try:
        out.mkdir(exist_ok=True)
        folder = Folder(out)
    except OSError as error:
        raise GpuzooError(
            f"output folder {out} cannot be made: {error.strerror or error}; name "
            "another with --out"
        ) from None
    made = False  # by this call, which then holds the lock
    try:
        folder.lock()
        names = [name for name in folder.names() if not is_temporary(name)]
        if names:
            _check_ours(folder, mine)
        else:
            made = new
            folder.write_file(RECORD, _json({"schema": SCHEMA, **mine, "forms": None}))
        for name in filter(is_temporary, folder.names()):  # of killed calls
            left = out / name
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
        folder.remove_temporary()
        yield folder
    except BaseException:
        if made and folder.names() == [RECORD]:  # no form was
            folder.remove_file(RECORD)
            out.rmdir()
        raise
    finally:
        folder.close()


def _check_ours(folder: Folder, mine: dict) -> None:
    try:
        there = parse_json(folder.read_file(RECORD).decode())
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict) or any(there.get(k) != v for k, v in mine.items()):
        raise GpuzooError(
            f"output folder {folder.path} exists and has no variants of this run; "
            "name another with --out"
        )


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(folder: Folder, found: dict) -> None:
    from gpuzoo.report.compress import frontier

    folder.write_file(PICTURE, frontier(found))
    folder.write_file(RECORD, _json(found))
