"""Measure the results of a recipe: one fresh process per seed, on this machine.

    python benchmarks/speed/recipe_figures.py --recipe mnist_vae --seeds 3 \\
        --data-dir DIR
    python benchmarks/speed/recipe_figures.py --recipe mnist --record mnist_mlp \\
        -- --model mlp --epochs 3
    python benchmarks/speed/recipe_figures.py --recipe distill_cifar10 --teacher cifar10

With --teacher that recipe is trained first, and its run is the teacher of all.
Arguments after `--` are passed to `gpuzoo train`. With --twice the first seed is
trained again at the end: `same_bits` records whether the weights are equal, and the
exit code is 1 if they are not.

Writes benchmarks/records/<recipe>.json, or the name given with --record, after each
run: all test metrics, the seconds (training without tracing and compiling, compiling,
the whole process) and the peak memory (resident bytes of the process), each as mean,
standard deviation, minimum, maximum and number of runs, and all single runs.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

RECORDS = pathlib.Path(__file__).resolve().parent.parent / "records"
MACHINE = ("backend", "device", "device_name", "threads")
COSTS = ("train_seconds", "compile_seconds", "process_seconds", "peak_memory_bytes")


def run_json(command: list[str], **variables: str) -> dict:
    """Return the last stdout line as JSON, and the wall time of the process."""
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, **variables},
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "process_seconds": round(seconds, 3),
    }


def kind_of(cpu: str) -> str:
    """Return a CPU as part of a file name: amd_epyc_25_1."""
    words = re.findall(r"[a-z0-9]+", cpu.lower().replace("(r)", ""))
    said = ("cpu", "family", "model", "processor")
    return "_".join(word for word in words if word not in said)


def spread(values: list[float]) -> dict:
    """Return mean, standard deviation (of the sample), minimum, maximum and count."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": round(statistics.mean(values), 6),
        "std": None if deviation is None else round(deviation, 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
        "n": len(values),
    }


def summarise(rows: list[dict]) -> dict:
    """Summarise the metrics and costs that all runs have."""
    keys = [key for key in rows[0] if key.startswith("test_")] + list(COSTS)
    return {
        key: spread([row[key] for row in rows])
        for key in keys
        if all(isinstance(row.get(key), int | float) for row in rows)
    }


def measure(recipe: str, options: list[str], seed: int, out: str) -> dict:
    """Do one run in its own process and folder."""
    train = [sys.executable, "-m", "gpuzoo", "train", recipe, "--quiet", *options]
    row = run_json([*train, "--seed", str(seed), "--out", out])
    row.pop("run_dir")
    run = json.loads((pathlib.Path(out) / "run.json").read_text())
    told = {k: v for k, v in row.items() if k.startswith("test_")}
    print(recipe, seed, told, f"{row['train_seconds']:.1f} s", flush=True)
    metrics = (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines()
    tests = [row for row in map(json.loads, metrics) if row.pop("split") == "test"]
    there = {key: run["runtime"][key] for key in ("threads", "device_name")}
    return {"seed": seed, **there, **row, "tests": tests}


def measure_all(args, place: list[str], options: list[str]):
    """After each run: the runs of the seeds so far, the one of the teacher, if there is
    one, and at the end whether the first seed gave the same bits again."""
    found = {"runs": []}
    with tempfile.TemporaryDirectory() as folder:
        options = [*place, *options]
        if args.teacher:
            out = f"{folder}/teacher"
            taught = {"recipe": args.teacher, **measure(args.teacher, place, 0, out)}
            found = {"teacher": taught, **found}
            options += ["--teacher", out]
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            row = measure(args.recipe, options, seed, f"{folder}/{seed}")
            found["runs"].append(row)
            yield found
        if args.twice:
            again = measure(args.recipe, options, args.first_seed, f"{folder}/again")
            one, other = (r["weights_sha256"] for r in (found["runs"][0], again))
            yield {"same_bits": one == other, **found}


def without_paths(options: list[str]) -> list[str]:
    """Return options for a record: FILE instead of a path of this machine."""

    def told(word: str) -> str:
        path = pathlib.Path(word.rpartition("=")[2])
        ours = path.is_file() or (path.is_absolute() and path.exists())
        return word.removesuffix(str(path)) + "FILE" if ours else word

    return [told(word) for word in options]


def write(name: str, record: dict) -> None:
    """Write a record of this name atomically."""
    from gpuzoo.files import write_atomically

    whole = json.dumps(record, indent=1) + "\n"
    write_atomically(RECORDS / f"{name}.json", whole.encode())


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments, and the options for `gpuzoo train`."""
    words, rest = sys.argv[1:], []
    if "--" in words:
        place = words.index("--")
        words, rest = words[:place], words[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data-dir", help="a prepared TFDS folder")
    parser.add_argument("--twice", action="store_true", help="train one seed twice")
    parser.add_argument("--teacher", help="recipe whose run with seed 0 is the teacher")
    parser.add_argument("--record", help="name of the record (default: the recipe's)")
    return parser.parse_args(words), rest


def main() -> None:
    args, options = parse()

    from gpuzoo.catalogue.recipes import load_recipe
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    for recipe in filter(None, (args.recipe, args.teacher)):
        load_recipe(recipe)  # report an unknown name before anything is run
    date, code = time.strftime("%Y-%m-%d"), code_sha256()
    place = ["--data-dir", args.data_dir] if args.data_dir else []
    name, told = args.record or args.recipe, without_paths(options)
    words = ["--recipe", args.recipe, "--seeds", str(args.seeds)]
    words += ["--first-seed", str(args.first_seed)] if args.first_seed else []
    words += ["--data-dir", "DIR"] if place else []
    words += ["--teacher", args.teacher] if args.teacher else []
    words += ["--twice"] if args.twice else []
    words += ["--record", name] if args.record else []
    words += ["--", *told] if told else []
    for measured in measure_all(args, place, options):
        rows = measured["runs"]
        if code_sha256() != code:
            sys.exit("the code was changed while it was measured; measure again")
        record = {
            "what": " ".join(["gpuzoo train", args.recipe, *told]),
            "date": date,
            "command": " ".join(["python benchmarks/speed/recipe_figures.py", *words]),
            "environment": environment(),
            **{key: rows[0][key] for key in MACHINE},
            "code_sha256": code,
            "recipe": args.recipe,
            "options": told,
            **summarise(rows),
            **measured,
        }
        write(name, record)
    print(json.dumps(summarise(rows)))
    sys.exit(not measured.get("same_bits", True))


if __name__ == "__main__":
    main()
