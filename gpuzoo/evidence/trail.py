"""Two trails of digests, or two sets of weights, side by side."""

import dataclasses
import json
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_inside


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Where two trails part."""

    step: int
    """The first step whose loss differs in any bit, or the first with a digest whose
    weights do, whichever comes first."""
    what: str
    """loss, weights, optimizer, or missing loss, where a trail ends too early."""
    variables: tuple[str, ...]
    """Weights that differ at the next digest, in the order of the model."""


def read_digests(folder: pathlib.Path) -> list[dict]:
    """The rows of digests.jsonl."""
    try:
        lines = read_inside(folder, "digests.jsonl").decode().splitlines()
        rows = [json.loads(line) for line in lines]
        first_divergence(rows, rows)  # looks at all that a row must have
        return rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise GpuzooError(
            f"{folder / 'digests.jsonl'} cannot be read: {what}"
        ) from None


def first_divergence(
    one: list[dict], other: list[dict], until: int = 0
) -> Divergence | None:
    """The first difference of two trails, as far as both go; None if there is none.

    The losses of every step are compared; the weights at the steps that both trails
    have a digest for. A trail that ends before step `until` differs there.
    """
    step = _first_step_with_other_loss(_losses(one), _losses(other))
    theirs = {row["step"]: row for row in other}
    for mine in one:
        row = theirs.get(mine["step"])
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
    """How many steps a trail has a loss of."""
    return len(_losses(rows))


def _losses(rows: list[dict]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(row["losses"] for row in rows)), "<u4")


def _first_step_with_other_loss(one: np.ndarray, other: np.ndarray) -> int | None:
    count = min(len(one), len(other))
    odd = np.flatnonzero(one[:count] != other[:count])
    return int(odd[0]) + 1 if odd.size else None


def read_weights(
    folder: pathlib.Path, name: str = "weights.safetensors"
) -> dict[str, np.ndarray]:
    """The arrays of weights.safetensors, or of another file of weights."""
    try:
        return safetensors.numpy.load(read_inside(folder, name))
    except (OSError, safetensors.SafetensorError) as error:
        raise GpuzooError(f"{folder / name} cannot be read: {error}") from None


def weight_differences(one: dict, other: dict) -> dict[str, int | None]:
    """Name -> largest distance in ulp, of the weights that differ in any bit; None
    where they cannot be subtracted (other shape or type, or missing)."""
    found: dict[str, int | None] = {}
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            found[name] = None
        elif a.tobytes() != b.tobytes():
            found[name] = ulp_distance(a, b) if a.dtype == np.float32 else None
    return found


def ulp_distance(one: np.ndarray, other: np.ndarray) -> int:
    """The most float32 numbers that lie between two values at one place."""

    def rank(array: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(array).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.max(np.abs(rank(one) - rank(other)), initial=0))
