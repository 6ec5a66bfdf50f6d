"""Compile every model for every card, precision and level, without a GPU.

    python benchmarks/repeatability/gpu_matrix.py   # goes on where it stopped
    python benchmarks/repeatability/gpu_matrix.py --models cnn lstm --for h200
    python benchmarks/repeatability/gpu_matrix.py --levels exclude  # see below
    python benchmarks/repeatability/gpu_matrix.py --table  # of the record, for docs

It asks `gpuzoo compile` for the training and the evaluation step of each model, with
its own task, on the embedded digits (audio, forecasting: computed data), batch 128
(wgan_gp, which needs a multiple of 5: 125).
All of it is predicted, nothing is measured. Two compilers run side by side.

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
import json
import pathlib
import sys
import threading
import time

from modes import PRECISIONS

HERE = pathlib.Path(__file__).resolve().parent.parent
LEVELS = ("repeatable", "fast", "exclude")
EXCLUDE = "--xla_gpu_exclude_nondeterministic_ops=true"
BATCH = 128
ORDER = ("h200", "a100", "rtx4090", "rtx5090", "t4")
DATA = {"forecast": "mackey_glass", "classify_audio": "tones"}


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
    parser.add_argument(
        "--out", type=pathlib.Path, default=HERE / "records" / "gpu_matrix.json"
    )
    parser.add_argument("--anew", action="store_true",
                        help="compile again what other code has made")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print the record's table")
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


def compiled(model: str, precision: str, level: str, cards: list[str]) -> list[dict]:
    """Return a row per card, without what the table and a comparison do not need."""
    from gpuzoo.gpus.compile import compile_for

    found = compile_for(
        recipe_of(model), cards, (precision,),
        ("fast" if level == "exclude" else level,),
        xla_flags=EXCLUDE if level == "exclude" else "",
    )  # fmt: skip
    return [short(model, level, row) for row in found["rows"]]


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


def tables(rows: list[dict]) -> str:
    """Return the tables of the docs, of the training steps."""
    found = {key(row): row for row in rows}
    good = [row for row in rows if not row["error"]]
    models = sorted({row["model"] for row in rows})
    cards = [name for name in ORDER if any(row["card"] == name for row in rows)]
    cards += sorted({row["card"] for row in rows} - set(cards))
    wrong = faults(rows)
    parts = [
        f"{len(rows)} programs for training and as many for evaluation, "
        f"{len(rows) - len(good)} of them do not compile, "
        f"{sum(not row['fits'] for row in good)} do not fit. At level repeatable "
        f"{len([line for line in wrong if 'may not repeat' in line])} operations may "
        "not repeat.",
        markdown(["model", *cards], [
            [model, *(cell(found.get((model, precision_on(card), "repeatable", card)))
                      for card in cards)]
            for model in models
        ]),
    ]  # fmt: skip
    compared = [
        [model, *difference([found.get((model, PRECISIONS[1], level, "h200"))
                             for level in LEVELS])]
        for model in models
    ]  # fmt: skip
    heads = ["model", *(f"{what}, {level}" for what in ("kernels", "MB")
                        for level in LEVELS), "may not repeat at fast"]  # fmt: skip
    return "\n\n".join([*parts, markdown(heads, compared)])


def precision_on(card: str) -> str:
    """Return the precision that a training on the card would choose."""
    from gpuzoo.gpus import cards
    from gpuzoo.runtime.startup import choose_precision

    return choose_precision("auto", "gpu", cards.load(card).capability)[0]


def cell(row: dict | None) -> str:
    if row is None:
        return ""
    if row["error"]:
        return "does not compile"
    one = row["programs"]["train"]
    kernels = sum(one["kernels"].values())
    return f"{kernels}, {one['least_us']:.0f} us ({one['bound_by']})"


def difference(rows: list) -> list[str]:
    """Return kernels and megabytes of a step at each level, and what may not repeat."""
    steps = [row["programs"]["train"] if row and not row["error"] else None
             for row in rows]  # fmt: skip
    cells = [str(sum(one["kernels"].values())) if one else "" for one in steps]
    cells += [f"{one['bytes'] / 1e6:.0f}" if one else "" for one in steps]
    fast = steps[LEVELS.index("fast")]
    named = sorted({one["operation"] for one in fast["may_not_repeat"]}) if fast else []
    return [*cells, ", ".join(f"`{name}`" for name in named) or "-"]


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *rows]]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    if args.table:
        return print(tables(json.loads(args.out.read_text())["rows"]))

    import gpuzoo
    from gpuzoo.gpus import cards
    from gpuzoo.gpus.compile import check_installed
    from gpuzoo.runs.code import code_sha256

    names = args.cards or cards.names()
    head = {
        "what": "training and evaluation steps compiled for cards, without a GPU",
        "kind": "predicted, not measured",
        "command": "python benchmarks/repeatability/gpu_matrix.py",
        "date": time.strftime("%Y-%m-%d"),
        "versions": check_installed(),
        "batch": BATCH,
    }
    code = code_sha256()[:16]
    rows, lock = kept_rows(args.out, head), threading.Lock()
    if args.anew:
        rows = {name: row for name, row in rows.items() if row["code"] == code}
    jobs = [
        (model, precision, level)
        for level in args.levels
        for precision in args.precisions
        for model in sorted(args.models or gpuzoo.list_models())
    ]

    def work(job: tuple) -> None:
        missing = [name for name in names if (*job, name) not in rows]
        if not missing:
            return
        begun = time.perf_counter()
        found = compiled(*job, missing)
        with lock:
            rows.update({key(row): {**row, "code": code} for row in found})
            write(args.out, head, rows)
        seconds = time.perf_counter() - begun
        print(*job, f"{seconds:.0f} s", *faults(found), sep="  ", flush=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in pool.map(work, jobs):
            pass
    sys.exit(bool(faults([row for row in rows.values() if row["card"] in names])))


if __name__ == "__main__":
    main()
