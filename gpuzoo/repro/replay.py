"""Find the layer where two runs diverge, by re-running both.

Each side is re-run from its record in a separate process, with its own settings and
environment variables: first with a digest after every step, then up to the first step
that differs, which is captured (repro/capture.py).
"""

import dataclasses
import os
import pathlib
import tempfile

import numpy as np

from gpuzoo import workers
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.repro import rerun
from gpuzoo.runs import divergence
from gpuzoo.runs.record import read_run
from gpuzoo.runtime import portable
from gpuzoo.runtime.environment import moving_variables, unshielded
from gpuzoo.training.session import open_recorded


def replay(paths: list[pathlib.Path], steps: int, note=lambda text: None) -> dict:
    """Find the first thing that two runs compute differently.

    Args:
        paths: the two run folders.
        steps: how many steps to re-run, up to the recorded difference.
        note: called with lines for the user.

    Returns:
        `step` (None: the replays do not differ), `where` (for example "output of
        conv_1"), `differing` of `values` numbers, `largest` difference; `replayed`,
        for each side whether the replay has the recorded losses; `drift`, for each
        side what differs between its record and this machine.

    Raises:
        GpuzooError: a side cannot be re-run here.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sides = [_run(path, note, steps=steps) for path in paths]
        found = {
            "step": None, "where": None, "differing": None, "values": None,
            "largest": None,
            "replayed": [
                _is_replayed(divergence.read_digests(path), side["rows"], steps)
                for path, side in zip(paths, sides, strict=True)
            ],
            "drift": [side["drift"] for side in sides],
        }  # fmt: skip
        rows = [side["rows"] for side in sides]
        first = divergence.first_divergence(
            *rows, max(map(divergence.count_losses, rows))
        )
        if first is None:
            return found
        for path, file in zip(paths, ("one", "other"), strict=True):
            _run(path, note, take_apart=first.step, out=str(folder / file))
        return {
            **found,
            "step": first.step,
            **_first_difference(_load(folder / "one"), _load(folder / "other")),
        }


def _is_replayed(recorded: list[dict], rows: list[dict], steps: int) -> bool:
    until = min(steps, divergence.count_losses(recorded))
    return divergence.first_divergence(recorded, rows, until) is None


def _run(path: pathlib.Path, note, **spec) -> dict:
    """Re-run one side in a separate process, with the run's environment variables."""
    recorded = read_run(path, sealed=False)
    note(f"replaying {path} in a separate process")
    env = variables_for(recorded)
    answer = workers.ask("gpuzoo.repro.replay", {"run": str(path), **spec}, env)
    if "error" in answer:
        raise GpuzooError(f"{path} cannot be re-run here: {answer['error']}")
    return answer


def variables_for(recorded: dict) -> dict[str, str]:
    """Return the environment of a process that re-runs a run, from this one's."""
    # Level portable sets its own again; those of this process are not the run's.
    gone = {*moving_variables(), *portable.VARIABLES}
    kept = {k: v for k, v in os.environ.items() if k not in gone}
    hash_seed = (recorded["runtime"] or {}).get("variables", {}).get("PYTHONHASHSEED")
    return {
        **kept,
        **unshielded(recorded["environment"]["variables"]),
        "PYTHONHASHSEED": hash_seed or "0",
    }


def _first_difference(one: list, other: list) -> dict:
    """Return the first tensor that differs; one of another shape if no other does."""
    theirs, unlike = dict(other), []
    for name, a in one:
        b = theirs.get(name)
        if b is None or a.shape != b.shape or a.dtype != b.dtype:
            unlike.append(name)
        elif a.tobytes() != b.tobytes():
            distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
            return {
                "where": name,
                "differing": int(np.count_nonzero(distance)),
                "values": int(a.size),
                "largest": float(np.nanmax(distance)),
            }
    where = unlike[0] if unlike else "a tensor that only the other side has"
    return {"where": f"{where} (another shape or dtype)"}


def _load(path: pathlib.Path) -> list:
    with np.load(f"{path}.npz", allow_pickle=False) as file:
        names = file["names"].tolist()
        return [(name, file[f"{i:05d}"]) for i, name in enumerate(names)]


def _again(spec: dict):
    """Re-run one side, in its own process."""
    recorded = read_run(spec["run"], sealed=False)
    opened = open_recorded(recorded, expand(spec["run"]))
    every_step = opened.session.recipe.override(digest_every=1)
    session = dataclasses.replace(opened.session, recipe=every_step)
    opened = dataclasses.replace(opened, session=session)
    differences = [*opened.differences, *opened.other_data]
    if opened.processor:
        differences.insert(0, opened.processor)
    if step := spec.get("take_apart"):
        tensors = rerun.take_apart(opened, step)
        arrays = {f"{i:05d}": array for i, (_, array) in enumerate(tensors)}
        np.savez(spec["out"], names=np.array([name for name, _ in tensors]), **arrays)
        yield {}
        return
    yield {
        "rows": rerun.first_steps(opened, spec["steps"]).digests,
        "drift": [str(difference) for difference in differences],
    }


if __name__ == "__main__":
    workers.serve(_again)
