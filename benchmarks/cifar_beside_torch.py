"""speednet on CIFAR-10: gpuzoo beside the same network and training in PyTorch.

    python benchmarks/cifar_beside_torch.py --data-dir DIR --torch PYTHON
    python benchmarks/cifar_beside_torch.py --data FILE.npz --torch PYTHON --device gpu

PYTHON can import torch. With each seed the recipe `cifar10` and peers/torch_cifar.py
are trained in fresh processes, one after the other: on a CPU as the recipe stands, on a
GPU the full network for --epochs. Writes
benchmarks/records/cifar10_beside_torch_<device>.json: test accuracy and seconds of
training of both, and by how many points the accuracies differ, with a 95 % interval.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np
import scipy.stats
from recipe_figures import measure, run_json, spread

HERE = pathlib.Path(__file__).resolve().parent
FULL = ["--model-options", "filters=(64,256,256)", "activation=gelu"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", required=True, help="a Python that has PyTorch")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data-dir", help="a prepared TFDS folder")
    data.add_argument("--data", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--epochs", type=int, help="default: 4, on a GPU 10")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def apart(ours: list[float], theirs: list[float]) -> dict:
    """By how many points of accuracy ours are better, with a 95 % interval."""
    found = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = found.confidence_interval()
    mean = np.mean(ours) - np.mean(theirs)
    return {
        name: round(100 * float(value), 3)
        for name, value in (("mean", mean), ("low", low), ("high", high))
    }


def main() -> None:
    args = parse()

    import gpuzoo
    from gpuzoo.evidence.record import code_sha256
    from gpuzoo.machine import available_cores, environment

    gpu = args.device == "gpu"
    epochs, threads = args.epochs or (10 if gpu else 4), available_cores()
    common = ["--epochs", str(epochs)]
    options = [*common, "--device", args.device, *(FULL if gpu else [])]
    peer = [*common, "--threads", str(threads), "--device", "cuda" if gpu else "cpu"]
    if not gpu:
        peer += ["--filters", "32", "64", "64", "--activation", "relu"]
    rows = {"gpuzoo": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        npz = args.data
        if args.data_dir:
            splits = gpuzoo.load_data("cifar10", data_dir=args.data_dir).splits
            npz = f"{folder}/cifar10.npz"
            images = {f"x_{name}": split["image"] for name, split in splits.items()}
            labels = {f"y_{name}": split["label"] for name, split in splits.items()}
            np.savez(npz, **images, **labels)
        options += ["--data", npz]
        script = str(HERE / "peers" / "torch_cifar.py")
        for seed in range(args.seeds):
            row = measure("cifar10", options, seed, f"{folder}/{seed}")
            rows["gpuzoo"].append(row)
            row = run_json([args.torch, script, npz, "--seed", str(seed), *peer])
            rows["torch"].append({"seed": seed, **row})
            print("torch", seed, json.dumps(row), flush=True)
    figures = {
        name: {
            key: spread([row[key] for row in found])
            for key in ("test_accuracy", "train_seconds")
        }
        for name, found in rows.items()
    }
    accuracies = [[row["test_accuracy"] for row in found] for found in rows.values()]
    record = {
        "what": "speednet on CIFAR-10 beside PyTorch",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/cifar_beside_torch.py "
        f"{'--data-dir DIR' if args.data_dir else '--data FILE'} --torch PYTHON "
        f"--device {args.device} --epochs {epochs} --seeds {args.seeds}",
        "environment": environment(),
        "device": rows["gpuzoo"][0]["device"],
        "threads": threads,
        "code_sha256": code_sha256(),
        **figures,
        "points_of_accuracy_more": apart(*accuracies),
        "runs": rows,
    }
    path = HERE / "records" / f"cifar10_beside_torch_{args.device}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({**figures, "points": record["points_of_accuracy_more"]}))


if __name__ == "__main__":
    main()
