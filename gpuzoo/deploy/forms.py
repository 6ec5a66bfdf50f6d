"""The forms that `gpuzoo compress` makes of a run, and their training.

Each trained form is an ordinary run folder; one that has finished is kept, one that was
interrupted goes on.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from gpuzoo.catalogue import architecture
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError
from gpuzoo.runs.record import read_run, recipe_of
from gpuzoo.training.interrupts import Interrupts

# Epochs of a training as a part of the run's, and how many at least. The learning rate
# and its schedule are those of the run: Renda, Frankle and Carbin, arXiv 2003.02389.
_EPOCHS = {"width": (0.5, 5), "sparsity": (0.5, 5), "student": (2, 8)}


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
class Form:
    """One form: what it is, and what it is made of."""

    name: str
    kind: str = ""  # width, sparsity or student, if it is trained
    value: Any = None  # the fraction, or the name of the student
    base: str = ""  # of a quantized one: the form that it is made of
    int8: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a call of `compress`."""

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

    def folder(self, form: Form) -> pathlib.Path:
        """Return the run folder of a form."""
        name = form.base or form.name
        return self.run if name == "original" else self.out / name

    def exported(self, form: Form) -> pathlib.Path:
        return self.out / f"{form.name}-{self.runtime}"


def planned_forms(forms: Forms) -> list[Form]:
    """Return the forms, each one before those that are made of it."""
    made = [Form("original")]
    made += [Form(f"width-{one:g}", "width", one) for one in forms.width]
    made += [Form(f"sparsity-{one:g}", "sparsity", one) for one in forms.sparsity]
    if forms.student:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", forms.student)
        made.append(Form(f"student-{name}", "student", forms.student))
    if forms.int8:
        for form in list(made):
            name = "int8" if form.name == "original" else f"{form.name}-int8"
            made.append(Form(name, form.kind, form.value, form.name, True))
    return made


def epochs_of(job: Job, form: Form) -> int:
    part, least = _EPOCHS[form.kind]
    return job.epochs or max(least, round(part * job.record["epochs"]))


def _changes(job: Job, form: Form) -> dict:
    """Return the fields of the recipe that a form is trained with."""
    recipe = job.recipe
    fields = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)
    }
    rate = job.learning_rate or recipe.learning_rate
    fields |= {
        "name": f"{recipe.name}_{form.name}".replace(".", "_"),
        "epochs": epochs_of(job, form), "min_steps": 0, "learning_rate": rate,
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


def start_of(job: Job, form: Form, note=lambda text: None):
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
            "which its variants would not use; only int8 needs no training"
        )
    if job.recipe.task == "detect":
        raise GpuzooError(
            "the detections of an exported file are compared with its own run only, so "
            "the loss of a trained variant cannot be measured; detectors take only int8"
        )
    trained = load(job.run, note=note, **job.load)
    if form.kind == "student":  # imports Keras, which `load` has configured
        from gpuzoo.training import build

        recipe = job.recipe.override(**_changes(job, form))
        build.build_for_shape(recipe, trained.dataset)
    if form.kind != "width":
        return None, {}
    from gpuzoo.deploy import narrow

    made = narrow.narrowed(trained.model, form.value)
    return made.model, {"kept": made.kept, "whole": made.whole}


def train_form(job: Job, form: Form) -> None:
    """Train a form into its run folder, or go on with a training that was interrupted.

    Raises:
        GpuzooError: the folder holds another run.
    """
    from gpuzoo import resume, train

    path, changes = job.folder(form), _changes(job, form)
    start, _ = start_of(job, form)
    if os.path.lexists(path):
        check_same(job, form, start)
        if is_finished(job, form):
            return
        job.note(f"{form.name}: resuming {path}")
        drift = job.load["allow_drift"]
        summary = resume(path, allow_drift=drift, quiet=job.quiet)
    else:
        begins = {
            "width": f"from the weights of {job.run.name}, narrowed",
            "sparsity": f"from the weights of {job.run.name}",
            "student": f"from new weights, with {job.run.name} as its teacher",
        }[form.kind]
        job.note(f"{form.name}: training {begins}")
        how = {"out": str(path), "quiet": job.quiet}
        if form.kind == "width":
            del changes["model"], changes["model_options"]
            summary = train(start, **how, **changes)
        else:
            init = str(job.run) if form.kind == "sparsity" else None
            summary = train(job.recipe.override(**changes), init=init, **how)
    if summary["state"] != "finished" or Interrupts.late:
        job.note("stopped; run the same command again to continue")
        raise KeyboardInterrupt
    if different := _other_data(job, read_run(path)):
        raise GpuzooError(f"{path}: {different}; restore the data of the run")


def _other_data(job: Job, record: dict) -> str:
    """Return a fault if a form was trained on other data than the run, or ""."""
    same = record["data"]["fingerprint"] == job.record["data"]["fingerprint"]
    return "" if same else f"its data are not those of {job.run.name}"


def is_finished(job: Job, form: Form) -> bool:
    """Whether the run folder of a form is there and its training has ended."""
    path = job.folder(form)
    return os.path.lexists(path) and read_run(path)["state"] == "finished"


def check_same(job: Job, form: Form, start) -> None:
    """Raise GpuzooError unless the run folder of a form, if any, holds just this form;
    `start`: see `start_of`."""
    path, changes = job.folder(form), _changes(job, form)
    if not os.path.lexists(path):
        return
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
