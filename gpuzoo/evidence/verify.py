"""`gpuzoo verify`: do a run again from its record alone and compare the bits."""

import hashlib
import os
import pathlib

from gpuzoo.errors import GpuzooError
from gpuzoo.evidence import again, compare, record, trail
from gpuzoo.files import expand, read_inside, redact

IDENTICAL, DIFFERS, CANNOT_COMPARE = "identical", "differs", "cannot compare"
EXIT_CODES = {IDENTICAL: 0, DIFFERS: 1, CANNOT_COMPARE: 2}


def verify(
    run: str | pathlib.Path,
    *,
    steps: int = 0,
    allow_drift: bool = False,
    note=lambda text: None,
) -> dict:
    """Re-run a run and compare it, loss by loss and digest by digest.

    Args:
        run: the folder of a finished or stopped run.
        steps: compare only the first so many steps; 0: all, and the final weights.
        allow_drift: compare although the environment differs.
        note: called with lines for the user.

    Returns:
        `verdict` (identical, differs, cannot compare), `exit_code`, `steps`, how many
        were compared; `first_difference` (step, what, variables; where the run done
        again diverged, the first step that it has no digest of), `weights` (name ->
        ulp), `figures` of the last evaluation that differ, `changed_files`,
        `environment` (fields that differ) and `causes`, the likeliest first.

    Raises:
        GpuzooError: the folder is no run, the run never ended, or steps is negative.
    """
    if steps < 0:
        raise GpuzooError(f"steps must be 0, for all, or more: {steps}")
    path = expand(run)
    recorded = record.read_run(path, sealed=False)
    if recorded["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"{path} is {recorded['state']}: only a finished or stopped run can be "
            "verified"
            + "; gpuzoo resume finishes it"
            * (recorded["state"] != "diverged")
        )
    verdict = {
        "verdict": IDENTICAL, "run_dir": redact(str(path)), "steps": 0,
        "first_difference": None, "weights": {}, "figures": [], "environment": [],
        "causes": [],
        "changed_files": changed_files(path, recorded),
    }  # fmt: skip

    try:
        recorded_rows, recorded_weights = (
            trail.read_digests(path),
            trail.read_weights(path),
        )
        if recorded.get("initial_weights_sha256"):
            trail.read_weights(path, "initial_weights.safetensors")
    except GpuzooError:
        if not verdict["changed_files"]:
            raise
        return _conclude(verdict, DIFFERS, recorded)

    # ------------------------------------------------------- can it be compared at all?
    setting = again.set_up(recorded, path, note)
    drift, other_data = setting.drift, setting.other_data
    note(setting.runtime.line())
    verdict["environment"] = [str(d) for d in (*drift, *other_data)]
    if other_data or (drift and not allow_drift):
        return _conclude(verdict, CANNOT_COMPARE, recorded)

    # ------------------------------------------------------------------ do it once more
    until = min(steps or recorded["steps"], recorded["steps"])
    rows, weights, figures, _, diverged = again.first_steps(
        setting, until, fast=recorded["fast_dev_run"]
    )
    verdict["steps"] = until
    divergence = trail.first_divergence(recorded_rows, rows, until)
    if diverged:
        divergence = divergence or trail.Divergence(until, "weights", ())
        verdict["causes"] = [f"done again, {str(diverged).partition(';')[0]}"]
    if divergence:
        verdict["first_difference"] = {
            "step": divergence.step,
            "what": divergence.what,
            "variables": list(divergence.variables),
        }
    if until == recorded["steps"] and not diverged:
        verdict["weights"] = trail.weight_differences(recorded_weights, weights)
        told = recorded["metrics"]
        verdict["figures"] = [
            f"{name}: {told.get(name)} in the run, {figures.get(name)} again"
            for name in sorted({*told, *figures})
            if told.get(name) != figures.get(name)
        ]
    parts = ("weights", "figures", "changed_files")
    differs = divergence or any(verdict[part] for part in parts)
    return _conclude(verdict, DIFFERS if differs else IDENTICAL, recorded)


def changed_files(path: pathlib.Path, recorded: dict) -> list[str]:
    """Files of a run that are not as they were when it ended.

    A link, a pipe, a device and a path that leads out of the folder are not read and
    count as changed.
    """
    changed = [] if recorded["seal"] == record.seal(recorded) else ["run.json"]
    for name, sha256 in recorded["files"].items():
        try:
            found = hashlib.sha256(read_inside(path, name)).hexdigest()
        except (OSError, ValueError):
            found = None
        if found != sha256:
            changed.append(name)
    if recorded["weights_sha256"] != recorded["files"].get("weights.safetensors"):
        changed.append("weights.safetensors")
    return list(dict.fromkeys(changed))


def _conclude(verdict: dict, word: str, recorded: dict) -> dict:
    verdict["verdict"], verdict["exit_code"] = word, EXIT_CODES[word]
    causes = verdict["causes"]
    if verdict["changed_files"]:
        names = ", ".join(verdict["changed_files"])
        causes.append(f"changed since the run ended: {names}")
    causes += verdict["environment"]
    if not verdict["first_difference"] and not verdict["weights"]:
        causes += verdict["figures"]  # else they follow from these
    if word == DIFFERS and verdict["first_difference"]:
        if not recorded["runtime"]["deterministic"]:
            causes.append("the run was at level fast, which promises no bits")
        here = os.environ.get("PYTHONHASHSEED", "")
        if not compare.set_order(recorded) or not here.isdecimal():
            causes.append("an order of Python's sets: PYTHONHASHSEED was not fixed")
        if not causes and verdict["first_difference"]["step"] == 1:
            causes.append(
                "other initial weights or examples: gpuzoo itself has changed"
            )
        if not verdict["changed_files"]:
            causes.append("an operation whose result varies from run to run")
            causes.append("faulty hardware")
    return verdict
