"""Compile every model for every card, precision and level, without a GPU.

    python benchmarks/repeatability/gpu_matrix.py   # goes on where it stopped
    python benchmarks/repeatability/gpu_matrix.py --models cnn lstm --for h200
    python benchmarks/repeatability/gpu_matrix.py --levels exclude  # see below
    # write docs/explanation/gpu-matrix.md
    python benchmarks/repeatability/gpu_matrix.py --table

It asks `gpuzoo compile` for the training and the evaluation step of each model, with
its own task, on the embedded digits (other kinds of data: computed), batch
128 (wgan_gp, which needs a multiple of 5: 125).
All of it is predicted, nothing is measured. Two compilers run side by side. The
programs of a model's levels have most kernels in common, which are compiled once.

Level "exclude" is no level of gpuzoo: `fast` with XLA's flag
`--xla_gpu_exclude_nondeterministic_ops`, to compare what the two flags do.

Writes benchmarks/records/gpu_matrix.json (--out) after each model, precision and level.
Rows that are there are kept if the compiler and the batch are the same and they have no
error; each names the code that it was made by (--anew drops those of other code).
Exit code 1 if something does not compile, does not fit or, at level repeatable, may not
repeat.
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time

from modes import PRECISIONS

HERE = pathlib.Path(__file__).resolve().parent.parent
RECORD = HERE / "records" / "gpu_matrix.json"
PAGE = HERE.parent / "docs" / "explanation" / "gpu-matrix.md"
LEVELS = ("repeatable", "fast", "exclude")
EXCLUDE = "--xla_gpu_exclude_nondeterministic_ops=true"
BATCH = 128
ORDER = ("h200", "a100", "rtx4090", "rtx5090", "t4")
DATA = {
    "forecast": "mackey_glass",
    "classify_audio": "tones",
    "segment": "textured_digits",
    "table": "flats",
    "classify_text": "reviews",
    "classify_film": "moving_digits",
    "embed": "glyphs",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--for", dest="cards", nargs="+", metavar="CARD",
                        help="default: all that come with gpuzoo")  # fmt: skip
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS
    )
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS[:2])
    parser.add_argument("--out", type=pathlib.Path, default=RECORD)
    parser.add_argument("--kernels", type=pathlib.Path, metavar="FOLDER",
                        help="keep compiled kernels for other calls")  # fmt: skip
    parser.add_argument("--anew", action="store_true",
                        help="compile again what other code has made")  # fmt: skip
    parser.add_argument("--table", action="store_true",
                        help="only write the page of the docs")  # fmt: skip
    return parser.parse_args()


def recipe_of(model: str):
    """Return a recipe that trains the model on data of its task."""
    import gpuzoo

    info = gpuzoo.model_info(model)
    return gpuzoo.load_recipe("mnist").override(
        task=info.task,
        model=model,
        data=DATA.get(info.task, "digits"),
        model_options=("dropout=0.2",) if "dropout" in info.options else (),
        label_smoothing=0.1 if info.task == "classify" else 0.0,
        augment=() if info.task in DATA else ("translate:1",),
        batch_size=BATCH - BATCH % 5 if model == "wgan_gp" else BATCH,
        learning_rate=1e-3,
    )


def compiled(
    model: str, precision: str, level: str, cards: list[str], kernels: str | None = None
) -> list[dict]:
    """Return a row per card, without what the table and a comparison do not need."""
    from gpuzoo.gpus.compile import compile_for

    found = compile_for(
        recipe_of(model), cards, (precision,),
        ("fast" if level == "exclude" else level,),
        xla_flags=EXCLUDE if level == "exclude" else "", kernels=kernels,
    )  # fmt: skip
    return [short(model, level, row) for row in found["rows"]]


@contextlib.contextmanager
def kernels_of_all_levels(folder: pathlib.Path | None, model: str, precision: str):
    """Return a folder for the kernels of a model: a temporary one, or one to keep."""
    if folder:
        kept = folder / f"{model}-{precision}"
        kept.mkdir(parents=True, exist_ok=True)
        yield str(kept)
    else:
        with tempfile.TemporaryDirectory() as made:
            yield made


def short(model: str, level: str, row: dict) -> dict:
    kept = {"model": model, "card": row["card"], "precision": row["precision"],
            "level": level, "error": row["error"]}  # fmt: skip
    if row["error"] is None:
        kept |= {"fits": row["fits"], "memory_bytes": row["memory_bytes"]}
        kept["programs"] = {
            step: {
                "kernels": one["kernels_by_kind"], "flops": one["flops"],
                "bytes": one["bytes"], "least_us": round(1e6 * one["least_seconds"], 1),
                "bound_by": one["bound_by"], "may_not_repeat": one["may_not_repeat"],
                "sha256": one["program_sha256"],
            }
            for step, one in row["programs"].items()
        }  # fmt: skip
    return kept


def key(row: dict) -> tuple:
    return row["model"], row["precision"], row["level"], row["card"]


def kept_rows(path: pathlib.Path, head: dict) -> dict[tuple, dict]:
    """Return the rows of an earlier record of the same compiler and batch."""
    if not path.exists():
        return {}
    old = json.loads(path.read_text())
    if any(old[name] != head[name] for name in ("versions", "batch")):
        sys.exit(f"{path} is of another compiler or batch: remove it or name another")
    return {key(row): row for row in old["rows"] if not row["error"]}


def write(path: pathlib.Path, head: dict, rows: dict[tuple, dict]) -> None:
    """Write the record, a line per row."""
    from gpuzoo.files import write_atomically

    lines = ",\n".join(json.dumps(rows[name]) for name in sorted(rows))
    text = (
        json.dumps(head, indent=1).removesuffix("\n}")
        + f',\n "rows": [\n{lines}\n]}}\n'
    )
    write_atomically(path, text.encode())


def faults(rows: list[dict]) -> list[str]:
    """Return a line for every row that is not as it should be."""
    lines = []
    for row in rows:
        where = " ".join(map(str, key(row)))
        if row["error"]:
            lines.append(f"{where}: {row['error']}")
            continue
        if not row["fits"]:
            lines.append(f"{where}: does not fit")
        if row["level"] == "repeatable":
            lines += [
                f"{where}, {step}: {one['operation']} of {one['layer']} may not repeat"
                for step, program in row["programs"].items()
                for one in program["may_not_repeat"]
            ]
    return lines


# --- the page of the docs -------------------------------------------------------------

_HEAD = """\
# Every model, compiled for GPUs

