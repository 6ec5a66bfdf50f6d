"""What repeatability costs: determinism, XLA, precision, backend; checkpoints, digests.

    python benchmarks/price.py --data-dir DIR    # a prepared TFDS folder
    python benchmarks/price.py --data mnist.npz --device gpu --autotune choices.txt

Writes benchmarks/records/price.json, or price_gpu.json: on a GPU, JAX only; with
`--only PRICE ...` just these prices, in more rounds, to price_closer.json. Two parts,
both with the recipe `mnist`:

- The matrix: every mode trains in a fresh process of its own, on a CPU on the first
  12,800 examples; the modes take turns, back and forth, so that a change of the
  machine's speed meets all of them. Given is the median of the examples per second of
  training, and for pairs of modes the median, and the quartiles, of the ratios within
  the rounds.
- The trail: of runs on all of MNIST with a checkpoint and a digest every 100 steps, how
  long these took as parts of the training, from the phases that a run tells apart.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLES = 12_800
NEVER = 10**9
# Name -> options of the machine, epochs of 50 steps.
MODES = {
    "tensorflow float32": ({"precision": "float32"}, 4),
    "tensorflow float32, no determinism": (
        {"precision": "float32", "level": "fast"}, 4,
    ),
    "tensorflow float32, no oneDNN": (
        {"precision": "float32", "variables": {"TF_ENABLE_ONEDNN_OPTS": "0"}}, 4,
    ),
    "tensorflow bfloat16": ({"precision": "mixed_bfloat16"}, 2),
    "tensorflow bfloat16, no determinism": (
        {"precision": "mixed_bfloat16", "level": "fast"}, 2,
    ),
    "tensorflow float16": ({"precision": "mixed_float16"}, 1),
    "tensorflow float32, XLA": ({"precision": "float32", "xla": "on"}, 1),
    "tensorflow float32, XLA, no determinism": (
        {"precision": "float32", "xla": "on", "level": "fast"}, 1,
    ),
    "jax float32": ({"precision": "float32", "backend": "jax"}, 1),
    "jax float32, no determinism": (
        {"precision": "float32", "backend": "jax", "level": "fast"}, 1,
    ),
    "jax bfloat16": ({"precision": "mixed_bfloat16", "backend": "jax"}, 1),
    "jax float16": ({"precision": "mixed_float16", "backend": "jax"}, 1),
}  # fmt: skip
# The same for a GPU, where epochs are whole; {autotune} is a file, made at first use.
GPU_MODES = {
    f"jax {short}{what}": (
        {"precision": precision, "backend": "jax", "device": "gpu", **options}, 20
    )
    for short, precision in (
        ("float32", "float32"), ("bfloat16", "mixed_bfloat16"),
        ("float16", "mixed_float16"),
    )
    for what, options in (
        ("", {}), (", no determinism", {"level": "fast"}),
        (", pinned tuning", {"autotune": "{autotune}"}),
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


def quartiles(values: list[float]) -> dict:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {
        "median": round(float(middle), 4),
        "quartiles": [round(float(low), 4), round(float(high), 4)],
        "n": len(values),
    }


def train_once(npz: pathlib.Path, mode: tuple, out: str, autotune: str) -> dict:
    """One mode in a fresh process; its summary."""
    options, epochs = {"device": "cpu", **mode[0]}, mode[1]
    words = ["--data", str(npz), "--epochs", str(epochs), "--eval-every", str(NEVER)]
    variables = options.pop("variables", {})
    for key, value in options.items():
        words += [f"--{key}", value.format(autotune=autotune)]
    done = subprocess.run(
        ["env", *(f"{k}={v}" for k, v in variables.items()),
         sys.executable, "-m", "gpuzoo", "train", "mnist", *words,
         "--checkpoint-every", "0", "--out", out, "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{mode} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def matrix(
    modes: dict,
    prices: dict,
    npz: pathlib.Path,
    rounds: int,
    folder: str,
    autotune: str,
) -> dict:
    speed: dict[str, list[float]] = {name: [] for name in modes}
    digests: dict[str, set[str]] = {name: set() for name in modes}
    for turn in range(rounds):
        order = list(modes.items())[:: -1 if turn % 2 else 1]
        for place, (name, mode) in enumerate(order):
            out = f"{folder}/{turn}-{place}"
            row = train_once(npz, mode, out, autotune)
            speed[name].append(row["steps"] * 256 / row["train_seconds"])
            digests[name].add(row["weights_sha256"])
            print(turn, name, round(speed[name][-1]), flush=True)
    return {
        "modes": {
            name: {
                "examples_per_second": quartiles(values),
                "different_weights": len(digests[name]),
            }
            for name, values in speed.items()
        },
        "seconds_with_over_without": {
            what: quartiles(
                [b / a for a, b in zip(speed[one], speed[other], strict=True)]
            )
            for what, (one, other) in prices.items()
        },
    }


def trails(data, rounds: int) -> dict:
    """What checkpoints and digests take, as parts of the seconds of training."""
    from gpuzoo.engine import loop
    from gpuzoo.recipe import load_recipe
    from gpuzoo.runtime import in_force

    parts: dict[str, list[float]] = {"checkpoint": [], "digest": []}
    recipe = load_recipe("mnist").override(
        epochs=2, eval_every=9, checkpoint_every=100, digest_every=100
    )
    for turn in range(rounds):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            checkpoints = pathlib.Path(folder) / "checkpoints"
            result = loop.run(recipe, data, in_force(), folder=checkpoints)
        for name, values in parts.items():
            values.append(result.seconds[name] / result.seconds["train"])
        print("trail", turn, {k: v[-1] for k, v in parts.items()}, flush=True)
    return {
        "steps": result.steps,
        "parameters": result.parameters,
        "part_of_training": {name: quartiles(v) for name, v in parts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--autotune", default="choices.txt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PRICES, metavar="PRICE")
    args = parser.parse_args()
    gpu = args.device == "gpu"

    import gpuzoo
    from gpuzoo.evidence.record import code_sha256
    from gpuzoo.machine import environment

    here = environment()
    data = gpuzoo.load_data(args.data, data_dir=args.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        npz = pathlib.Path(folder) / "part.npz"
        parts = (("train", None if gpu else EXAMPLES), ("test", 1000))
        images = {f"x_{s}": data.splits[s]["image"][:n] for s, n in parts}
        labels = {f"y_{s}": data.splits[s]["label"][:n] for s, n in parts}
        np.savez(npz, **images, **labels)
        modes, prices = (GPU_MODES, GPU_PRICES) if gpu else (MODES, PRICES)
        if args.only:
            prices = {name: PRICES[name] for name in args.only}
            modes = {m: MODES[m] for pair in prices.values() for m in pair}
        found = matrix(modes, prices, npz, args.rounds, folder, args.autotune)
    runtime = gpuzoo.configure(device=args.device, backend="jax" if gpu else "auto")
    record = {
        "what": "the price of repeatability, of XLA, precision and backend",
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(
            ["python", *("DIR" if w == args.data_dir else w for w in sys.argv)]
        ),
        "device": runtime.device_name,
        "environment": here,
        "threads": runtime.threads,
        "code_sha256": code_sha256(),
        "rounds": args.rounds,
        **found,
    }
    figures = dict(record["seconds_with_over_without"])
    if not args.only:
        trail = {"precision": runtime.precision, **trails(data, args.rounds)}
        record["trail"] = trail
        figures |= trail["part_of_training"]
    name = "price_gpu" if gpu else "price_closer" if args.only else "price"
    path = HERE / "records" / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({what: figure["median"] for what, figure in figures.items()}))


if __name__ == "__main__":
    main()
