"""MNIST to 99 %: gpuzoo beside stock Keras and PyTorch, in fresh processes on the same
cores.

    python benchmarks/mnist_to_99.py --data-dir DIR    # a prepared TFDS folder
    python benchmarks/mnist_to_99.py --data-dir DIR --torch VENV/bin/python

Writes benchmarks/records/mnist_to_99_<cpu>.json. What is measured:

- stock Keras: seconds inside `fit` until the test accuracy is 99.0 % for the first time
  (peers/stock_keras_mnist.py, several seeds), and the seconds of one epoch;
- the same network in PyTorch, if a Python that has it is named (peers/torch_mnist.py);
- gpuzoo, `train_mnist` as it is: test accuracy and seconds, 10 seeds;
- gpuzoo, the longer schedule of LONGER: the same.

`train_seconds` of gpuzoo leaves out tracing and compiling, `compile_seconds`; the stock
figure cannot be split, so the ratio is given both without and with it. The processes
take turns, so that a change of the machine's speed meets all of them.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
LONGER = ["--epochs", "3", "--augment", "shift:1"]


def run_json(command: list[str]) -> tuple[dict, float]:
    """Last stdout line as JSON, and the wall seconds of the whole process."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start


def spread(values: list[float]) -> dict:
    return {
        "mean": round(statistics.mean(values), 4),
        "std": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def summarise(rows: list[dict]) -> dict:
    keys = ("test_accuracy", "train_seconds", "compile_seconds", "process_seconds")
    return {
        **{key: spread([row[key] for row in rows]) for key in keys},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--stock-seeds", type=int, default=3)
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    args = parser.parse_args()

    import gpuzoo
    from gpuzoo.evidence.record import code_sha256
    from gpuzoo.machine import environment

    runtime = gpuzoo.configure(device="cpu")
    data = gpuzoo.load_data("mnist", data_dir=args.data_dir)
    short, longer = [], []
    peers = {"stock_keras": (sys.executable, [])}
    if args.torch:
        peers["torch"] = (args.torch, ["--threads", str(runtime.threads)])
    trained = {name: [] for name in peers}
    with tempfile.TemporaryDirectory() as folder:
        npz = pathlib.Path(folder) / "mnist.npz"
        np.savez(
            npz,
            **{
                f"{letter}_{split}": data.splits[split][field]
                for split in ("train", "test")
                for letter, field in (("x", "image"), ("y", "label"))
            },
        )
        for seed in range(args.seeds):
            for rows, options in ((short, []), (longer, LONGER)):
                command = [
                    sys.executable, "-m", "gpuzoo", "train", "mnist", "--quiet",
                    "--device", "cpu", "--data-dir", args.data_dir, *options,
                    "--seed", str(seed), "--out", f"{folder}/{len(rows)}{options[1:2]}",
                ]  # fmt: skip
                row, seconds = run_json(command)
                row["process_seconds"] = round(seconds, 3)
                row.pop("run_dir")
                rows.append(row)
                print(seed, row["test_accuracy"], row["train_seconds"], flush=True)
            for name, (python, options) in peers.items():
                if seed >= args.stock_seeds:
                    break
                script = HERE / "peers" / f"{name}_mnist.py"
                command = [python, str(script), str(npz), "--seed", str(seed)]
                row, _ = run_json([*command, *options])
                if not row["reached"]:
                    sys.exit(f"{name} did not reach 99.0 %; raise --epochs in the peer")
                trained[name].append({"seed": seed, **row})
                print(name, seed, row["train_seconds"], flush=True)

    record = {
        "what": f"MNIST to 99 %, gpuzoo against {' and '.join(peers)}",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/mnist_to_99.py --data-dir DIR"
        + " --torch PYTHON" * bool(args.torch),
        "environment": environment(),
        "device": runtime.device,
        "threads": runtime.threads,
        "code_sha256": code_sha256(),
        **{name: of_peer(rows) for name, rows in trained.items()},
        "train_mnist": summarise(short),
        "longer": {"options": LONGER, **summarise(longer)},
    }
    mine, stock = record["train_mnist"], record["stock_keras"]
    train, to_99 = mine["train_seconds"]["mean"], stock["train_seconds_to_99"]["mean"]
    record["ratio"] = {
        "training": round(to_99 / train, 1),
        "training_and_compiling": round(
            to_99 / (train + mine["compile_seconds"]["mean"]), 1
        ),
        "stock_epoch_over_longer": round(
            stock["epoch_seconds"] / record["longer"]["train_seconds"]["mean"], 2
        ),
    }
    if args.torch:
        theirs = record["torch"]["train_seconds_to_99"]["mean"]
        record["ratio"]["torch"] = round(theirs / train, 1)
    words = re.findall(r"[a-z0-9]+", record["environment"]["cpu"].lower())
    cpu = "_".join(word for word in words if word not in ("cpu", "family", "model"))
    path = HERE / "records" / f"mnist_to_99_{cpu}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["ratio"]))


if __name__ == "__main__":
    main()
