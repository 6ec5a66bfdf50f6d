"""Size, latency and quality of the forms of `gpuzoo compress`.

Each form is exported and measured in its runtime; an export that is there is recognized
by its record and kept.
"""

import gzip
import hashlib
import math
import os
import pathlib
import statistics

from gpuzoo.deploy import export as exports
from gpuzoo.deploy.forms import Form, Job
from gpuzoo.deploy.runtimes import FORMATS
from gpuzoo.errors import CheckFailed, GpuzooError
from gpuzoo.files import parse_json
from gpuzoo.home import redact
from gpuzoo.runs.record import private, read_run
from gpuzoo.runtime.environment import cpu_model

SCHEMA = 1
# Of a run: the keys of compress.json that name it -> those of run.json.
IDENTITY = {"run_id": "id", "weights_sha256": "weights_sha256"}
_SIZES = ("bytes", "gzip_bytes", "latency_us")


def kept_export(job: Job, form: Form) -> dict | None:
    """Return what export.json of a finished form holds; None: it is not exported yet.

    Raises:
        GpuzooError: there is something else.
    """
    out = job.exported(form)
    record = read_run(job.folder(form))
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
                f"{out} is not this variant, or was changed; remove it, or name "
                "another folder with --out"
            )
        return found
    return None


def export_form(job: Job, form: Form) -> dict:
    """Export a form, unless that is done; return what export.json holds."""
    if found := kept_export(job, form):
        return found
    path, out = job.folder(form), job.exported(form)
    job.note(f"{form.name}: exporting")
    bounds = exports.Bounds(max_loss=math.inf)  # it is judged with all forms
    found = exports.export(
        path, (job.runtime,), out=out, int8=form.int8, bounds=bounds, **job.load
    )
    if found["failures"]:
        raise CheckFailed(f"{form.name}: {'; '.join(found['failures'])}")
    return found


def figures(job: Job, forms: list[Form], entries: dict, max_loss: float) -> dict:
    """Measure the latencies; return the whole record."""
    from gpuzoo import __version__

    job.note(f"measuring the latency of {len(forms)} files alternately")
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
        **{name: job.record[key] for name, key in IDENTITY.items()},
        "recipe": job.recipe.name, "model": job.recipe.model_name,
        "data": job.record["data"]["name"], "task": job.recipe.task,
        "runtime": job.runtime, "metric": metric["name"],
        "examples": first["formats"][job.runtime]["parity"]["examples"],
        "value_of_run": metric["run"], "precision": job.record["runtime"]["precision"],
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


def _row(job: Job, form: Form, entries: dict, max_loss: float) -> dict:
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
        "times_smaller_gzip": _packed(job.exported(Form("original")), first) / packed,
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
