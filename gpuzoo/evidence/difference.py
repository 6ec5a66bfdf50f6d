"""`gpuzoo diff`: what two runs have in common, and where they part."""

import pathlib

from gpuzoo.evidence import compare, record, trail
from gpuzoo.evidence.verify import DIFFERS, EXIT_CODES, IDENTICAL, changed_files


def diff(
    one: str | pathlib.Path,
    other: str | pathlib.Path,
    *,
    replay: bool = False,
    note=lambda text: None,
) -> dict:
    """Compare the records, the trails and the weights of two runs.

    Args:
        one, other: two run folders.
        replay: do both again around the first difference and name what is computed
            differently first (`gpuzoo.evidence.replay.replay`).
        note: called with lines for the user.

    Returns:
        `verdict` (identical or differs: of the trails and the weights), `exit_code`,
        `settings`, `environment` and `data` (field, then both values),
        `first_difference` (step, what, variables), `weights` (name -> ulp),
        `changed_files` (of each run) and `replay` (None unless asked for and needed).

    Raises:
        GpuzooError: a folder is no run or its files cannot be read.
    """
    paths = [pathlib.Path(run).expanduser() for run in (one, other)]
    records = [record.read_run(path, sealed=False) for path in paths]
    first = trail.first_divergence(*map(trail.read_digests, paths))
    weights = {}
    if all((path / "weights.safetensors").exists() for path in paths):
        weights = trail.weight_differences(*map(trail.read_weights, paths))
    same_length = records[0].get("steps") == records[1].get("steps")
    verdict = IDENTICAL if same_length and not (first or weights) else DIFFERS
    replayed = None
    if replay and first:
        from gpuzoo.evidence.replay import replay as do_again

        replayed = do_again(paths, first.step, note)
    return {
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "settings": _settings(*records),
        "environment": _rows(compare.environment_differences(*records)),
        "data": _rows(compare.data_differences(records[0]["data"], records[1]["data"])),
        "steps": [run.get("steps") for run in records],
        "first_difference": first
        and {
            "step": first.step,
            "what": first.what,
            "variables": list(first.variables),
        },
        "weights": weights,
        "changed_files": [
            changed_files(path, run) if "files" in run else []
            for path, run in zip(paths, records, strict=True)
        ],
        "replay": replayed,
    }


def _rows(differences: list[compare.Difference]) -> list[list]:
    return [[d.field, d.recorded, d.here] for d in differences]


def _settings(one: dict, other: dict) -> list[list]:
    sides = [{**run["recipe"], **run["options"]} for run in (one, other)]
    return [
        [name, sides[0].get(name), sides[1].get(name)]
        for name in sorted({*sides[0], *sides[1]})
        if sides[0].get(name) != sides[1].get(name)
    ]
