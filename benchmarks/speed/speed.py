"""Training speed: gpuzoo compared with stock Keras, PyTorch and Flax.

    python benchmarks/speed/speed.py --data-dir DIR --torch PYTHON --flax PYTHON

Each PYTHON is an interpreter with that framework. Writes
benchmarks/records/speed_<cpu>.json; with --work the rows of the other networks are kept
if machine, threads and versions are the same. For each network of WORK one process per
framework trains it on MNIST with the same batch size. They run at the same time on the
same cores and take turns of about a second (gpuzoo/bench/bench.py). Reported are the
median examples/s, and the ratio of gpuzoo's speed to each peer's within one round, with
its interval (95 %, bootstrap). gpuzoo runs with its defaults: repeatable to the bit, in
the precision that it chooses for the device, which the peers use, too.
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
from recipe_figures import kind_of

HERE = pathlib.Path(__file__).resolve().parent.parent
# Network -> its recipe, and steps of a first turn.
WORK = {
    "cnn": ("mnist", 20),
    "lstm": ("mnist_lstm", 20),
    "gan": ("mnist_gan", 5),
    "vae": ("mnist_vae", 20),
    "detector": ("digit_detection", 5),
    "conv_lstm": ("moving_mnist", 5),
}
IN_FLAX = ("cnn", "lstm", "gan", "vae")
# In every row; older records have it once for all rows.
OF_A_ROW = ("date", "code_sha256", "torch", "flax", "rounds", "precision")


def peers(work: str, torch: str | None, flax: str | None) -> dict[str, tuple]:
    """Return name -> (command, its input, changes of its environment)."""
    keras = [sys.executable, str(HERE / "peers" / "keras_steps.py")]
    found = {
        f"keras fit, {backend}": (keras, {}, {"KERAS_BACKEND": backend})
        for backend in ("tensorflow", "jax")
    }
    if torch:
        words = [torch, str(HERE / "peers" / "torch_steps.py")]
        for name, compiled in (("eager", False), ("compile", True)):
            found[f"torch, {name}"] = (words, {"compiled": compiled}, {})
    if flax and work in IN_FLAX:
        found["flax"] = ([flax, str(HERE / "peers" / "flax_steps.py")], {}, {})
    return found


def measure(work: str, args, npz: str, threads: int) -> dict:
    from gpuzoo.bench import bench
    from gpuzoo.catalogue.recipes import load_recipe
    from gpuzoo.runtime.options import Options

    recipe, warm = load_recipe(WORK[work][0]), WORK[work][1]
    mine = recipe.override(data=npz)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(bench.trainer(mine, Options(device="cpu")))
        if ours.error:
            sys.exit(f"{work} failed: {ours.error}")
        told = {
            "work": work, "data": npz, "batch": recipe.batch_size, "warm": warm,
            "seconds": 1.0, "threads": threads,
            "precision": ours.told["runtime"]["precision"],
        }  # fmt: skip
        workers = {"gpuzoo": ours}
        beside = peers(work, args.torch, args.flax)
        for name, (words, more, variables) in beside.items():
            workers[name] = stack.enter_context(
                bench.Worker(words, {**told, **more}, recipe.batch_size, variables)
            )
        bench.take_turns(list(workers.values()), args.rounds)
    rows = {}
    for name, worker in workers.items():
        if worker.error:
            rows[name] = {"error": worker.error}
            continue
        rows[name] = {"examples_per_second": bench.spread(worker.speeds)}
        if worker is not ours and not ours.error:
            rows[name]["gpuzoo_over_it"] = bench.ratios(ours.speeds, worker.speeds)
    for name, row in rows.items():
        print(work, name, json.dumps(row), flush=True)
    return {
        "recipe": recipe.name,
        "batch": recipe.batch_size,
        "precision": told["precision"],
        "peers": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--torch", help="a Python with torch")
    parser.add_argument("--flax", help="a Python with flax and optax")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--work", nargs="*", choices=WORK, default=list(WORK))
    args = parser.parse_args()

    import gpuzoo
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import available_cores, cpu_model, environment

    data = gpuzoo.load_data("mnist", data_dir=args.data_dir)
    record = {
        "what": "steps of training beside peers",
        "command": "python benchmarks/speed/speed.py --data-dir DIR --torch PYTHON "
        "--flax PYTHON",
        "device": cpu_model(),
        "environment": environment(),
        "threads": available_cores(),
    }
    path = HERE / "records" / f"speed_{kind_of(record['device'])}.json"
    found = kept(path, record)
    torch, flax = version("torch", args.torch), version("flax", args.flax)
    with tempfile.TemporaryDirectory() as folder:
        npz = f"{folder}/mnist.npz"
        images = {f"x_{s}": data.splits[s]["image"] for s in data.splits}
        labels = {f"y_{s}": data.splits[s]["label"] for s in data.splits}
        np.savez(npz, **images, **labels)
        for work in args.work:
            row = measure(work, args, npz, record["threads"])
            found[work] = {
                "date": time.strftime("%Y-%m-%d"),
                "code_sha256": code_sha256(),
                "torch": torch,
                "flax": flax if "flax" in row["peers"] else None,
                "rounds": args.rounds,
                **row,
            }
    record["work"] = {work: found[work] for work in WORK if work in found}
    path.write_text(json.dumps(record, indent=1) + "\n")


def kept(path: pathlib.Path, record: dict) -> dict[str, dict]:
    """Return the rows of an earlier record that are kept."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    # Through JSON, so that a tuple equals the list that was written for it.
    now = json.loads(json.dumps(record))
    if any(earlier.get(k) != now[k] for k in ("device", "environment", "threads")):
        return {}
    told = {key: earlier.get(key) for key in OF_A_ROW}
    return {work: told | row for work, row in earlier["work"].items()}


def version(name: str, python: str | None) -> str | None:
    """Return the version of a library in another interpreter; of Flax also JAX's."""
    if not python:
        return None
    told = {
        "torch": "import torch; print(torch.__version__)",
        "flax": "import flax, jax; print(flax.__version__, f'(JAX {jax.__version__})')",
    }
    words = [python, "-c", told[name]]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout[:-1]


if __name__ == "__main__":
    main()
