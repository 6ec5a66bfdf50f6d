"""Measure how time and memory scale with examples, batch size, width and steps.

    python benchmarks/speed/growth.py --data-dir DIR    # a prepared TFDS folder
    python benchmarks/speed/growth.py --data-dir DIR --folder DISK --most 40000000

Writes benchmarks/records/growth.json and docs/growth.png. Recipe `mnist`, one setting
changed at a time, each training in its own process: milliseconds per step and peak main
memory. For more examples MNIST is tiled into a memory-mapped file; resident examples
are copied to the device, streamed ones are read when a step needs them.

Resident examples stop at 5 million: the copy alone takes 3.9 GB there, and by default a
run streams data that would fill more than half of the memory. Streamed examples stop at
10 million (7.8 GB), which a large page cache can hold: with `--most` (784 bytes of disk
per example) they exceed the memory of the machine, which is in the record.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
STEPS = 120
# What grows -> its values; the rest stays as in BASE.
BASE = {"examples": 60_000, "batch": 256, "width": 1, "steps": STEPS, "stream": "off"}
GROWTH = {
    "examples": (10**3, 10**4, 10**5, 10**6, 5 * 10**6),
    "examples, streamed": (10**3, 10**4, 10**5, 10**6, 5 * 10**6, 10**7),
    "batch": (16, 64, 256, 1024),
    "width": (1, 2, 4, 8),
    "steps": (60, 240, 960),
}


def child() -> None:
    """Run one training and print its measurements."""
    import gpuzoo
    from gpuzoo.catalogue.recipes import load_recipe
    from gpuzoo.data.dataset import Dataset
    from gpuzoo.engine.timing import peak_memory_bytes

    asked = json.loads(sys.stdin.readline())
    runtime = gpuzoo.configure(device="cpu", quiet=True)
    from gpuzoo.engine import loop
    from gpuzoo.engine.program import Program
    from gpuzoo.training.build import session_of

    count = asked["examples"]
    images = np.memmap(asked["images"], "u1", "r", shape=(count, 28, 28, 1))
    labels = np.memmap(asked["labels"], "<i4", "r", shape=(count,))
    train = {"image": images, "label": labels}
    test = {name: array[:1000] for name, array in train.items()}
    data = Dataset(
        "tiled", "MNIST, tiled", {"train": train, "test": test},
        tuple("0123456789"), "none",
    )  # fmt: skip
    filters = f"filters=({16 * asked['width']},{32 * asked['width']})"
    recipe = load_recipe("mnist").override(
        batch_size=asked["batch"], stream=asked["stream"], model_options=(filters,),
        epochs=1 + asked["steps"] * asked["batch"] // count, eval_every=10**9,
        checkpoint_every=0,
    )  # fmt: skip
    program = Program(session_of(recipe, runtime, data))
    done = {}

    def watch(event: str, row: dict) -> None:
        if event == "progress":
            done.update(row)

    loop.run(program, watch=watch, until=asked["steps"])
    print(
        json.dumps(
            {
                "step_ms": 1000 * done["seconds"] / done["step"],
                "train_seconds": done["seconds"],
                "memory_mb": peak_memory_bytes() / 1e6,
                "anonymous_mb": _anonymous(),
            }
        )
    )


def _anonymous() -> float:
    """Return the current anonymous memory, which the system cannot drop."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    told = dict(line.split(":", 1) for line in lines)
    return int(told["RssAnon"].split()[0]) * 1024 / 1e6


def memory() -> int:
    """Return the main memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tile(data, count: int, folder: pathlib.Path) -> dict[str, str]:
    """Write files of so many examples, repeating the training examples."""
    paths = {}
    for name, kind in (("image", "u1"), ("label", "<i4")):
        path, array = folder / f"{name}.bin", data.train[name].astype(kind)
        with open(path, "wb") as file:
            for start in range(0, count, len(array)):
                file.write(np.ascontiguousarray(array[: count - start]).data)
        paths[f"{name}s"] = str(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--folder", help="folder for the tiled examples")
    parser.add_argument("--most", type=int, default=0, help="of streamed examples")
    args = parser.parse_args()

    import gpuzoo
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import available_cores, environment

    data = gpuzoo.load_data("mnist", data_dir=args.data_dir)
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for what, values in GROWTH.items():
            more = [args.most] * (what == "examples, streamed" and args.most > 0)
            for value in [*values, *more]:
                name, _, streamed = what.partition(", ")
                asked = {**BASE, name: value, "stream": "on" if streamed else "off"}
                asked |= tile(data, asked["examples"], pathlib.Path(folder))
                done = subprocess.run(
                    [sys.executable, __file__, "child"], input=json.dumps(asked),
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode:
                    sys.exit(done.stderr)
                row = {name: value, **json.loads(done.stdout.splitlines()[-1])}
                row["larger_than_memory"] = 784 * asked["examples"] > memory()
                found.setdefault(what, []).append(row)
                print(what, row, flush=True)
    record = {
        "what": "how time and memory grow",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/speed/growth.py --data-dir DIR"
        + f" --folder DISK --most {args.most}" * (args.most > 0),
        "environment": environment(),
        "threads": available_cores(),
        "memory_mb": round(memory() / 1e6),
        "code_sha256": code_sha256(),
        "base": BASE,
        "growth": found,
    }
    path = HERE / "records" / "growth.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    draw(found).savefig(HERE.parent / "docs" / "growth.png", dpi=90)


def draw(found: dict):
    from matplotlib.figure import Figure

    names = [what for what in found if ", " not in what]
    figure = Figure(figsize=(3.3 * len(names), 6), layout="constrained")
    for column, name in zip(figure.subplots(2, len(names)).T, names, strict=True):
        for axes, key, unit in zip(
            column, ("step_ms", "anonymous_mb"), ("ms of a step", "MB"), strict=True
        ):
            for what, style in ((name, "o-"), (f"{name}, streamed", "s--")):
                rows = found.get(what, [])
                points = [row[name] for row in rows], [row[key] for row in rows]
                axes.plot(*points, style, label=what)
            axes.set_xscale("log")
            if name != "examples":
                ticks = [row[name] for row in found[name]]
                axes.set_xticks(ticks, map(str, ticks))
            axes.minorticks_off()
            axes.set_ylim(0, 1.1 * axes.dataLim.y1)
            axes.set_xlabel(name)
            axes.set_title(unit, loc="left", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    child() if sys.argv[1:] == ["child"] else main()
