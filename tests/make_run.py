"""Make a small run for tests/runs/, which test_stored_runs.py verifies on every machine.

    python tests/make_run.py NAME [options of gpuzoo train]

The digits are part of scikit-learn, so that the folder holds a run with all its data.
"""

import os
import pathlib
import subprocess
import sys

RUNS = pathlib.Path(__file__).parent / "runs"
TINY = [
    "train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
    "units=(8,)", "--epochs", "1", "--batch-size", "64", "--keep-state", "off", "--device",
    "cpu", "--precision", "float32", "--threads", "2", "--quiet",
]  # fmt: skip


# The record has the command, which must not name this checkout.
PROGRAM = "import sys; sys.argv[0] = 'gpuzoo'; from gpuzoo.cli.app import main; main()"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    name, *options = sys.argv[1:]
    RUNS.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, *TINY, *options, "--out", name],
        cwd=RUNS, env={**os.environ, "PYTHONHASHSEED": "0"}, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        (RUNS / name / "report.html").unlink()  # `gpuzoo report` writes it again
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
