"""Does every layer of Keras repeat to the bit, alone and used several times?

    python benchmarks/layers.py                     # all layers, all modes: many hours
    python benchmarks/layers.py --backends tensorflow --precisions float32 --xla off
    python benchmarks/layers.py --layers Conv2D TimeDistributed --trainings 3

Every layer that `keras.layers` has, and every activation, is put into a small
classifier in four ways (layer_table.py), and that is trained for three steps: eight
times from one seed in one process while every core is kept busy, and once in each of
two fresh processes, the second of which goes through them in the opposite order. All
ten digests of the weights must be equal.

Writes benchmarks/records/layers.json (--out) after each group of layers, and goes on
from there when it is started again: what stands there with the same code and
environment is not done again. Exit code 1 if a digest differs, if a training fails, or
if Keras has a layer that layer_table.py has no line for. What gpuzoo refuses is
recorded with its words and is no failure.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ARRANGEMENTS = ("alone", "shared", "siamese", "parallel")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STEPS, BATCH = 3, 8


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--arrangements", nargs="+", choices=ARRANGEMENTS,
                        default=ARRANGEMENTS)  # fmt: skip
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS,
                        default=PRECISIONS)  # fmt: skip
    parser.add_argument("--backends", nargs="+", choices=("tensorflow", "jax"),
                        default=("tensorflow", "jax"))  # fmt: skip
    parser.add_argument("--xla", nargs="+", choices=("off", "on"),
                        default=("off", "on"),
                        help="TensorFlow's; JAX is always XLA")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--trainings", type=int, default=8,
                        help="in the busy process")  # fmt: skip
    parser.add_argument("--group", type=int, default=10,
                        help="layers that a process does")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE / "records" / "layers.json")  # fmt: skip
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- in a process of its own ----------------------------------------------------------


def work(job: dict) -> None:
    """Train each model of a job some times; a line of JSON for each."""
    import contextlib

    import gpuzoo

    runtime = gpuzoo.configure(**job["runtime"], quiet=True)
    import layer_table

    from gpuzoo.runtime.environment import busy_cores

    @gpuzoo.register(task="classify", reference="benchmarks/layers.py")
    def layer_probe(
        *,
        input_shape: tuple[int, ...] = (8, 8, 3),
        num_classes: int = 3,
        layer: str = "Dense",
        arrangement: str = "alone",
    ):
        """A small classifier with one kind of layer."""
        return layer_table.build(layer, arrangement, input_shape, num_classes)

    dataset = gpuzoo.load_data(job["data"])
    told = {"device": runtime.device_name, "threads": runtime.threads}
    for name, arrangement in job["models"]:
        row = {"model": [name, arrangement], **told}
        try:
            with busy_cores() if job["busy"] else contextlib.nullcontext():
                row["digests"] = [
                    train(name, arrangement, dataset, runtime)
                    for _ in range(job["trainings"])
                ]
        except gpuzoo.Diverged as error:
            row["failed"] = str(error)
        except gpuzoo.GpuzooError as error:
            built = "cannot be built" not in str(error)
            row["refused" if built else "failed"] = str(error)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
        print(json.dumps(row), flush=True)


def train(name: str, arrangement: str, dataset, runtime) -> str:
    import hashlib

    import gpuzoo
    from gpuzoo.engine import loop
    from gpuzoo.engine.program import Program
    from gpuzoo.training.build import session_of
    from gpuzoo.weights import weights_bytes

    recipe = gpuzoo.load_recipe("mnist").override(
        model="layer_probe",
        model_options=(f"layer={name}", f"arrangement={arrangement}"),
        epochs=1,
        batch_size=BATCH,
        learning_rate=1e-2,
        augment=(),
    )
    result = loop.run(Program(session_of(recipe, runtime, dataset)))
    return hashlib.sha256(weights_bytes(result.weights)).hexdigest()


def run_worker(job: dict) -> dict:
    """(layer, arrangement) -> the row that a fresh process printed for it."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(job)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    rows = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    rows = {tuple(row.pop("model")): row for row in rows}
    ended = {"failed": f"the process ended before it, with code {done.returncode}"}
    return {tuple(model): rows.get(tuple(model), ended) for model in job["models"]}


