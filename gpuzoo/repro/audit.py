"""`gpuzoo audit`: re-train a few segments of a run, drawn at random, and compare bits.

The checkpoints that a run keeps cut it into segments. Each segment begins with the
checkpoint that ends the one before it, the first with the seed. If every segment, done
again, ends with the recorded bits, the whole run is what it says; of a run with forged
segments an audit that draws one of them fails. Training logs as evidence of a training,
of which a part is re-run: Jia et al., "Proof-of-Learning", arXiv 2103.05633; here the
comparison is exact.
"""

import dataclasses
import json
import math
import pathlib
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.dataset import ORDER
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.files import expand, read_inside
from gpuzoo.home import redact
from gpuzoo.repro import causes, processors, rerun
from gpuzoo.repro.verify import (
    CANNOT_COMPARE,
    DIFFERS,
    EXIT_CODES,
    IDENTICAL,
    changed_files,
    check_ended,
    in_words,
    of_bits,
    of_files,
    other_fields,
    other_start,
)
from gpuzoo.runs import chain, divergence, evaluation
from gpuzoo.runs.record import read_run
from gpuzoo.training import continuing
from gpuzoo.training.session import Recorded, check_trust, open_recorded, own_files
from gpuzoo.weights import digest_all
from gpuzoo.workers import one_line

if TYPE_CHECKING:
    from gpuzoo.engine.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class _Evidence:
    """What a run folder holds of its training."""

    record: dict
    digests: list[dict]
    metrics: list[dict]
    weights: dict[str, np.ndarray]
    path: pathlib.Path
    checkpoints: dict[int, dict]
    """Step -> what run.json lists of a checkpoint that stays."""

    def checkpoint(self, step: int) -> "Checkpoint":
        """Return a checkpoint; one at a time: each has the size of a state.

        Raises:
            GpuzooError: it is missing, damaged, or not the one that is listed.
        """
        from gpuzoo.engine import checkpoint

        entry = self.checkpoints[step]
        file = self.path / entry["file"]
        try:
            one = checkpoint.parse(read_inside(self.path, entry["file"]))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise GpuzooError(f"{file} cannot be read: {reason}") from None
        if one is None or one.step != step:
            raise GpuzooError(f"{file} is damaged, or of another step")
        if checkpoint.state_sha256(one) != entry["state_sha256"]:
            raise GpuzooError(f"{file} is not the checkpoint that run.json lists")
        return one


def audit(
    run: str | pathlib.Path,
    *,
    segments: int = 3,
    seed: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    devices: int | None = None,
    allow_drift: bool = False,
    trust_code: bool = False,
    note=lambda text: None,
) -> dict:
    """Re-train segments of a run, drawn at random, and compare the bits.

    Always checked are the seal, the digests of all files, the chain and the root of
    digests.jsonl, the number of steps and epochs, that each kept checkpoint is the one
    of its row in digests.jsonl, and that the weights have the recorded test metrics.
    Of the segments drawn every loss, every row of metrics.jsonl and digests.jsonl and
    the whole state at the end are.

    Args:
        run: the folder of a finished or stopped run that was trained with
            keep_checkpoints.
        segments: how many to draw; all of them if the run has no more.
        seed: to draw them by; None: a random one, which is returned. To say something
            about a run of somebody else, the seed must not have been known to them.
        data, data_dir, devices, allow_drift, trust_code, note: as for `verify`.

    Returns:
        `verdict` (identical, differs, cannot compare, other class), `exit_code`,
        `run_dir`, `seed`, `processor` (as of `verify`),
        `segments` (how many the run has), `steps` (how many were done again), `drawn`
        (of each its `segment`, from 1, its `first` and `last` step, and `differences`),
        `faults` (of the rest), `changed_files`, `environment` (fields that differ) and
        `would_pass`: number of forged segments -> the probability that an audit like
        this one draws none of them.

    Raises:
        GpuzooError: the folder is not a run, the run has not ended or cannot be
            audited, or it has user code and trust_code is False.
    """
    if segments < 1 or (seed is not None and not 0 <= seed < 2**63):
        raise GpuzooError(
            f"segments must be 1 or more, and seed 0 or more and below 2**63: "
            f"{segments}, {seed}"
        )
    path = expand(run)
    record = read_run(path, sealed=False)
    check_ended(path, record, "audited")
    _check_kind(path, record)
    check_trust(path, own_files(record), trust_code, note)
    seed = secrets.randbits(32) if seed is None else seed
    found: dict = {
        "verdict": IDENTICAL, "exit_code": 0, "run_dir": redact(str(path)),
        "seed": seed, "segments": 0, "steps": 0, "drawn": [], "faults": [],
        "changed_files": changed_files(path, record), "environment": [],
        "would_pass": {}, "processor": None,
    }  # fmt: skip
    how = {
        "data": data, "data_dir": data_dir, "devices": devices,
        "allow_drift": allow_drift,
    }  # fmt: skip
    word = _filled(path, record, segments, found, note, **how)
    return {**found, "verdict": word, "exit_code": EXIT_CODES[word]}


