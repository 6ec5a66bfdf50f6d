"""`gpuzoo compress`: smaller and faster forms of a trained run, and what each costs.

A form is a run folder, trained from weights of the run, or an export folder. Forms that
are finished are recognized by their records and kept, so that a command that was
interrupted continues when it is called again.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.registry import model_info
from gpuzoo.deploy import export as exports
from gpuzoo.deploy.runtimes import FORMATS
from gpuzoo.errors import CheckFailed, GpuzooError
from gpuzoo.files import Folder, expand, is_temporary, parse_json
from gpuzoo.home import redact
from gpuzoo.runs.record import private, read_run, recipe_of
from gpuzoo.runs.teacher import CLASSIFIERS
from gpuzoo.runtime.environment import cpu_model
from gpuzoo.training.interrupts import Interrupts

SCHEMA = 1
RECORD, PICTURE = "compress.json", "frontier.png"
_SIZES = ("bytes", "gzip_bytes", "latency_us")
# Epochs of a training as a part of the run's, and how many at least. The learning rate
# and its schedule are those of the run: Renda, Frankle and Carbin, arXiv 2003.02389.
_EPOCHS = {"width": (0.5, 5), "sparsity": (0.5, 5), "student": (2, 8)}
_EXPORT_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Forms:
    """Which forms of a run to make."""

    int8: bool = False
    """Quantize weights and activations to 8 bits, of the run and of the other forms."""
    width: tuple[float, ...] = ()
    """Remove whole channels: the fraction to keep in each layer; then train on."""
    sparsity: tuple[float, ...] = ()
    """Set weights to zero: the fraction of zeros; in training."""
    student: str = ""
    """Train a smaller model of the catalogue with the run as its teacher."""
    student_options: tuple[str, ...] = ()
    """Options of the student as key=value."""


DEFAULT = Forms(int8=True, width=(0.5,), sparsity=(0.8,))


@dataclasses.dataclass(frozen=True)
class _Form:
    name: str
    kind: str = ""  # width, sparsity or student, if it is trained
    value: Any = None  # the fraction, or the name of the student
    base: str = ""  # of a quantized one: the form that it is made of
    int8: bool = False


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a call was asked for."""

    run: pathlib.Path
    record: dict
    out: pathlib.Path
    runtime: str
    epochs: int | None
    learning_rate: float | None
    student_options: tuple[str, ...]
    load: dict
    quiet: bool
    note: Callable[[str], None]

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.record)

    def folder(self, form: _Form) -> pathlib.Path:
        """Return the run folder of a form."""
        name = form.base or form.name
        return self.run if name == "original" else self.out / name

    def exported(self, form: _Form) -> pathlib.Path:
        return self.out / f"{form.name}-{self.runtime}"


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
            run is continued.
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
    job = _Job(
        path, record, expand(out or f"{path}-compressed").absolute(),
        to or ("onnx" if audio else "litert"), epochs, learning_rate,
        forms.student_options, {"allow_drift": allow_drift, "trust_code": trust_code},
        quiet, note,
    )  # fmt: skip
    without = {}
    if not named and (job.runtime == "openvino" or (audio and job.runtime == "litert")):
        forms = dataclasses.replace(forms, int8=False)
        without = {"int8": f"{job.runtime} has no int8 form of this run"}
    planned = _planned(forms)
    _check(job, planned, max_loss)
    planned, about, left_out = _feasible(job, planned, named)
    left_out = without | left_out
    _announce(job, planned, left_out)
    with _folder(job) as folder:
        _export(job, planned[0])  # first: it refuses data that have changed
        for form in planned:
            if form.kind and not form.int8:
                _train(job, form)
        entries = {form.name: _export(job, form) for form in planned}
        found = _found(job, planned, entries, max_loss)
        found |= {"narrowed": about, "left_out": left_out}
        _write(folder, found)
    return found


def _planned(forms: Forms) -> list[_Form]:
    """Return the forms, each one before those that are made of it."""
    made = [_Form("original")]
    made += [_Form(f"width-{one:g}", "width", one) for one in forms.width]
    made += [_Form(f"sparsity-{one:g}", "sparsity", one) for one in forms.sparsity]
    if forms.student:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", forms.student)
        made.append(_Form(f"student-{name}", "student", forms.student))
    if forms.int8:
        for form in list(made):
            name = "int8" if form.name == "original" else f"{form.name}-int8"
            made.append(_Form(name, form.kind, form.value, form.name, True))
    return made


