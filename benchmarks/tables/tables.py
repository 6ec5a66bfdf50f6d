"""Write the results into README.md, docs/results.md, the docstrings of the recipes and
recipes/results.json, which `gpuzoo list` reads.

python benchmarks/tables/tables.py           # rewrite them from benchmarks/records/
python benchmarks/tables/tables.py --check   # exit 1 if they are not up to date
"""

import json
import pathlib
import re
import statistics
import sys

import scipy.stats
from gpu_table import device_of, gpu_head, gpu_text, reached, read
from reach_table import reach_text
from speed_table import JPEG, cifar_text, overhead_text, speed_text

import gpuzoo
from gpuzoo import tasks
from gpuzoo.tasks.base import ACCURACY

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECORDS = ROOT / "benchmarks" / "records"
# A part of a record of mnist_to_99.py -> the recipe's script.
SCRIPTS = {
    "train_mnist": "train_mnist",
    "longer": "train_mnist",
    "train_mnist_fast": "train_mnist_fast",
}
# Metrics of the tasks (gpuzoo/tasks/), in the order of the output.
UNITS = {
    "test_mean_iou": " (mean intersection over union)",
    "test_accuracy": "",
    "test_eer": " (equal error rate of pairs)",
    "test_recall_at_1": "",
    "test_mean_average_precision": "",
    "test_map50": " (mean average precision at an overlap of 0.5)",
    "test_map": " (mean over overlaps from 0.5 to 0.95)",
    "test_frechet": " (Frechet distance, fixed classifier)",
    "test_r2": " (R2)",
    "test_loss": "",
    "test_error": " (mean squared error of a pixel)",
    "test_copied": " (of the last frame in place of the next)",
    "test_linear": " (of the best linear rule)",
    "test_seasonal": " (of the value one period before)",
    "test_base_rate": " (of always the more frequent class)",
    "test_kl": " nats per image",
}
# Those in percent.
PARTS = ("test_accuracy", "test_eer", "test_recall_at_1")


def load(name: str) -> dict | None:
    """Return a record, or None if nothing has been measured yet."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def percent(figure: dict) -> str:
    return f"{100 * figure['mean']:.2f} ± {100 * figure['std']:.2f} %"


def cpu_of(record: dict) -> str:
    """Return the CPU's name without trademark signs and clock."""
    name = record["environment"]["cpu"].replace("(R)", "").replace(" Processor", "")
    return re.sub(r" @ [\d.]+GHz", "", name)


def machine(record: dict) -> str:
    """Describe the machine and the versions of a record."""
    here, name = record["environment"], device_of(record)
    versions, gpu = here["versions"], name not in ("cpu", here["cpu"])
    backend = record.get("backend", "jax" if gpu else "tensorflow")
    if backend not in versions:
        backend = "jax"
    spelt = {"tensorflow": "TensorFlow", "jax": "JAX"}[backend]
    threads = record.get("threads") or record.get("runtime", {}).get("threads")
    where = f"{threads} threads of an {cpu_of(record)} CPU"
    if gpu:
        where = f"one {name} ({here['driver'] or 'driver unknown'})"
    return f"{where}, {spelt} {versions[backend]}, Keras {versions['keras']}"


