"""Print the results of gpu.sh as a short table: device, measurement, value.

python benchmarks/tables/gpu_table.py FOLDER    # with records

tables.py writes the same table into docs/results.md, from the records *_gpu.json.
"""

import collections
import json
import pathlib
import statistics
import sys

from speed_table import JPEG, ends

EMPTY = "Nothing has been measured on a GPU yet."


def device_of(record: dict) -> str:
    """Return the name of the device of a record."""
    if "runtime" in record:
        return record["runtime"]["device_name"]
    return record.get("device_name") or record.get("device", "cpu")


def mean(figure: dict, unit: str = "", times: int = 1, digits: str = ".3g") -> str:
    """Format a mean, its standard deviation, if there is one, and the count."""
    apart = "" if figure["std"] is None else f" ± {times * figure['std']:.2g}"
    return f"{times * figure['mean']:{digits}}{apart}{unit} (n = {figure['n']})"


def metric(name: str, figure: dict) -> str:
    share = name == "test_accuracy"
    return mean(figure, " %", 100, ".2f") if share else mean(figure, digits=".4g")


def reached(rows: dict) -> str:
    """Format how many seeds reached 99.0 %."""
    good = [row["test_accuracy"] >= 0.99 for row in rows["runs"]]
    return f"{sum(good)} of {len(good)}"


def to_99(record: dict):
    for name in ("train_mnist", "longer", "train_mnist_fast"):
        if rows := record.get(name):
            what = " ".join(["MNIST,", name, *rows.get("options", [])])
            yield f"{what}: training", mean(rows["train_seconds"], " s")
            accuracy = f"{rows['test_accuracy']['mean']:.2%}"
            yield f"{what}: 99.0 % reached", f"{reached(rows)} ({accuracy} on average)"
    for start, costs in record["start"].items():
        yield f"MNIST, whole process, {start}", mean(costs["process_seconds"], " s")


def recipe(record: dict):
    words = record["what"].removeprefix("gpuzoo train ").split()
    what = " ".join(_without(words, "--data", "--device"))
    yield f"{what}: training", mean(record["train_seconds"], " s")
    for name, figure in record.items():
        if name.startswith("test_") and name != "test_loss":
            yield f"{what}: {name.replace('_', ' ')}", metric(name, figure)
    if "same_bits" in record:
        same = "equal" if record["same_bits"] else "DIFFERENT"
        yield f"{what}: bits of two whole trainings", same


def _without(words: list[str], *options: str) -> list[str]:
    """Return words without some options and their values."""
    pairs = zip(["", *words], words, strict=False)
    return [w for before, w in pairs if not {before, w} & set(options)]


def beside(record: dict):
    for name in record["runs"]:
        accuracy = metric("test_accuracy", record[name]["test_accuracy"])
        yield f"{JPEG}, {name}: test accuracy", accuracy
        yield f"{JPEG}, {name}: training", mean(record[name]["train_seconds"], " s")
    for name, times in record["median_seconds"].items():
        yield f"{JPEG}, seconds of {name}", f"{times:.2f} times"


def cost(record: dict):
    for what, figure in record["seconds_with_over_without"].items():
        low, high = figure["interval"]
        times = f"{figure['median']:.3f} times ({low:.3f} to {high:.3f})"
        yield f"seconds with {what}", times


def equal(record: dict):
    for mode, results in record["modes"].items():
        counts = collections.Counter(row["verdict"] for row in results.values())
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        wrong = [n for n, r in results.items() if r["verdict"] != "equal"]
        named = f" ({', '.join(wrong)})" if wrong else ""
        yield f"models trained twice, {mode}", told + named


def killed(record: dict):
    total = record["total"]
    yield (
        f"{total['kills']} kills, {total['runs']} runs resumed",
        f"{total['different']} with other bits, {total['lost']} lost, "
        f"{total['set_back']} set back",
    )


def bench(record: dict):
    for row in record["modes"]:
        if row["error"]:
            yield f"bench, {row['mode']}", f"failed: {row['error']}"
            continue
        parts = row["part_of_peak"] or {}
        peaks = [
            f"{parts[kind]:.1%} of the measured peak of {name}"
            for kind, name in (("flops", "products"), ("bytes", "memory"))
            if parts.get(kind) is not None
        ]
        speed = row["examples_per_second"]
        told = f"{speed['median']:,.0f} examples a second (n = {speed['n']})"
        what = f"bench, {record['recipe']['name']}, {row['mode']}"
        yield what, ", ".join([told, *peaks])
    if goal := record["goal"]:
        seconds = [run["seconds"] for run in goal["runs"] if run["reached"]]
        told = f"{len(seconds)} of {len(goal['runs'])} reached it"
        if seconds:
            told += f", {statistics.median(seconds):.2f} s of training"
        yield f"bench, {record['recipe']['name']}, to {goal['goal']}", told


def predicted(record: dict):
    for name, row in record["recipes"].items():
        if row["error"]:
            yield f"prediction, {name}", f"failed: {row['error']}"
            continue
        program = "as predicted" if row["same_program"] else "DIFFERS"
        seconds, times = row["observed"]["step_seconds"], row["times_the_bound"]
        yield f"prediction, {name}: program", program
        yield (
            f"prediction, {name}: a step",
            (
                f"{1e6 * seconds:.0f} us, {times:.1f} times the bound by "
                f"{row['predicted']['bound_by']}"
            ),
        )


# The key that identifies a kind of record -> its rows.
KINDS = {
    "train_mnist": to_99,
    "start": to_99,
    "median_seconds": beside,
    "seconds_with_over_without": cost,
    "total": killed,
    "conclusion": bench,
    "control": equal,
    "train_seconds": recipe,
    "recipes": predicted,
}


def rows_of(record: dict) -> list[tuple[str, str]]:
    """Return the measurements of a record and their values."""
    kind = next(kind for key, kind in KINDS.items() if key in record)
    return list(kind(record))


def read(folder: pathlib.Path, pattern: str) -> list[dict]:
    """Return the records of a folder, sorted by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def gpu_text(records: list[dict], machine) -> str:
    """Return the table of docs/results.md; `machine` describes a record's machine."""
    if not records:
        return EMPTY
    places = sorted({machine(record) for record in records})
    days = sorted({day for record in records for day in record["date"].split(" to ")})
    return "\n".join(
        [
            "| device | what | figure |",
            "|---|---|---|",
            *(
                f"| {device_of(record)} | {what} | {figure} |"
                for record in records
                for what, figure in rows_of(record)
            ),
            "",
            f"Mean ± standard deviation; measured by `benchmarks/gpu.sh` on "
            f"{'; '.join(places)}, {' to '.join(ends(days))}.",
        ]
    )


def gpu_head(record: dict | None, part: str = "") -> dict[str, str]:
    """Return a line for the docstring of a recipe, if it was measured unchanged on a
    GPU; `part` of a record of mnist_to_99.py."""
    rows = record.get(part) if record and part else record
    if not rows:
        return {}
    told = f"{mean(rows['train_seconds'], ' s')} of training, {device_of(record)}"
    return {"on a GPU": f"{told}, {record['date']}"}


def main() -> None:
    found = [
        (device_of(record), *row)
        for record in read(pathlib.Path(sys.argv[1]), "*.json")
        for row in rows_of(record)
    ]
    if not found:
        print("Nothing has been measured yet.")
    width = max((len(what) for _, what, _ in found), default=0)
    for device, what, figure in found:
        print(f"{device}  {what:<{width}}  {figure}")


if __name__ == "__main__":
    main()
