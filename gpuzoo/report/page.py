"""report.html of a run: one page that loads nothing from elsewhere.

It follows from run.json, the files that run.json lists and verify.json alone: the same
run gives the same bytes. Class names, paths and texts of the record may come from
anybody; Jinja escapes them.
"""

import base64
import functools
import hashlib
import json
import math
import pathlib
import re
import shlex
from collections.abc import Callable

import jinja2
import markupsafe

from gpuzoo.catalogue.model_info import ARCHITECTURE
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, new_file, parse_json, read_inside
from gpuzoo.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, chart, number
from gpuzoo.runs import derived, evaluation
from gpuzoo.runs.folder import RunFolder
from gpuzoo.runs.record import checked, read_run, seal

ROWS = 200
"""Rows of a table of evaluations at most."""
_MATRIX = 100  # classes whose confusion matrix is a table at most
_LARGEST = 8_000_000  # bytes of a picture in the page
# Task -> its main metric and the unit of that. All others: accuracy, else the loss.
# gpuzoo.tasks says the same, but imports Keras.
_MAIN = {
    "adversarial": ("frechet", ""), "diffusion": ("frechet", ""),
    "autoencode": ("loss", "nats per image"), "detect": ("map50", ""),
    "forecast": ("loss", ""), "regress_table": ("r2", ""),
    "segment": ("mean_iou", ""), "embed": ("eer", ""),
    "video_prediction": ("error", ""),
}  # fmt: skip
# All but curves.png, which is drawn here as SVG.
_PICTURES = {
    "confusion.png": (
        "Confusion matrix",
        "Rows are the true classes, columns the predicted ones; the numbers count test "
        "examples.",
    ),
    "similarities.png": (
        "Similarities of pairs",
        "Test images of one identity and of different ones; the threshold, at which "
        "both errors are equal, was chosen on these pairs.",
    ),
    "worst_pairs.png": (
        "Worst pairs",
        "Above images of one identity that are least alike, below images of two "
        "identities that are most alike, with their similarity.",
    ),
    "mistakes.png": (
        "Most confident mistakes",
        "The wrongly classified test examples of highest confidence, each with its "
        "true class, the predicted one and the confidence.",
    ),
    "film_mistakes.png": (
        "Most confident mistakes",
        "Frames of the wrongly classified test films of highest confidence, with the "
        "true class, the predicted one and the confidence.",
    ),
    "reconstructions.png": (
        "Reconstructions",
        "Test images, each above its reconstruction by the model.",
    ),
    "detections.png": (
        "Detections",
        "Test scenes with the true boxes in grey and the detected ones in red, with "
        "class and confidence.",
    ),
    "segmentations.png": (
        "Segmentations",
        "Test images: the image, its mask, the predicted mask, and the mistakes in "
        "red; grey pixels have no known class.",
    ),
    "confusion_of_pixels.png": (
        "Confusion of pixels",
        "Of the pixels of each class, what part is predicted as which; at the right "
        "the intersection over union (IoU).",
    ),
    "forecasts.png": (
        "Forecasts",
        "Six windows of the test series: the past, the actual values and the forecast.",
    ),
    "predicted_true.png": (
        "Predicted and true values",
        "Each point is a test row; on the line the prediction is right.",
    ),
    "residuals.png": (
        "Residuals",
        "True minus predicted values of the test rows, and how often they occur.",
    ),
    "frames.png": (
        "Next frames",
        "Rows: the last frame that the model saw, the true next frame, its forecast.",
    ),
    "samples.png": (
        "Generated images",
        "Images that the trained model generated from random codes.",
    ),
    "samples.gif": (
        "Generated images during the training",
        "An animation: images from the same codes after each evaluation.",
    ),
}
_GROUPS = {
    "recipe": "Settings of the recipe", "options": "Runtime options that were given",
    "runtime": "Runtime that was used", "environment": "Environment and versions",
    "data": "Data", "compiled": "Compiled settings of the model object",
    "metrics": "Metrics", "evaluation": "Figures of the test examples",
    "seconds": "Seconds", "files": "Files and their sha256",
    "code": "Modules of the training and the digests of their code",
    "inputs": "Inputs of user code", "resumed": "Resumptions",
    "trail": "Chain of the digests", "checkpoints": "Checkpoints for audits",
    "diagnosis": "Diagnosis",
}  # fmt: skip