def readme_table(record: dict) -> str:
    stock, ratio = record["stock_keras"], record["ratio"]
    lines = [
        "| command | model, data | test accuracy | training | whole process |",
        "|---|---|---|---|---|",
    ]
    for key, script in SCRIPTS.items():
        if not (rows := record.get(key)):
            continue
        command = " ".join([f"python recipes/{script}.py", *rows.get("options", [])])
        lines.append(
            f"| `{command}` | cnn, MNIST | {percent(rows['test_accuracy'])} | "
            f"{rows['train_seconds']['mean']:.1f} s | "
            f"{rows['process_seconds']['mean']:.1f} s |"
        )
    quick = [key for key in ("train_mnist", "train_mnist_fast") if key in record]
    good = [f"{reached(record[key])} of `{key}`" for key in quick]
    to_99, beside = stock["train_seconds_to_99"], ""
    if "torch" in record:
        torch = record["torch"]["train_seconds_to_99"]
        version = record["torch"]["runs"][0]["torch"].split("+")[0]
        beside = (
            f" The same convnet with Adam in PyTorch {version}, eager: "
            f"{torch['mean']:.0f} s "
            f"(n = {torch['n']}, {torch['min']:.0f} to {torch['max']:.0f} s), "
            f"{times_of(ratio, 'torch', '.1f')}; {by_medians(record, 'torch')}."
        )
    lines += [
        "",
        f"Mean ± standard deviation over {record['train_mnist']['test_accuracy']['n']} "
        f"seeds (99.0 % was reached by {' and '.join(good)}), "
        f"{machine(record)}, {record['date']}. Training excludes tracing and "
        f"compilation ({record['train_mnist']['compile_seconds']['mean']:.1f} s). "
        "Plain Keras `fit` on the same cores, with the MNIST convnet of keras.io, "
        f"needed {to_99['mean']:.0f} s (n = {to_99['n']}, {to_99['min']:.0f} to "
        f"{to_99['max']:.0f} s) to reach 99.0 % for the first time: "
        f"{times_of(ratio, 'training', '.0f')}; "
        f"{times_of(ratio, 'training_and_compiling', '.0f')} with compilation "
        f"counted; {by_medians(record, 'stock_keras')}.{beside} Measured by "
        "`benchmarks/speed/mnist_to_99.py`.",
    ]
    return "\n".join(lines)


def headline(record: dict, cifar: dict) -> str:
    """Return the table of the README: on the fastest machine, with plain Keras."""
    rows = [
        (key, f"python recipes/{key}.py", record[key])
        for key in ("train_mnist", "train_mnist_fast")
    ]
    stock = record["stock_keras"]["train_seconds_to_99"]
    lines = [
        "| | test accuracy | seconds of training |",
        "|---|---|---|",
        *(
            f"| `{command}` | {percent(row['test_accuracy'])} | "
            f"{row['train_seconds']['mean']:.1f} |"
            for _, command, row in rows
        ),
        f"| plain Keras `fit`, the MNIST convnet of keras.io, to 99.0 % | | "
        f"{stock['mean']:.0f} |",
        f"| `python recipes/train_cifar10.py`, {JPEG} | "
        f"{percent(cifar['test_accuracy'])} | {cifar['train_seconds']['mean']:.0f} |",
    ]
    lines += [
        "",
        f"MNIST: mean ± standard deviation over "
        f"{rows[0][2]['test_accuracy']['n']} seeds ({stock['n']} of plain Keras), "
        f"{machine(record)}, {record['date']}. CIFAR-10: "
        f"{cifar['test_accuracy']['n']} seeds, {machine(cifar)}, {cifar['date']}.",
    ]
    return "\n".join(lines)


def by_medians(record: dict, peer: str) -> str:
    """Return the comparison with a peer by medians instead of means."""
    theirs, *ours = (
        statistics.median(run["train_seconds"] for run in record[name]["runs"])
        for name in (peer, "train_mnist", "train_mnist_fast")
        if name in record
    )
    times = " and ".join(f"{theirs / seconds:.0f}" for seconds in ours)
    return f"by medians {times} times"


def times_of(ratio: dict, key: str, digits: str) -> str:
    """Return the time relative to `train_mnist` and to `train_mnist_fast`."""
    told = f"{ratio[key]:{digits}} times as long as `train_mnist`"
    if (fast := ratio.get(f"{key}_fast")) is not None:
        told += f", {fast:{digits}} times as `train_mnist_fast`"
    return told


def figures(record: dict) -> dict[str, str]:
    """Return the metrics of a recipe; a loss only if it is a bound or an error."""
    units, asked = (
        dict(UNITS),
        " (of generated images, for the requested class)"
        if "test_frechet" in record
        else "",
    )
    if "test_kl" in record:
        units["test_loss"] = " nats per image"
    elif "test_linear" in record:
        units["test_loss"] = " (mean squared error)"
    else:
        del units["test_loss"]
    told = {
        name.replace("_", " "): percent(record[name]) + (asked or unit)
        if name in PARTS
        else f"{record[name]['mean']:.4g} ± {record[name]['std']:.2g}{unit}"
        for name, unit in units.items()
        if name in record
    }
    tests = [run.get("tests") or [{}] for run in record.get("runs", ())]
    if tests and all("frechet" in each[0] for each in tests):
        told["by epoch"] = " ".join(
            f"{statistics.mean(row['frechet'] for row in epoch):.3g}"
            for epoch in zip(*tests, strict=True)
        )
    if control := load(f"{record['recipe']}_control") if "recipe" in record else None:
        told["without it"] = percent(control["test_accuracy"]) + " (from labels alone)"
        told["gain"] = gain(record, control)
    return told