def _check(job: _Job, forms: list[_Form], max_loss: float) -> None:
    """Raise GpuzooError for what is wrong without looking at the model."""
    recipe = job.recipe
    if recipe.task in exports.GENERATORS:
        raise GpuzooError(
            f"compress is not for generators (task {recipe.task}): generated images "
            "have no target, so that nothing would say how much quality is lost"
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
        raise GpuzooError(f"each form must be named once: {', '.join(names)}")
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


def _feasible(job: _Job, forms: list[_Form], named: bool):
    """Return the forms that the model of the run has; name -> channels of each layer,
    of narrower ones; name -> why not, of the others.

    Raises:
        GpuzooError: one that was named is not among them.
    """
    faults, about = {}, {}
    for form in forms:
        if form.kind and not form.int8:
            try:
                _, facts = _start(job, form, job.note)
                about |= {form.name: facts} if facts else {}
            except GpuzooError as error:
                if named:
                    raise GpuzooError(f"{form.name}: {error}") from None
                faults[form.name] = str(error)
    left = [one for one in forms if not {one.name, one.base} & set(faults)]
    return left, about, faults


def _announce(job: _Job, forms: list[_Form], left_out: dict) -> None:
    """Say what will be made, and how long it will take."""
    for name, why in left_out.items():
        job.note(f"left out: {name}: {why}")
    record = job.record
    epoch = record["seconds"]["train"] / max(1, record["epochs"])
    lines, total = [], 0.0
    for form in forms:
        if form.kind and not form.int8:
            epochs = _epochs(job, form)
            total += epochs * epoch
            lines.append(f"{form.name} ({epochs} epochs)")
        elif form.name != "original":
            lines.append(form.name)
    total += _EXPORT_SECONDS * len(forms)
    job.note(
        f"{job.run.name}: {', '.join(lines)}; about {max(1, round(total / 60))} min, "
        f"by the speed of the run, into {job.out}/"
    )


# --- the folder ---------------------------------------------------------------------


@contextlib.contextmanager
def _folder(job: _Job) -> Iterator[Folder]:
    """Hold the folder of the forms, made if it is missing.

    Raises:
        GpuzooError: it holds something else than forms of this run.
    """
    out, record = job.out, job.record
    mine = {name: record[key] for name, key in _IDENTITY.items()}
    try:
        out.mkdir(exist_ok=True)
        folder = Folder(out)
    except OSError as error:
        raise GpuzooError(
            f"output folder {out} cannot be made: {error.strerror or error}; name "
            "another with --out"
        ) from None
    try:
        folder.lock()
        names = [name for name in folder.names() if not is_temporary(name)]
        if names:
            _check_ours(folder, mine)
        else:
            folder.write_file(RECORD, _json({"schema": SCHEMA, **mine, "forms": None}))
        for name in filter(is_temporary, folder.names()):  # of killed calls
            left = out / name
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
        folder.remove_temporary()
        yield folder
    finally:
        folder.close()


_IDENTITY = {"run_id": "id", "weights_sha256": "weights_sha256"}


def _check_ours(folder: Folder, mine: dict) -> None:
    try:
        there = parse_json(folder.read_file(RECORD).decode())
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict) or any(there.get(k) != v for k, v in mine.items()):
        raise GpuzooError(
            f"output folder {folder.path} exists and does not hold forms of this run; "
            "name another with --out"
        )


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(folder: Folder, found: dict) -> None:
    from gpuzoo.report.compress import frontier

    folder.write_file(PICTURE, frontier(found))
    folder.write_file(RECORD, _json(found))


# --- trained forms ------------------------------------------------------------------


def _epochs(job: _Job, form: _Form) -> int:
    part, least = _EPOCHS[form.kind]
    return job.epochs or max(least, round(part * job.record["epochs"]))


def _changes(job: _Job, form: _Form) -> dict:
    """Return the fields of the recipe that a form is trained with."""
    recipe = job.recipe
    fields = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)
    }
    rate = job.learning_rate or recipe.learning_rate
    fields |= {
        "name": f"{recipe.name}_{form.name}".replace(".", "_"),
        "epochs": _epochs(job, form), "min_steps": 0, "learning_rate": rate,
    }  # fmt: skip
    if form.kind == "sparsity":
        # Weights of an earlier step would have fewer zeros.
        fields |= {
            "sparsity": form.value, "early_stopping": 0, "keep": "last", "monitor": "",
            "min_delta": 0.0,
        }  # fmt: skip
    if form.kind == "student":
        fields |= {
            "task": "distill", "model": form.value, "teacher_sha256": "",
            "model_options": job.student_options, "teacher": str(job.run),
        }  # fmt: skip
    return fields


