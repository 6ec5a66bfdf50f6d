"""Measure how much memory `accumulate` saves on JAX.

    python benchmarks/speed/accumulate.py

Trains two steps of the model cnn on random images of MNIST's size, batch 2048, with the
batch in 1, 2, 4 and 8 parts, and reads from the compiled training program how many
bytes of temporary memory XLA has planned (`memory_analysis` of JAX). Nothing is timed.

Writes benchmarks/records/accumulate.json: parts -> bytes.
"""

import json
import pathlib
import tempfile
import time
from unittest import mock

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
RECORD = HERE / "records" / "accumulate.json"
BATCH, PARTS = 2048, (1, 2, 4, 8)


def temporary_bytes(parts: int, folder: str) -> int:
    """Return the temporary memory of the training program."""
    import gpuzoo
    from gpuzoo.engine.backends import triton

    random, sizes = np.random.default_rng(0), []

    def compiled_first(program, **options):
        made = None

        def call(*given):
            nonlocal made
            if made is None:
                made = triton.compile_program(program, *given)
                sizes.append(made.memory_analysis().temp_size_in_bytes)
            return made(*given)

        return call

    train, test = (
        (
            random.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8),
            random.integers(0, 10, count),
        )
        for count in (2 * BATCH, 256)
    )
    with mock.patch.object(triton, "called", compiled_first):
        gpuzoo.train(
            "mnist", data=train, test=test, model="cnn", batch_size=BATCH, epochs=1,
            accumulate=parts, out=f"{folder}/{parts}", quiet=True,
        )  # fmt: skip
    return max(sizes)  # the other program evaluates 256 examples


def main() -> None:
    import gpuzoo

    gpuzoo.configure(backend="jax", precision="float32", quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        found = {str(parts): temporary_bytes(parts, folder) for parts in PARTS}
    from gpuzoo.runtime.environment import environment

    record = {
        "what": f"temporary bytes of the training program of cnn, batch {BATCH}, by "
        "the number of parts (accumulate)",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/speed/accumulate.py",
        "environment": environment(),
        "bytes": found,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
