"""Test whether every model is repeatable to the bit, in every mode.

    python benchmarks/repeatability/repeatable.py  # all models, all modes
    python benchmarks/repeatability/repeatable.py --device gpu --out FILE
    python benchmarks/repeatability/repeatable.py --models lstm gru \\
        --precisions float32 --xla on
    python benchmarks/repeatability/repeatable.py --device gpu --level fast --out FILE
    python benchmarks/repeatability/repeatable.py --device gpu \\
        --autotune choices.txt --out FILE

A mode is a backend, a precision and XLA on or off. For each mode two fresh processes,
side by side, train every model for some steps on the embedded digits, with augmentation
and, where a model has it, dropout; audio and forecasting models on computed data. The
second trains the models (with --group 3 each group of three) in the opposite order, so
that earlier trainings of a process cannot matter, and each again with another seed. The
digests of the weights must be equal, and those of the other seed must differ.

With --autotune an earlier process tunes XLA's kernels for all models of a mode, into a
file with the precision as prefix, and the two load it. Level fast guarantees nothing:
differences are reported, but are not a failure.

Writes benchmarks/records/repeatable.json (--out) after each model. Earlier results of
other models and modes are kept if environment and options are the same; each result
names its code. What gpuzoo refuses is recorded with the message and is not a failure.
Exit code 1 if a digest differs, if the other seed changes nothing, if a training fails,
or if everything was refused.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from matrix import merged, small_digits, table
from modes import mode_parser

HERE = pathlib.Path(__file__).resolve().parent.parent
OTHER_SEED = 1
# Options that keep the types of layers and reduce most of the work (--small).
SMALL = {
    "convmixer": ("width=32", "depth=1"),
    "diffusion": ("filters=(8,16)", "blocks=1"),
    "gan": ("filters=(8,16)",),
    "conditional_gan": ("filters=(8,16)",),
    "wgan_gp": ("filters=(8,16)",),
    "speednet": ("filters=(8,16,16)",),
    "resnet18": ("width=8",),
    "resnet20": ("width=4",),
    "unet": ("filters=4", "depth=2"),
    "vit_tiny": ("width=24", "depth=1"),
    "wide_resnet": ("depth=10", "width=1"),
}

# Data of tasks that the digits do not suit.
MADE = {
    "forecast": "mackey_glass",
    "classify_audio": "tones",
    "table": "flats",
    "segment": "textured_digits",
    "classify_text": "reviews",
    "classify_film": "moving_digits",
    "embed": "glyphs",
}


def parse() -> argparse.Namespace:
    parser = mode_parser(__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--level", choices=("repeatable", "fast"), default="repeatable")
    parser.add_argument("--autotune", type=pathlib.Path, metavar="FILE",
                        help="pin XLA's choice of GPU kernels")  # fmt: skip
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument(
        "--group",
        type=int,
        default=0,
        help="models after which both processes have trained the same ones",
    )
    parser.add_argument("--no-control", action="store_true",
                        help="skip the trainings with another seed")  # fmt: skip
    parser.add_argument("--small", action="store_true",
                        help="narrow, shallow versions of large models")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE / "records" / "repeatable.json")  # fmt: skip
    return parser.parse_args()


# --- in a process of its own ----------------------------------------------------------


def work(job: dict) -> None:
    """Train the models of a job in sequence; print a line of JSON for each."""
    import gpuzoo
    from gpuzoo.runtime.configure import in_force

    datasets = load(job)
    for name in job["models"]:
        row = {"model": name}
        try:
            for key, seed in job["seeds"].items():
                row[key] = train(name, seed, datasets[name], job)
        except gpuzoo.Diverged as error:
            row["failed"] = str(error)
        except gpuzoo.GpuzooError as error:
            built = "cannot be built" not in str(error)
            row["refused" if built else "failed"] = str(error)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"
        if runtime := in_force():
            row |= {"device": runtime.device_name, "threads": runtime.threads}
        print(json.dumps(row), flush=True)


def load(job: dict) -> dict:
    """Return name -> as much data as the steps need, for each model of a job."""
    import gpuzoo

    loaded, found = {}, {}
    for name in job["models"]:
        source = MADE.get(gpuzoo.model_info(name).task, "")
        if source not in loaded:
            data = part(source, job) if source else gpuzoo.load_data(job["data"])
            loaded[source] = data
        found[name] = loaded[source]
    return found


def part(name: str, job: dict):
    """Return as many examples of a dataset as the steps need."""
    import gpuzoo

    data = gpuzoo.load_data(name)
    counts = {"train": job["steps"] * job["batch"], "test": 16}
    splits = {
        split: {name: array[: counts[split]] for name, array in arrays.items()}
        for split, arrays in data.splits.items()
    }
    return dataclasses.replace(data, splits=splits)


def train(name: str, seed: int, dataset, job: dict) -> str:
    """Return the `weights_sha256` of `gpuzoo train`, without a run folder."""
    from gpuzoo.weights import weights_bytes

    result = trained(name, seed, dataset, job)
    return hashlib.sha256(weights_bytes(result.weights)).hexdigest()


def recipe_for(name: str, seed: int, dataset, job: dict):
    """Return the recipe that trains a model on a dataset."""
    import gpuzoo

    known = gpuzoo.model_info(name).options
    options = SMALL.get(name, ()) if job["small"] else ()
    task = gpuzoo.model_info(name).task
    task = "regress_table" if task == "table" else task  # flats have a number
    return gpuzoo.load_recipe("mnist").override(
        task=task,
        model=name,
        label_smoothing=0.1 if task == "classify" else 0.0,
        model_options=(*options, *(["dropout=0.2"] if "dropout" in known else [])),
        epochs=1,
        batch_size=job["batch"],
        learning_rate=1e-3,
        augment=("translate:1",) if dataset.field == "image" else (),
        seed=seed,
    )


def trained(name: str, seed: int, dataset, job: dict):
    """Return the result of a training (engine/loop.py)."""
    import gpuzoo

    runtime = gpuzoo.configure(**job["runtime"], seed=seed, quiet=True)
    from gpuzoo.engine import loop
    from gpuzoo.engine.program import Program
    from gpuzoo.training.build import session_of

    recipe = recipe_for(name, seed, dataset, job)
    result = loop.run(Program(session_of(recipe, runtime, dataset)))
    if result.steps != job["steps"]:
        raise RuntimeError(f"{result.steps} steps in place of {job['steps']}")
    return result


# --- the two processes of a mode ------------------------------------------------------


def check(mode: dict, models: list[str], args, data: str, keep) -> None:
    """Pass the result of each model in this mode, and the device, to `keep`."""
    from gpuzoo.runs.code import code_sha256

    xla = mode["xla"] if mode["backend"] == "tensorflow" else "auto"
    job = {
        "data": data,
        "steps": args.steps,
        "batch": args.batch,
        "small": args.small,
        "models": models,
        "seeds": {"digest": 0},
        "runtime": {
            "backend": mode["backend"],
            "precision": mode["precision"],
            "xla": xla,
            "device": args.device,
            "level": args.level,
            "threads": args.threads,
        },
    }
    if args.autotune:
        name = f"{mode['precision']}-{args.autotune.name}"
        job["runtime"]["autotune"] = tuned(job, args.autotune.with_name(name))
    size = args.group or len(models)
    groups = [models[i : i + size] for i in range(0, len(models), size)]
    second = {**job, "models": [name for group in groups for name in group[::-1]]}
    if not args.no_control:
        second["seeds"] = {**job["seeds"], "other_seed": OTHER_SEED}
    code, found, lock = {"code_sha256": code_sha256()}, {}, threading.Lock()

    def told(which: int, name: str, row: dict) -> None:
        with lock:
            both = found.setdefault(name, {})
            both[which] = row
            if len(both) == 2:
                device = {key: row[key] for key in ("device", "threads") if key in row}
                keep(name, {**judge(both[0], both[1]), **code}, device)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pair = [
            pool.submit(run_worker, one, functools.partial(told, which))
            for which, one in enumerate((job, second))
        ]
        for one in pair:
            one.result()


def tuned(job: dict, goal: pathlib.Path) -> str:
    """Return the file of XLA's choices for all models of a job, created if missing, as
    gpuzoo/training/autotune.py does for one."""
    from gpuzoo.training.autotune import _DUMP_FLAG

    goal = goal.resolve()
    if not goal.exists():
        found = goal.with_name(f"tuning-{goal.name}")
        flags = f"{os.environ.get('XLA_FLAGS', '')} {_DUMP_FLAG}{found}".strip()
        runtime = {**job["runtime"], "level": "fast"}
        run_worker({**job, "runtime": runtime}, XLA_FLAGS=flags)
        if not found.exists():
            sys.exit("--autotune: XLA tuned nothing, which it does on a GPU only")
        found.rename(goal)  # whole
    return str(goal)


def run_worker(job: dict, told=lambda name, row: None, **variables) -> dict:
    """Return the row that a fresh process prints for each model; `told` gets each."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker", json.dumps(job)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **variables},
    )  # fmt: skip
    rows = {}
    with process:
        for line in process.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                name = row.pop("model")
                rows[name] = row
                told(name, row)
    missing = {"failed": f"the process ended before it, with code {process.returncode}"}
    for name in job["models"]:
        if name not in rows:
            rows[name] = missing
            told(name, missing)
    return rows


