"""What a recipe reaches: one fresh process for each seed, on this machine.

    python benchmarks/recipe_figures.py --recipe mnist_vae --seeds 3 --data-dir DIR
    python benchmarks/recipe_figures.py --recipe mnist --record mnist_mlp \\
        -- --model mlp --epochs 3
    python benchmarks/recipe_figures.py --recipe distill_cifar10 --teacher cifar10

With --teacher that recipe is trained first, and its run is the teacher of all. What
stands after `--` goes to `gpuzoo train` as it is. Writes
benchmarks/records/<recipe>.json, or the name given with --record: every test figure,
the seconds (training without tracing and compiling, compiling, the whole process) and
the highest memory (resident bytes of the process), each as mean, standard deviation,
least, greatest and number of runs, and all single runs.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

RECORDS = pathlib.Path(__file__).resolve().parent / "records"
COSTS = ("train_seconds", "compile_seconds", "process_seconds", "peak_memory_bytes")


def run_json(command: list[str]) -> dict:
    """The last stdout line as JSON, and the wall seconds of the whole process."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "process_seconds": round(seconds, 3),
    }


def spread(values: list[float]) -> dict:
    """Mean, standard deviation (of the sample), least, greatest, how many."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": round(statistics.mean(values), 6),
        "std": None if deviation is None else round(deviation, 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
        "n": len(values),
    }


def summarise(rows: list[dict]) -> dict:
    """Every figure and every cost that all runs tell."""
    keys = [key for key in rows[0] if key.startswith("test_")] + list(COSTS)
    return {
        key: spread([row[key] for row in rows])
        for key in keys
        if all(isinstance(row.get(key), int | float) for row in rows)
    }


def measure(recipe: str, options: list[str], seed: int, out: str) -> dict:
    """One run in a process and a folder of its own."""
    train = [sys.executable, "-m", "gpuzoo", "train", recipe, "--quiet", *options]
    row = run_json([*train, "--seed", str(seed), "--out", out])
    row.pop("run_dir")
    run = json.loads((pathlib.Path(out) / "run.json").read_text())
    told = {k: v for k, v in row.items() if k.startswith("test_")}
    print(recipe, seed, told, f"{row['train_seconds']:.1f} s", flush=True)
    metrics = (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines()
    tests = [row for row in map(json.loads, metrics) if row.pop("split") == "test"]
    threads = run["runtime"]["threads"]
    return {"seed": seed, "threads": threads, **row, "tests": tests}


def measure_all(args, place: list[str], options: list[str]) -> dict:
    """The runs of the seeds 0, 1, ..., and the one of the teacher, if there is one."""
    taught = {}
    with tempfile.TemporaryDirectory() as folder:
        options = [*place, *options]
        if args.teacher:
            out = f"{folder}/teacher"
            taught["teacher"] = {
                "recipe": args.teacher, **measure(args.teacher, place, 0, out)
            }  # fmt: skip
            options += ["--teacher", out]
        seeds = range(args.seeds)
        rows = [measure(args.recipe, options, n, f"{folder}/{n}") for n in seeds]
    return {**taught, "runs": rows}


def parse() -> tuple[argparse.Namespace, list[str]]:
    """What was asked for, and the options for `gpuzoo train`."""
    words, rest = sys.argv[1:], []
    if "--" in words:
        place = words.index("--")
        words, rest = words[:place], words[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data-dir", help="a prepared TFDS folder")
    parser.add_argument("--teacher", help="recipe whose run with seed 0 is the teacher")
    parser.add_argument("--record", help="name of the record (default: the recipe's)")
    return parser.parse_args(words), rest


def main() -> None:
    args, options = parse()

    from gpuzoo.evidence.record import code_sha256
    from gpuzoo.machine import environment
    from gpuzoo.recipe import load_recipe

    for recipe in filter(None, (args.recipe, args.teacher)):
        load_recipe(recipe)  # an unknown name is told before anything is run
    date, code = time.strftime("%Y-%m-%d"), code_sha256()
    place = ["--data-dir", args.data_dir] if args.data_dir else []
    measured = measure_all(args, place, options)
    rows = measured["runs"]
    if code_sha256() != code:
        sys.exit("the code was changed while it was measured; measure again")
    name = args.record or args.recipe
    words = ["--recipe", args.recipe, "--seeds", str(args.seeds)]
    words += ["--data-dir", "DIR"] if place else []
    words += ["--teacher", args.teacher] if args.teacher else []
    words += ["--record", name] if args.record else []
    words += ["--", *options] if options else []
    record = {
        "what": " ".join(["gpuzoo train", args.recipe, *options]),
        "date": date,
        "command": " ".join(["python benchmarks/recipe_figures.py", *words]),
        "environment": environment(),
        "device": rows[0]["device"],
        "threads": rows[0]["threads"],
        "code_sha256": code,
        "recipe": args.recipe,
        "options": options,
        **summarise(rows),
        **measured,
    }
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(summarise(rows)))


if __name__ == "__main__":
    main()