def _start(job: _Job, form: _Form, note=lambda text: None):
    """Return the narrow model that a form's training starts from, None for the run's
    own or a new one, and what is known of it.

    Raises:
        GpuzooError: the model of the run has no such form.
    """
    from gpuzoo.deploy.trained import load

    compiled = job.record.get("compiled") or {}
    if compiled.get("optimizer") or compiled.get("loss"):
        raise GpuzooError(
            "the run was trained with the optimizer and the loss of a compiled model, "
            "which its forms would not be trained with; only int8 needs no training"
        )
    if job.recipe.task == "detect":
        raise GpuzooError(
            "an exported detector is compared with the run that it is made of, so that "
            "nothing would say what a trained form loses; only int8 is for detectors"
        )
    model = load(job.run, note=note, **job.load).model
    if form.kind != "width":
        return None, {}
    from gpuzoo.deploy import narrow  # imports Keras, which `load` has configured

    made = narrow.narrowed(model, form.value)
    return made.model, {"kept": made.kept, "whole": made.whole}


def _train(job: _Job, form: _Form) -> None:
    """Train a form into its run folder, or go on with a training that was interrupted.

    Raises:
        GpuzooError: the folder holds another run.
    """
    from gpuzoo import resume, train

    path, changes = job.folder(form), _changes(job, form)
    start, _ = _start(job, form)
    if os.path.lexists(path):
        _check_same(job, form, start, changes)
        if read_run(path)["state"] == "finished":
            return
        job.note(f"{form.name}: going on with {path}")
        drift = job.load["allow_drift"]
        summary = resume(path, allow_drift=drift, quiet=job.quiet)
    else:
        job.note(f"{form.name}: training")
        how = {"out": str(path), "quiet": job.quiet}
        if form.kind == "width":
            del changes["model"], changes["model_options"]
            summary = train(start, **how, **changes)
        else:
            init = str(job.run) if form.kind == "sparsity" else None
            summary = train(job.recipe.override(**changes), init=init, **how)
    if summary["state"] != "finished" or Interrupts.late:
        job.note("stopped; the same command goes on from here")
        raise KeyboardInterrupt
    if different := _other_data(job, read_run(path)):
        raise GpuzooError(f"{path}: {different}; restore the data of the run")


def _other_data(job: _Job, record: dict) -> str:
    """Return a fault if a form was trained on other data than the run, or ""."""
    same = record["data"]["fingerprint"] == job.record["data"]["fingerprint"]
    return "" if same else f"its data are not those of {job.run.name}"


def _check_same(job: _Job, form: _Form, start, changes: dict) -> None:
    """Raise GpuzooError unless the run folder of a form holds just this form."""
    path = job.folder(form)
    record = read_run(path)
    theirs, settled = recipe_of(record), ("teacher_sha256", "fallback_data")
    if form.kind == "width":
        settled = (*settled, "model", "model_options")
    different = [
        f"{name} {getattr(theirs, name)!r}, not {value!r}"
        for name, value in changes.items()
        if name not in settled and getattr(theirs, name) != value
    ]
    if start is not None:
        from gpuzoo.engine import model_objects

        recipe, described = architecture.recipe_for(start)
        given = model_objects.take(start, described, recipe, (), False)
        if given.as_record()["initial_weights_sha256"] != record.get(
            "initial_weights_sha256"
        ):
            different.append("other initial weights")
    weights = job.record["weights_sha256"]
    if form.kind == "student" and theirs.teacher_sha256 not in ("", weights):
        different.append("another teacher")
    init = (record.get("init") or {}).get("weights_sha256")
    if form.kind == "sparsity" and init != weights:
        different.append("other initial weights")
    if record["data"] and (other := _other_data(job, record)):
        different.append(other)
    if different:
        raise GpuzooError(
            f"{path} holds another training ({'; '.join(different)[:300]}); remove it, "
            "or name another folder with --out"
        )


# --- exports and figures ------------------------------------------------------------


