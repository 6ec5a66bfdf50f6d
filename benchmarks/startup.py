"""What it costs to look around: importing, listing, asking for help.

    python benchmarks/startup.py

Writes benchmarks/records/startup.json: median milliseconds of whole processes, and of
`import gpuzoo` itself, the interpreter's own start taken off.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
RUNS = 15
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


def main() -> None:
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
    record = {
        "what": "start-up, median milliseconds of whole processes",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/startup.py",
        "n": RUNS,
        "environment": environment(),
        "code_sha256": code_sha256(),
        "milliseconds": medians,
    }
    (HERE / "records" / "startup.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