def judge(rows: list[dict]) -> dict:
    """Of one layer in one arrangement, from all processes."""
    for verdict in ("failed", "refused"):
        for row in rows:
            if verdict in row:
                return {"verdict": verdict, "message": row[verdict]}
    digests = [one for row in rows for one in row["digests"]]
    kinds = sorted(set(digests), key=digests.index)
    result = {"trainings": len(digests), "weights_sha256": kinds[0][:16]}
    if len(kinds) == 1:
        return {"verdict": "equal", **result}
    return {"verdict": "differs", **result, "kinds": [digests.count(k) for k in kinds]}


def modes_of(args) -> list[tuple[str, str, str]]:
    """Backend, precision, XLA."""
    return [
        (backend, precision, xla)
        for backend in args.backends
        for precision in args.precisions
        for xla in (args.xla if backend == "tensorflow" else ["on"])
    ]


# --- the record -----------------------------------------------------------------------


def main() -> None:
    args = parse()
    if args.worker:
        return work(json.loads(args.worker))
    import numpy as np

    import gpuzoo
    from gpuzoo.files import write_atomically
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    gpuzoo.configure(device="cpu", quiet=True)
    import layer_table

    names = args.layers or layer_table.known()
    missing = [name for name in names if layer_table.entry(name) is None]
    names = [name for name in names if name not in missing]
    record = {
        "what": "weights after three steps, of every layer of Keras in a small model",
        "environment": environment(),
        "code_sha256": code_sha256(),
        "steps": STEPS,
        "batch": BATCH,
    }
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    same = all(old.get(key) == value for key, value in record.items())
    modes = old["modes"] if same else {}
    record |= {"date": time.strftime("%Y-%m-%d"), "left_out": layer_table.LEFT_OUT,
               "no_entry": missing, "device": None, "threads": None,
               "modes": modes}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        shape = (STEPS * BATCH, layer_table.SIDE, layer_table.SIDE, 3)
        x = rng.integers(0, 256, shape).astype(np.uint8)
        y = np.arange(len(x)) % 3
        data = f"{folder}/noise.npz"
        np.savez(data, x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
        for backend, precision, xla in modes_of(args):
            mode = modes.setdefault(f"{backend} {precision} XLA {xla}", {})
            todo = [n for n in names if set(args.arrangements) - set(mode.get(n, {}))]
            for first in range(0, len(todo), args.group):
                group = todo[first : first + args.group]
                models = [(name, a) for name in group for a in args.arrangements]
                job = {
                    "data": data, "models": models, "busy": True,
                    "trainings": args.trainings,
                    "runtime": {
                        "backend": backend, "precision": precision,
                        "device": args.device,
                        "xla": xla if backend == "tensorflow" else "auto",
                    },
                }  # fmt: skip
                once = {**job, "busy": False, "trainings": 1}
                found = [run_worker(job), run_worker(once),
                         run_worker({**once, "models": models[::-1]})]  # fmt: skip
                for name, arrangement in models:
                    rows = [one[name, arrangement] for one in found]
                    told = judge(rows)
                    mode.setdefault(name, {})[arrangement] = told
                    if "device" in rows[0]:
                        record |= {k: rows[0][k] for k in ("device", "threads")}
                    if told["verdict"] != "equal":
                        print(backend, precision, xla, name, arrangement, told)
                write_atomically(
                    args.out, (json.dumps(record, indent=1) + "\n").encode()
                )
    verdicts = [
        told["verdict"]
        for mode in modes.values()
        for one in mode.values()
        for told in one.values()
    ]
    print({verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})
    if missing:
        print(f"no line in layer_table.py for: {', '.join(missing)}")
    sys.exit(bool(missing) or bool(set(verdicts) - {"equal", "refused"}))


if __name__ == "__main__":
    main()