def _filled(
    path: pathlib.Path, record: dict, segments: int, found: dict, note, **how
) -> str:
    """Fill in all but the verdict, and return that; `how` to open the run."""
    try:
        evidence = _read(path, record)
    except GpuzooError as error:
        found["faults"].append(str(error))
        word = of_files(path, found["changed_files"])
        return DIFFERS if word == IDENTICAL else word
    opened = open_recorded(record, path, note, **how)
    note(opened.session.runtime.line())
    differences = (*opened.differences, *opened.other_data)
    found["environment"] = [str(one) for one in differences]
    found["processor"] = processors.names_of(opened)
    if opened.session.model is None or processors.prevent(opened, how["allow_drift"]):
        return CANNOT_COMPARE
    word = _audit(path, evidence, opened, segments, found, note)
    of_all = of_files(path, found["changed_files"])
    word = of_all if word == IDENTICAL or of_all == DIFFERS else word
    likely = causes.of_other_environments(record) if word == DIFFERS else []
    if opened.processor and word != IDENTICAL:
        likely.insert(0, processors.cause(opened, record))
    for line in likely:
        note(f"likely cause: {line}")
    return word


def _check_kind(path: pathlib.Path, record: dict) -> None:
    """Raise GpuzooError, with the reason, for a run that cannot be audited."""
    if not record["runtime"]["deterministic"]:
        raise GpuzooError(
            f"{path} was trained at level fast, which is not deterministic: it "
            "cannot be audited; train at --level repeatable"
        )
    if not record.get("trail"):
        raise GpuzooError(
            f"{path} has no chain of digests: an earlier version wrote it; gpuzoo "
            "verify re-runs all of it"
        )
    if not record["recipe"].get("keep_checkpoints"):
        raise GpuzooError(
            f"{path} has no segments to draw: it was trained without "
            "--keep-checkpoints 9; gpuzoo verify re-runs all of it"
        )


def draw(total: int, count: int, seed: int) -> list[int]:
    """Return `count` of the segments 1..total, drawn by a seed without replacement."""
    order = randomness.permutation(total, seed, "audit")
    return sorted(int(place) + 1 for place in order[:count])


def would_pass(total: int, drawn: int) -> dict[str, float]:
    """Return the probability that `drawn` of `total` segments, drawn without
    replacement, include none of the forged ones (hypergeometric), by the number of
    those: one, a tenth, a quarter and a half of all."""
    counts = sorted({math.ceil(total * part) for part in (0, 0.1, 0.25, 0.5)} | {1})
    return {
        str(forged): math.comb(total - forged, drawn) / math.comb(total, drawn)
        for forged in counts
        if forged
    }


def _read(path: pathlib.Path, record: dict) -> _Evidence:
    """Read what an audit compares.

    Raises:
        GpuzooError: a file is missing or damaged, or the chain does not hold.
    """
    evidence = _Evidence(
        record, divergence.read_digests(path), divergence.read_metrics(path),
        divergence.read_weights(path), path,
        {entry["step"]: entry for entry in record.get("checkpoints", [])},
    )  # fmt: skip
    for step in evidence.checkpoints:
        evidence.checkpoint(step)
    return evidence


def _audit(
    path: pathlib.Path, evidence: _Evidence, opened: Recorded, count: int, found: dict,
    note,
) -> str:  # fmt: skip
    """Check what needs no training, draw segments and train them again; return the
    verdict on all but changed files."""
    record, program = evidence.record, rerun.program(opened)
    if wrong := _schedule(evidence, program):
        found["faults"] += wrong
        return DIFFERS
    certain = other_start(record, opened) + _checkpoints(evidence, program)
    if continuing.STATE not in found["changed_files"]:
        certain += _final_state(path, evidence, program)
    found["faults"] += [*certain, *_end(evidence, program)]
    ends = [step for step in program.plan.kept if step <= record["steps"]]
    if lost := [step for step in ends if step not in evidence.checkpoints]:
        found["faults"].append(
            f"the kept checkpoint of step {lost[0]} was lost before the run ended: its "
            "segments cannot be trained again"
        )
        return DIFFERS if certain else CANNOT_COMPARE
    _train(evidence, opened, program, count, found, note)
    told = sum((one["differences"] for one in found["drawn"]), found["faults"])
    if certain or not told:
        return DIFFERS if certain else IDENTICAL
    return of_bits(opened, record, told)


