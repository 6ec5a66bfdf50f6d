"""What it costs to look around, and to come to the first step of a training.

    python benchmarks/startup.py                   # MNIST from the cache
    python benchmarks/startup.py --data-dir DIR    # or from a prepared TFDS folder

Writes benchmarks/records/startup.json: median milliseconds of whole processes, and of
`import gpuzoo` itself, the interpreter's own start taken off; and for TRAINING on
each backend, which finds its data in the cache, the median seconds of each phase from
the start of the process up to the first step, beside the budget of that phase.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RUNS = 15
TRAININGS = 7
TRAINING = ["train", "mnist", "--quiet", "--epochs", "1"]
# Phase -> seconds that it may take, on two cores.
BUDGETS = {
    "python and gpuzoo": 0.3,
    "backend and keras": 2.7,
    "data": 0.3,
    "model": 0.7,
    "compile": 1.0,
}
CASES = {
    "interpreter": ["-c", "pass"],
    "import gpuzoo": ["-c", "import gpuzoo"],
    "gpuzoo list": ["-m", "gpuzoo", "list"],
    "gpuzoo --help": ["-m", "gpuzoo", "--help"],
    "gpuzoo train mnist --help": ["-m", "gpuzoo", "train", "mnist", "--help"],
}


def milliseconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def train_timed(begun: float, words: list[str]) -> None:
    """In a process of its own: train, and tell how long each phase took, up to the
    first step; then end. The phases are those of the command, seen from outside."""
    from gpuzoo import cli, process, start
    from gpuzoo.data import sources
    from gpuzoo.engine import timing

    process.ours = True
    spent = {"python and gpuzoo": time.time() - begun}

    @contextlib.contextmanager
    def measured(name: str):
        start_of = time.time()
        yield
        spent[name] = spent.get(name, 0.0) + time.time() - start_of

    def timed(name: str, function):
        def call(*args, **options):
            with measured(name):
                return function(*args, **options)

        return call

    def phase(self, name: str, phase=timing.Stopwatch.phase):
        if name != "train":
            return measured({"setup": "model"}.get(name, name))
        spent["in all"] = time.time() - begun
        print(json.dumps(spent), flush=True)
        os._exit(0)

    for backend in ("tensorflow", "jax"):
        setattr(start, backend, timed("backend and keras", getattr(start, backend)))
    sources.of_recipe = timed("data", sources.of_recipe)
    timing.Stopwatch.phase = phase
    cli.main(words)


def phases(words: list[str]) -> dict[str, float]:
    """Phase -> median seconds of several processes; the first one is not counted."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(TRAININGS + 1):
            out = ["--out", f"{folder}/{number}"]
            done = subprocess.run(
                [sys.executable, __file__, "--worker", str(time.time()), *words, *out],
                capture_output=True, text=True, check=False,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{words} failed:\n{done.stderr[-2000:]}")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(words, rows[-1], flush=True)
    rows = rows[1:]
    for row in rows:
        known = sum(seconds for name, seconds in row.items() if name != "in all")
        row["other"] = row["in all"] - known
    return {
        name: round(statistics.median(row[name] for row in rows), 3)
        for name in [*BUDGETS, "other", "in all"]
    }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        train_timed(float(sys.argv[2]), sys.argv[3:])
        return

    from gpuzoo.evidence.record import code_sha256
    from gpuzoo.machine import environment

    figures: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(RUNS):
        for name, words in CASES.items():
            figures[name].append(milliseconds(words))
    medians = {name: round(statistics.median(ms), 1) for name, ms in figures.items()}
    medians["import gpuzoo, itself"] = round(
        medians["import gpuzoo"] - medians["interpreter"], 1
    )
    trainings = {
        backend: phases([*TRAINING, *sys.argv[1:], "--backend", backend])
        for backend in ("tensorflow", "jax")
    }
    record = {
        "what": "start-up, median milliseconds of whole processes",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/startup.py"
        + " --data-dir DIR" * len(sys.argv[2:]),
        "n": RUNS,
        "environment": environment(),
        "code_sha256": code_sha256(),
        "milliseconds": medians,
        "training": " ".join(["gpuzoo", *TRAINING]),
        "n_trainings": TRAININGS,
        "budget_seconds": BUDGETS,
        "seconds_to_the_first_step": trainings,
    }
    (HERE / "records" / "startup.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(medians), json.dumps(trainings))


if __name__ == "__main__":
    main()