def _export(job: _Job, form: _Form) -> dict:
    """Export a form, unless that is done; return what export.json holds."""
    path, out = job.folder(form), job.exported(form)
    record = read_run(path)
    if os.path.lexists(out):
        try:
            found = parse_json((out / exports.RECORD).read_text())
            entry = found["formats"][job.runtime]
            same = found["weights_sha256"] == record["weights_sha256"]
            same &= entry["quantized"] == ("int8" if form.int8 else None)
            same &= all(
                hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
                for name, sha256 in entry["files"].items()
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            same = False
        if not same:
            raise GpuzooError(
                f"{out} holds something else than this form, or was changed; remove "
                "it, or name another folder with --out"
            )
        return found
    job.note(f"{form.name}: exporting")
    bounds = exports.Bounds(max_loss=math.inf)  # it is judged with all forms
    found = exports.export(
        path, (job.runtime,), out=out, int8=form.int8, bounds=bounds, **job.load
    )
    if found["failures"]:
        raise CheckFailed(f"{form.name}: {'; '.join(found['failures'])}")
    return found


def _found(job: _Job, forms: list[_Form], entries: dict, max_loss: float) -> dict:
    """Measure the latencies; return the whole record."""
    from gpuzoo import __version__

    job.note(f"measuring the latency of {len(forms)} files in turns")
    first = entries["original"]
    times = exports.ask(
        {
            "format": job.runtime, "inputs": first["inputs"],
            "paths": [str(job.exported(f) / FORMATS[job.runtime][0]) for f in forms],
        },
        "gpuzoo.deploy.latency",
    )["seconds"]  # fmt: skip
    rows = [
        _row(job, form, entries, max_loss) | _latency(times[0], its)
        for form, its in zip(forms, times, strict=True)
    ]
    metric = first["formats"][job.runtime]["parity"]["metric"]
    failures = [row["refused"] for row in rows if row["refused"]]
    return private({
        "schema": SCHEMA, "gpuzoo": __version__, "run": redact(str(job.run)),
        **{name: job.record[key] for name, key in _IDENTITY.items()},
        "recipe": job.recipe.name, "model": job.recipe.model_name,
        "data": job.record["data"]["name"], "task": job.recipe.task,
        "runtime": job.runtime, "metric": metric["name"],
        "examples": first["formats"][job.runtime]["parity"]["examples"],
        "max_loss": max_loss,
        "latency": {
            "of": "one example on one thread, "
            + "without the transfer to Python; " * (job.runtime != "openvino")
            + "median of turns of all files in one process",
            "turns": len(times[0]), "cpu": cpu_model(),
        },
        "forms": rows,
        "frontier": {key: _frontier(rows, key, metric["name"]) for key in _SIZES},
        "failures": failures, "folder": redact(str(job.out)),
        "libraries": first["libraries"],
    })  # fmt: skip


def _latency(whole: list[float], its: list[float]) -> dict:
    """Return the latency of a form, and how much faster it is than the original.

    Args:
        whole, its: seconds of the original and of this form in each turn.
    """
    return {
        "latency_us": 1e6 * statistics.median(its),
        "latency_us_least": 1e6 * min(its),
        "times_faster": statistics.median(
            one / other for one, other in zip(whole, its, strict=True)
        ),
    }


def _row(job: _Job, form: _Form, entries: dict, max_loss: float) -> dict:
    """Return the figures of one form, but for its latency."""
    entry = entries[form.name]["formats"][job.runtime]
    first = entries["original"]["formats"][job.runtime]
    metric = {**entry["parity"]["metric"], "run": first["parity"]["metric"]["run"]}
    lost, refused = _verdict(form.name, metric, max_loss)
    packed = _packed(job.exported(form), entry)
    trained = read_run(job.folder(form))
    return {
        "name": form.name, "kind": form.kind or "original", "int8": form.int8,
        "of": form.value, "run": redact(str(job.folder(form))),
        "export": redact(str(job.exported(form))),
        "weights_sha256": trained["weights_sha256"], "sha256": entry["sha256"],
        "parameters": trained["parameters"], "epochs": trained["epochs"],
        "train_seconds": trained["seconds"]["train"],
        "bytes": entry["bytes"], "times_smaller": first["bytes"] / entry["bytes"],
        "gzip_bytes": packed,
        "times_smaller_gzip": _packed(job.exported(_Form("original")), first) / packed,
        "value": metric["artefact"], "lost": lost, "refused": refused,
    }  # fmt: skip


def _verdict(name: str, metric: dict, max_loss: float) -> tuple[float, str]:
    """Return what a form loses, and why that is too much, or "".

    Args:
        metric: its `name`, the value of the run and that of the form's `artefact`.
    """
    lost = exports.loss_of(metric)
    if name == "original" or lost <= max_loss:
        return lost, ""
    unit = "percent more error" if metric["name"] == "error" else "points lost"
    return lost, f"{name}: {lost:.2f} {unit}, more than --max-loss {max_loss:g}"


def _packed(folder: pathlib.Path, entry: dict) -> int:
    """Return the bytes of an exported form in gzip."""
    contents = b"".join((folder / name).read_bytes() for name in entry["files"])
    return len(gzip.compress(contents, 9, mtime=0))


def _frontier(rows: list[dict], key: str, metric: str) -> list[str]:
    """Return the names of the rows that no other one beats: none is at least as good
    in both the value and the key, and better in one."""
    sign = 1 if metric == "error" else -1
    points = [(sign * row["value"], row[key]) for row in rows]
    return [
        row["name"]
        for row, (value, size) in zip(rows, points, strict=True)
        if not any(
            a <= value and b <= size and (a, b) != (value, size) for a, b in points
        )
    ]
