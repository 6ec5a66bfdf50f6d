"""Test whether elastic training has the same bits on any number of devices.

    python benchmarks/repeatability/elastic.py  # all models: some hours on two cores
    python benchmarks/repeatability/elastic.py --models cnn gan --devices 1 4
    python benchmarks/repeatability/elastic.py --price cnn resnet20 lstm
    python benchmarks/repeatability/elastic.py --table  # of the record

One process for each model and precision: with JAX on virtual devices of the CPU it
trains the model (--small forms of large ones) for some steps of 8 shards, with
augmentation and, where it has it, dropout, once on each number of devices. The digests
of weights, optimizer and random state must be equal. As a control it does the same
without `elastic`, where a batch has as many shards as there are devices: these digests
must differ.

--price: a step of 8 shards on one device beside one of a whole batch, in turns in one
process.

Writes benchmarks/records/elastic.json (--out) after each; what is there is kept. Exit
code 1 if a digest differs, the controls agree, or a training fails.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from matrix import small_digits
from modes import PRECISIONS
from repeatable import part, recipe_for

HERE = pathlib.Path(__file__).resolve().parent.parent
SHARDS, BATCH, STEPS, TURNS = 8, 80, 3, 15
COMMAND = "python benchmarks/repeatability/elastic.py"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS,
                        default=["float32"])  # fmt: skip
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--price", nargs="+", metavar="NAME", help="time these models")
    parser.add_argument("--table", action="store_true", help="print the record's table")
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE / "records" / "elastic.json")  # fmt: skip
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def work(job: dict) -> None:
    """Train one model on each number of devices; print a line of JSON."""
    import gpuzoo

    name = job["model"]
    if job.get("price"):
        return print(json.dumps(price(name, job)), flush=True)
    runtime = gpuzoo.configure(
        backend="jax", device="cpu", precision=job["precision"], threads=SHARDS,
        devices=max(job["devices"]), quiet=True,
    )  # fmt: skip
    task = gpuzoo.model_info(name).task
    computed = {
        "forecast": "mackey_glass", "classify_audio": "tones", "table": "flats",
        "segment": "textured_digits", "classify_text": "reviews",
        "classify_film": "moving_digits",
        "embed": "glyphs",
    }  # fmt: skip
    data = computed.get(task)
    dataset = part(data, job) if data else gpuzoo.load_data(job["data"])
    recipe = recipe_for(name, 0, dataset, job)
    row = {"device": runtime.device_name, "digests": {}, "without": {}}
    try:
        for count in job["devices"]:
            here = dataclasses.replace(runtime, devices=count)
            for elastic, where in ((True, "digests"), (False, "without")):
                if elastic or count > 1:
                    one = recipe.override(elastic=elastic)
                    row[where][str(count)] = digest(one, here, dataset)
    except gpuzoo.GpuzooError as error:
        row["refused"] = str(error)
    print(json.dumps(row), flush=True)


def price(name: str, job: dict) -> dict:
    """Return the medians of the seconds of a step, elastic and not, of turns."""
    import gpuzoo

    runtime = gpuzoo.configure(
        backend="jax", device="cpu", precision="float32", threads=2, quiet=True
    )
    from gpuzoo.engine.program import Program
    from gpuzoo.training.build import session_of

    dataset = gpuzoo.load_data(job["data"])
    recipe = recipe_for(name, 0, dataset, job)
    both = {
        elastic: Program(session_of(recipe.override(elastic=elastic), runtime, dataset))
        for elastic in (False, True)
    }
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(TURNS):
        for elastic, program in both.items():
            begun = time.perf_counter()
            program.train(0, STEPS)
            seconds[elastic].append((time.perf_counter() - begun) / STEPS)
    plain, elastic = (statistics.median(each) for each in seconds.values())
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "device": runtime.device_name, "threads": runtime.threads, "turns": TURNS,
        "seconds": {"whole": plain, "elastic": elastic},
        "ratio": statistics.median(ratios),
    }  # fmt: skip


def digest(recipe, runtime, dataset) -> str:
    """Return the digest of everything that a training has changed."""
    from gpuzoo.engine import loop
    from gpuzoo.engine.program import Program
    from gpuzoo.training.build import session_of

    result = loop.run(Program(session_of(recipe, runtime, dataset)))
    whole = hashlib.sha256()
    for name, array in sorted(result.state_arrays.items()):
        whole.update(name.encode() + array.tobytes())
    return whole.hexdigest()


def verdict(row: dict) -> str:
    if "refused" in row:
        return "refused"
    if "failed" in row:
        return "failed"
    if len(set(row["digests"].values())) > 1:
        return "differs"
    others = set(row["without"].values()) - set(row["digests"].values())
    counts = [count for count in row["without"] if int(count) != SHARDS]
    return "equal" if len(others) == len(counts) else "controls agree"


def check(model: str, precision: str, devices: list[int], data: str) -> dict:
    """Return the row of one model, trained in a fresh process."""
    row = asked({"model": model, "precision": precision, "devices": devices,
                 "data": data, "small": True})  # fmt: skip
    return {"verdict": verdict(row), **row}


def asked(job: dict) -> dict:
    """Return what a fresh process prints for a job."""
    job = {**job, "batch": BATCH, "steps": STEPS}
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(job)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [one for one in done.stdout.splitlines() if one.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    return {"failed": " ".join(done.stderr.split())[-500:]}


def command(args: argparse.Namespace) -> str:
    """Return the command that trains all models that a record has."""
    words = [COMMAND, "--precisions", *args.precisions, "--devices"]
    return " ".join([*words, *map(str, sorted(args.devices))])


def table(record: dict) -> str:
    """Return the table of a record: a row per model, a column per precision."""
    columns = list(record["modes"])
    models = sorted({name for rows in record["modes"].values() for name in rows})
    lines = ["| model | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in models:
        rows = [record["modes"][column].get(name) for column in columns]
        cells = [
            f"{row['verdict']} on {', '.join(row['digests'])}" if row and row["digests"]
            else (row or {}).get("verdict", "")
            for row in rows
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    if args.worker:
        return work(json.loads(args.worker))

    import gpuzoo
    from gpuzoo.files import write_atomically
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    if args.table:
        return print(table(json.loads(args.out.read_text())))
    record = {
        "what": "state after some steps of 8 shards, on several numbers of devices",
        "command": command(args),
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "shards": SHARDS, "batch": BATCH, "steps": STEPS, "modes": {}, "price": {},
    }  # fmt: skip
    if args.out.exists():
        old = json.loads(args.out.read_text())
        kept = ("modes", "price", *(["command"] if args.price else []))
        record |= {name: old[name] for name in kept if name in old}
    with tempfile.TemporaryDirectory() as folder:
        data = small_digits(folder, STEPS, BATCH)
        for model in args.price or ():
            row = asked({"model": model, "price": True, "data": data, "small": False})
            record["price"][model] = {
                "command": f"{COMMAND} --price {model}", **row,
                "code_sha256": code_sha256(),
            }  # fmt: skip
            print(f"{model}: {row}", file=sys.stderr)
            write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())
        if args.price:
            return
        for precision in args.precisions:
            rows = record["modes"].setdefault(precision, {})
            for model in sorted(args.models or gpuzoo.list_models()):
                if rows.get(model, {}).get("verdict") in ("equal", "refused"):
                    continue
                begun = time.time()
                row = check(model, precision, sorted(args.devices), data)
                rows[model] = {**row, "code_sha256": code_sha256()}
                print(f"{model} {precision}: {row['verdict']}, "
                      f"{time.time() - begun:.0f} s", file=sys.stderr)  # fmt: skip
                whole = json.dumps(record, indent=1) + "\n"
                write_atomically(args.out, whole.encode())
    bad = [
        (precision, model) for precision, rows in record["modes"].items()
        for model, row in rows.items() if row["verdict"] not in ("equal", "refused")
    ]  # fmt: skip
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    os.environ.pop("KERAS_BACKEND", None)
    main()
