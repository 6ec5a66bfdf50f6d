"""Measure the startup time of commands, and of a training up to its first step.

    python benchmarks/speed/startup.py                   # MNIST from the cache
    python benchmarks/speed/startup.py --data-dir DIR  # or from a prepared TFDS folder

Writes benchmarks/records/startup.json: median milliseconds of whole processes, and of
`import gpuzoo` without the start of the interpreter; and for TRAINING on each backend,
with its data in the cache, the seconds of each phase from the start of the process to
the first step (median, 95 % interval), the budget of that phase and any excess. The
backends take turns.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from gpuzoo.engine.backends import get

HERE = pathlib.Path(__file__).resolve().parent.parent
RUNS = 15
TRAININGS = 7
TRAINING = ["train", "mnist", "--quiet", "--epochs", "1"]
# Phase -> seconds that it may take on two cores, at most 5 in all.
BUDGETS = {
    "import": 3.2,  # Python, gpuzoo, the backend, Keras
    "data": 0.2,
    "build": 0.4,  # the model, its initial weights, the optimizer
    "trace": 0.5,  # Python traces a step
    "compile": 0.5,  # the backend compiles it and does one step
    "other": 0.2,
    "in all": 5.0,
}
CASES = {
    "interpreter": ["-c", "pass"],
    "import gpuzoo": ["-c", "import gpuzoo"],
    "gpuzoo list": ["-m", "gpuzoo", "list"],
    "gpuzoo --help": ["-m", "gpuzoo", "--help"],
    "gpuzoo train mnist --help": ["-m", "gpuzoo", "train", "mnist", "--help"],
}


def milliseconds(words: list[str]) -> float:
    startup = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - startup) * 1000


def train_timed(begun: float, words: list[str]) -> None:
    """In its own process: train, and print how long each phase took, up to the
    first step; then end. The phases are those of the command, seen from outside."""
    from gpuzoo.cli import app
    from gpuzoo.engine import timing
    from gpuzoo.runtime import bootstrap, jax, tensorflow

    bootstrap.ours = True
    spent = {"import": time.time() - begun}

    @contextlib.contextmanager
    def measured(name: str):
        start_of = time.time()
        yield
        spent[name] = spent.get(name, 0.0) + time.time() - start_of

    def timed(name: str, function):
        @functools.wraps(function)
        def call(*args, **options):
            with measured(name):
                return function(*args, **options)

        return call

    def phase(self, name: str, phase=timing.Stopwatch.phase):
        if name != "train":
            return measured({"setup": "build"}.get(name, name))
        spent["in all"] = time.time() - begun
        spent["compile"] -= spent["trace"]  # which is a part of that phase
        print(json.dumps(spent), flush=True)
        os._exit(0)

    def started(function):
        """Wrap what starts a backend; the later phases are timed from there."""

        def call(*args):
            with measured("import"):
                runtime = function(*args)
                from gpuzoo.training import build

            build.load_data_of = timed("data", build.load_data_of)
            build.build_model = timed("build", build.build_model)
            kind = type(get(runtime))
            real = kind.compile_steps
            # The body of a step is called only when it is traced.
            kind.compile_steps = lambda self, body, *rest: real(
                self, timed("trace", body), *rest
            )
            return runtime

        return call

    tensorflow.start_tensorflow = started(tensorflow.start_tensorflow)
    jax.start_jax = started(jax.start_jax)
    timing.Stopwatch.phase = phase
    app.main(words)


def train_once(words: list[str]) -> dict[str, float]:
    """Return phase -> seconds of one process."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--worker", str(time.time()), *words,
             "--out", f"{folder}/run"],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{words} failed:\n{done.stderr[-2000:]}")
    row = json.loads(done.stdout.splitlines()[-1])
    known = sum(seconds for name, seconds in row.items() if name != "in all")
    return {**row, "other": row["in all"] - known}


def trainings(words: list[str]) -> dict[str, dict]:
    """Return backend -> phase -> seconds; the first process of each is not counted."""
    from gpuzoo.bench.bench import spread

    rows = {"tensorflow": [], "jax": []}
    for _ in range(TRAININGS + 1):
        for tensorflow, told in rows.items():
            told.append(train_once([*words, "--backend", tensorflow]))
            print(tensorflow, told[-1], flush=True)
    found = {}
    for tensorflow, told in rows.items():
        found[tensorflow] = {}
        for name, budget in BUDGETS.items():
            seconds = spread([row[name] for row in told[1:]])
            over = max(0.0, seconds["median"] - budget)
            seconds = {key: round(value, 3) for key, value in seconds.items()}
            found[tensorflow][name] = {
                **seconds,
                "budget": budget,
                "over": round(over, 3),
            }
    return found


def print_table(found: dict[str, dict]) -> None:
    print(f"{'seconds to the first step':<28}{'median':>8}{'95 %':>18}{'budget':>8}")
    for tensorflow, phases in found.items():
        for name, row in phases.items():
            interval = f"{row['low']:.2f} to {row['high']:.2f}"
            over = f"  over by {row['over']:.2f}" if row["over"] else ""
            print(
                f"{f'{tensorflow}, {name}':<28}{row['median']:>8.2f}{interval:>18}"
                f"{row['budget']:>8.1f}{over}"
            )


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        train_timed(float(sys.argv[2]), sys.argv[3:])
        return

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="a prepared TFDS folder")
    args = parser.parse_args()

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    figures: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(RUNS):
        for name, words in CASES.items():
            figures[name].append(milliseconds(words))
    medians = {name: round(statistics.median(ms), 1) for name, ms in figures.items()}
    medians["import gpuzoo, itself"] = round(
        medians["import gpuzoo"] - medians["interpreter"], 1
    )
    place = ["--data-dir", args.data_dir] if args.data_dir else []
    found = trainings([*TRAINING, *place])
    record = {
        "what": "start-up, median milliseconds of whole processes",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/speed/startup.py"
        + " --data-dir DIR" * bool(place),
        "n": RUNS,
        "environment": environment(),
        "code_sha256": code_sha256(),
        "milliseconds": medians,
        "training": " ".join(["gpuzoo", *TRAINING]),
        "n_trainings": TRAININGS,
        "seconds_to_the_first_step": found,
    }
    (HERE / "records" / "startup.json").write_text(json.dumps(record, indent=1) + "\n")
    print_table(found)
    print(json.dumps(medians), json.dumps(found))


if __name__ == "__main__":
    main()
