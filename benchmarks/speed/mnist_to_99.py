"""MNIST to 99 %: gpuzoo compared with stock Keras and PyTorch on the same machine.

    python benchmarks/speed/mnist_to_99.py --data-dir DIR    # a prepared TFDS folder
    python benchmarks/speed/mnist_to_99.py --data-dir DIR --torch VENV/bin/python
    python benchmarks/speed/mnist_to_99.py --data FILE.npz --device gpu --together \\
        --seeds 20 --stock-seeds 0

Writes benchmarks/records/mnist_to_99_<cpu>.json, on a GPU mnist_to_99_gpu.json, after
each run. Measured are:

- stock Keras: seconds inside `fit` until the test accuracy first reaches 99.0 %
  (peers/stock_keras_mnist.py, several seeds), and the seconds of one epoch;
- the same network in PyTorch, with --torch (peers/torch_mnist.py);
- gpuzoo, `train_mnist` unchanged: test accuracy, seeds that reached 99.0 %, seconds;
- gpuzoo, the longer schedule of LONGER, and `train_mnist_fast`: the same;
- startup: the whole process of `train_mnist` with an empty cache (`cold`), and of later
  processes (`warm`), which find there what XLA compiled on JAX.

Each run is a fresh process, and the processes take turns, so that changes in the speed
of the machine affect all of them; with --together all seeds of gpuzoo are trained in
one process. `train_seconds` of gpuzoo excludes tracing and compiling, in
`compile_seconds`; the time of stock Keras cannot be split, so the ratio is given
without and with it.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from recipe_figures import kind_of, run_json, spread, write
from to_npz import to_npz

HERE = pathlib.Path(__file__).resolve().parent.parent
LONGER = {"epochs": 3, "augment": ("translate:1",)}
SCHEDULES = {  # name -> a recipe and its changed fields
    "train_mnist": ("mnist", {}),
    "longer": ("mnist", LONGER),
    "train_mnist_fast": ("mnist_fast", {}),
}
GOAL = 0.99
WARM = 2  # processes
TOLD = ("seed", "test_accuracy", "train_seconds", "compile_seconds")
COSTS = ("train_seconds", "compile_seconds", "process_seconds")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data-dir", help="a prepared TFDS folder")
    data.add_argument("--data", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--stock-seeds", type=int, default=3, help="0: no peers")
    parser.add_argument("--together", action="store_true", help="gpuzoo in one process")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python with PyTorch")
    parser.add_argument("--worker", metavar="NPZ", help=argparse.SUPPRESS)
    return parser.parse_args()


def words_of(changes: dict) -> list[str]:
    """Return changed recipe fields as options of the command."""
    words = []
    for name, value in changes.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


# --- runs ---------------------------------------------------------------------------


def train(npz: str, device: str, seed: int, name: str, cache: str = "") -> dict:
    """Do one run of gpuzoo in a fresh process; `cache` replaces gpuzoo's."""
    recipe, changes = SCHEDULES[name]
    with tempfile.TemporaryDirectory() as folder:
        row = run_json(
            [
                sys.executable, "-m", "gpuzoo", "train", recipe, "--quiet", "--device",
                device, "--data", npz, *words_of(changes), "--seed", str(seed),
                "--out", f"{folder}/run",
            ],
            **({"GPUZOO_CACHE": cache} if cache else {}),
        )  # fmt: skip
    row.pop("run_dir")
    return {"seed": seed, **row}


def work(args) -> None:
    """Train all seeds in this process; print a line of JSON for each run."""
    import gpuzoo
    from gpuzoo.catalogue.recipes import load_recipe
    from gpuzoo.engine import loop
    from gpuzoo.engine.program import Program
    from gpuzoo.engine.timing import peak_memory_bytes
    from gpuzoo.training.build import session_of

    dataset = gpuzoo.load_data(args.worker)
    for name, (recipe, changes) in SCHEDULES.items():
        for seed in range(args.seeds):
            runtime = gpuzoo.configure(device=args.device, seed=seed, quiet=True)
            asked = load_recipe(recipe).override(**changes, seed=seed)
            found = loop.run(Program(session_of(asked, runtime, dataset)))
            row = {
                "seed": seed,
                "test_accuracy": round(found.metrics["test_accuracy"], 6),
                "train_seconds": round(found.seconds["train"], 4),
                "compile_seconds": round(found.seconds["compile"], 4),
                "peak_memory_bytes": peak_memory_bytes(),
            }
            print(json.dumps({"schedule": name, **row}), flush=True)


def together(args, npz: str, folder: str):
    """Yield the schedule and the row of each run of `work`."""
    # JAX's own cache: gpuzoo's is for whole runs, and each of these compiles again.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", npz]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **cache}
    ) as process:
        for line in process.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                yield row.pop("schedule"), row
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with code {process.returncode}")


