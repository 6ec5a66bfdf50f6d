"""Forged runs, for audit.py and tests/test_audit.py.

Each deviates from its record in one segment, between two checkpoints that it keeps. All
that follows is computed from there as in any run: no digest, chain, root or seal tells,
only training the segment again does.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

import numpy as np

import gpuzoo
from gpuzoo.engine.plan import Plan, kept_steps
from gpuzoo.engine.program import Program
from gpuzoo.runs import chain
from gpuzoo.runs.divergence import read_digests, read_weights
from gpuzoo.runs.record import read_run, seal

KINDS = (
    "other data order", "other seed", "fewer epochs", "swapped weights", "edited trail",
)  # fmt: skip


def forged(kind: str, segment: int, honest: pathlib.Path, out: pathlib.Path, **how):
    """Train a run that is forged in one segment, from 1.

    Args:
        honest: a run of the same recipe, with another seed, that is not forged.
        how: settings of `gpuzoo.train`.
    """
    steps, count = read_run(honest)["steps"], how["keep_checkpoints"]
    cuts = (0, *kept_steps(count, 0, steps), steps)
    first, last = cuts[segment - 1], cuts[segment]
    with forging(kind, first, last, read_weights(honest)):
        gpuzoo.train(out=str(out), quiet=True, **how)
    if kind == "edited trail":
        edit_trail(out, first, last)


@contextlib.contextmanager
def forging(kind: str, first: int, last: int, weights: dict):
    """Let a training in the block deviate in the steps first..last-1."""
    feed, train_parts, done = Plan.feed, Program.train_parts, []

    def other_feed(plan: Plan, begin: int, end: int):
        fed = feed(plan, begin, end)
        if not first <= begin < last:
            return fed
        if kind == "other data order":
            away = 1000 * plan.steps_per_epoch
            fed["indices"] = feed(plan, begin + away, end + away)["indices"]
        elif kind == "other seed":
            fed = feed(dataclasses.replace(plan, seed=plan.seed + 1), begin, end)
        return fed

    def other_parts(program: Program, parts):
        results = None
        for begin, end in parts:
            half = (first + last) // 2 <= begin < last
            if kind == "fewer epochs" and half and results:
                size = end - begin  # no step is done, its losses are made up
                results = {n: np.resize(a, size) for n, a in results.items()}
                done.append(begin)
            else:
                ((_, _, results),) = train_parts(program, [(begin, end)])
            if kind == "swapped weights" and end == last:
                state = program.state
                state.write({**state.read(state.all), **weights})
                done.append(begin)
            yield begin, end, results

    Plan.feed, Program.train_parts = other_feed, other_parts
    try:
        yield
    finally:
        Plan.feed, Program.train_parts = feed, train_parts
    if kind in ("fewer epochs", "swapped weights") and not done:
        raise ValueError(f"{kind}: no part of the steps {first} to {last} was forged")


def edit_trail(run: pathlib.Path, first: int, last: int) -> None:
    """Make one recorded loss of the steps first..last-1 smaller, and make everything
    anew that would tell."""
    rows = read_digests(run)
    row = next(row for row in rows if first < row["step"] <= last)
    losses = np.frombuffer(bytes.fromhex(row["losses"]), "<f4").copy()
    losses[-1] *= np.float32(0.9)
    row["losses"] = losses.tobytes().hex()
    before, made = chain.START, []
    for one in rows:
        made.append(chain.chained(chain.without(one), before))
        before = made[-1]["chain"]
    text = "".join(json.dumps(one) + "\n" for one in made)
    (run / "digests.jsonl").write_text(text)
    reseal(run, trail=chain.record(made))


def reseal(run: pathlib.Path, **fields) -> None:
    """Change fields of run.json; make the digests of all files and the seal anew."""
    record = json.loads((run / "run.json").read_text())
    record.update(fields)
    record["files"] = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in record["files"]
    }
    record["weights_sha256"] = record["files"]["weights.safetensors"]
    record["seal"] = seal(record)
    (run / "run.json").write_text(json.dumps(record, indent=1) + "\n")
