"""The protocol of the peers, which train in turns on request.

It is that of gpuzoo/bench/worker.py, so that one benchmark can run them in turns: a
JSON line says what to train; the answer to each turn is its steps and seconds.
"""

import json
import os
import sys
import time

import numpy as np


def take_turns(prepare) -> None:
    """Train in turns. `prepare(asked, arrays)` returns a function that does a number of
    steps and waits for them; `arrays` are the training images (float32 in [0, 1]) and
    labels of the requested npz file."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**row) -> None:
        print(json.dumps(row), file=answers, flush=True)

    asked = json.loads(sys.stdin.readline())
    with np.load(asked["data"], allow_pickle=False) as file:
        images, labels = file["x_train"], file["y_train"].astype(np.int64)
    if images.ndim == 3:
        images = images[..., None]
    arrays = images.astype(np.float32) / 255, labels
    try:
        steps = prepare(asked, arrays)
        begun = time.perf_counter()
        steps(asked["warm"])
        compiled = time.perf_counter() - begun
        seconds = timed(steps, asked["warm"])
        count = max(1, round(asked["seconds"] * asked["warm"] / seconds))
        tell(steps=count, seconds=timed(steps, count), first_seconds=compiled)
        while sys.stdin.readline() == "go\n":
            tell(steps=count, seconds=timed(steps, count))
    except Exception as error:  # this peer has failed, the others go on
        tell(error=f"{type(error).__name__}: {str(error).splitlines()[0][:300]}")


def timed(steps, count: int) -> float:
    start = time.perf_counter()
    steps(count)
    return time.perf_counter() - start
