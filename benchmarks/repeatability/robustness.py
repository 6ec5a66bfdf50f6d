"""Measure what adversarial training buys and costs: mnist beside mnist_robust.

    python benchmarks/repeatability/robustness.py --data-dir DIR  # a TFDS folder

Trains both recipes with seed 0, each in a process of its own, and runs `gpuzoo
robustness` on both. Writes benchmarks/records/robustness.json and the table of
docs/howto/robustness.md; with --table only the table.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECORD = ROOT / "benchmarks" / "records" / "robustness.json"
PAGE = ROOT / "docs" / "howto" / "robustness.md"
RECIPES = ("mnist", "mnist_robust")


def gpuzoo(*words: str) -> dict:
    """Return the last line of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "gpuzoo", *words], stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(recipe: str, place: list[str], folder: str) -> dict:
    """Return what `gpuzoo robustness` finds of a run of the recipe."""
    run = f"{folder}/{recipe}"
    trained = gpuzoo("train", recipe, *place, "--out", run)
    names = ("epochs", "test_accuracy", "train_seconds", "weights_sha256")
    found = gpuzoo("robustness", run)
    return {"training": {name: trained[name] for name in names}, **found}


def table(record: dict) -> str:
    """Return the table of the page."""
    runs = record["runs"]
    part = runs["mnist"]["attacks"]
    rows = [["", *(f"`{name}`" for name in runs)], ["---"] * (1 + len(runs))]

    def add(text: str, value) -> None:
        rows.append([text, *(f"{100 * value(run):.1f} %" for run in runs.values())])

    add("test accuracy, all images", lambda run: run["training"]["test_accuracy"])
    add(
        f"of {runs['mnist']['examples']} images: unchanged",
        lambda run: run["clean"]["accuracy"],
    )
    for name, text in (("fgsm", "FGSM"), ("pgd", f"PGD-{part['pgd_steps']}")):
        for place, epsilon in enumerate(part["epsilons"]):
            add(
                f"{text}, {epsilon:g}",
                lambda run, n=name, p=place: run["attacks"][n][p],
            )
    add("mean corruption accuracy", lambda run: run["corruptions"]["mean_accuracy"])
    for kind in runs["mnist"]["corruptions"]["accuracy"]:
        add(
            f"{kind.replace('_', ' ')}, mean of severities",
            lambda run, k=kind: sum(run["corruptions"]["accuracy"][k]) / 5,
        )
    errors = [f"{run['calibration']['before']['ece']:.4f}" for run in runs.values()]
    rows.append(["calibration error", *errors])
    errors = [f"{run['calibration']['after']['ece']:.4f}" for run in runs.values()]
    rows.append(["with one temperature", *errors])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    where = f"{record['environment']['cpu']}, {runs['mnist']['precision']}"
    return f"{lines}\n\nSeed 0, {where}, {record['date']}."


def write_table(record: dict) -> None:
    pattern = re.compile(r"(<!-- figures -->\n).*?(\n<!-- /figures -->)", re.S)
    text, count = pattern.subn(
        lambda found: found[1] + table(record) + found[2], PAGE.read_text()
    )
    if not count:
        sys.exit(f"{PAGE.name} has no place for the table")
    PAGE.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="a prepared TFDS folder")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        write_table(json.loads(RECORD.read_text()))
        return

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    place = ["--data", "mnist"]
    place += ["--data-dir", args.data_dir] if args.data_dir else []
    with tempfile.TemporaryDirectory() as folder:
        runs = {recipe: measure(recipe, place, folder) for recipe in RECIPES}
    record = {
        "what": "gpuzoo train RECIPE --data mnist, gpuzoo robustness RUN",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/repeatability/robustness.py --data-dir DIR",
        "environment": environment(),
        "code_sha256": code_sha256(),
        "runs": runs,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write_table(record)


if __name__ == "__main__":
    main()
