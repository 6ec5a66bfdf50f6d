"""Measure whether recurrent networks, a GAN and a vision transformer gain by clip_norm.

    python benchmarks/speed/clipping.py --data-dir DIR  # a prepared TFDS folder

Trains each recipe with clip_norm off and at --norms, --seeds seeds each, in less time
than the recipe takes, and compares a figure of a tenth of the training examples, held
out for validation; of the GAN, which has no such figure, the Frechet distance of the
test images after the first epoch. Compared is the median of the differences within one
seed. Nothing is timed, so that other work may share the machine.

Writes benchmarks/records/clipping.json after each recipe, beside the recipes that it
has already.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
RECORD = HERE / "records" / "clipping.json"
# Name -> words of `gpuzoo train`, and the figure that is compared.
CASES = {
    "lstm": (["mnist_lstm", "--epochs", "2"], "accuracy"),
    "gru": (["mnist_gru", "--epochs", "2"], "accuracy"),
    "lstm_forecaster": (["forecast", "--epochs", "10"], "loss"),
    "gan": (["mnist_gan", "--epochs", "1"], "frechet"),
    "vit_tiny": (["mnist", "--model", "vit_tiny", "--epochs", "2"], "accuracy"),
}
VALIDATED = {"lstm", "gru", "lstm_forecaster", "vit_tiny"}


def figure(words: list[str], name: str, split: str) -> float:
    """Train once; return the figure of the last evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "gpuzoo", "train", *words, "--out", str(out)]
        done = subprocess.run(
            [*command, "--quiet"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return [row[name] for row in rows if row["split"] == split][-1]


def measure(case: str, args: argparse.Namespace) -> dict:
    from gpuzoo.bench.turns import spread

    words, name = CASES[case]
    split = "val" if case in VALIDATED else "test"
    words = [*words, "--data-dir", args.data_dir]
    words += ["--validation", "0.1"] if split == "val" else []
    values: dict[str, list[float]] = {}
    for norm in (0.0, *args.norms):
        clip = ["--clip-norm", str(norm)] if norm else []
        values[f"{norm:g}"] = [
            figure([*words, *clip, "--seed", str(seed)], name, split)
            for seed in range(args.seeds)
        ]
        print(case, norm, name, values[f"{norm:g}"], flush=True)
    off, *others = values
    return {
        "command": " ".join(["gpuzoo train", *CASES[case][0]]),
        "figure": f"{split} {name}",
        "values": values,
        "difference": {
            norm: spread([
                b - a for a, b in zip(values[off], values[norm], strict=True)
            ])
            for norm in others
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--norms", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()

    from gpuzoo.files import write_atomically
    from gpuzoo.runtime.environment import environment

    record = {"what": "clip_norm against none, figures on validation", "cases": {}}
    if RECORD.exists():
        record = json.loads(RECORD.read_text())
    record |= {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/speed/clipping.py --data-dir DIR",
        "environment": environment(),
    }
    for case in args.cases:
        record["cases"][case] = measure(case, args)
        write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