def report(
    run: str | pathlib.Path, out: str | None = None, note=lambda text: None
) -> pathlib.Path:
    """Write the report of a run again; return its path.

    Args:
        run: the run folder.
        out: a new file instead of report.html in the run folder.
        note: called with lines for the user.

    Raises:
        GpuzooError: it is not a run folder, another process has locked it, or the page
            cannot be written.
    """
    path = expand(run)
    goal = expand(out) if out else path / derived.REPORT
    try:
        if out:
            read_run(path, sealed=False)  # names what is wrong with the folder
            content = render(path, lambda name: read_inside(path, name))
            write_new(goal, content)
        else:
            with RunFolder.open(path, sealed=False) as folder:
                folder.say = note
                write(folder)
    except OSError as error:
        hint = "" if out else "; write it elsewhere with --out"
        raise GpuzooError(
            f"{goal} cannot be written: {error.strerror or error}{hint}"
        ) from None
    return goal


def write_new(goal: pathlib.Path, content: bytes, option: str = "--out") -> None:
    """Write a file that must not exist.

    Raises:
        GpuzooError: there is one.
    """
    try:
        with new_file(goal) as file:
            file.write(content)
    except FileExistsError:
        raise GpuzooError(f"{option} {goal} exists; name a new file") from None


def write(folder: RunFolder) -> None:
    """Write report.html into the folder of a run.

    Raises:
        GpuzooError: run.json is damaged, or of another run by now.
        OSError: a file cannot be read or written.
    """
    folder.write_file(derived.REPORT, render(folder.path, folder.read_file))


def render(path: pathlib.Path, read: Callable[[str], bytes]) -> bytes:
    """Return the page of a run.

    Args:
        path: of the run folder, for messages.
        read: name of a file in it -> content; raises OSError.

    Raises:
        GpuzooError: run.json is missing or damaged.
    """
    record = checked(path, read, sealed=False)
    run_id = record.get("id", "")
    if run_id and not (run_id.isascii() and run_id.isalnum()):  # it is in a comment
        raise GpuzooError(f"{path / 'run.json'} is not valid: id {run_id!r:.60}")
    try:
        page = _page(record, read)
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError) as error:
        raise GpuzooError(f"{path / 'run.json'} is not valid: {error!r}") from error
    return derived.stamp(page, run_id)


def _page(record: dict, read) -> bytes:
    rows, notes = read_rows(record, read)
    pictures, missing = _pictures(record, read)
    figures, unread = _figures(record, read)
    verdict = _verdict(record, read)
    context = {
        "record": record,
        "title": _title(record),
        "model": _model(record),
        "main": main_metric(record),
        "metrics": {k: number(float(v)) for k, v in record["metrics"].items()},
        "edited": record["seal"] != seal(record),
        "notes": [*_notes(record), *notes, *missing, *unread],
        "verdict": verdict,
        "of_both": [
            (row["name"], number(row["recorded"]), number(row["here"]))
            for row in (verdict or {}).get("compared", [])
        ],
        "charts": charts(rows),
        "only_in_training": only_in_training(record["recipe"]),
        "evaluations": evaluations(rows),
        "figures": figures,
        "pictures": pictures,
        "command": command_of(record),
        "groups": _groups(record),
        "raw": json.dumps(record, indent=1, ensure_ascii=False),
    }
    return fill("run.html", **context)


def fill(template: str, **context) -> bytes:
    """Return a page of one of the templates; what UTF-8 lacks is written `\\udc80`."""
    text = _templates().get_template(template).render(**context)
    return text.encode("utf-8", "backslashreplace")


@functools.cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"digest": _digest, "cell": _cell, "name": _name}
    made.globals["size"] = {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT,
        "top": TOP,
    }  # fmt: skip
    return made


def _digest(text: str) -> str:
    """Return the hash of an inline script or style, as its policy takes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _name(text: str) -> markupsafe.Markup:
    """Return the name of a field, that may be broken between its words."""
    return markupsafe.Markup(
        re.sub("([_./])", r"\1<wbr>", str(markupsafe.escape(text)))
    )


def _cell(value) -> str:
    """Return a value of a record as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        simple = all(not isinstance(one, list | dict) for one in value)
        return ", ".join(map(_cell, value)) if simple else json.dumps(value)
    return str(value) or "(empty)"


