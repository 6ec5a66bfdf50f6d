"""`gpuzoo export`: a trained run in formats of other runtimes, each one checked.

The run is loaded in float32 in a process of its own, whatever it was trained in, and
converted there; each file is then executed by its own runtime, in a process without
Keras, on the whole test set. All formats are written, or none.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterator

from gpuzoo import workers
from gpuzoo.data import identities
from gpuzoo.deploy.runtimes import FORMATS
from gpuzoo.errors import GpuzooError
from gpuzoo.files import MARKER, expand, make_temporary_folder, write_atomically
from gpuzoo.runs.record import private, read_run, recipe_of
from gpuzoo.runtime.environment import available_cores, is_installed, version_of
from gpuzoo.runtime.options import COMPARED
from gpuzoo.training.interrupts import Interrupts

SCHEMA = 1
RECORD = "export.json"
INT8 = ("litert", "onnx")
# Tasks whose models take no examples: what is exported is always the generator.
GENERATORS = ("adversarial", "diffusion")
_SECONDS = 3600
# Format -> the packages that make and check it; those of the extra `export` are found
# by these names, TensorFlow and JAX have extras of their own.
_NEEDS = {
    "saved_model": ("tensorflow",),
    "onnx": ("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
    "litert": ("tensorflow", "ai_edge_litert"),
    "openvino": ("tensorflow", "tf2onnx", "onnx", "openvino"),
    "stablehlo": ("jax",),
}

# Other names of the formats.
_SAME = {
    "tflite": "litert (the new name of TensorFlow Lite)",
    "tensorflow_lite": "litert (the new name of TensorFlow Lite)",
    **dict.fromkeys(("pb", "savedmodel", "tf", "tensorflow"), "saved_model"),
    **dict.fromkeys(("ir", "xml", "bin"), "openvino (its files are .xml and .bin)"),
    **dict.fromkeys(("hlo", "mlir", "jax"), "stablehlo"),
}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a format may change before the export fails."""

    max_difference: float | None = None
    """Largest difference of an output from Keras's in float32; default: 0.001, of
    images 1 of 255. Not for --int8."""
    max_changed: float = 0.02
    """Largest fraction of test examples with another prediction than the run's: another
    class, or a difference above --max-difference (of a run in 16 bits 0.05, of images
    10 of 255). Not for --int8."""
    max_loss: float = 1.0
    """With --int8: largest loss of accuracy in points; of an error, growth in
    percent."""


def export(
    run: str | pathlib.Path,
    formats: tuple[str, ...] = ("onnx",),
    *,
    out: str | pathlib.Path | None = None,
    generate: bool = False,
    int8: bool = False,
    calibration: int = 300,
    bounds: Bounds | None = None,
    allow_drift: bool = False,
    trust_code: bool = False,
    note=lambda text: None,
) -> dict:
    """Export a trained run; return what export.json holds, and two more fields.

    Args:
        run: the run folder.
        formats: names from gpuzoo/deploy/runtimes.py.
        out: a folder that does not exist; default: beside the run.
        generate: export the generator of a model that also takes images.
        int8: quantize weights and activations, by `calibration` training examples.
        bounds: limits of the checks.
        allow_drift: export although the code of the model has changed.
        trust_code: execute the run's own code, if its model is in a user's file.
        note: called with lines of progress.

    Returns:
        The record with `failures`, lines about checks that failed, and `folder`; with
        failures there is no folder.

    Raises:
        GpuzooError: an unknown format, a missing library, a model that a format cannot
            represent, or an unreadable run.
    """
    path = expand(run)
    record, bounds = read_run(path), bounds or Bounds()
    check_options(record, formats, generate, int8, calibration, bounds)
    folder = expand(out or f"{path.resolve()}-export{'-int8' * int8}")
    check_free(folder)
    with (
        Interrupts(),
        _staging(folder) as staging,
        tempfile.TemporaryDirectory() as arrays,
    ):
        job = {
            "run": str(path), "staging": str(staging), "arrays": arrays,
            "generate": generate, "int8": int8, "examples": calibration,
            "allow_drift": allow_drift, "trust_code": trust_code,
        }  # fmt: skip
        made = _convert(job, formats, note)
        compared_with = _predict_as_the_run(job, record, formats, note)
        entries = {}
        for name in formats:
            note(f"{name}: comparing its predictions")
            parity = _check(name, staging, arrays, made, bounds, record, compared_with)
            parity["bounds"] = _bounds(bounds, parity, int8)
            entries[name] = {
                **_files(staging, name), **made["formats"][name],
                "quantized": "int8" if int8 else None, "parity": parity,
            }  # fmt: skip
        found = _described(record, made, entries)
        failures = [line for name in formats for line in _faults(name, found, bounds)]
        if not failures:
            text = json.dumps(found, indent=1) + "\n"
            write_atomically(staging / RECORD, text.encode())
            _publish(staging, folder)
    return {**found, "failures": failures, "folder": "" if failures else str(folder)}


