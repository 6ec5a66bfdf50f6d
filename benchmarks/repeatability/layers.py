"""Test whether every Keras layer is repeatable to the bit, alone and used repeatedly.

    python benchmarks/repeatability/layers.py  # all layers, all modes: many hours
    python benchmarks/repeatability/layers.py --backends tensorflow \\
        --precisions float32 --xla off
    python benchmarks/repeatability/layers.py --layers Conv2D TimeDistributed \\
        --arrangements shared
    python benchmarks/repeatability/layers.py --trainings 1 --fresh 0 \\
        --out /tmp/built.json  # quick
    # write docs/explanation/layers.md
    python benchmarks/repeatability/layers.py --table

Every layer of `keras.layers`, and every activation, is put into a small classifier in
the arrangements of layer_table.py, which is trained for three steps from one seed:
eight times in one process, compiled again for each and trained while every core is kept
busy, and once in each of two fresh processes, the second of which trains the models in
the opposite order. All ten digests of the weights, the optimizer and the random state
must be equal.

Writes benchmarks/records/layers.json (--out) after each group of layers, and continues
from there: results with the same versions of the packages are not repeated, unless they
failed. Each entry names the code that it was made with, and the CPU. Exit
code 1 if a digest differs, if a training fails, or if layer_table.py has no line for a
layer of Keras. What gpuzoo refuses is recorded with the message and is not a failure.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from modes import PRECISIONS, mode_parser

HERE = pathlib.Path(__file__).resolve().parent.parent
RECORD = HERE / "records" / "layers.json"
PAGE = HERE.parent / "docs" / "explanation" / "layers.md"
ARRANGEMENTS = ("alone", "shared", "siamese", "parallel", "together")
STEPS, BATCH = 3, 8
# What one model may take in a process before it counts as hung.
SECONDS = 120
# The code whose change can change what a training of these models does.
_CODE = ("engine", "runtime", "tasks/base.py", "tasks/classify.py")


def parse() -> argparse.Namespace:
    parser = mode_parser(__doc__)
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--arrangements", nargs="+", choices=ARRANGEMENTS,
                        default=("alone", "together"))  # fmt: skip
    parser.add_argument("--trainings", type=int, default=8,
                        help="per model in the busy process")  # fmt: skip
    parser.add_argument("--fresh", type=int, default=2,
                        help="fresh processes, one training each")  # fmt: skip
    parser.add_argument("--group", type=int, default=25,
                        help="layers per process")  # fmt: skip
    parser.add_argument("--until", metavar="HH:MM",
                        help="start no group after this time today")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, default=RECORD)
    parser.add_argument("--table", action="store_true",
                        help="only write the page of the docs")  # fmt: skip
    return parser.parse_args()


# --- in a process of its own ----------------------------------------------------------


def work(job: dict) -> None:
    """Train each model of a job several times; print a line of JSON for each."""
    import gpuzoo

    runtime = gpuzoo.configure(**job["runtime"], quiet=True)
    from gpuzoo.training import failures

    probe = registered()
    dataset = gpuzoo.load_data(job["data"])
    told = {"device": runtime.device_name, "threads": runtime.threads}
    for name, arrangement in job["models"]:
        row = {"model": [name, arrangement], **told}
        gpuzoo.configure(**job["runtime"], quiet=True)  # seeds Keras, as train() does
        try:
            with failures.readable(probe):
                program = made(name, arrangement, dataset, runtime)
                row["digests"] = list(trained(program, job["trainings"], job["busy"]))
        except gpuzoo.GpuzooError as error:
            refused = "cannot be built: " not in str(error)
            row["refused" if refused else "failed"] = str(error)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
        print(json.dumps(row), flush=True)


def registered():
    """Register the small classifier; return a recipe with it."""
    import layer_table

    import gpuzoo

    @gpuzoo.register(task="classify", reference="benchmarks/repeatability/layers.py")
    def layer_probe(
        *,
        input_shape: tuple[int, ...] = (8, 8, 3),
        num_classes: int = 3,
        layer: str = "Dense",
        arrangement: str = "alone",
    ):
        """A small classifier with one kind of layer."""
        return layer_table.build(layer, arrangement, input_shape, num_classes)

    return gpuzoo.load_recipe("mnist").override(model="layer_probe")


def made(name: str, arrangement: str, dataset, runtime, **settings):
    """Return the program of one small model, not compiled; `settings` of its recipe."""
    import gpuzoo
    from gpuzoo.engine.program import Program
    from gpuzoo.training.build import session_of

    class Uncompiled(Program):
        """A program whose step is compiled once per training; it evaluates nothing."""

        def _compile(self) -> None:
            pass

    recipe = gpuzoo.load_recipe("mnist").override(
        model="layer_probe",
        model_options=(f"layer={name}", f"arrangement={arrangement}"),
        epochs=1,
        batch_size=BATCH,
        **{"learning_rate": 1e-2, "augment": (), **settings},
    )
    return Uncompiled(session_of(recipe, runtime, dataset))


def trained(program, trainings: int, busy: bool):
    """Return the digest of the whole final state of each training, which compiles the
    step again. A step of each compilation comes first, as in a run."""
    import contextlib

    import numpy as np

    from gpuzoo.runtime.environment import busy_cores

    state, backend = program.state, program.backend
    begin, variables = state.read(state.all), list(state.all.values())
    for _ in range(trainings):
        feed = program.feed(0, STEPS)
        steps = backend.compile_steps(program.step, feed, variables)
        steps(program.feed(0, 1))
        state.write(begin)
        with busy_cores() if busy else contextlib.nullcontext():
            steps(feed)
        left = state.read(state.all)
        state.write(begin)
        if not all(np.isfinite(left[n]).all() for n in state.weights):
            raise ArithmeticError("a weight is not finite")
        digest = hashlib.sha256()
        for name in sorted(left):
            digest.update(f"{name} {left[name].dtype} {left[name].shape}".encode())
            digest.update(left[name].tobytes())
        yield digest.hexdigest()


def run_worker(job: dict) -> dict:
    """Return (layer, arrangement) -> the row that a fresh process printed for it. If a
    process ends early or hangs, another one trains the remaining models."""
    rows, todo = {}, [tuple(model) for model in job["models"]]
    while todo:
        command = [
            sys.executable, __file__, "--worker", json.dumps({**job, "models": todo}),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
                env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONHASHSEED": "0"},
                timeout=60 + SECONDS * len(todo),
            )  # fmt: skip
            out, why = done.stdout, f"the process ended with code {done.returncode}"
        except subprocess.TimeoutExpired as late:
            out, why = late.stdout or b"", "the process did not end in time"
        for line in out.decode().splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                rows[tuple(row.pop("model"))] = row
        todo = [model for model in todo if model not in rows]
        if todo:
            rows[todo.pop(0)] = {"failed": why}
    return rows


def judge(rows: list[dict]) -> dict:
    """Return the verdict on one layer in one arrangement, from all processes."""
    for verdict in ("failed", "refused"):
        for row in rows:
            if verdict in row:
                return {"verdict": verdict, "message": row[verdict]}
    digests = [one for row in rows for one in row["digests"]]
    kinds = sorted(set(digests), key=digests.index)
    result = {"trainings": len(digests), "sha256": kinds[0][:16]}
    if len(kinds) == 1:
        return {"verdict": "equal", **result}
    return {"verdict": "differs", **result, "kinds": [digests.count(k) for k in kinds]}


def modes_of(args) -> list[tuple[str, str, str]]:
    """Return (backend, precision, XLA) of each mode."""
    return [
        (backend, precision, xla)
        for backend in args.backends
        for precision in args.precisions
        for xla in (args.xla if backend == "tensorflow" else ["on"])
    ]


def code_digest() -> str:
    """Digest the files of gpuzoo that a training runs, and layer_table.py."""
    import gpuzoo

    root = pathlib.Path(gpuzoo.__file__).parent
    files = [HERE / "repeatability" / "layer_table.py"]
    for part in _CODE:
        path = root / part
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:8]


# --- the record -----------------------------------------------------------------------


def main() -> None:
    args = parse()
    if args.worker:
        return work(json.loads(args.worker))
    if args.table:
        PAGE.write_text(page(json.loads(args.out.read_text())))
        return None
    import gpuzoo
    from gpuzoo.runtime.environment import environment

    gpuzoo.configure(device="cpu", quiet=True)
    import layer_table

    names = args.layers or layer_table.known()
    missing = [name for name in names if layer_table.entry(name) is None]
    names = [name for name in names if name not in missing]
    record = {
        "what": "all state after three steps, of every layer of Keras in a small model",
        "versions": environment()["versions"],
        "steps": STEPS,
        "batch": BATCH,
    }
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    same = all(old.get(key) == value for key, value in record.items())
    record |= {
        "date": time.strftime("%Y-%m-%d"), "threads": None,
        "left_out": layer_table.LEFT_OUT, "no_entry": missing,
        "layers": layer_table.known(), "modes": old["modes"] if same else {},
    }  # fmt: skip
    if same:
        record["threads"] = old["threads"]
    with tempfile.TemporaryDirectory() as folder:
        data = noise(folder)
        for mode in modes_of(args):
            for arrangement in args.arrangements:
                walk(args, record, data, names, mode, arrangement)
    write(args.out, record)
    verdicts = [
        told["verdict"]
        for mode in record["modes"].values()
        for one in mode.values()
        for told in one.values()
    ]
    print(", ".join(f"{verdicts.count(one)} {one}" for one in sorted(set(verdicts))))
    if missing:
        print(f"no line in layer_table.py for: {', '.join(missing)}")
    sys.exit(bool(missing) or bool(set(verdicts) - {"equal", "refused"}))


def noise(folder: str) -> str:
    """Write a file of images that the small models are trained on."""
    import layer_table
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (STEPS * BATCH, layer_table.SIDE, layer_table.SIDE, 3)
    x = rng.integers(0, 256, shape).astype(np.uint8)
    y = np.arange(len(x)) % 3
    path = f"{folder}/noise.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    return path


def walk(args, record: dict, data: str, names: list, mode: tuple, arrangement: str):
    """Train what is missing of one mode and arrangement, group by group."""
    backend, precision, xla = mode
    found = record["modes"].setdefault(f"{backend} {precision} XLA {xla}", {})
    todo = [name for name in names if not _at_hand(found.get(name, {}), arrangement)]
    for first in range(0, len(todo), args.group):
        if args.until and time.strftime("%H:%M") >= args.until:
            return
        models = [(name, arrangement) for name in todo[first : first + args.group]]
        job = {
            "data": data, "models": models, "busy": True, "trainings": args.trainings,
            "runtime": {
                "backend": backend, "precision": precision, "device": args.device,
                "xla": xla if backend == "tensorflow" else "auto",
            },
        }  # fmt: skip
        code = code_digest()
        rows = [run_worker(job)]
        for number in range(args.fresh):
            order = models[::-1] if number % 2 else models
            once = {**job, "models": order, "busy": False, "trainings": 1}
            rows.append(run_worker(once))
        for model in models:
            told = judge([one[model] for one in rows])
            where = rows[0][model].get("device")
            if where is not None:
                record["threads"] = rows[0][model]["threads"]
            told |= {"code": code, "device": where}
            found.setdefault(model[0], {})[arrangement] = told
            if told["verdict"] != "equal":
                print(backend, precision, xla, *model, told, flush=True)
        print(time.strftime("%H:%M:%S"), *mode, arrangement, len(models), flush=True)
        write(args.out, record)


def _at_hand(arranged: dict, arrangement: str) -> bool:
    """Return whether a layer has a result. `together` is for a mode in which shared,
    siamese and parallel, each on its own, were not tried."""
    done = {
        key
        for key, told in arranged.items()
        if told["verdict"] in ("equal", "refused", "differs")
    }
    apart = done.issuperset(("shared", "siamese", "parallel"))
    return arrangement in done or (arrangement == "together" and apart)


def write(path: pathlib.Path, record: dict) -> None:
    """JSON with a line for each layer and mode."""
    from gpuzoo.files import write_atomically

    lines = []
    for mode, found in record["modes"].items():
        rows = ",\n".join(
            f"   {json.dumps(name)}: {json.dumps(one)}"
            for name, one in sorted(found.items())
        )
        lines.append(f"  {json.dumps(mode)}: {{\n{rows}\n  }}")
    head = json.dumps({**record, "modes": 0}, indent=1).removesuffix("0\n}")
    text = head + "{\n" + ",\n".join(lines) + "\n }\n}\n"
    write_atomically(path, text.encode())


# --- the page of the docs -------------------------------------------------------------

_HEAD = """\
# Repeatability of Keras layers

