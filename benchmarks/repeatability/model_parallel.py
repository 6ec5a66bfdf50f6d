"""Test trainings whose weights are split over devices (--model-devices).

    python benchmarks/repeatability/model_parallel.py  # every model: half an hour
    python benchmarks/repeatability/model_parallel.py --models cnn vit_tiny
    python benchmarks/repeatability/model_parallel.py --memory
    python benchmarks/repeatability/model_parallel.py --table  # of the record

With JAX, on virtual devices of the CPU. Each model (--small forms of large ones) does
some steps with its weights on one device and split over 2 and 4, each number in two
fresh processes. So that the small forms are split too, weights from 64 elements on are
(`LEAST`). The two digests must be equal; against one device, told is the largest
difference of a weight, relative to the largest of that weight.

--memory: what XLA's plan of the step of wide models needs on a device: the weights and
the optimizer's state that it holds, the batch, and temporary arrays. Where that is more
than an artificial limit (--limit), the training is refused; else its losses are told.

Writes benchmarks/records/model_parallel.json (--out). Exit code 1 if two digests
differ, a difference is above `TOLERANCE`, or a training fails.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import repeatable
from matrix import small_digits

HERE = pathlib.Path(__file__).resolve().parent.parent
COUNTS, BATCH, STEPS, LEAST = (1, 2, 4), 8, 2, 64
# A rounding of the last bit grows from layer to layer; Adam divides by small numbers.
TOLERANCE = 2e-3
WIDE = {
    "mlp": ("units=(4096,4096,4096)",),
    "wide_resnet": ("depth=10", "width=8"),
    "lstm": ("units=1024",),
}
COMMAND = "python benchmarks/repeatability/model_parallel.py"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--memory", action="store_true", help="of wide models")
    parser.add_argument("--limit", type=int, default=256, metavar="MB")
    parser.add_argument("--table", action="store_true", help="print the record's table")
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE / "records" / "model_parallel.json")  # fmt: skip
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def work(job: dict) -> None:
    """Train each model; print a line of JSON for each, and write its weights."""
    import gpuzoo

    gpuzoo.configure(**job["runtime"], seed=0, quiet=True)
    from gpuzoo.runtime import split

    split.LEAST = job.get("least", split.LEAST)
    loaded = repeatable.load(job)
    for name in job["models"]:
        try:
            row = wide(name, loaded[name], job) if "limit" in job else small(
                name, loaded[name], job
            )  # fmt: skip
        except Exception as error:  # the next model is independent of it
            row = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps([name, row]), flush=True)


def small(name: str, dataset, job: dict) -> dict:
    result = repeatable.trained(name, 0, dataset, job)
    np.savez(f"{job['folder']}/{name}.npz", **result.weights)
    whole = hashlib.sha256()
    for key, array in sorted(result.state_arrays.items()):
        whole.update(key.encode() + array.tobytes())
    return {"digest": whole.hexdigest()}


def wide(name: str, dataset, job: dict) -> dict:
    """Return what the step of a wide model needs on a device, and its losses."""
    from gpuzoo.engine.program import Program
    from gpuzoo.runtime.configure import in_force
    from gpuzoo.runtime.split import held_bytes
    from gpuzoo.training.build import session_of

    recipe = repeatable.recipe_for(name, 0, dataset, job)
    recipe = recipe.override(model_options=WIDE[name], augment=())
    program = Program(session_of(recipe, in_force(), dataset))
    variables = list(program.state.all.values())
    one, _, most = program.backend.program(program.step, program.feed(0, 1), variables)
    values = [variable.value for variable in variables]
    plan = one.lower(values, program.feed(0, 1), most).compile().memory_analysis()
    needs = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    row = {
        "held_bytes": held_bytes(variables), "needs_bytes": needs,
        "weights": sum(v.value.size for v in program.state.weights.values()),
    }  # fmt: skip
    if needs > job["limit"]:
        return {**row, "refused": f"{needs:,} bytes on a device, and it has "
                                  f"{job['limit']:,}"}  # fmt: skip
    return {**row, "losses": program.train(0, job["steps"])["loss"].tolist()}


def asked(models: list[str], count: int, folder: str, data: str, **more) -> dict:
    """Return model -> row of a fresh process with so many devices."""
    pathlib.Path(folder).mkdir(exist_ok=True)
    job = {
        "models": models, "folder": folder, "data": data, "steps": STEPS,
        "batch": BATCH, "small": True,
        "runtime": {"backend": "jax", "device": "cpu", "precision": "float32",
                    "threads": max(COUNTS), "model_devices": count},
        **more,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(job)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = dict(json.loads(x) for x in done.stdout.splitlines() if x[:1] == "[")
    lost = {"failed": " ".join(done.stderr.split())[-500:]}
    return {name: rows.get(name, lost) for name in models}


def compared(name: str, folder: str) -> dict:
    """Return, by number of devices, the largest relative difference to one device."""
    found = {}
    one = np.load(f"{folder}/1-0/{name}.npz")
    for count in COUNTS[1:]:
        other = np.load(f"{folder}/{count}-0/{name}.npz")
        found[str(count)] = max(far(one[key], other[key]) for key in one.files)
    return found


def far(one, other) -> float:
    return float(np.max(np.abs(one - other)) / (np.max(np.abs(one)) or 1))


def verdict(row: dict) -> str:
    if row["failed"]:
        return "failed"
    if any(len(set(each)) > 1 for each in row["digests"].values()):
        return "differs"
    return "equal" if max(row["difference"].values()) <= TOLERANCE else "far"


def check(models: list[str], data: str, folder: str) -> dict:
    """Return model -> row, each number of devices in two fresh processes."""
    from gpuzoo.runs.code import code_sha256

    told = {
        (count, turn): asked(
            models, count, f"{folder}/{count}-{turn}", data, least=LEAST
        )
        for count in COUNTS
        for turn in range(2)
    }
    rows = {}
    for name in models:
        each = {place: rows_of[name] for place, rows_of in told.items()}
        failed = [one["failed"] for one in each.values() if "failed" in one]
        row = {"failed": failed[0] if failed else ""}
        if not failed:
            row["digests"] = {
                str(count): [each[count, turn]["digest"] for turn in range(2)]
                for count in COUNTS
            }
            row["difference"] = compared(name, folder)
        rows[name] = {"verdict": verdict(row), **row, "code_sha256": code_sha256()}
    return rows


def memory(data: str, folder: str, limit: int) -> dict:
    """Return model -> number of devices -> what the step of its wide form needs."""
    found: dict = {name: {"options": options} for name, options in WIDE.items()}
    for count in COUNTS:
        rows = asked([*WIDE], count, folder, data, limit=limit * 1_000_000)
        for name, row in rows.items():
            found[name][str(count)] = row
    return found


def table(record: dict) -> str:
    """Return the tables of a record."""
    heads = (
        "| model | two processes, on 1, 2, 4 devices | largest difference to one |",
        "| model | weights | MB on each of 1, 2, 4 devices |",
    )
    lines = [heads[0], "|---|---|---|"]
    for name, row in record["models"].items():
        most = f"{max(row['difference'].values()):.1e}" if "difference" in row else ""
        lines.append(f"| {name} | {row['verdict']} | {most} |")
    lines += ["", heads[1], "|---|---|---|"]
    for name, row in record["memory"].items():
        each = [row[str(count)] for count in COUNTS]
        needs = ", ".join(
            f"{one['needs_bytes'] / 1e6:,.0f}" + " (refused)" * ("refused" in one)
            if "needs_bytes" in one else "failed"
            for one in each
        )  # fmt: skip
        lines.append(f"| {name} {' '.join(row['options'])} | "
                     f"{each[0]['weights'] / 1e6:.1f} million | {needs} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    args = parse()
    if args.worker:
        return work(json.loads(args.worker))

    import gpuzoo
    from gpuzoo.files import write_atomically
    from gpuzoo.runtime.environment import environment

    if args.table:
        return print(table(json.loads(args.out.read_text())))
    record = {
        "what": "state after some steps with the weights split over devices",
        "command": COMMAND, "date": time.strftime("%Y-%m-%d"),
        "environment": environment(), "batch": BATCH, "steps": STEPS,
        "tolerance": TOLERANCE, "models": {}, "memory": {},
    }  # fmt: skip
    if args.out.exists():
        old = json.loads(args.out.read_text())
        record |= {name: old[name] for name in ("models", "memory") if name in old}
    with tempfile.TemporaryDirectory() as folder:
        data = small_digits(folder, STEPS, BATCH)
        if args.memory:
            record["memory"] = memory(data, folder, args.limit)
            record["limit_bytes"] = args.limit * 1_000_000
        else:
            models = sorted(args.models or gpuzoo.list_models())
            rows = {**record["models"], **check(models, data, folder)}
            record["models"] = dict(sorted(rows.items()))
    write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())
    print(table(record))
    bad = [n for n, row in record["models"].items() if row["verdict"] != "equal"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    os.environ.pop("KERAS_BACKEND", None)
    main()