def check_options(record, formats, generate, int8, calibration, bounds) -> None:
    """Raise GpuzooError for options that do not fit each other or the run."""
    known = ", ".join(FORMATS)
    if not formats or len(set(formats)) < len(formats):
        raise GpuzooError(f"to must name formats, each once: {known}")
    for name in formats:
        if name not in FORMATS:
            close = _SAME.get(name.lower().strip("."), "")
            close = close or difflib.get_close_matches(name, FORMATS, 1, 0)[0]
            raise GpuzooError(f"to must be some of {known}: {name!r}; nearest: {close}")
        if int8 and name not in INT8:
            raise GpuzooError(
                f"--int8 is for {' and '.join(INT8)}, not for {name}; leave one out"
            )
        for package in _NEEDS[name]:
            if not is_installed(package):
                extra = package if package in ("tensorflow", "jax") else "export"
                raise GpuzooError(
                    f"{name} needs {package}, which is not installed; run: pip install "
                    f"'gpuzoo[{extra}]'"
                )
    task = record["recipe"]["task"]
    table = (record.get("data") or {}).get("table")
    if table and (fault := _too_fine(table, record["data"].get("scale"))):
        raise GpuzooError(fault)
    if int8 and table:
        raise GpuzooError(
            "--int8 is not for tables: 8 bits do not hold the numbers of a column, "
            "which the exported model prepares itself"
        )
    if int8 and (generate or task in GENERATORS):
        raise GpuzooError(
            "--int8 is not for generators: generated images have no target, so that "
            "nothing would say how much quality is lost"
        )
    if int8 and task == "classify_audio" and "litert" in formats:
        raise GpuzooError(
            "--int8 --to litert is not for sounds: the spectrogram would be computed "
            "in 8 bits, which do not hold its range; use --to onnx, where it stays in "
            "float32"
        )
    if type(calibration) is not int or calibration < 1:
        raise GpuzooError(f"calibration must be at least 1 example: {calibration}")
    for field in dataclasses.fields(Bounds):
        value = getattr(bounds, field.name)
        if value is not None and not value >= 0:
            raise GpuzooError(f"{field.name} must be 0 or more: {value}")


def _too_fine(table: dict, scale) -> str | None:
    """Return which column float32, in which exported models take and give numbers,
    does not hold to a thousandth of its standard deviation; None: it holds all."""
    columns = [(one["name"], one["mean"], one["deviation"]) for one in table["numeric"]]
    if scale:
        columns.append((table["target"]["name"], *scale))
    for name, mean, deviation in columns:
        if abs(mean) * 2.0**-24 > 1e-3 * deviation:
            return (
                f"column {name!r} is not exported: float32 does not hold numbers "
                f"around {mean:g} that differ by {deviation:g}; subtract a number from "
                "the column, and train again"
            )
    return None


def check_free(folder: pathlib.Path) -> None:
    """Raise GpuzooError unless a new folder can be made there."""
    if os.path.lexists(folder):
        raise GpuzooError(f"{folder} exists; remove it, or name another with --out")
    if not folder.parent.is_dir():
        raise GpuzooError(f"there is no folder {folder.parent} to write the export in")