def judge(first: dict, second: dict) -> dict:
    for verdict in ("failed", "refused"):
        for row in (first, second):
            if verdict in row:
                return {"verdict": verdict, "message": row[verdict]}
    result = {"weights_sha256": first["digest"]}
    if first["digest"] != second["digest"]:
        return {"verdict": "differs", **result, "second": second["digest"]}
    if second.get("other_seed") == first["digest"]:
        return {"verdict": "another seed changes nothing", **result}
    return {"verdict": "equal", **result}


# --- the record -----------------------------------------------------------------------


def main() -> None:
    args = parse()
    if args.worker:
        # The C library has read it; level portable refuses it (portable.py).
        os.environ.pop("GLIBC_TUNABLES", None)
        return work(json.loads(args.worker))

    import gpuzoo
    from gpuzoo.files import write_atomically
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    models = sorted(args.models or gpuzoo.list_models())
    for name in models:
        gpuzoo.model_info(name)
    modes = [
        {"backend": backend, "precision": precision, "xla": xla}
        for backend in args.backends
        for precision in args.precisions
        for xla in (args.xla if backend == "tensorflow" else ["on"])
    ]
    record = {
        "what": "weights after some steps, compared between two fresh processes",
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(
            ["python benchmarks/repeatability/repeatable.py", *options_given(args)]
        ),
        "environment": environment(),
        "code_sha256": code_sha256(),
        "device": None,
        "threads": None,
        "steps": args.steps,
        "batch": args.batch,
        "small": args.small,
        "control": not args.no_control,
        "modes": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        data = small_digits(folder, args.steps, args.batch)
        for mode in modes:
            name = f"{mode['backend']} {mode['precision']} XLA {mode['xla']}"
            name += ", no determinism" * (args.level == "fast")
            name += ", pinned tuning" * bool(args.autotune)
            print(name, file=sys.stderr, flush=True)
            record["modes"][name] = {}

            def keep(model: str, result: dict, device: dict, mode=name) -> None:
                results = {**record["modes"][mode], model: result}
                record["modes"][mode] = dict(sorted(results.items()))
                record.update(device)
                whole = json.dumps(merged(record, args.out), indent=1) + "\n"
                write_atomically(args.out, whole.encode())

            check(mode, models, args, data, keep)
    print(table(record["modes"]))
    results = [r for mode in record["modes"].values() for r in mode.values()]
    for result in results:
        if "message" in result:
            print(f"{result['verdict']}: {result['message']}")
    good = {"equal", "refused", *(["differs"] if args.level == "fast" else [])}
    verdicts = {result["verdict"] for result in results}
    sys.exit(bool(verdicts - good) or verdicts == {"refused"})  # nothing was trained


def options_given(args) -> list[str]:
    """Return the options without names of files and folders."""
    words = [word for word in sys.argv[1:] if word not in (str(args.out), "--out")]
    return ["FILE" if word == str(args.autotune) else word for word in words]


if __name__ == "__main__":
    main()
