"""Steps of training: gpuzoo beside stock Keras and PyTorch on the same cores.

    python benchmarks/speed.py --data-dir DIR --torch PYTHON   # PYTHON can import torch

Writes benchmarks/records/speed.json. For each network of WORK one process of each
trains it on MNIST with the same batch; they are alive at once and take turns of about
a second (gpuzoo/evidence/bench.py). Given is the median of the examples a second, and
of gpuzoo's speed over each peer's within one round, with its interval (95 %,
bootstrap). gpuzoo runs as it does by default: repeatable to the bit.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
# Network -> its recipe, and steps of a first turn.
WORK = {
    "cnn": ("mnist", 20),
    "lstm": ("mnist_lstm", 20),
    "gan": ("mnist_gan", 5),
    "vae": ("mnist_vae", 20),
}


def peers(torch: str | None) -> dict[str, tuple]:
    """Name -> the command, what it is told, changes of its environment."""
    keras = [sys.executable, str(HERE / "peers" / "keras_steps.py")]
    found = {
        f"keras fit, {backend}": (keras, {}, {"KERAS_BACKEND": backend})
        for backend in ("tensorflow", "jax")
    }
    if torch:
        words = [torch, str(HERE / "peers" / "torch_steps.py")]
        for name, compiled in (("eager", False), ("compile", True)):
            found[f"torch, {name}"] = (words, {"compiled": compiled}, {})
    return found


def measure(work: str, args, npz: str, threads: int) -> dict:
    from gpuzoo.evidence import bench
    from gpuzoo.recipe import load_recipe
    from gpuzoo.runtime import Options

    recipe, warm = load_recipe(WORK[work][0]), WORK[work][1]
    told = {
        "work": work, "data": npz, "batch": recipe.batch_size, "warm": warm,
        "seconds": 1.0, "threads": threads,
    }  # fmt: skip
    mine = recipe.override(data=npz)
    with contextlib.ExitStack() as stack:
        workers = {"gpuzoo": bench.trainer(mine, Options(device="cpu"))}
        stack.enter_context(workers["gpuzoo"])
        for name, (words, more, variables) in peers(args.torch).items():
            workers[name] = stack.enter_context(
                bench.Worker(words, {**told, **more}, recipe.batch_size, variables)
            )
        bench.take_turns(list(workers.values()), args.rounds)
    ours, rows = workers["gpuzoo"], {}
    for name, worker in workers.items():
        if worker.error:
            rows[name] = {"error": worker.error}
            continue
        rows[name] = {"examples_per_second": bench.spread(worker.speeds)}
        if worker is not ours:
            rows[name]["gpuzoo_over_it"] = bench.ratios(ours.speeds, worker.speeds)
    for name, row in rows.items():
        print(work, name, json.dumps(row), flush=True)
    return {"recipe": recipe.name, "batch": recipe.batch_size, "peers": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--torch", help="a python that can import torch")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--work", nargs="*", default=list(WORK))
    args = parser.parse_args()

    import gpuzoo
    from gpuzoo.evidence.record import code_sha256
    from gpuzoo.machine import available_cores, cpu_model, environment

    data = gpuzoo.load_data("mnist", data_dir=args.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        npz = f"{folder}/mnist.npz"
        images = {f"x_{s}": data.splits[s]["image"] for s in data.splits}
        labels = {f"y_{s}": data.splits[s]["label"] for s in data.splits}
        np.savez(npz, **images, **labels)
        threads = available_cores()
        found = {work: measure(work, args, npz, threads) for work in args.work}
    record = {
        "what": "steps of training beside peers",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/speed.py --data-dir DIR --torch PYTHON",
        "device": cpu_model(),
        "environment": environment(),
        "torch": _torch_version(args.torch),
        "threads": threads,
        "code_sha256": code_sha256(),
        "rounds": args.rounds,
        "work": found,
    }
    path = HERE / "records" / "speed.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


def _torch_version(python: str | None) -> str | None:
    if not python:
        return None
    code = "import torch; print(torch.__version__)"
    words = [python, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout[:-1]


if __name__ == "__main__":
    main()