@contextlib.contextmanager
def _staging(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Make a temporary folder beside the final one; remove it unless published."""
    try:
        staging = make_temporary_folder(folder.parent)
    except OSError as error:
        raise GpuzooError(
            f"{folder.parent} cannot be written: {error.strerror or error}"
        ) from None
    try:
        yield staging
    finally:
        if staging.is_dir():
            shutil.rmtree(staging)


def _publish(staging: pathlib.Path, folder: pathlib.Path) -> None:
    (staging / MARKER).unlink()
    mode = stat.S_IMODE(folder.parent.stat().st_mode)
    staging.chmod(0o700 | mode & 0o055)
    try:
        staging.rename(folder)
    except OSError as error:
        raise GpuzooError(f"{folder} cannot be made: {error.strerror}") from None


def _convert(job: dict, formats, note) -> dict:
    """Make all formats; return what the worker says of them.

    Raises:
        GpuzooError: a format cannot represent the model.
    """
    parts = {
        "tensorflow": [name for name in formats if name != "stablehlo"],
        "jax": [name for name in formats if name == "stablehlo"],
    }
    found: dict = {}
    for backend, names in parts.items():
        if not names:
            continue
        note(f"{', '.join(names)}: converting in float32 on the CPU")
        # Both predict the same up to rounding: the first one's are compared with.
        answer = ask(
            {
                **job, "backend": backend, "formats": names,
                "predictions": "" if found else "float32",
            }
        )  # fmt: skip
        for line in answer.pop("notes"):
            # The conversion's own settings: _predict_as_the_run has the run's.
            if not line.startswith(tuple(f"{name} is " for name in COMPARED)):
                note(line)
        if answer["failures"]:
            lines = "; ".join(f"{k}: {why}" for k, why in answer["failures"].items())
            raise GpuzooError(
                f"nothing was written, as the model cannot be converted: {lines}"
            )
        formats_before = found.get("formats", {})
        found = {**answer, **found}
        found["formats"] = {**formats_before, **answer["formats"]}
    return found


def _predict_as_the_run(job: dict, record: dict, formats, note) -> str:
    """Write the run's own predictions, in its own backend and precision; return "run".

    If that is not possible here, write those in float32 on the CPU; return "float32".
    """
    arrays, runtime = pathlib.Path(job["arrays"]), record["runtime"]
    plain = {"backend": "tensorflow", "device": "cpu", "precision": "float32"}
    # For StableHLO alone, JAX has predicted them.
    by_tensorflow = any(name != "stablehlo" for name in formats)
    same = all(runtime[k] == v for k, v in plain.items()) and not runtime["xla"]
    if same and by_tensorflow:
        shutil.copyfile(arrays / "float32.npz", arrays / "run.npz")
        return "run"
    how = f"{runtime['backend']}, {runtime['precision']}"
    note(f"predicting as the run did: {how}")
    request = {**job, "backend": "", "formats": [], "predictions": "run"}
    try:
        ask(request)
    except GpuzooError as error:
        note(f"the run's own predictions ({how}) are replaced by float32's: {error}")
        shutil.copyfile(arrays / "float32.npz", arrays / "run.npz")
        return "float32"
    return "run"


def ask(request: dict, module: str = "gpuzoo.deploy.export_worker") -> dict:
    dropped = ("KERAS_BACKEND", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    environment |= {
        # ONNX files follow the order of Python's sets.
        "PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }  # fmt: skip
    answer = workers.ask(module, request, environment, _SECONDS)
    if "error" in answer:
        raise GpuzooError(answer["error"])
    return answer


def _check(
    name: str, staging, arrays: str, made: dict, bounds, record, compared_with: str
) -> dict:
    images = any(one["dtype"] == "uint8" for one in made["outputs"])
    tolerance = bounds.max_difference
    if tolerance is None:
        tolerance = 1.0 if images else 1e-3
    rounded = compared_with == "run" and record["runtime"]["precision"] != "float32"
    request = {
        "path": str(staging / FORMATS[name][0]), "format": name, "arrays": arrays,
        "batch": min(256, made["batch"]), "threads": available_cores(),
        "tolerance": tolerance,
        "run_tolerance": max(tolerance, rounded * (10.0 if images else 0.05)),
    }  # fmt: skip
    if any(one.get("name") == "value" for one in made["outputs"]):  # of a table
        request["unit"] = record["data"]["scale"][1]
    try:
        parity = ask(request, "gpuzoo.deploy.parity")
    except GpuzooError as error:
        raise GpuzooError(
            f"nothing was written: {name} does not run: {error}"
        ) from error
    return {**parity, "tolerance": tolerance, "compared_with": compared_with}


def _bounds(bounds: Bounds, parity: dict, int8: bool) -> dict:
    """Return the bounds that decide whether the export fails; of int8 `max_loss`, in
    points of accuracy or percent of an error, the tolerance only counts changes."""
    if int8:
        bounded = bounds.max_loss < math.inf  # JSON has no infinity
        return {"max_loss": bounds.max_loss if bounded else None}
    return {
        "max_difference": parity["tolerance"], "max_changed": bounds.max_changed,
    }  # fmt: skip


def _files(staging: pathlib.Path, name: str) -> dict:
    """Return the files of a format, their bytes and one digest over all."""
    first = staging / FORMATS[name][0]
    paths = sorted(one for one in first.rglob("*") if one.is_file())
    if first.is_file():
        paths = [first, first.with_suffix(".bin")] if name == "openvino" else [first]
    digests = {
        str(one.relative_to(staging)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in paths
    }
    whole = "".join(f"{digest}  {file}\n" for file, digest in digests.items())
    return {
        "file": first.name,
        "files": digests,
        "sha256": digests[first.name]
        if len(digests) == 1
        else hashlib.sha256(whole.encode()).hexdigest(),
        "bytes": sum(one.stat().st_size for one in paths),
    }


def _described(record: dict, made: dict, entries: dict) -> dict:
    from gpuzoo import __version__

    recipe, data = recipe_of(record), record["data"]
    inside = [
        line
        for line, there in (
            ("pixels as numbers in [0, 1]", made["inputs"][0]["dtype"] == "uint8"),
            ("samples as numbers in [-1, 1)", made["inputs"][0]["dtype"] == "int16"),
            ("preparation of the columns by `table`", bool(data.get("table"))),
            (f"test-time augmentation: {recipe.tta}", recipe.tta != "none"),
            ("softmax", made["outputs"][0]["name"] == "probabilities"),
            ("softmax and the largest class", made["outputs"][0]["name"] == "mask"),
            ("sigmoid", made["outputs"][0]["name"] == "label_probabilities"),
        )
        if there
    ]
    return private({
        "schema": SCHEMA, "gpuzoo": __version__, "run_id": record["id"],
        "weights_sha256": record["weights_sha256"], "recipe": recipe.name,
        "task": recipe.task, "model": recipe.model_name, "data": data["name"],
        # Names of identities of the training are no outputs of the model.
        "classes": [] if recipe.task == identities.TASK else data["classes"],
        "scale": data.get("scale"),
        "table": data.get("table"),
        "series": data.get("series"),
        "text": data.get("text"),
        "generates": made["outputs"][0]["name"] == "samples",
        "input": made["inputs"][0], "inputs": made["inputs"],
        "outputs": made["outputs"], "inside": inside,
        "trained_with": {
            name: record["runtime"][name] for name in ("backend", "precision")
        },
        "formats": entries,
        "libraries": {
            name: version
            for name in (
                "tensorflow", "keras", "jax", "numpy", "tf2onnx", "onnx", "onnxruntime",
                "openvino", "ai-edge-litert",
            )
            if (version := version_of(name))
        },
    })  # fmt: skip


def _faults(name: str, found: dict, bounds: Bounds) -> list[str]:
    """Return a line for each bound that a format exceeds."""
    entry = found["formats"][name]
    parity, lines = entry["parity"], []
    run = "the run's" if parity["compared_with"] == "run" else "Keras's in float32"
    if entry["quantized"]:
        lost = loss_of(parity["metric"])
        if not lost <= bounds.max_loss:
            what = parity["metric"]["name"]
            unit = "percent more" if what == "error" else "points less"
            lines.append(
                f"{name}, int8: {what} {parity['metric']['artefact']}, {lost:.2f} "
                f"{unit} than {run}, above --max-loss {bounds.max_loss:g}"
            )
        return lines
    apart = parity["largest_difference"]
    if apart is None or apart > parity["tolerance"]:
        by = "an output that is not finite" if apart is None else f"{apart:.3g}"
        lines.append(
            f"{name}: differs from Keras by {by}, above --max-difference "
            f"{parity['tolerance']:g}"
        )
    # The steps of a generator carry the rounding of 16 bits on, to other images.
    rounded = found["trained_with"]["precision"] != "float32"
    if found["generates"] and rounded and parity["compared_with"] == "run":
        return lines
    if parity["changed_predictions"] > bounds.max_changed * parity["examples"]:
        lines.append(
            f"{name}: {parity['changed_predictions']} of {parity['examples']} "
            f"predictions are not {run}, above --max-changed {bounds.max_changed:g}"
        )
    return lines


def loss_of(metric: dict) -> float:
    """Return what a metric has lost: points, or of an error percent more."""
    run, now = metric["run"], metric["artefact"]
    if run is None or now is None:
        return float("inf")
    if metric["name"] != "error":
        return 100 * (run - now)
    return 100 * (now / run - 1) if run else float("inf") * (now > run)
