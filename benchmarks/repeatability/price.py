"""Measure the cost of repeatability: modes, checkpoints and digests.

    python benchmarks/repeatability/price.py --data-dir DIR    # a prepared TFDS folder
    python benchmarks/repeatability/price.py --data mnist.npz --device gpu \\
        --autotune choices.txt

Writes benchmarks/records/price.json, or price_gpu.json: on a GPU, JAX only. Two parts,
both with the recipe `mnist`:

- The modes (determinism, XLA, precision, backend): one process for each. All run at the
  same time and train in turns of about a second (gpuzoo/bench/bench.py), back and
  forth, so that changes in the speed of the machine affect all of them; then the same
  with fresh processes, `--generations` times. The first turn, just after compiling, is
  not counted. Reported are the median of the training examples/s, and for pairs of
  modes the median of the ratios within one round with its interval (95 %, bootstrap)
  and quartiles. A mode that fails is recorded with the reason; the exit code is then 1.
- The trail: the time of checkpoints and digests, as fractions of the training time, in
  runs on all of MNIST with both every 100 steps.
"""

import argparse
import contextlib
import json
import pathlib
import shlex
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = 12_800  # 50 steps
# Name -> runtime options, and environment variables.
MODES = {
    "tensorflow float32": {"precision": "float32"},
    "tensorflow float32, no determinism": {"precision": "float32", "level": "fast"},
    "tensorflow float32, no oneDNN": {
        "precision": "float32", "variables": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    },
    "tensorflow bfloat16": {"precision": "mixed_bfloat16"},
    "tensorflow bfloat16, no determinism": {
        "precision": "mixed_bfloat16", "level": "fast",
    },
    "tensorflow float16": {"precision": "mixed_float16"},
    "tensorflow float32, XLA": {"precision": "float32", "xla": "on"},
    "tensorflow float32, XLA, no determinism": {
        "precision": "float32", "xla": "on", "level": "fast",
    },
    "jax float32": {"precision": "float32", "backend": "jax"},
    "jax float32, no determinism": {
        "precision": "float32", "backend": "jax", "level": "fast",
    },
    "jax bfloat16": {"precision": "mixed_bfloat16", "backend": "jax"},
    "jax float16": {"precision": "mixed_float16", "backend": "jax"},
}  # fmt: skip
# The same for a GPU, whose memory the processes share.
GPU_MODES = {
    f"jax {short}{what}": {
        "precision": precision, "backend": "jax", "device": "gpu", **options,
    }
    for short, precision in (
        ("float32", "float32"), ("bfloat16", "mixed_bfloat16"),
        ("float16", "mixed_float16"),
    )
    for what, options in (
        ("", {}), (", no determinism", {"level": "fast"}),
        (", pinned tuning", {"autotune": "FILE"}),
    )
}  # fmt: skip
GPU_PRICES = {
    f"determinism{what}, jax {short}": (
        f"jax {short}{what}", f"jax {short}, no determinism",
    )
    for short in ("float32", "bfloat16", "float16")
    for what in ("", ", pinned tuning")
}  # fmt: skip
# What -> (the mode with it, the mode without it).
PRICES = {
    "determinism, tensorflow float32": (
        "tensorflow float32", "tensorflow float32, no determinism",
    ),
    "determinism, tensorflow bfloat16": (
        "tensorflow bfloat16", "tensorflow bfloat16, no determinism",
    ),
    "determinism, tensorflow float32 with XLA": (
        "tensorflow float32, XLA", "tensorflow float32, XLA, no determinism",
    ),
    "determinism, jax float32": ("jax float32", "jax float32, no determinism"),
    "XLA, tensorflow float32": ("tensorflow float32, XLA", "tensorflow float32"),
    "bfloat16, tensorflow": ("tensorflow bfloat16", "tensorflow float32"),
    "bfloat16, jax": ("jax bfloat16", "jax float32"),
    "jax instead of tensorflow, float32": ("jax float32", "tensorflow float32"),
    "oneDNN, tensorflow float32": (
        "tensorflow float32", "tensorflow float32, no oneDNN",
    ),
}  # fmt: skip


def figures(values: list[float]) -> dict:
    """Return the median, its interval, the quartiles and the count."""
    from gpuzoo.bench.bench import spread

    found = spread(values)
    return {
        "median": round(found["median"], 4),
        "interval": [round(found[end], 4) for end in ("low", "high")],
        "quartiles": [round(float(q), 4) for q in np.percentile(values, [25, 75])],
        "n": found["n"],
    }


def take_turns(
    modes: dict, npz, generations: int, turns: int, autotune: str
) -> tuple[dict, dict]:
    """Return name -> examples/s of every turn, and name -> why a mode failed."""
    from gpuzoo.bench import bench
    from gpuzoo.catalogue.recipes import load_recipe

    recipe = load_recipe("mnist").override(data=str(npz))
    speed: dict[str, list[float]] = {name: [] for name in modes}
    failed: dict[str, str] = {}
    for generation in range(generations):
        with contextlib.ExitStack() as stack:
            alive = {}
            for name, mode in modes.items():
                if name not in failed:
                    begin(name, mode, recipe, autotune, stack, alive, failed)
            bench.take_turns(list(alive.values()), turns)
            for name, worker in alive.items():
                speed[name] += worker.speeds
                if worker.error:
                    failed[name] = worker.error
        told = {n: round(speed[n][-1]) for n in modes if n not in failed}
        print("generation", generation, told, failed, flush=True)
    return speed, failed


