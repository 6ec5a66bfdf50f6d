"""speednet on CIFAR-10: gpuzoo compared with the same training in PyTorch.

    python benchmarks/speed/cifar_beside_torch.py --data-dir DIR --torch PYTHON
    python benchmarks/speed/cifar_beside_torch.py --data FILE.npz --torch PYTHON \\
        --device gpu

PYTHON is an interpreter with torch. For each seed the recipe `cifar10` and
peers/torch_cifar.py are trained in fresh processes, one after the other. On a CPU: the
recipe as it is, in float32. On a GPU: the full network, both in bfloat16 with batches
of 1000 and the learning rate of Jordan's speed runs (1.5 for this batch size and a mean
loss); gpuzoo also without determinism, PyTorch also with `torch.compile`.

Writes benchmarks/records/cifar10_beside_torch_<device>.json after each seed: test
accuracy and training time of all, the difference in accuracy between gpuzoo and PyTorch
in points with a 95 % interval, and the ratio of the median training times.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np
import scipy.stats
from recipe_figures import MACHINE, measure, run_json, spread, write
from to_npz import to_npz

HERE = pathlib.Path(__file__).resolve().parent.parent
CPU = {"epochs": 4, "batch": 125, "rate": 0.3, "precision": "float32"}  # the recipe's
GPU = {"epochs": 10, "batch": 1000, "rate": 1.5, "precision": "bfloat16"}
FULL = ["--model-options", "filters=(64,256,256)", "activation=gelu"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", required=True, help="a Python with PyTorch")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data-dir", help="a prepared TFDS folder")
    data.add_argument("--data", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--epochs", type=int, help="default: 4, on a GPU 10")
    parser.add_argument("--batch", type=int, help="default: 125, on a GPU 1000")
    parser.add_argument("--rate", type=float, help="default: 0.3, on a GPU 1.5")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"),
                        help="default: float32, on a GPU bfloat16")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for name, value in (GPU if args.device == "gpu" else CPU).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def apart(ours: list[float], theirs: list[float]) -> dict:
    """Return the accuracy gain of gpuzoo in points, with a 95 % interval."""
    found = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = found.confidence_interval()
    mean = np.mean(ours) - np.mean(theirs)
    return {
        name: round(100 * float(value), 3)
        for name, value in (("mean", mean), ("low", low), ("high", high))
    }


def commands(args, threads: int) -> tuple[dict, dict]:
    """Return the options of gpuzoo and of the peer by their name in the record."""
    gpu, mixed = args.device == "gpu", args.precision != "float32"
    common = ["--epochs", str(args.epochs)]
    ours = [
        *common, "--device", args.device, "--batch-size", str(args.batch),
        "--learning-rate", str(args.rate),
        "--precision", "mixed_" * mixed + args.precision,
    ]  # fmt: skip
    theirs = [
        *common, "--threads", str(threads), "--device", "cuda" if gpu else "cpu",
        "--batch", str(args.batch), "--rate", str(args.rate),
        "--precision", args.precision,
    ]  # fmt: skip
    if not gpu:
        theirs += ["--filters", "32", "64", "64", "--activation", "relu"]
        return {"gpuzoo": ours}, {"torch": theirs}
    ours += FULL
    return (
        {"gpuzoo": ours, "gpuzoo_fast": [*ours, "--level", "fast"]},
        {"torch": theirs, "torch_compile": [*theirs, "--compile"]},
    )


def compared(rows: dict) -> dict:
    """Return the metrics of all runs and their differences."""
    figures = {
        name: {
            key: spread([row[key] for row in found])
            for key in ("test_accuracy", "train_seconds")
        }
        for name, found in rows.items()
    }
    best = {
        name: statistics.median(row["train_seconds"] for row in found)
        for name, found in rows.items()
    }
    over = {
        f"{one} over {other}": round(best[one] / best[other], 3)
        for one in best
        for other in best
        if one.startswith("gpuzoo") and other.startswith("torch")
    }
    told = {**figures, "median_seconds": over}
    both = [
        [row["test_accuracy"] for row in rows[name]] for name in ("gpuzoo", "torch")
    ]
    if len(both[0]) > 1:
        told["points_of_accuracy_more"] = apart(*both)
    return told


def main() -> None:
    args = parse()

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import available_cores, environment

    threads = available_cores()
    ours, theirs = commands(args, threads)
    rows = {name: [] for name in (*ours, *theirs)}
    record = {
        "what": "speednet on CIFAR-10 beside PyTorch",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/speed/cifar_beside_torch.py "
        f"{'--data-dir DIR' if args.data_dir else '--data FILE'} --torch PYTHON "
        f"--device {args.device} "
        + "".join(f"--{name} {getattr(args, name)} " for name in CPU)
        + f"--seeds {args.seeds}",
        "environment": environment(),
        "code_sha256": code_sha256(),
    }
    with tempfile.TemporaryDirectory() as folder:
        npz = pathlib.Path(folder) / "cifar10.npz"
        npz = args.data or to_npz("cifar10", args.data_dir, npz)
        script = str(HERE / "peers" / "torch_cifar.py")
        for seed in range(args.seeds):
            for name, options in ours.items():
                out = f"{folder}/{name}-{seed}"
                row = measure("cifar10", [*options, "--data", npz], seed, out)
                rows[name].append(row)
            for name, options in theirs.items():
                row = run_json([args.torch, script, npz, "--seed", str(seed), *options])
                rows[name].append({"seed": seed, **row})
                print(name, seed, json.dumps(row), flush=True)
            record |= {key: rows["gpuzoo"][0][key] for key in MACHINE}
            record |= {**compared(rows), "runs": rows}
            write(f"cifar10_beside_torch_{args.device}", record)
    print(json.dumps(compared(rows)))


if __name__ == "__main__":
    main()
