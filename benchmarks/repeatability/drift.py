"""Measure how far TensorFlow and JAX diverge on one recipe with the same seed.

    python benchmarks/repeatability/drift.py --data-dir DIR    # a prepared TFDS folder

Both start from the same weights and see the same augmented examples; only their
arithmetic differs. Writes benchmarks/records/drift.json: the differences of the losses
at some steps, of the final weights, and of the test accuracy, between the backends, and
for comparison between two seeds on one backend.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 468)
RUNS = {
    "tensorflow": ["--backend", "tensorflow"],
    "jax": ["--backend", "jax"],
    "tensorflow, another seed": ["--backend", "tensorflow", "--seed", "1"],
}


def losses(run: pathlib.Path) -> np.ndarray:
    rows = (run / "digests.jsonl").read_text().splitlines()
    text = "".join(json.loads(row)["losses"] for row in rows)
    return np.frombuffer(bytes.fromhex(text), "<f4").astype(float)


def compare(one: pathlib.Path, other: pathlib.Path) -> dict:
    from gpuzoo.runs.divergence import read_weights

    a, b = losses(one), losses(other)
    weights = [read_weights(run) for run in (one, other)]
    flat = [np.concatenate([w[k].ravel() for k in sorted(w)]) for w in weights]
    accuracy = [
        json.loads((run / "run.json").read_text())["metrics"]["test_accuracy"]
        for run in (one, other)
    ]
    return {
        "relative_loss_difference": {
            str(step): float(f"{abs(a[step - 1] - b[step - 1]) / abs(a[step - 1]):.2e}")
            for step in STEPS
        },
        "first_step_with_other_bits": int(np.flatnonzero(a != b)[0]) + 1,
        "weights_relative_distance": float(
            f"{np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0]):.2e}"
        ),
        "test_accuracy": [round(value, 4) for value in accuracy],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    args = parser.parse_args()

    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment

    words = ["--epochs", "2", "--augment", "translate:1", "--precision", "float32"]
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for place, (name, options) in enumerate(RUNS.items()):
            runs[name] = pathlib.Path(folder) / str(place)
            subprocess.run(
                [sys.executable, "-m", "gpuzoo", "train", "mnist", "--data-dir",
                 args.data_dir, "--device", "cpu", "--quiet", *words, *options,
                 "--out", str(runs[name])],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        record = {
            "what": "drift of the backends over a training of MNIST",
            "date": time.strftime("%Y-%m-%d"),
            "command": "python benchmarks/repeatability/drift.py --data-dir DIR",
            "recipe": ["mnist", *words],
            "environment": environment(),
            "code_sha256": code_sha256(),
            "tensorflow against jax": compare(runs["tensorflow"], runs["jax"]),
            "one seed against another": compare(
                runs["tensorflow"], runs["tensorflow, another seed"]
            ),
        }
    path = HERE / "records" / "drift.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["tensorflow against jax"], indent=1))


if __name__ == "__main__":
    main()