def begin(name, mode, recipe, autotune, stack, alive: dict, failed: dict) -> None:
    """Start a process for a mode; add it to those alive or, with the reason, failed."""
    from gpuzoo.bench import bench
    from gpuzoo.errors import GpuzooError
    from gpuzoo.runtime.options import Options
    from gpuzoo.training import autotune as tuning

    asked = {"device": "cpu", **mode}
    variables = asked.pop("variables", {})
    if "autotune" in asked:  # a file is for one precision
        path = pathlib.Path(autotune)
        asked["autotune"] = str(path.with_stem(f"{path.stem}-{asked['precision']}"))
    options = Options(**asked)
    try:
        tuning.tune(recipe, options, print)
    except GpuzooError as error:
        failed[name] = str(error)
        return
    worker = stack.enter_context(bench.trainer(recipe, options, variables=variables))
    if worker.error:
        failed[name] = worker.error
    else:
        alive[name] = worker


def matrix(modes: dict, prices: dict, speed: dict, failed: dict) -> dict:
    """Return the results of the modes that did all turns, and why others did not."""
    return {
        "modes": {
            name: {"error": failed[name]}
            if name in failed
            else {"examples_per_second": figures(speed[name])}
            for name in modes
        },
        "seconds_with_over_without": {
            what: figures(
                [b / a for a, b in zip(speed[one], speed[other], strict=True)]
            )
            for what, (one, other) in prices.items()
            if not {one, other} & set(failed)
        },
    }


def trails(data, rounds: int) -> dict:
    """Return the time of checkpoints and digests as fractions of the training time."""
    from gpuzoo.catalogue.recipes import load_recipe
    from gpuzoo.engine import loop
    from gpuzoo.engine.program import Program
    from gpuzoo.runtime.configure import in_force
    from gpuzoo.training.build import session_of

    parts: dict[str, list[float]] = {"checkpoint": [], "digest": []}
    recipe = load_recipe("mnist").override(
        epochs=2, eval_every=9, checkpoint_every=100, digest_every=100
    )
    for turn in range(rounds):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            checkpoints = pathlib.Path(folder) / "checkpoints"
            result = loop.run(
                Program(session_of(recipe, in_force(), data)), folder=checkpoints
            )
        for name, values in parts.items():
            values.append(result.seconds[name] / result.seconds["train"])
        print("trail", turn, {k: v[-1] for k, v in parts.items()}, flush=True)
    return {
        "steps": result.steps,
        "parameters": result.parameters,
        "part_of_training": {name: figures(v) for name, v in parts.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--autotune", default="choices.txt")
    parser.add_argument("--precisions", nargs="+", help="default: all")
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--turns", type=int, default=12)
    args = parser.parse_args()
    gpu = args.device == "gpu"

    import gpuzoo
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    here = environment()
    data = gpuzoo.load_data(args.data, data_dir=args.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        npz = pathlib.Path(folder) / "part.npz"
        parts = (("train", None if gpu else EXAMPLES), ("test", 1000))
        images = {f"x_{s}": data.splits[s]["image"][:n] for s, n in parts}
        labels = {f"y_{s}": data.splits[s]["label"][:n] for s, n in parts}
        np.savez(npz, **images, **labels)
        modes, prices = (GPU_MODES, GPU_PRICES) if gpu else (MODES, PRICES)
        if args.precisions:
            modes = {
                n: m for n, m in modes.items() if m["precision"] in args.precisions
            }
            prices = {n: pair for n, pair in prices.items() if {*pair} <= modes.keys()}
        told = take_turns(modes, npz, args.generations, args.turns, args.autotune)
        found = matrix(modes, prices, *told)
    hidden = {args.data: "FILE", args.data_dir: "DIR", args.autotune: "choices.txt"}
    runtime = gpuzoo.configure(device=args.device, backend="jax" if gpu else "auto")
    record = {
        "what": "the price of repeatability, of XLA, precision and backend",
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(
            [
                "python",
                "benchmarks/repeatability/price.py",
                *(hidden.get(w, w) for w in sys.argv[1:]),
            ]
        ),
        "device": runtime.device_name,
        "environment": here,
        "threads": runtime.threads,
        "code_sha256": code_sha256(),
        "generations": args.generations,
        "turns": args.turns,
        **found,
    }
    trail = {"precision": runtime.precision, **trails(data, args.generations)}
    record["trail"] = trail
    name = "price_gpu" if gpu else "price"
    path = HERE / "records" / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    told = record["seconds_with_over_without"] | trail["part_of_training"]
    print(json.dumps({what: (f["median"], f["interval"]) for what, f in told.items()}))
    return int(any("error" in mode for mode in found["modes"].values()))


if __name__ == "__main__":
    sys.exit(main())
