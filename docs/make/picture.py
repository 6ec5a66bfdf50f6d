"""Create docs/run.svg, the image of a run in the README, from a run.

python docs/make/picture.py --data-dir DIR
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from rich.console import Console
from rich.text import Text

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, ROOT / "recipes" / "train_mnist.py", *sys.argv[1:]],
            cwd=folder, capture_output=True, text=True, check=True,
            env={**os.environ, "COLUMNS": "110"},
        )  # fmt: skip
    console = Console(record=True, width=110, file=open(os.devnull, "w"))
    console.print(Text("$ python recipes/train_mnist.py", "bold green"))
    for line in done.stderr.splitlines():
        bold = line.startswith(("cpu", "gpu", "     epoch", "test accuracy"))
        console.print(Text(line, "bold" if bold else ""))
    console.print(Text(done.stdout.strip(), "dim"))
    console.save_svg(str(ROOT / "docs" / "run.svg"), title="gpuzoo")


if __name__ == "__main__":
    main()
