"""Test on which processors the models of the catalogue end with the same bits.

    python benchmarks/repeatability/scope.py          # write this machine's column
    python benchmarks/repeatability/scope.py --models mlp gru --precisions float32
    python benchmarks/repeatability/scope.py --table  # only write the table again

A column holds digests of the weights of every model (large ones narrowed, as
repeatable.py --small does) after some steps in every mode: a backend, a precision, and
XLA on or off. It is kept in tests/reference_digests.json with those of other machines,
so run this on another one to add its column. What the column has already is not trained
again, unless --again is given: for a change of the bits that is meant.

The table in docs/explanation/scope.md says which columns agree. The tests check a few
models against every column of the machine's class, at level portable of every class.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile
import time

from matrix import small_digits
from modes import mode_parser
from repeatable import run_worker

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import reference  # noqa: E402

PAGE = ROOT / "docs" / "explanation" / "scope.md"
STEPS, BATCH, THREADS = 12, 80, 2
LEVEL = "repeatable"
REFERENCE = "a small network of the tests"


def parse() -> argparse.Namespace:
    parser = mode_parser(__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--level", default=LEVEL)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--minutes", type=float, default=0,
                        help="begin no other mode after so many")  # fmt: skip
    parser.add_argument("--again", action="store_true",
                        help="train again what the column has already")  # fmt: skip
    parser.add_argument("--table", action="store_true",
                        help="only write the table again")  # fmt: skip
    args = parser.parse_args()
    if args.device == "gpu":
        parser.error("argument --device: the columns are those of CPUs, and it is gpu")
    return args


def experiment_of(steps: int, batch: int) -> str:
    return f"{steps} steps of {batch}"


def name_of(mode: dict) -> str:
    """Return the name of a mode: tensorflow float32 XLA off."""
    level = "" if mode["level"] == LEVEL else f", level {mode['level']}"
    return f"{mode['backend']} {mode['precision']} XLA {mode['xla']}{level}"


def measure(models: list[str], mode: dict, steps: int, batch: int, told) -> None:
    """Train models in a mode, in a fresh process; `told` gets the digest of each, or
    the message with which it is refused or fails."""
    xla = mode["xla"] if mode["backend"] == "tensorflow" else "auto"
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "data": small_digits(folder, steps, batch),
            "steps": steps,
            "batch": batch,
            "small": True,
            "models": models,
            "seeds": {"digest": 0},
            "runtime": {**mode, "xla": xla, "device": "cpu", "threads": THREADS},
        }

        def row_told(name: str, row: dict) -> None:
            message = row.get("refused") or row.get("failed")
            told(name, row.get("digest", "")[:16], message)

        run_worker(job, row_told, PYTHONHASHSEED="0")


# --- the table ------------------------------------------------------------------------


def groups_of(digests: dict[int, str]) -> list[list[int]]:
    """Return the numbers of the columns with the same digest together."""
    groups: dict[str, list[int]] = {}
    for number, digest in digests.items():
        groups.setdefault(digest, []).append(number)
    return list(groups.values())


def digests_of(every: list[dict], name: str, mode: str, experiment: str) -> dict:
    """Return column number -> digest of a model, of the columns that have it."""
    found = {}
    for number, column in enumerate(every, start=1):
        measured = column.get("models", {}).get(experiment, {}).get("modes", {})
        if digest := measured.get(mode, {}).get(name):
            found[number] = digest
    return found


def cell(every: list[dict], name: str, mode: str) -> str:
    """Return which columns agree: 2=3 ≠ 1; an empty text if none can be compared."""
    texts = []
    for experiment in experiments(every):
        digests = digests_of(every, name, mode, experiment)
        if len(digests) > 1:
            parts = ["=".join(map(str, group)) for group in groups_of(digests)]
            texts.append(" ≠ ".join(parts))
    return "; ".join(texts)


def experiments(every: list[dict]) -> list[str]:
    return sorted({name for column in every for name in column.get("models", {})})


def modes_of(every: list[dict]) -> list[str]:
    found = {
        mode
        for column in every
        for measured in column.get("models", {}).values()
        for mode in measured["modes"]
    }
    return sorted(found, key=lambda mode: ("level" in mode, mode))


def with_reference(column: dict) -> dict:
    """Return a column with the reference digests of the tests as one more model."""
    modes = {
        f"tensorflow {precision} XLA off": {REFERENCE: digest}
        for precision, digest in column.get("digests", {}).items()
        if precision in reference.PRECISIONS
    }
    return {**column, "models": {**column.get("models", {}), "tests": {"modes": modes}}}


def matrix_text(every: list[dict]) -> str:
    """Return the table of models and modes, and the numbers of its columns."""
    numbered = processors_text(every)
    every = [with_reference(column) for column in every]
    names = sorted({
        name
        for column in every
        for measured in column["models"].values()
        for results in measured["modes"].values()
        for name in results
    })  # fmt: skip
    cells = {
        mode: {name: cell(every, name, mode) for name in names}
        for mode in modes_of(every)
    }
    modes = [mode for mode, found in cells.items() if any(found.values())]
    heads = [mode.replace("mixed_", "") for mode in modes]
    rows = [[name, *(cells[mode][name] for mode in modes)] for name in names]
    alone = [name for name, *rest in rows if not any(rest)]
    lines = [
        *numbered, "", *table(["processors", *heads], pairs_rows(every, modes)), "",
        *table(["model", *heads], [row for row in rows if any(row[1:])]),
    ]  # fmt: skip
    if alone:
        lines += ["", f"Measured on one processor only: {', '.join(alone)}."]
    return "\n".join(lines)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *rows]]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def processors_text(every: list[dict]) -> list[str]:
    """Return the processors with their numbers, and the versions."""
    rows = []
    for number, column in enumerate(every, start=1):
        told = [
            f"{experiment}, {measured['date']}: `{measured['command']}`"
            for experiment, measured in sorted(column.get("models", {}).items())
        ]
        words = "; ".join(told) or f"only {REFERENCE}"
        name = column["cpu"].replace("(R)", "")
        rows.append([str(number), name, column["cpu_class"], words])
    versions = {
        f"{name} {version}"
        for column in every
        for name, version in column["versions"].items()
    }
    lines = table(["", "processor", "class", "measured"], rows)
    return [*lines, "", f"2 threads, {', '.join(sorted(versions))}."]


def pairs_rows(every: list[dict], modes: list[str]) -> list[list[str]]:
    """Return how many models agree, for each pair of columns and mode."""
    counts: dict[tuple, dict] = {}
    for mode in modes:
        for one, other, same in pairs(every, mode):
            found = counts.setdefault((one, other), {}).setdefault(mode, [])
            found.append(same)
    return [
        [
            f"{one} and {other}",
            *(
                f"{sum(found[mode])} of {len(found[mode])}" if mode in found else ""
                for mode in modes
            ),
        ]
        for (one, other), found in sorted(counts.items())
    ]


def pairs(every: list[dict], mode: str):
    """Yield two columns and whether they agree, for each model in a mode."""
    for experiment in experiments(every):
        names = {
            name
            for column in every
            for name in column.get("models", {})
            .get(experiment, {})
            .get("modes", {})
            .get(mode, {})
        }
        for name in sorted(names):
            digests = digests_of(every, name, mode, experiment)
            for one in digests:
                for other in digests:
                    if one < other:
                        yield one, other, digests[one] == digests[other]


def write_table() -> None:
    """Write the table into the page."""
    text = matrix_text(reference.columns())
    old = PAGE.read_text()
    new = re.sub(
        r"(<!-- matrix -->\n).*?(\n<!-- /matrix -->)",
        lambda found: found[1] + text + found[2],
        old,
        flags=re.S,
    )
    PAGE.write_text(new)


# --- the column -----------------------------------------------------------------------


def main() -> None:
    args = parse()
    if args.table:
        return write_table()
    import gpuzoo

    modes = [
        {"backend": b, "precision": p, "xla": x, "level": args.level}
        for p in args.precisions
        for b in args.backends
        for x in (args.xla if b == "tensorflow" else ["on"])
    ]
    models, began = sorted(args.models or gpuzoo.list_models()), time.monotonic()
    failed = False
    for mode in modes:
        if args.minutes and time.monotonic() - began > 60 * args.minutes:
            sys.exit(f"not begun, after {args.minutes:g} minutes: {name_of(mode)}")
        failed |= write_mode(mode, models, args)
    write_table()
    sys.exit(failed)


def write_mode(mode: dict, models: list[str], args) -> bool:
    """Add the digests of a mode to the column of this machine; return whether any
    training failed."""
    failures = []

    def told(name: str, digest: str, message: str | None) -> None:
        print(f"{name_of(mode)}: {name} {digest or message}", file=sys.stderr)
        if not digest:
            failures.append(name)
            return
        every = reference.columns()
        measured = measured_of(reference.own_column(every, THREADS), args)
        results = measured["modes"].setdefault(name_of(mode), {})
        results[name] = digest
        reference.write(every)

    every = reference.columns()
    measured = measured_of(reference.own_column(every, THREADS), args)
    known = {} if args.again else measured["modes"].get(name_of(mode), {})
    if left := [name for name in models if name not in known]:
        measure(left, mode, args.steps, args.batch, told)
    return bool(failures)


def measured_of(column: dict, args) -> dict:
    """Return the part of a column that is about these steps, dated today."""
    experiment = experiment_of(args.steps, args.batch)
    place = column.setdefault("models", {}).setdefault(experiment, {"modes": {}})
    place["date"] = time.strftime("%Y-%m-%d")
    words = ["python benchmarks/repeatability/scope.py"]
    if experiment != experiment_of(STEPS, BATCH):
        words.append(f"--steps {args.steps} --batch {args.batch}")
    place["command"] = " ".join(words)
    return place


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
