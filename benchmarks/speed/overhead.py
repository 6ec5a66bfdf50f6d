"""Measure the host overhead of a training step, with a model of negligible compute.

    python benchmarks/speed/overhead.py [--rounds 20]

One dense layer from 8 inputs to 10 classes, batch 32, Adam, trained by gpuzoo with its
defaults and by stock Keras `fit`, each on TensorFlow and on JAX. The processes run at
the same time and take turns of about a second (gpuzoo/bench/bench.py). Writes
benchmarks/records/overhead.json: milliseconds per step (median, 95 % interval), and the
ratio of stock Keras to gpuzoo within one round.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
BATCH = 32
SHAPE = (2, 4, 1)
EXAMPLES = 32_000  # 1000 steps of an epoch
TARGET = 0.2  # milliseconds
BACKENDS = ("tensorflow", "jax")


def data(path: str) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (EXAMPLES, *SHAPE), np.uint8)
    labels = np.arange(EXAMPLES) % 10
    few = 1000
    np.savez(
        path, x_train=images, y_train=labels, x_test=images[:few], y_test=labels[:few]
    )


def begin(name: str, backend: str, npz: str):
    """Start a process that trains it with gpuzoo or with stock Keras."""
    from gpuzoo.bench import bench
    from gpuzoo.catalogue.recipe import Recipe
    from gpuzoo.runtime.environment import available_cores
    from gpuzoo.runtime.options import Options

    if name == "gpuzoo":
        recipe = Recipe(
            name="tiny", model="mlp", model_options=("units=()",), data=npz,
            batch_size=BATCH,
        )  # fmt: skip
        options = Options(device="cpu", backend=backend, precision="float32")
        return bench.trainer(recipe, options)
    asked = {
        "work": "tiny", "data": npz, "batch": BATCH, "warm": 500,
        "seconds": 1.0, "threads": available_cores(), "precision": "float32",
    }  # fmt: skip
    words = [sys.executable, str(HERE / "peers" / "keras_steps.py")]
    return bench.Worker(words, asked, BATCH, {"KERAS_BACKEND": backend})


def measure(rounds: int) -> dict:
    from gpuzoo.bench import bench

    cases = [(name, backend) for backend in BACKENDS for name in ("gpuzoo", "keras")]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        data(f"{folder}/tiny.npz")
        workers = {
            case: stack.enter_context(begin(*case, f"{folder}/tiny.npz"))
            for case in cases
        }
        bench.take_turns(list(workers.values()), rounds)
    found = {}
    for (name, backend), worker in workers.items():
        row = found.setdefault(backend, {})
        if worker.error:
            row[name] = {"error": worker.error}
            continue
        steps = [1000 * BATCH / speed for speed in worker.speeds]
        row[name] = {"milliseconds": bench.spread(steps)}
        ours = workers["gpuzoo", backend]
        if name != "gpuzoo" and not ours.error:
            row[name]["times_gpuzoo"] = bench.ratios(ours.speeds, worker.speeds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import available_cores, environment

    record = {
        "what": "the host's time for a step of a tiny model",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/speed/overhead.py --rounds {args.rounds}",
        "environment": environment(),
        "threads": available_cores(),
        "code_sha256": code_sha256(),
        "rounds": args.rounds,
        "target_milliseconds": TARGET,
        "steps": measure(args.rounds),
    }
    path = HERE / "records" / "overhead.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["steps"], indent=1))


if __name__ == "__main__":
    main()
