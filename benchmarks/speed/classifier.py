"""Train the fixed classifier that generated digits are evaluated with.

    python benchmarks/speed/classifier.py --data-dir DIR    # a prepared TFDS folder

Writes gpuzoo/tasks/digits.safetensors and benchmarks/records/classifier.json. Another
machine gives different bits, and with other weights every Frechet distance changes:
the file in the tree is kept, and pinned by its sha256 in gpuzoo/tasks/frechet.py. It is
also the teacher of recipes/distill_mnist.py. No label smoothing, which would remove
information that a student can learn from (Mueller, Kornblith and Hinton, arXiv
1906.02629).

Also records the distance between 10,000 MNIST training images and the test images: a
lower bound to expect of a generator of new digits.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
OPTIONS = ["--model", "lenet5", "--epochs", "12", "--augment", "translate:1",
           "--precision", "float32", "--learning-rate", "0.004",
           "--label-smoothing", "0"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    where = ["--data-dir", args.data_dir] if args.data_dir else ["--data", "mnist"]
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "mnist", *OPTIONS]
        done = subprocess.run(
            [sys.executable, "-m", "gpuzoo", *command, *where, "--quiet", "--out",
             f"{folder}/run"],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        summary = json.loads(done.stdout.splitlines()[-1])
        target = HERE.parent / "gpuzoo" / "tasks" / "digits.safetensors"
        shutil.copy(f"{folder}/run/weights.safetensors", target)

    import gpuzoo
    from gpuzoo.runs.code import code_sha256
    from gpuzoo.runtime.environment import environment
    from gpuzoo.tasks import frechet

    here = environment()
    gpuzoo.configure(device="cpu", precision="float32")
    frechet.SHA256 = summary["weights_sha256"]
    classifier, data = frechet.load(), gpuzoo.load_data("mnist", data_dir=args.data_dir)
    seen = [
        classifier.predict(part[:10_000] / np.float32(255), verbose=0)[0]
        for part in (data.train["image"], data.test["image"])
    ]
    record = {
        "what": "the fixed classifier of gpuzoo/tasks/frechet.py",
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["gpuzoo", *command]),
        "environment": here,
        "code_sha256": code_sha256(),
        "weights_sha256": summary["weights_sha256"],
        "test_accuracy": summary["test_accuracy"],
        "frechet_of_training_images": frechet.frechet(*seen),
    }
    path = HERE / "records" / "classifier.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(record["weights_sha256"], record["test_accuracy"],
          record["frechet_of_training_images"])  # fmt: skip


if __name__ == "__main__":
    main()
