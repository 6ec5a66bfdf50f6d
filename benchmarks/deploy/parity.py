"""Export every model of the catalogue to every format, as it is and in int8.

    python benchmarks/deploy/parity.py  # all that the record lacks
    python benchmarks/deploy/parity.py --models cnn lstm --until 13:00
    python benchmarks/deploy/parity.py --table  # write docs/explanation/formats.md

Each model is trained for a few steps (--steps) on small data, then `gpuzoo export`
compares each format with it on the whole test set. Writes
benchmarks/records/export.json (--out) after each model and continues from there: rows
made with the same libraries are not repeated. Exit code 1 if a file in float32
fails its check.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
RECORD = HERE / "records" / "export.json"
PAGE = HERE.parent / "docs" / "explanation" / "formats.md"
FORMATS = ("saved_model", "onnx", "litert", "openvino", "stablehlo")
INT8 = ("onnx", "litert")
# Task -> the recipe that its models are trained with, and the data.
RECIPES = {
    "classify": ("mnist", "digits"),
    "classify_audio": ("tones", "tones"),
    "autoencode": ("mnist_vae", "digits"),
    "adversarial": ("mnist_gan", "digits"),
    "diffusion": ("mnist_diffusion", "digits"),
    "detect": ("digit_detection", "digits"),
    "forecast": ("forecast", "mackey_glass"),
    "video_prediction": ("moving_mnist", "digits"),
    "table": ("table", "flats"),
    "segment": ("segmentation", "textured_digits"),
    "classify_text": ("text", "reviews"),
    "classify_film": ("films", "moving_digits"),
    "embed": ("glyphs", "glyphs"),
}
GENERATORS = ("adversarial", "diffusion")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--until", metavar="HH:MM",
                        help="start no model after this time today")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, default=RECORD)
    parser.add_argument("--table", action="store_true",
                        help="only write the page of the docs")  # fmt: skip
    return parser.parse_args()


def gpuzoo(*words) -> tuple[int, dict, str]:
    """Run a command; return its exit code, its JSON line and its last error line."""
    done = subprocess.run(
        [sys.executable, "-m", "gpuzoo", *map(str, words)], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines() or [""]
    found = {}
    with contextlib.suppress(ValueError):
        found = json.loads(lines[-1])
    return done.returncode, found, (done.stderr.splitlines() or [""])[-1]


def train(model: str, task: str, steps: int, folder: pathlib.Path) -> str:
    """Train a few steps; return an error line, or ""."""
    recipe, data = RECIPES[task]
    code, found, line = gpuzoo(
        "train", recipe, "--model", model, "--data", data, "--precision", "float32",
        "--backend", "tensorflow", "--batch-size", "60", "--augment", "--epochs",
        max(1, steps // 24), "--out", folder, "--quiet",
    )  # fmt: skip
    return "" if code == 0 else line


def export(run: pathlib.Path, names: list[str], mode: str, generate: bool) -> dict:
    """Export formats at once, or one by one if one of them is refused; return a row of
    the record for each."""
    words = ["export", run, "--to", ",".join(names), "--allow-drift", "--quiet"]
    words += ["--int8"] * (mode == "int8") + ["--generate"] * generate
    out = pathlib.Path(tempfile.mkdtemp(dir=run.parent), "made")
    code, found, line = gpuzoo(*words, "--out", out)
    if not found and len(names) > 1:
        rows = [export(run, [name], mode, generate) for name in names]
        return {name: row for one in rows for name, row in one.items()}
    if not found:
        return {names[0]: {"refused": line.removeprefix("gpuzoo: error: ")}}
    keep = ("bytes", "parity", "quantized", "sha256")
    rows = {}
    for name, entry in found["formats"].items():
        wrong = [one for one in found["failures"] if one.split(":")[0].startswith(name)]
        rows[name] = {**{key: entry[key] for key in keep}, "failures": wrong}
    return rows


def rows_of(model: str, task: str) -> list[tuple[str, str, bool]]:
    """Return (format, mode, generate) for each row of a model."""
    rows = [(name, "float32", False) for name in FORMATS]
    if model == "vae":
        rows += [(name, "float32", True) for name in FORMATS]
    if task not in GENERATORS:
        rows += [(name, "int8", False) for name in INT8]
    return rows


def key_of(model: str, name: str, mode: str, generate: bool) -> str:
    return " ".join([model, name, mode, *["generate"] * generate])


def versions() -> dict:
    import importlib.metadata as meta

    names = ("tensorflow", "keras", "jax", "tf2onnx", "onnx", "onnxruntime", "openvino",
             "ai-edge-litert")  # fmt: skip
    return {name: meta.version(name) for name in names}


def measure(options: argparse.Namespace) -> int:
    from gpuzoo.catalogue.registry import list_models, model_info
    from gpuzoo.runtime.environment import cpu_model

    record = {"rows": {}}
    if options.out.exists():
        record = json.loads(options.out.read_text())
    here = versions()
    kept = {k: r for k, r in record["rows"].items() if r["versions"] == here}
    record = {
        "what": "gpuzoo export of every model, compared on the whole test set",
        "date": time.strftime("%Y-%m-%d"), "steps": options.steps, "rows": kept,
    }  # fmt: skip
    for model in options.models or list_models():
        task = model_info(model).task
        todo = [row for row in rows_of(model, task) if key_of(model, *row) not in kept]
        if not todo or (options.until and time.strftime("%H:%M") >= options.until):
            continue
        print(f"{model}: {len(todo)} exports", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run = pathlib.Path(folder, "run")
            if line := train(model, task, options.steps, run):
                print(f"{model} was not trained: {line}", file=sys.stderr)
                continue
            for mode, generate in dict.fromkeys(row[1:] for row in todo):
                names = [row[0] for row in todo if row[1:] == (mode, generate)]
                for name, row in export(run, names, mode, generate).items():
                    kept[key_of(model, name, mode, generate)] = {
                        **row, "versions": here, "cpu": cpu_model()
                    }  # fmt: skip
                text = json.dumps(record, indent=1, sort_keys=True) + "\n"
                options.out.write_text(text)
    failed = [key for key, row in kept.items() if row.get("failures")]
    for key in failed:
        print(f"NO: {key}: {kept[key]['failures']}", file=sys.stderr)
    return int(any("float32" in key for key in failed))


def table(record: dict) -> str:
    """Return the page of the docs."""
    from gpuzoo.catalogue.registry import list_models, model_info

    rows = record["rows"]
    first = next(iter(rows.values()))["versions"]
    lines = [
        "# Accuracy of exported models", "",
        "How much the outputs of each exported format ([export](../howto/export.md))",
        "differ from Keras's. Written by `benchmarks/deploy/parity.py --table` from",
        "`benchmarks/records/export.json`.", "",
        "Each model is trained for a few steps on small data (digits; computed sounds,",
        "series, tables, masks, texts) and exported; each file is executed by its own",
        "runtime, without Keras, on the whole test set (of a generator: on 100 latent",
        "codes). A cell is",
        "the largest difference of an output from Keras's in float32 (probabilities,",
        "standardized forecasts, detection scores, pixel values 0 to 255), and after",
        "a slash the number of changed predictions, if there are any.", "",
        f"CPU: {' and '.join(sorted({row['cpu'] for row in rows.values()}))}, "
        f"{record['date']}; "
        + ", ".join(f"{name} {version}" for name, version in first.items()) + ".", "",
        "| model | " + " | ".join(FORMATS) + " |", "| --- |" + " --: |" * len(FORMATS),
    ]  # fmt: skip
    for model in list_models():
        for generate in (False, True):
            if generate and model != "vae":
                continue
            cells = [
                _cell(rows.get(key_of(model, name, "float32", generate)))
                for name in FORMATS
            ]
            named = model + ", decoder" * generate
            lines.append(f"| {named} | " + " | ".join(cells) + " |")
    lines += [
        "", "## int8 (`--int8`)", "",
        "Size as a fraction of the float32 file, then the metric of the run and of",
        "the file; **refused** if more than 1 point of accuracy is lost (an error:",
        "grows by more than 1 %), or for the reason below. These models are trained",
        "for a few steps only: their margins between classes are small, so that",
        "quantization costs more than after a full training.", "",
        "| model | " + " | ".join(INT8) + " |", "| --- |" + " --- |" * len(INT8),
    ]  # fmt: skip
    reasons = {}
    for model in list_models():
        if model_info(model).task in GENERATORS:
            continue
        cells = []
        for name in INT8:
            row = rows.get(key_of(model, name, "int8", False))
            if row and row.get("refused"):
                reasons[row["refused"]] = f"{model}, {name}"
            cells.append(_int8(row, rows.get(key_of(model, name, "float32", False))))
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    if reasons:
        lines += ["", "Refused:", ""]
        lines += [f"- {where}: {why}" for why, where in reasons.items()]
    return "\n".join(lines) + "\n"


def _cell(row: dict | None) -> str:
    if row is None:
        return "not run"
    if row.get("refused"):
        return "refused"
    parity = row["parity"]
    size, changed = parity["largest_difference"], parity["changed_predictions"]
    text = f"{size:.0f}" if parity["tolerance"] == 1 else f"{size:.1e}"
    return text + (f" / {changed} of {parity['examples']}" if changed else "")


def _int8(row: dict | None, plain: dict | None) -> str:
    if row is None:
        return "not run"
    if row.get("refused"):
        return "refused"
    metric = row["parity"]["metric"]
    part = f"{row['bytes'] / plain['bytes']:.2f}" if plain and "bytes" in plain else "?"
    form = "{:.4g}" if metric["name"] == "error" else "{:.2%}"
    both = f"{form.format(metric['run'])} -> {form.format(metric['artefact'])}"
    refused = "**refused**, " if row["failures"] else ""
    return f"{refused}{part}, {metric['name']} {both}"


def main() -> int:
    options = parse()
    code = 0 if options.table else measure(options)
    record = json.loads(options.out.read_text())
    if options.out == RECORD:
        PAGE.write_text(table(record))
    else:
        print(table(record))
    return code


if __name__ == "__main__":
    sys.exit(main())