Written by `benchmarks/repeatability/layers.py --table` from
`benchmarks/records/layers.json`.

Each of the {layers} layers and activations of Keras {keras} is put into a small
classifier: **alone**; **shared**, one layer called on four inputs
whose results are stacked; **siamese**, one layer called on two inputs whose results are
subtracted; **parallel**, four layers on one input, two of them added and two stacked;
**together**, in one model, one layer on two inputs, stacked and subtracted, and two
layers on one input, added and stacked. Each model is trained for {steps} steps of
{batch} examples from one seed, compiled again for each training. The number in a cell
says how many trainings were compared: 10
are eight in one process, while every core is kept busy, and one in each of two fresh
processes; 4 are two in one busy process and one in each of two fresh processes; 3 are
two in one busy process and one in a fresh process; 2 are two in one busy process, which
no other process was compared with.
"equal" means that the weights, the optimizer and the random state had the same bits at
the end of all of them. CPU: {devices}; {threads}
threads, TensorFlow {tensorflow}, JAX {jax}, {date}, beside other programs, {codes}
version(s) of the code: the record names the version and the CPU of each entry.
"""
_SIGNS = {"equal": "", "refused": "refused", "failed": "failed", "differs": "differs"}


def page(record: dict) -> str:
    """Return the Markdown page of a record."""
    modes, layers = record["modes"], record["layers"]
    told = {key: record[key] for key in ("steps", "batch", "threads", "date")}
    entries = [
        one
        for mode in modes.values()
        for arranged in mode.values()
        for one in arranged.values()
    ]
    devices = sorted({one["device"] for one in entries if one["device"]})
    told |= {"layers": len(layers), "codes": len({one["code"] for one in entries})}
    told["devices"] = " and ".join(devices)
    lines = [_HEAD.format(**{**record["versions"], **told})]
    lines += ["| mode | arrangement | equal | refused | other | not run |",
              "| --- | --- | --: | --: | --: | --: |"]  # fmt: skip
    ran = [mode for mode in all_modes() if modes.get(mode)]
    for mode in ran:
        for arrangement in ARRANGEMENTS:
            rows = [modes[mode].get(name, {}).get(arrangement) for name in layers]
            if not any(rows):
                continue
            counts = _counted([row["verdict"] if row else "not run" for row in rows])
            lines.append(f"| {mode} | {arrangement} | {' | '.join(map(str, counts))} |")
    missing = [mode for mode in all_modes() if mode not in ran]
    lines += ["", f"Not run at all: {'; '.join(missing) or 'nothing'}."]
    for title, verdict in (
        ("Refused by name before the first step", "refused"),
        ("Different bits", "differs"),
        ("Not trained for another reason", "failed"),
    ):
        lines += _listed(title, verdict, modes)
    lines += ["", "## Each layer", "",
              "Number of trainings compared, all equal, in the arrangements alone, "
              "shared, siamese, parallel, together; – means not run.", ""]  # fmt: skip
    lines += [f"| layer | {' | '.join(ran)} |", "| --- |" + " --- |" * len(ran)]
    for name in layers:
        cells = [_cell(modes[mode].get(name, {})) for mode in ran]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## Left out", ""]
    lines += [f"- {name}: {why}" for name, why in sorted(record["left_out"].items())]
    return "\n".join(lines) + "\n"


def all_modes() -> list[str]:
    """Return the names of all modes, as in the record."""
    return [
        f"{backend} {precision} XLA {xla}"
        for backend, kinds in (("tensorflow", ("off", "on")), ("jax", ("on",)))
        for precision in PRECISIONS
        for xla in kinds
    ]


def _counted(verdicts: list[str]) -> tuple:
    """Count equal, refused, other, not run."""
    seen = [verdicts.count(kind) for kind in ("equal", "refused", "not run")]
    return seen[0], seen[1], len(verdicts) - sum(seen), seen[2]


def _listed(title: str, verdict: str, modes: dict) -> list[str]:
    """Return a section of the layers with a verdict, grouped by message."""
    found: dict[str, dict] = {}
    for mode, one in modes.items():
        for name, arranged in one.items():
            for arrangement, told in arranged.items():
                if told["verdict"] == verdict:
                    why = told.get("message") or f"kinds of weights: {told['kinds']}"
                    why = re.sub(
                        "\x1b\\[[0-9]*m|Arguments received.*", "", why, flags=re.S
                    )
                    why = re.sub(r"__inference_step_\d+", "step", why)
                    which = found.setdefault(" ".join(why.split()), {})
                    which.setdefault((mode, name), []).append(arrangement)
    lines = ["", f"## {title}", ""]
    for why, which in found.items():
        where = "; ".join(
            f"{name} ({mode}: {', '.join(arranged)})"
            for (mode, name), arranged in which.items()
        )
        lines.append(f"- {where}: {why}")
    return lines if found else [*lines, "None."]


def _cell(arranged: dict) -> str:
    """Return the cell of one layer in one mode: the number of trainings."""
    signs = [
        (_SIGNS[told["verdict"]] or str(told["trainings"])) if told else "–"
        for told in (arranged.get(arrangement) for arrangement in ARRANGEMENTS)
    ]
    return signs[0] if len(set(signs)) == 1 else " ".join(signs)


if __name__ == "__main__":
    main()