Written by `benchmarks/repeatability/gpu_matrix.py --table` from
`benchmarks/records/gpu_matrix.json`.

**Predicted by the compiler, not measured: none of these programs has been run.** The
training and the evaluation step of each model, on JAX, are compiled for a card that is
only described ([compile for a GPU without one](../howto/compile.md)), at batch {batch}
(`wgan_gp`: {batch_5}), on the embedded digits, computed sounds, series, tables,
masks and texts.
{versions}; {date}, {codes} version(s) of the code: the record names that of each row.
"""
_LEVELS = """\
`repeatable` and `fast` are levels of gpuzoo. `exclude` is none: it is `fast` with XLA's
`--xla_gpu_exclude_nondeterministic_ops`, where `repeatable` has
`--xla_gpu_deterministic_ops`; which of its operations repeat is not judged. A row is a
model on a card, its two programs together.
"""
_CELLS = """\
Level `repeatable`: kernels of one training step, and the least time that it can take,
with the bound that decides it. The step may take much longer.
"""
_FLAGS = """\
What XLA's flags change in a training step, of the rows that were compiled with both:
the same program to the byte, without names ("-": not known of all), and the median and
the extremes of the ratio of kernels, and of the bytes that they read and write. With
max-pooling more than a flag differs: gpuzoo takes XLA's operation at `fast` on a GPU,
whose gradient is a scatter, and the maximum of slices at `repeatable`.
"""
_ONE = """\
Each model on {card} in {precision}, kernels and megabytes of a training step, and the
operations that XLA or cuDNN does not promise to repeat at level `fast`:
"""
_KINDS = """\
Kernel by kernel, on {card} in {precision}: what level `repeatable` and `exclude` start
more (+) or less (-) often in a training step than level `fast`. "the same program": to
the byte, without names; "as many": with other attributes, such as cuDNN's choice of
algorithms.
"""


def page(record: dict) -> str:
    """Return the Markdown page of a record."""
    import gpu_devices  # which needs this file

    rows, versions = record["rows"], record["versions"]
    models = sorted({row["model"] for row in rows})
    cards = [name for name in ORDER if any(row["card"] == name for row in rows)]
    cards += sorted({row["card"] for row in rows} - set(cards))
    found = {key(row): row for row in rows}
    parts = [
        _HEAD.format(
            batch=record["batch"], batch_5=record["batch"] - record["batch"] % 5,
            date=record["date"], codes=len({row["code"] for row in rows}),
            versions=", ".join(map(" ".join, versions.items())),
        ),
        _LEVELS,
        markdown(
            ["level", "precision", "rows", "do not compile", "do not fit",
             "with operations that may not repeat"],
            counts(rows),
        ) + "\n",
        *exceptions(rows),
        "## The least time of a step\n", _CELLS,
    ]  # fmt: skip
    for precision in PRECISIONS:
        lines = [
            [model, *(cell(found.get((model, precision, "repeatable", card)))
                      for card in cards)]
            for model in models
        ]  # fmt: skip
        if any(any(line[1:]) for line in lines):
            parts += [f"{precision}:\n", markdown(["model", *cards], lines) + "\n"]
    parts += ["## What the flags change\n", _FLAGS, markdown(
        ["compared", "precision", "rows", "same program", "kernels", "bytes"],
        ratios(found),
    ) + "\n"]  # fmt: skip
    parts += on_one_card(found, models, cards[0])
    return "\n".join([*parts, "", *gpu_devices.section()]) + "\n"


def on_one_card(found: dict[tuple, dict], models: list[str], card: str) -> list[str]:
    """Return the tables of what the flags change for each model on a card."""
    precision = PRECISIONS[1]
    rows = {
        model: {level: found.get((model, precision, level, card)) for level in LEVELS}
        for model in models
    }
    heads = ["model", *(f"{what}, {level}" for what in ("kernels", "MB")
                        for level in LEVELS), "may not repeat at fast"]  # fmt: skip
    compared = [[model, *difference([*row.values()])] for model, row in rows.items()]
    kinds = [
        [model, *(by_kind(row[one], row["fast"]) for one in ("repeatable", "exclude"))]
        for model, row in rows.items()
    ]
    return [
        _ONE.format(card=card, precision=precision), markdown(heads, compared),
        "\n" + _KINDS.format(card=card, precision=precision),
        markdown(["model", "repeatable", "exclude"], kinds),
    ]  # fmt: skip


def counts(rows: list[dict]) -> list[list[str]]:
    """Return a line per level and precision."""
    lines = []
    for level in LEVELS:
        for precision in PRECISIONS:
            if not (here := of_mode(rows, level, precision)):
                continue
            good = [row for row in here if not row["error"]]
            odd = [row for row in good if may_not_repeat(row)]
            numbers = [len(here), len(here) - len(good),
                       sum(not row["fits"] for row in good),
                       "-" if level == "exclude" else len(odd)]  # fmt: skip
            lines.append([level, precision, *map(str, numbers)])
    return lines


def of_mode(rows: list[dict], level: str, precision: str) -> list[dict]:
    return [
        row for row in rows if (row["level"], row["precision"]) == (level, precision)
    ]


def may_not_repeat(row: dict) -> list[dict]:
    return [one for step in row["programs"].values() for one in step["may_not_repeat"]]


def exceptions(rows: list[dict]) -> list[str]:
    """Return what does not compile, does not fit or, at level repeatable, may not
    repeat, and the models that are missing."""
    import gpuzoo

    wrong = [f"- {line}" for line in faults(rows)]
    parts = [
        "\n".join(["Not as it should be:", "", *wrong]) + "\n" if wrong else
        "Every program compiles and fits, and at level `repeatable` none has an "
        "operation that may not repeat.\n"
    ]  # fmt: skip
    missing = []
    for level in LEVELS:
        for precision in PRECISIONS:
            there = {row["model"] for row in of_mode(rows, level, precision)}
            left = [name for name in sorted(gpuzoo.list_models()) if name not in there]
            named = ", ".join(left) if there else "all"
            if left:
                missing.append(f"- {level}, {precision}: {named}")
    if missing:
        parts.append("\n".join(["Not compiled yet:", "", *missing]) + "\n")
    return parts


def ratios(found: dict[tuple, dict]) -> list[list[str]]:
    """Return how programs of two levels compare, a line per pair and precision."""
    lines = []
    for one, other in (("repeatable", "fast"), ("exclude", "fast"),
                       ("repeatable", "exclude")):  # fmt: skip
        for precision in PRECISIONS:
            pairs = [
                (row["programs"]["train"], beside["programs"]["train"])
                for (model, kind, level, card), row in found.items()
                if (kind, level) == (precision, one) and not row["error"]
                and (beside := found.get((model, precision, other, card)))
                and not beside["error"]
            ]  # fmt: skip
            if not pairs:
                continue
            same = "-"  # the digests of older rows were of another form
            if all(one["sha256"] for pair in pairs for one in pair):
                same = str(sum(a["sha256"] == b["sha256"] for a, b in pairs))
            kernels = [kernels_of(a) / kernels_of(b) for a, b in pairs]
            moved = [a["bytes"] / b["bytes"] for a, b in pairs]
            lines.append([f"{one} / {other}", precision, str(len(pairs)), same,
                          told(kernels), told(moved)])  # fmt: skip
    return lines


def has_digests(row: dict | None) -> bool:
    return bool(row) and all(one["sha256"] for one in row["programs"].values())


def kernels_of(step: dict) -> float:
    return sum(step["kernels"].values())


def told(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


def cell(row: dict | None) -> str:
    if row is None:
        return ""
    if row["error"]:
        return "does not compile"
    one = row["programs"]["train"]
    text = f"{kernels_of(one):.0f}, {one['least_us']:.0f} us ({one['bound_by']})"
    text += "" if row["fits"] else ", does not fit"
    return text + (", may not repeat" if may_not_repeat(row) else "")


def difference(rows: list) -> list[str]:
    """Return kernels and megabytes of a step at each level, and what may not repeat."""
    steps = [row["programs"]["train"] if row and not row["error"] else None
             for row in rows]  # fmt: skip
    cells = [f"{kernels_of(one):.0f}" if one else "" for one in steps]
    cells += [f"{one['bytes'] / 1e6:.0f}" if one else "" for one in steps]
    fast = rows[LEVELS.index("fast")]
    odd = may_not_repeat(fast) if fast and not fast["error"] else None
    named = ", ".join(
        f"`{name}`" for name in sorted({one["operation"] for one in odd or ()})
    )
    return [*cells, "" if odd is None else named or "none"]


def by_kind(row: dict | None, fast: dict | None) -> str:
    """Return which kinds of kernels a training step starts more or less often than at
    level fast."""
    if not row or not fast or row["error"] or fast["error"]:
        return ""
    one, other = (each["programs"]["train"] for each in (row, fast))
    if one["sha256"] == other["sha256"]:
        return "the same program"
    counts, before = one["kernels"], other["kernels"]
    changes = {k: counts.get(k, 0) - before.get(k, 0) for k in {*counts, *before}}
    named = [f"{kind} {n:+.0f}" for kind, n in sorted(changes.items()) if n]
    return ", ".join(named) or "as many"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *rows]]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    if args.table:
        text = page(json.loads(args.out.read_text()))
        return PAGE.write_text(text) if args.out == RECORD else print(text, end="")

    import gpuzoo
    from gpuzoo.errors import GpuzooError
    from gpuzoo.gpus import cards
    from gpuzoo.gpus.compile import check_installed
    from gpuzoo.runs.code import code_sha256

    names, code = args.cards or cards.names(), code_sha256()[:16]
    head = {
        "what": "training and evaluation steps compiled for cards, without a GPU",
        "kind": "predicted, not measured",
        "command": "python benchmarks/repeatability/gpu_matrix.py",
        "date": time.strftime("%Y-%m-%d"),
        "versions": check_installed(),
        "batch": BATCH,
    }
    rows, lock, refused = kept_rows(args.out, head), threading.Lock(), []
    if args.anew:
        rows = {name: row for name, row in rows.items() if row["code"] == code}
    jobs = [
        (model, precision)
        for precision in args.precisions
        for model in sorted(args.models or gpuzoo.list_models())
    ]

    def work(job: tuple) -> None:
        with kernels_of_all_levels(args.kernels, *job) as folder:
            for level in args.levels:
                work_on((*job, level), folder)

    def work_on(job: tuple, folder: str) -> None:
        missing = [name for name in names if not has_digests(rows.get((*job, name)))]
        if not missing:
            return
        begun = time.perf_counter()
        try:
            found = compiled(*job, missing, folder)
        except GpuzooError as error:  # the script asks for what gpuzoo does not do
            refused.append(f"{' '.join(job)}: {error}")
            return print(refused[-1], flush=True)
        with lock:
            rows.update({key(row): {**row, "code": code} for row in found})
            write(args.out, head, rows)
        seconds = time.perf_counter() - begun
        print(*job, f"{seconds:.0f} s", *faults(found), sep="  ", flush=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in pool.map(work, jobs):
            pass
    wrong = faults([row for row in rows.values() if row["card"] in names])
    sys.exit(bool(wrong + refused))


if __name__ == "__main__":
    main()