# --- parts of the page --------------------------------------------------------------


def _title(record: dict) -> str:
    recipe, data = record["recipe"], record["data"] or {}
    return f"{recipe['name']}: {_model(record)} on {data.get('name', recipe['data'])}"


def _model(record: dict) -> str:
    model = record["recipe"]["model"]
    return "own model" if model == ARCHITECTURE else model


def main_metric(record: dict) -> tuple[str, str] | None:
    """Return name and value, as text, of the main metric of a run; None before it has
    one."""
    metrics = record["metrics"]
    name, unit = _MAIN.get(record["recipe"]["task"], ("accuracy", ""))
    if f"test_{name}" not in metrics:
        name, unit = "loss", ""
    value = metrics.get(f"test_{name}")
    if value is None:
        return None
    part = name in ("accuracy", "eer")
    text = f"{value:.2%}" if part else f"{number(value)} {unit}"
    return f"test {name}", text.strip().replace("%", " %")


def only_in_training(recipe: dict) -> str:
    """Return the terms of the training loss that the test loss lacks."""
    found = []
    if recipe["task"] == "classify_robust":
        found.append("attacks")
    if recipe["label_smoothing"]:
        found.append(f"label smoothing {recipe['label_smoothing']:g}")
    if recipe["task"] == "distill" and recipe["distill_alpha"]:
        found.append("the teacher")
    return " and ".join(found)


def _notes(record: dict) -> list[str]:
    """Return what a reader must know besides the result."""
    found = []
    if record.get("fast_dev_run"):
        found.append("A trial run of two steps: its results have no meaning.")
    if record.get("error"):
        found.append(record["error"])
    found += (record.get("diagnosis") or {}).get("lines", [])
    found += (record["data"] or {}).get("findings", [])
    found += record.get("findings", [])
    drift = [line for one in record.get("resumed", []) for line in one["drift"]]
    if drift:
        found.append(
            "Resumed in another environment, so that the bits are not those of an "
            f"uninterrupted run: {'; '.join(drift)}."
        )
    if record.get("not_drawn"):
        found.append(f"Pictures that could not be drawn: {record['not_drawn']}")
    return found


def _verdict(record: dict, read) -> dict | None:
    try:
        content = read(derived.VERDICT)
    except OSError:
        return None
    return derived.verdict_of(content, record)


def read_rows(record: dict, read) -> tuple[list[dict], list[str]]:
    """Return the rows of metrics.jsonl, and what is wrong with it."""
    try:
        content = read("metrics.jsonl")
        lines = content.decode().splitlines()
        rows = [parse_json(line) for line in lines]
        if not all(type(r["step"]) is int and type(r["split"]) is str for r in rows):
            raise ValueError("a row has no step or no split")
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        return [], [f"metrics.jsonl cannot be read, there are no curves: {reason}"]
    wanted = record.get("files", {}).get("metrics.jsonl")
    if wanted and hashlib.sha256(content).hexdigest() != wanted:
        return rows, ["metrics.jsonl has been changed since the run ended."]
    return rows, []


def charts(rows: list[dict]) -> list[Chart]:
    """Return a chart of each metric over the steps, the loss first."""
    splits = dict.fromkeys(row["split"] for row in rows)
    made = []
    for key in sorted(figures(rows), key=lambda key: (key != "loss", key)):
        series = {
            split: [
                (row["step"], row[key])
                for row in rows
                if row["split"] == split and key in row
            ]
            for split in splits
        }
        made.append(chart(key, series))
    return [one for one in made if one]


def evaluations(rows: list[dict]) -> dict | None:
    """Return the table of the evaluations: at most ROWS of them, the last included."""
    found = [row for row in rows if row["split"] != "train"]
    if not found:
        return None
    every = math.ceil(len(found) / ROWS)
    shown = [*found[:-1:every], found[-1]]
    names = ["step", "epoch", "split", *figures(shown)]
    cells = [[row.get(name, "") for name in names] for row in shown]
    cells = [[number(c) if isinstance(c, float) else c for c in row] for row in cells]
    return {"names": names, "rows": cells, "all": len(found)}


def figures(rows: list[dict]) -> list[str]:
    """Return the names of the numbers in rows of metrics.jsonl."""
    names = dict.fromkeys(
        key for row in rows for key, v in row.items() if isinstance(v, int | float)
    )
    return [name for name in names if name not in ("step", "epoch")]


