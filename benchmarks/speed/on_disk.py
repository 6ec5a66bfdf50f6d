"""Measure that memory does not grow with the examples that are streamed from files.

    python benchmarks/speed/on_disk.py --folder DISK

Writes benchmarks/records/on_disk.json: for 10^5 to 10^7 generated images of 4 x 4 in
ArrayRecord files, the peak of main memory of the first pass over all of them, and of a
training with `stream=disk` that streams each once. Each is a process of its own. From
10^5 on the files are hard links to one, so that they take no more disk; what is read,
decoded and hashed, and how many places there are, is as if they were not.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
SHARD, SIDE, BATCH = 100_000, 4, 1000
COUNTS = (10**5, 10**6, 10**7)


def prepare(folder: pathlib.Path, count: int) -> pathlib.Path:
    """Write a dataset `generated` of so many training examples; return its parent."""
    top = folder / f"of-{count}"
    target = top / "generated" / "1.0.0"
    if target.exists():
        return top
    if count > SHARD:
        first = prepare(folder, SHARD) / "generated" / "1.0.0"
        target.mkdir(parents=True)
        for file in first.iterdir():
            if file.name != "dataset_info.json":
                os.link(file, target / file.name)
        told = json.loads((first / "dataset_info.json").read_text())
        (train,) = (one for one in told["splits"] if one["name"] == "train")
        train["shardLengths"] = [str(SHARD)] * (count // SHARD)
        for number in range(1, count // SHARD):
            name = "generated-train.array_record-{:05d}"
            os.link(first / name.format(0), target / name.format(number))
        (target / "dataset_info.json").write_text(json.dumps(told))
        return top
    import tensorflow_datasets as tfds

    target.mkdir(parents=True)
    rng = np.random.default_rng(0)
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(SIDE, SIDE, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
    })  # fmt: skip
    identity = tfds.core.DatasetIdentity(
        name="generated", version=tfds.core.Version("1.0.0"), data_dir=str(target),
        module_name="generated",
    )  # fmt: skip
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, SHARD, file_format="array_record")
    writer.initialize_splits(["train", "test"], fail_if_exists=False)
    for split, many in (("train", count), ("test", 1000)):
        for _ in range(0, many, 1000):
            images = rng.integers(0, 256, (1000, SIDE, SIDE, 1), np.uint8)
            made = [{"image": one, "label": int(one.mean() > 127)} for one in images]
            writer.add_examples({split: made})
    writer.close_all()
    return top


def child() -> None:
    """Do the first pass, or one epoch; print the peak of memory and the time."""
    import gpuzoo
    from gpuzoo.engine.timing import peak_memory_bytes

    asked = json.loads(sys.stdin.readline())
    runtime = gpuzoo.configure(backend=asked["backend"], device="cpu", quiet=True)
    begun, spent = time.perf_counter(), time.process_time()
    data = gpuzoo.load_data("generated", data_dir=asked["folder"], stream="disk")
    steps = 0
    if asked["trains"]:
        from gpuzoo.catalogue.recipes import load_recipe
        from gpuzoo.engine import loop
        from gpuzoo.engine.program import Program
        from gpuzoo.training.build import session_of

        steps = len(data.train["image"]) // BATCH
        recipe = load_recipe("mnist_mlp").override(
            batch_size=BATCH, stream="disk", model_options=("units=(8,)",), epochs=1,
            eval_every=10**9, checkpoint_every=0,
        )  # fmt: skip
        loop.run(Program(session_of(recipe, runtime, data)), until=steps)
    print(json.dumps({
        "peak_bytes": peak_memory_bytes(), "steps": steps,
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - spent,
    }))  # fmt: skip


def measure(folder: pathlib.Path, trains: bool, backend: str) -> dict:
    env = {**os.environ, "GPUZOO_CACHE": str(folder / "cache")}
    asked = {"folder": str(folder), "trains": trains, "backend": backend}
    done = subprocess.run(
        [sys.executable, __file__, "--child"], input=json.dumps(asked) + "\n",
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--backend", default="tensorflow")
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE / "records" / "on_disk.json")  # fmt: skip
    asked = parser.parse_args()
    if asked.child:
        return child()
    rows = []
    for count in (one for one in COUNTS if one <= asked.most):
        folder = prepare(asked.folder, count)
        row = {"examples": count}
        row["first_pass"] = measure(folder, False, asked.backend)
        row["training"] = measure(folder, True, asked.backend)
        rows.append(row)
        print(json.dumps(row), flush=True)
        grown = {
            what: row[what]["peak_bytes"] / rows[0][what]["peak_bytes"]
            for what in ("first_pass", "training")
        }
        record = {"backend": asked.backend, "batch": BATCH, "rows": rows,
                  "grown_to": grown}  # fmt: skip
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