def _train(
    evidence: _Evidence, opened: Recorded, program, count: int, found: dict, note
) -> None:
    """Draw segments, train them again and note how they differ."""
    from gpuzoo.engine.checkpoint import lasting

    record, state = evidence.record, program.state
    ends = [step for step in program.plan.kept if step < record["steps"]]
    cuts = [program.first, *ends, record["steps"]]
    total = len(cuts) - 1
    drawn = draw(total, count, found["seed"])
    found["segments"] = total
    found["would_pass"] = would_pass(total, len(drawn))
    note(
        f"segments {', '.join(map(str, drawn))} of {total}, drawn with seed "
        f"{found['seed']}"
    )
    begin = state.read(state.all)
    for number in drawn:
        first, last = cuts[number - 1], cuts[number]
        start = None
        if first == program.first:
            state.write(begin)
        else:
            start = lasting(evidence.checkpoint(first))
        early = (record.get("best") or {}).get("stopped_early", False)
        final = early and last == record["steps"]
        again = _again(program, start, last, record.get("id", ""), final)
        differences = _compared(evidence, opened, program, first, last, again)
        found["steps"] += last - first
        found["drawn"].append({
            "segment": number, "first": first + 1, "last": last,
            "differences": differences,
        })  # fmt: skip
        what = differences[0] if differences else "the same bits"
        note(f"segment {number}, steps {first + 1} to {last}: {what}")


# ------------------------------------------------------------------- without training


def _schedule(evidence: _Evidence, program) -> list[str]:
    """Return what is wrong with the number of steps, and with the trail as a whole."""
    record, plan, rows = evidence.record, program.plan, evidence.digests
    steps, recipe, found = record["steps"], program.session.recipe, []
    if not rows or not all("chain" in row for row in rows):
        return ["digests.jsonl has no rows, or rows without a chain"]
    early = record["state"] == "stopped" or (
        recipe.early_stopping and (record.get("best") or {}).get("stopped_early")
    )
    if steps > plan.steps or (steps < plan.steps and not early):
        found.append(f"{steps} steps are recorded, and the recipe has {plan.steps}")
    if record["epochs"] != steps // plan.steps_per_epoch:
        found.append(f"{record['epochs']} epochs are recorded, and {steps} steps")
    every, first = recipe.digest_every, program.first
    due = {*range(every, steps + 1, every), *plan.kept, steps}
    due = {step for step in due if first < step <= steps}
    if [row["step"] for row in rows] != sorted(due):
        found.append("digests.jsonl: the steps of its rows are not those of the recipe")
    else:
        ends = [first, *sorted(due)]
        for before, row in zip(ends, rows, strict=False):
            if len(row["losses"]) != 8 * (row["step"] - before):
                found.append(
                    f"digests.jsonl: the row of step {row['step']} needs one loss for "
                    "each step"
                )
    if chain.record(rows) != record["trail"]:
        found.append("digests.jsonl: its root is not the one in run.json")
    places = [row["step"] for row in evidence.metrics]
    if places != sorted(places) or (places and places[-1] > steps):
        found.append("metrics.jsonl: its steps are not in order, or after the last one")
    return found


def _checkpoints(evidence: _Evidence, program) -> list[str]:
    """Return what is wrong with the kept checkpoints: each must have the digests of its
    row."""
    rows, found = {row["step"]: row for row in evidence.digests}, []
    weights, others = program.state.weights, program.state.others
    due = [step for step in program.plan.kept if step <= evidence.record["steps"]]
    for step in evidence.checkpoints:
        if step not in due:
            found.append(f"run.json has a checkpoint of step {step}, which is not due")
            continue
        held = evidence.checkpoint(step).arrays
        for name, part in (("weights", weights), ("optimizer", others)):
            arrays = {key: held.get(f"state/{key}") for key in part}
            if any(one is None for one in arrays.values()) or step not in rows:
                found.append(f"the checkpoint of step {step} lacks some {name}")
            elif digest_all(arrays) != rows[step][name]:
                found.append(
                    f"the checkpoint of step {step}: its {name} are not those of its "
                    "row in digests.jsonl"
                )
    return found


def _end(evidence: _Evidence, program) -> list[str]:
    """Return what is wrong with the final weights: they must have the recorded test
    metrics."""
    record, weights = evidence.record, evidence.weights
    known = {n: (tuple(v.shape), v.dtype) for n, v in program.state.weights.items()}
    if known != {n: (a.shape, str(a.dtype)) for n, a in weights.items()}:
        return ["weights.safetensors is not of this model"]
    outputs, metrics = program.evaluate("test", weights)
    pairs = {
        f"test_{name}": (record["metrics"].get(f"test_{name}"), value)
        for name, value in metrics.items()
    }
    pairs |= evaluation.differences(record, program.scores(outputs))
    return [
        f"{name}: {one} in the run, and the weights have {other}"
        for name, (one, other) in pairs.items()
        if repr(one) != repr(other)
    ]