def _figures(record: dict, read) -> tuple[dict | None, list[str]]:
    """Return the final evaluation as rows of tables, and what is wrong with it."""
    try:
        found = evaluation.whole(record, read)
    except (OSError, ValueError, GpuzooError) as error:
        reason = getattr(error, "strerror", None) or error
        return None, [f"{evaluation.FILE} cannot be read: {reason}."]
    if not found:
        return None, []
    single = {k: v for k, v in found.items() if not isinstance(v, dict | list)}
    classes = found.get("per_class", [])
    heads = list(classes[0]) if classes else []
    means = {k: v for k, v in found.items() if isinstance(v, dict) and k != "undefined"}
    rows = [*classes, *({"name": f"{k} mean", **v} for k, v in means.items())]
    names = [row["name"] for row in classes]
    matrix = found.get("confusion", []) if len(names) <= _MATRIX else []
    return {
        "single": [(_spoken(k), _number(v) or "none") for k, v in single.items()],
        "heads": ["class", *map(_spoken, heads[1:])],
        "rows": [[_number(row.get(name)) for name in heads] for row in rows],
        "undefined": [(_spoken(k), why) for k, why in found["undefined"].items()],
        "confusion": [
            [name, *counts] for name, counts in zip(names, matrix, strict=False)
        ],
        "names": ["true class", *names],
    }, []


def _number(value) -> str:
    """Return a cell that sorts as a number; "" for a figure that is not defined."""
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)


def _spoken(name: str) -> str:
    """Return the name of a figure as the page writes it."""
    short = {
        "auc": "AUC", "ece": "ECE", "mae": "MAE", "rmse": "RMSE", "r2": "R2",
        "iou": "IoU", "mean_iou": "mean IoU", "mean_dice": "mean Dice",
    }  # fmt: skip
    return short.get(name, name.replace("_", " ").replace("f1", "F1"))


def _pictures(record: dict, read) -> tuple[list[dict], list[str]]:
    """Return the pictures of a run for the page, and which ones are left out."""
    found, left_out = [], []
    files = record.get("files", {})
    for name, (title, text) in _PICTURES.items():
        if name not in files:
            continue
        try:
            content = read(name)
        except OSError as error:
            left_out.append(f"{name} cannot be read: {error.strerror or error}.")
            continue
        if hashlib.sha256(content).hexdigest() != files[name]:
            left_out.append(f"{name} has been changed since the run ended.")
        elif len(content) > _LARGEST:
            left_out.append(f"{name} is too large for this page; see the run folder.")
        else:
            kind = name.rpartition(".")[2]
            data = base64.b64encode(content).decode()
            found.append({"title": title, "text": text, "kind": kind, "data": data})
    return found, left_out


def command_of(record: dict) -> str:
    """Return the command line that began a run; "" if it was begun in Python."""
    program, *words = record["command"] or [""]
    name, recipe = program.rpartition("/")[2], record["recipe"]["name"]
    if name == "gpuzoo":
        start = ["gpuzoo"]
    elif program.endswith("gpuzoo/__main__.py"):
        start = ["python", "-m", "gpuzoo"]
    elif program.endswith((f"recipes/{recipe}.py", f"recipes/train_{recipe}.py")):
        start = ["python", f"recipes/{name}"]
    else:
        return ""
    return shlex.join([*start, *words])


def _groups(record: dict) -> list[dict]:
    """Return the whole record as tables, (field, value) in rows."""
    rest = {k: v for k, v in record.items() if k not in _GROUPS}
    rest["command"] = shlex.join(record["command"])
    found = [{"title": "Run", "rows": _flat(rest), "digests": False}]
    for name, title in _GROUPS.items():
        if value := record.get(name):
            digests = name in ("files", "code", "inputs", "trail", "checkpoints")
            found.append({"title": title, "rows": _flat(value), "digests": digests})
    return found


def _flat(value, name: str = "") -> list[tuple[str, str]]:
    """Return the rows of a part of a record: nested fields as `versions: keras`."""
    if isinstance(value, dict) and value:
        parts = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        parts = [(str(n), one) for n, one in enumerate(value, start=1)]
    else:
        return [(name, _cell(value) if value not in ([], {}) else "none")]
    head = f"{name}: " if name else ""
    return [row for key, one in parts for row in _flat(one, head + key)]
