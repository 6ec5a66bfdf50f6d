"""Measure what trackers, validation data and best weights cost the recipe mnist.

    python benchmarks/speed/watching.py --data-dir DIR  # a prepared TFDS folder

Trains the recipe mnist in turns, in one process: as it is, and with validation data,
keep=best and the trackers csv and tensorboard. Both train on the same 54,000 examples;
without validation data the test examples are evaluated after each epoch, with them the
6,000 validation examples, and the test examples once, at the end. Compared are the
seconds of the training loop (all phases but set-up and compilation), and of the whole
run. Both must end with the same weights before the choice, which the last digest of the
trail tells.

Writes benchmarks/records/watching.json: seconds of each training, and the median of the
ratios within one turn with its 95 % interval.
"""

import argparse
import json
import multiprocessing
import pathlib
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
RECORD = HERE / "records" / "watching.json"
TARGET = 1.03
HELD = 6_000
WITH = {"keep": "best", "monitor": "accuracy", "track": ("csv", "tensorboard")}


def write(data_dir: str, files: dict[str, str]) -> None:
    """Write MNIST with and without validation examples into two files."""
    import gpuzoo

    data = gpuzoo.load_data("mnist", data_dir=data_dir)
    order = np.random.default_rng(0).permutation(data.count("train"))
    parts = {"train": order[HELD:], "val": order[:HELD]}
    arrays = {
        f"{short}_{split}": data.train[field][rows]
        for split, rows in parts.items()
        for short, field in (("x", "image"), ("y", "label"))
    }
    arrays |= {"x_test": data.test["image"], "y_test": data.test["label"]}
    np.savez(files["watched"], **arrays)
    plain = {name: a for name, a in arrays.items() if not name.endswith("_val")}
    np.savez(files["plain"], **plain)


def train(name: str, file: str, out: pathlib.Path) -> dict:
    """Train once; return its seconds and the last digest of the weights."""
    import gpuzoo
    from gpuzoo.runs.record import read_run

    how = WITH if name == "watched" else {}
    begun = time.perf_counter()
    gpuzoo.train("mnist", data=file, out=str(out), quiet=True, **how)
    whole = time.perf_counter() - begun
    seconds = read_run(out)["seconds"]
    loop = sum(v for k, v in seconds.items() if k not in ("setup", "compile", "wall"))
    last = json.loads((out / "digests.jsonl").read_text().splitlines()[-1])
    return {"loop": loop, "whole": whole, "digest": last["weights"]}


def measure(data_dir: str, rounds: int) -> dict:
    from gpuzoo.bench import bench

    times: dict[str, list[dict]] = {"plain": [], "watched": []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = {case: str(folder / f"{case}.npz") for case in times}
        # In a process of its own: TFDS starts TensorFlow before gpuzoo can set it up.
        process = multiprocessing.get_context("spawn").Process(
            target=write, args=(data_dir, files)
        )
        process.start()
        process.join()
        for number in range(rounds + 1):  # the first one warms up
            for case in sorted(times, reverse=bool(number % 2)):
                found = train(case, files[case], folder / f"{case}-{number}")
                if number:
                    times[case].append(found)
    if len({one["digest"] for case in times.values() for one in case}) != 1:
        raise SystemExit("the trainings did not end with the same weights")
    return {
        part: {
            "seconds": {c: [round(one[part], 4) for one in times[c]] for c in times},
            "ratio": bench.spread([
                b[part] / a[part]
                for a, b in zip(times["plain"], times["watched"], strict=True)
            ]),
        }
        for part in ("loop", "whole")
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import available_cores, environment

    record = {
        "what": "the cost of trackers, validation data and best weights",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/speed/watching.py --data-dir DIR --rounds "
        f"{args.rounds}",
        "environment": environment(),
        "threads": available_cores(),
        "code_sha256": code_sha256(),
        "rounds": args.rounds,
        "target": TARGET,
        **measure(args.data_dir, args.rounds),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({part: record[part]["ratio"] for part in ("loop", "whole")}))


if __name__ == "__main__":
    main()
