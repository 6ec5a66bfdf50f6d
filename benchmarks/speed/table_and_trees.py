"""Compare the recipe `table` with gradient-boosted trees on the generated tables.

    python benchmarks/speed/table_and_trees.py [--seeds 3] [--check]

Each model of the recipe is trained in a process of its own, on the training rows of
each table, and evaluated on its test rows; so is HistGradientBoosting of scikit-learn,
with its default settings, on the raw columns: numbers with their gaps, dates as days,
categories as such. Writes benchmarks/records/table_and_trees.json; with --check the
exit code is 1 if the recipe is more than a point of accuracy, or 0.01 of R2, below the
trees.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import numpy as np
from recipe_figures import RECORDS, run_json, spread

MODELS = ("mlp_table", "gated_table")
FIGURE = {"flats": "test_r2", "lettings": "test_accuracy"}
MARGIN = 0.01


def networks(data: str, model: str, seeds: int) -> dict:
    """Train a model of the recipe with each seed; return figures and seconds."""
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "gpuzoo", "train", "table", "--quiet"]
            command += ["--data", data, "--model", model, "--seed", str(seed)]
            rows.append(run_json([*command, "--out", f"{folder}/run"]))
    values = [row[FIGURE[data]] for row in rows]
    print(data, model, values, flush=True)
    costs = ("train_seconds", "process_seconds")
    return {
        "values": values, "figure": spread(values),
        **{key: spread([row[key] for row in rows]) for key in costs},
    }  # fmt: skip


def trees(data: str, seeds: int) -> dict:
    """Fit HistGradientBoosting with each seed on the same rows."""
    from sklearn import ensemble

    columns, categorical, goal, parts = raw(data)
    kind = ensemble.HistGradientBoostingRegressor
    if data == "lettings":
        kind = ensemble.HistGradientBoostingClassifier
    values, seconds = [], []
    for seed in range(seeds):
        start = time.perf_counter()
        model = kind(categorical_features=categorical, random_state=seed)
        model.fit(columns[parts["train"]], goal[parts["train"]])
        seconds.append(time.perf_counter() - start)
        values.append(float(model.score(columns[parts["test"]], goal[parts["test"]])))
    print(data, "trees", values, flush=True)
    return {"values": values, "figure": spread(values), "fit_seconds": spread(seconds)}


def raw(data: str) -> tuple:
    """Return the columns (rows, columns), float64, which of them are categories, the
    target, and the rows of each split of the recipe."""
    from gpuzoo.data import made_tables
    from gpuzoo.data.validate import hold_out

    made = made_tables.make(data)
    table, target = made["table"].columns, made["target"]
    columns, categorical = [], []
    for name, column in table.items():
        if name == target:
            continue
        texts = column.texts
        categorical.append(texts is not None and name != "listed")
        if texts is None:
            columns.append(column.values)
        elif name == "listed":
            columns.append(np.array(texts, "datetime64[D]").astype(float))
        else:
            places = {text: n for n, text in enumerate(sorted({*texts} - {""}))}
            columns.append(np.array([places.get(text, np.nan) for text in texts]))
    goal = table[target].values
    if goal is None:
        goal = np.unique(table[target].texts, return_inverse=True)[1]
    rows = np.arange(len(goal))
    held = "label" if data == "lettings" else "target"
    parts = hold_out(data, {"table": rows[:, None], held: goal})
    return (
        np.stack(columns, axis=1), categorical, goal,
        {split: part["table"][:, 0] for split, part in parts.items()},
    )  # fmt: skip


def main() -> None:
    from gpuzoo.files import write_atomically
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    found = {
        "date": time.strftime("%Y-%m-%d"), "code_sha256": code_sha256(),
        "environment": environment(), "seeds": args.seeds, "margin": MARGIN,
        "tables": {},
    }  # fmt: skip
    below = []
    for data, figure in FIGURE.items():
        results = {"trees": trees(data, args.seeds)}
        results |= {model: networks(data, model, args.seeds) for model in MODELS}
        found["tables"][data] = {"figure": figure, **results}
        least = results["trees"]["figure"]["mean"] - MARGIN
        ours = results[MODELS[0]]["figure"]["mean"]
        if ours < least:
            below.append(f"{data}: {ours:.4f} is below {least:.4f}")
    content = (json.dumps(found, indent=1) + "\n").encode()
    write_atomically(pathlib.Path(RECORDS) / "table_and_trees.json", content)
    for line in below:
        print(line)
    sys.exit(1 if below and args.check else 0)


if __name__ == "__main__":
    main()