def in_turns(args, npz: str, threads: int):
    """Yield name and row of each run: gpuzoo's schedules and the peers, in turns."""
    peers = {"stock_keras": (sys.executable, [])}
    if args.torch:
        peers["torch"] = (args.torch, ["--threads", str(threads)])
    for seed in range(max(args.seeds, args.stock_seeds)):
        for name in SCHEDULES:
            if seed < args.seeds and not args.together:
                yield name, train(npz, args.device, seed, name)
        for name, (python, options) in peers.items():
            if seed >= args.stock_seeds:
                break
            script = str(HERE / "peers" / f"{name}_mnist.py")
            row = run_json([python, script, npz, "--seed", str(seed), *options])
            if not row["reached"]:
                sys.exit(f"{name} did not reach 99.0 %; raise --epochs in the peer")
            yield name, {"seed": seed, **row}


# --- the record -----------------------------------------------------------------------


def summarise(rows: list[dict]) -> dict:
    keys = ("test_accuracy", *COSTS)
    return {
        **{
            key: spread([row[key] for row in rows])
            for key in keys
            if all(key in row for row in rows)
        },
        "reached": sum(row["test_accuracy"] >= GOAL for row in rows),
        "peak_memory_mb": round(max(row["peak_memory_bytes"] for row in rows) / 1e6),
        "runs": rows,
    }


def of_peer(rows: list[dict]) -> dict:
    epochs = [epoch["seconds"] for row in rows for epoch in row["trail"]]
    return {
        "train_seconds_to_99": spread([row["train_seconds"] for row in rows]),
        "epoch_seconds": round(statistics.mean(epochs), 3),
        "runs": rows,
    }


def ratios(record: dict) -> dict:
    """Return the ratios of the times of the measured peers to gpuzoo's."""
    found = {}
    stock, torch = record.get("stock_keras"), record.get("torch")
    for name, end in (("train_mnist", ""), ("train_mnist_fast", "_fast")):
        if name not in record:
            continue
        train = record[name]["train_seconds"]["mean"]
        if stock:
            to_99 = stock["train_seconds_to_99"]["mean"]
            whole = train + record[name]["compile_seconds"]["mean"]
            found[f"training{end}"] = round(to_99 / train, 1)
            found[f"training_and_compiling{end}"] = round(to_99 / whole, 1)
        if torch:
            theirs = torch["train_seconds_to_99"]["mean"]
            found[f"torch{end}"] = round(theirs / train, 1)
    if stock and (longer := record.get("longer")):
        epoch = stock["epoch_seconds"] / longer["train_seconds"]["mean"]
        found["stock_epoch_over_longer"] = round(epoch, 2)
    return found


def told(args) -> str:
    """Return the command without paths of this machine."""
    hidden = {args.data_dir: "DIR", args.data: "FILE", args.torch: "PYTHON"}
    words = [hidden.get(word, word) for word in sys.argv[1:]]
    return " ".join(["python benchmarks/speed/mnist_to_99.py", *words])


def name_of(record: dict) -> str:
    if record["device"] == "gpu":
        return "mnist_to_99_gpu"
    return f"mnist_to_99_{kind_of(record['environment']['cpu'])}"


def main() -> None:
    args = parse()
    if args.worker:
        return work(args)

    import gpuzoo
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    runtime = gpuzoo.configure(device=args.device)
    record = {
        "what": "MNIST to 99 %",
        "date": time.strftime("%Y-%m-%d"),
        "command": told(args),
        "environment": environment(),
        "backend": runtime.backend,
        "device": runtime.device,
        "device_name": runtime.device_name,
        "threads": runtime.threads,
        "code_sha256": code_sha256(),
    }
    rows: dict[str, list] = {}

    def keep(name: str, row: dict) -> None:
        rows.setdefault(name, []).append(row)
        print(name, {key: row.get(key) for key in TOLD}, flush=True)
        for key, found in rows.items():
            ours = key in SCHEDULES
            record[key] = summarise(found) if ours else of_peer(found)
        if "longer" in record:
            record["longer"] = {"options": words_of(LONGER), **record["longer"]}
        record["ratio"] = ratios(record)
        write(name_of(record), record)

    with tempfile.TemporaryDirectory() as folder:
        npz = pathlib.Path(folder) / "mnist.npz"
        npz = args.data or to_npz("mnist", args.data_dir, npz)
        starts = [
            train(npz, args.device, 0, "train_mnist", f"{folder}/zoo")
            for _ in range(1 + WARM)
        ]
        record["start"] = {
            name: {key: spread([row[key] for row in part]) for key in COSTS}
            for name, part in (("cold", starts[:1]), ("warm", starts[1:]))
        }
        write(name_of(record), record)
        if args.together:
            for name, row in together(args, npz, folder):
                keep(name, row)
        for name, row in in_turns(args, npz, runtime.threads):
            keep(name, row)
    print(json.dumps({"ratio": record["ratio"], "start": record["start"]}))


if __name__ == "__main__":
    main()
