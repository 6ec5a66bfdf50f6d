"""Compare two trails of digests, or two sets of weights."""

import dataclasses
import json
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo.errors import GpuzooError
from gpuzoo.files import parse_json, read_inside
from gpuzoo.runs import chain


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first difference of two trails."""

    step: int
    """The first step whose loss or, at a digest, whose weights differ in any bit."""
    what: str
    """loss, weights, optimizer, or missing loss if a trail ends too early."""
    variables: tuple[str, ...]
    """Weights that differ at the next digest, in the order of the model."""

    def as_record(self) -> dict:
        return {**vars(self), "variables": list(self.variables)}


def read_digests(folder: pathlib.Path) -> list[dict]:
    """Return the rows of digests.jsonl, whose chain holds."""
    rows = _read_rows(folder / "digests.jsonl")
    try:
        first_divergence(rows, rows)  # reads every required field
        chain.check(rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise GpuzooError(f"{folder / 'digests.jsonl'} is damaged: {what}") from None
    return rows


def read_metrics(folder: pathlib.Path) -> list[dict]:
    """Return the rows of metrics.jsonl."""
    rows = _read_rows(folder / "metrics.jsonl")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise GpuzooError(
                f"{folder / 'metrics.jsonl'} is damaged: line {number} has no step"
            )
    return rows


def _read_rows(path: pathlib.Path) -> list:
    rows: list = []
    try:
        for line in read_inside(path.parent, path.name).decode().splitlines():
            rows.append(parse_json(line))
        return rows
    except OSError as error:
        reason = error.strerror or error
        raise GpuzooError(f"{path} cannot be read: {reason}") from None
    except ValueError as error:
        raise GpuzooError(f"{path} is damaged: line {len(rows) + 1}: {error}") from None


def other_rows(recorded: list[dict], again: list[dict], until: int, whole: bool):
    """Return pairs of rows (recorded, re-run) that differ up to a step, None for a row
    that only one side has.

    Args:
        whole: the run ends at step `until`; else the re-run may have rows at that step
            that the run need not have.
    """
    mine = {_place(row): row for row in recorded}
    theirs = {_place(row): row for row in again}
    sides = [recorded, again]
    if not whole:
        sides = [[row for row in rows if row["step"] < until] for rows in sides]
    if [_canonical(row) for row in sides[0]] == [_canonical(row) for row in sides[1]]:
        return []
    keys = dict.fromkeys(map(_place, sum(sides, [])))
    pairs = [(mine.get(key), theirs.get(key)) for key in keys]
    found = [pair for pair in pairs if _canonical(pair[0]) != _canonical(pair[1])]
    return found or [(None, None)]  # a duplicate row, or another order


def _place(row: dict) -> tuple:
    """Return what a row is about; `end`: what a fit leaves, which its callbacks may
    have changed after the last step."""
    return row.get("split"), row["step"], row.get("end", False)


def _canonical(row: dict | None) -> str:
    """Return a row as text, without its chain: that differs wherever a row before it
    does."""
    return json.dumps(row and chain.without(row), sort_keys=True)


def first_divergence(
    one: list[dict], other: list[dict], until: int = 0
) -> Divergence | None:
    """Return the first difference of two trails, up to the end of the shorter; or None.

    Losses are compared at every step, weights at steps where both trails have a digest.
    A trail that ends before step `until` differs there.
    """
    step = _first_step_with_other_loss(_losses(one), _losses(other))
    theirs = {_place(row): row for row in other}
    for mine in one:
        row = theirs.get(_place(mine))
        if row is None:
            continue
        names = tuple(
            name
            for name, digest in mine["variables"].items()
            if row["variables"].get(name) != digest
        )
        if step and step <= mine["step"]:
            return Divergence(step, "loss", names)
        if names or mine["weights"] != row["weights"]:
            return Divergence(mine["step"], "weights", names)
        if mine["optimizer"] != row["optimizer"]:
            return Divergence(mine["step"], "optimizer", ())
    if step:
        return Divergence(step, "loss", ())
    ends = min(count_losses(one), count_losses(other))
    return Divergence(ends + 1, "missing loss", ()) if ends < until else None


def count_losses(rows: list[dict]) -> int:
    """Return the last step whose loss a trail has: their number, if it begins with the
    first step."""
    before, losses = _losses(rows)
    return before + len(losses)


def _losses(rows: list[dict]) -> tuple[int, np.ndarray]:
    """Return the number of steps before a trail, and the loss of each step in it."""
    texts = [bytes.fromhex(row["losses"]) for row in rows]
    # A run that goes on with another begins after the last step of that.
    before = max(0, rows[0]["step"] - len(texts[0]) // 4) if rows else 0
    return before, np.frombuffer(b"".join(texts), "<u4")


def _first_step_with_other_loss(one: tuple, other: tuple) -> int | None:
    """Return it of those that both have."""
    before = max(one[0], other[0])
    mine, theirs = (losses[before - first :] for first, losses in (one, other))
    count = min(len(mine), len(theirs))
    odd = np.flatnonzero(mine[:count] != theirs[:count])
    return before + int(odd[0]) + 1 if odd.size else None


def read_weights(
    folder: pathlib.Path, name: str = "weights.safetensors"
) -> dict[str, np.ndarray]:
    """Return the arrays of weights.safetensors, or of another file of weights."""
    try:
        return safetensors.numpy.load(read_inside(folder, name))
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GpuzooError(f"{folder / name} cannot be read: {reason}") from None


def weight_differences(one: dict, other: dict) -> dict[str, int | None]:
    """Return name -> largest distance in ulp of weights that differ in any bit; None if
    they cannot be subtracted (other shape or dtype, or missing)."""
    found: dict[str, int | None] = {}
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            found[name] = None
        elif a.tobytes() != b.tobytes():
            found[name] = ulp_distance(a, b) if a.dtype == np.float32 else None
    return found


def ulp_distance(one: np.ndarray, other: np.ndarray) -> int:
    """Return the largest distance of two values at one index, in float32 numbers."""

    def rank(array: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(array).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.max(np.abs(rank(one) - rank(other)), initial=0))