def _final_state(path: pathlib.Path, evidence: _Evidence, program) -> list[str]:
    """Return what is wrong with the final weights and the state beside them: they must
    have the digests of the last row."""
    record = evidence.record
    if continuing.STATE not in record["files"]:
        due = record["state"] == "finished" and record["recipe"]["keep_state"] == "on"
        return [f"run.json has no digest of {continuing.STATE}"] if due else []
    state = {**evidence.weights, **divergence.read_weights(path, continuing.STATE)}
    names, others = program.state.weights, program.state.others
    last = {n: state.get(continuing.LAST + n, state.get(n)) for n in names}
    rest = {name: state.get(name) for name in others}
    row = evidence.digests[-1]
    if not any(one is None for one in (*last.values(), *rest.values())):
        # The last evaluation may reduce the learning rate, which is part of the state.
        reduced = [one["step"] for one in evidence.record.get("reductions", [])]
        same = digest_all(rest) == row["optimizer"] or row["step"] in reduced
        if same and digest_all(last) == row["weights"]:
            return []
    return ["the final weights and state: their digests are not those of the last row"]


# ---------------------------------------------------------------------- with training


@dataclasses.dataclass(frozen=True)
class _Again:
    """A segment that was trained again."""

    digests: list[dict]
    metrics: list[dict]
    checkpoints: list
    result: Any
    error: str


def _again(
    program, start: "Checkpoint | None", until: int, run_id: str, final: bool
) -> _Again:
    """Train from a checkpoint, or from the state that the program is in.

    Args:
        final: the run ended by itself, early, after step `until`.
    """
    from gpuzoo.engine import loop

    digests: list[dict] = []
    metrics: list[dict] = []
    kept: list[Checkpoint] = []

    def watch(event: str, row: dict) -> None:
        if event == "digest":
            digests.append(row)
        elif event in ORDER:
            metrics.append({"split": event, **row})

    result, error = None, ""
    try:
        result = loop.run(
            program, watch=watch, keep=kept.append, resume=start,
            until=until + final, run_id=run_id,
        )  # fmt: skip
    except Diverged as diverged:
        error = f"trained again, {diverged.what}"
    except GpuzooError as refused:  # a state that is not of this model
        error = str(refused)
    except (KeyError, IndexError, TypeError, ValueError) as fault:
        if start is None:
            raise
        error = f"its first checkpoint is not one of this training: {one_line(fault)}"
    return _Again(digests, metrics, kept, result, error)


def _compared(
    evidence: _Evidence, opened: Recorded, program, first: int, last: int, again: _Again
) -> list[str]:
    """Return how a segment, done again, differs from what is recorded of it."""
    ends = last == evidence.record["steps"]
    found = [again.error] if again.error else []
    # The row of the checkpoint that it begins with is written again, too.
    mine = [row for row in evidence.digests if first <= row["step"] <= last]
    other = divergence.first_divergence(mine, again.digests, last)
    if other:
        names = f" ({', '.join(other.variables[:3])})" if other.variables else ""
        found.append(f"first difference: {other.what} of step {other.step}{names}")
    found += _other_rows("digests.jsonl", mine, again.digests)
    # An evaluation after the last step belongs to the next segment.
    begin = first if first > program.first else 0
    sides = [
        [row for row in rows if begin <= row["step"] and (ends or row["step"] < last)]
        for rows in (evidence.metrics, again.metrics)
    ]
    found += _other_rows("metrics.jsonl", *sides)
    if again.error:
        return found
    if not ends:
        if not again.checkpoints:
            return [*found, f"trained again, it ended at step {again.result.steps}"]
        return found + _other_state(evidence.checkpoint(last), again.checkpoints[-1])
    theirs = divergence.weight_differences(evidence.weights, again.result.weights)
    found += [f"final weights: {name} differs" for name in theirs]
    return found + other_fields(evidence.record, again.result, opened)


def _other_rows(name: str, mine: list[dict], again: list[dict]) -> list[str]:
    pairs = divergence.other_rows(mine, again, 0, True)
    return [in_words(name, *pair) for pair in pairs]


def _other_state(recorded: "Checkpoint", again: "Checkpoint") -> list[str]:
    """Return what differs in two checkpoints of a step."""
    arrays = divergence.weight_differences(recorded.arrays, again.arrays)
    found = [f"the checkpoint at its end: {name} differs" for name in arrays]
    facts = [json.dumps(one.choice, sort_keys=True) for one in (recorded, again)]
    if facts[0] != facts[1]:
        found.append("the checkpoint at its end: the best evaluation so far differs")
    return found