def gain(record: dict, control: dict) -> str:
    """Return the gain of a recipe over its control, seed by seed."""
    one, other = (
        {run["seed"]: 100 * run["test_accuracy"] for run in r["runs"]}
        for r in (record, control)
    )
    if machine(record) != machine(control) or one.keys() != other.keys():
        sys.exit(f"{record['recipe']} and its control are not comparable")
    apart = scipy.stats.ttest_rel(list(one.values()), [other[seed] for seed in one])
    low, high = apart.confidence_interval()
    return (
        f"{(low + high) / 2:.2f} points (95 % interval {low:.2f} to {high:.2f}, "
        f"n = {len(one)})"
    )


def data_of(record: dict) -> str:
    return record["runs"][0]["data"] if "runs" in record else "mnist"


def claim(record: dict, measured: dict, gpu: dict, script: str) -> str:
    """Return the results for the docstring of a recipe, from the part `measured` of a
    record; `gpu`: the line of a GPU."""
    rows = {
        **figures(measured),
        **({"data": JPEG} if data_of(record) == "cifar10" else {}),
        "seeds": str(measured["train_seconds"]["n"]),
        "training": f"{measured['train_seconds']['mean']:.1f} s, "
        f"{measured['process_seconds']['mean']:.1f} s for the whole process",
        "on": f"{record['threads']} threads of an {cpu_of(record)} CPU, "
        f"{record['date']}",
        **gpu,
        "measured by": script,
    }
    return "\n".join(f"    {name:<14} {text}" for name, text in rows.items())


def result(recipe: str, record: dict, measured: dict, gpu: dict, script: str) -> dict:
    """Return the results that `gpuzoo list` shows; arguments as of `claim`."""
    name = next(name for name in UNITS if name in measured)
    task = tasks.load(gpuzoo.load_recipe(recipe).task)
    known = (ACCURACY, task.headline, *task.metrics)
    greater = any(f"test_{m.name}" == name and m.greater_is_better for m in known)
    return {
        "figures": figures(measured),
        "metric": {"name": name, "greater_is_better": greater, **measured[name]},
        "data": JPEG if data_of(record) == "cifar10" else data_of(record),
        "seeds": measured["train_seconds"]["n"],
        "train_seconds": measured["train_seconds"]["mean"],
        "process_seconds": measured["process_seconds"]["mean"],
        "on": f"{record['threads']} threads of an {cpu_of(record)} CPU",
        "date": record["date"],
        "gpu": gpu,
        "measured_by": script,
    }


def recipe_records() -> dict[str, dict]:
    """Return recipe -> its record of recipe_figures.py, if there is one."""
    paths = sorted((ROOT / "recipes").glob("[!_]*.py"))
    names = [path.stem.removeprefix("train_") for path in paths]
    files = {name: RECORDS / f"{name}.json" for name in names}
    return {
        name: json.loads(file.read_text())
        for name, file in files.items()
        if file.exists()
    }


def script_of(name: str) -> pathlib.Path:
    named = ROOT / "recipes" / f"{name}.py"
    return named if named.exists() else ROOT / "recipes" / f"train_{name}.py"


def command_of(name: str, record: dict) -> str:
    taught = " --teacher RUN" * ("teacher" in record)
    return f"python recipes/{script_of(name).name}{taught}"


def more_table(records: dict[str, dict]) -> str:
    """Return a table for each machine, and a note on all of them."""
    machines: dict[str, dict] = {}
    for name, record in records.items():
        machines.setdefault(machine(record), {})[name] = record
    judge = load("classifier")
    tables = [machine_table(where, rows) for where, rows in sorted(machines.items())]
    return "\n\n".join(
        [
            *tables,
            "Measured by `benchmarks/speed/recipe_figures.py`. "
            "The fixed classifier of the "
            f"Frechet distances has {judge['test_accuracy']:.2%} test accuracy; the "
            f"distance of training images is {judge['frechet_of_training_images']:.2f} "
            f"(`benchmarks/speed/classifier.py`). "
            f"{JPEG} is CIFAR-10 re-encoded as JPEG "
            "(quality about 75): compare its results with each other, not with "
            "published ones.",
        ]
    )


def machine_table(where: str, records: dict[str, dict]) -> str:
    """Return the table of the recipes measured on one machine."""
    lines = [
        "| command | model | reaches | training | whole process |",
        "|" + "---|" * 5,
    ]
    for name, record in records.items():
        reached = ", ".join(f"{k} {v}" for k, v in figures(record).items())
        reached += f" on {JPEG}" * (data_of(record) == "cifar10")
        lines.append(
            f"| `{command_of(name, record)}` | {record['runs'][0]['model']} | "
            f"{reached} | {record['train_seconds']['mean']:.0f} s | "
            f"{record['process_seconds']['mean']:.0f} s |"
        )
    counts = {record["train_seconds"]["n"] for record in records.values()}
    days = {record["date"] for record in records.values()}
    return "\n".join(
        [
            *lines,
            "",
            f"Mean ± standard deviation over {span(counts)} seeds, {where}, "
            f"{span(days)}.",
        ]
    )


def span(values: set) -> str:
    """Return minimum and maximum: 3 to 5."""
    return " to ".join(map(str, sorted({min(values), max(values)})))


def replace(old: str, opening: str, closing: str, text: str) -> str:
    """Replace the text between two markers."""
    pattern = re.compile(f"({re.escape(opening)}\n).*?(\n{re.escape(closing)})", re.S)
    if not pattern.search(old):
        sys.exit(f"{opening!r} ... {closing!r} is missing")
    return pattern.sub(lambda found: found[1] + text + found[2], old)


def main() -> None:
    # One record for each kind of CPU, the fastest first.
    fast = sorted(
        (
            record
            for record in read(RECORDS, "mnist_to_99_*.json")
            if record["device"] == "cpu" and "stock_keras" in record
        ),
        key=lambda record: record["train_mnist"]["train_seconds"]["mean"],
    )
    readme, page = ROOT / "README.md", ROOT / "docs" / "results.md"
    price, drift, chaos = (load(name) for name in ("price", "drift", "chaos"))
    repeated = [
        record
        for record in read(RECORDS, "repeatable*.json")
        if record["device"] == record["environment"]["cpu"]
    ]
    others, speeds = recipe_records(), read(RECORDS, "speed_*.json")
    speeds.sort(key=lambda record: machine(record))
    tables = [speed_text(record, machine(record)) for record in speeds]
    beside, to_75 = load("cifar10_beside_torch_cpu"), load("cifar10_to_75")
    text = page.read_text()
    for name, part in (
        ("figures", "\n\n".join(map(readme_table, fast))),
        ("more", more_table(others)),
        ("speed", "\n\n".join([*tables, overhead_text(load("overhead"))])),
        ("cifar", cifar_text(beside, to_75, machine(beside))),
        ("gpu", gpu_text(read(RECORDS, "*_gpu.json"), machine)),
        ("reach", reach_text(price, repeated, drift, chaos, machine)),
    ):
        text = replace(text, f"<!-- {name} -->", f"<!-- /{name} -->", part)
    gpu, measured = load("mnist_to_99_gpu"), {}
    for name in ("mnist", "mnist_fast"):
        part = f"train_{name}"
        record = next(record for record in fast if part in record)
        there = gpu_head(gpu, part)
        measured[name] = record, record[part], there, "benchmarks/speed/mnist_to_99.py"
    for name, other in others.items():
        there = gpu_head(load(f"{name}_gpu"))
        measured[name] = other, other, there, "benchmarks/speed/recipe_figures.py"
    results = {name: result(name, *told) for name, told in sorted(measured.items())}
    wanted = {
        page: text,
        readme: replace(
            readme.read_text(),
            "<!-- headline -->",
            "<!-- /headline -->",
            headline(fast[0], others["cifar10"]),
        ),
        ROOT / "recipes" / "results.json": json.dumps(results, indent=1) + "\n",
    }
    for name, part in ((name, claim(*told)) for name, told in measured.items()):
        path = script_of(name)
        wanted[path] = replace(
            path.read_text(),
            f"    {command_of(name, others.get(name, {}))}\n",
            "\nThe figures are written here",
            part,
        )
    for path, text in wanted.items():
        if "--check" in sys.argv and not (path.exists() and path.read_text() == text):
            sys.exit(f"not up to date: {path.name}")
        path.write_text(text)


if __name__ == "__main__":
    main()
