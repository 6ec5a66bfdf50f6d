"""`gpuzoo diff`: compare two runs and find their first difference."""

import pathlib

from gpuzoo.errors import ExitCode, GpuzooError
from gpuzoo.files import expand
from gpuzoo.repro.verify import DIFFERS, EXIT_CODES, IDENTICAL, changed_files
from gpuzoo.runs import divergence, drift
from gpuzoo.runs.fit import is_fit, read_fit
from gpuzoo.runs.record import read_run
from gpuzoo.training.session import check_trust, own_files

EQUAL_SO_FAR = "equal as far as both go"


def diff(
    one: str | pathlib.Path,
    other: str | pathlib.Path,
    *,
    replay: bool = False,
    trust_code: bool = False,
    note=lambda text: None,
) -> dict:
    """Compare the records, the trails and the weights of two runs.

    Args:
        one, other: two run folders, or two folders of `gpuzoo.callbacks.Trail`.
        replay: re-run both around the first difference and find the first tensor that
            differs (`gpuzoo.repro.replay.replay`).
        trust_code: let a replay execute user code, if a model is defined in a user
            file.
        note: called with lines for the user.

    Returns:
        `verdict` (of the trails and the weights: identical, differs, or equal as far as
        both go if one is longer, or only one has ended), `exit_code`, `compared` (steps
        that both have), `steps` (of each, None if unknown),
        `settings`, `environment` and `data` (field, then both values),
        `first_difference` (step, what, variables), `weights` (name -> ulp),
        `rows` of metrics.jsonl and digests.jsonl that differ though all losses agree,
        `changed_files` (of each run) and `replay` (None unless requested and needed).

    Raises:
        GpuzooError: a folder is not a run, its files cannot be read, or a replay would
            execute user code and trust_code is False.
    """
    paths = [expand(run) for run in (one, other)]
    written = _records(paths, replay)
    # The settings of a fit, and nothing about the data, which it does not show.
    records = [
        run if "recipe" in run
        else {"recipe": run["settings"], "options": {}, "data": None, **run}
        for run in written
    ]  # fmt: skip
    for path, run in zip(paths, records, strict=True) if replay else ():
        check_trust(path, own_files(run), trust_code, note)
    trails = [divergence.read_digests(path) for path in paths]
    counts = [  # a fit may report no losses
        divergence.count_losses(rows) if "recipe" in run else rows[-1]["step"]
        for rows, run in zip(trails, written, strict=True)
    ]
    first = divergence.first_divergence(*trails)
    weights = _other_weights(paths, records) if counts[0] == counts[1] else {}
    ends = [(count, run["state"]) for count, run in zip(counts, records, strict=True)]
    verdict = IDENTICAL if ends[0] == ends[1] else EQUAL_SO_FAR
    rows = []
    if not first and ends[0] == ends[1] and _same_rows(*records):
        rows = _other_rows(paths, trails, counts[0])
    if first or weights or rows:
        verdict = DIFFERS
    changes = drift.environment_differences(*records)
    if processor := drift.other_processor(*records):
        changes.insert(0, processor)
    replayed = None
    if replay and first:
        from gpuzoo.repro.replay import replay as do_again

        replayed = do_again(paths, first.step, note)
    return {
        "verdict": verdict,
        "exit_code": EXIT_CODES.get(verdict, ExitCode.FAILED),
        "compared": min(counts),
        "settings": _settings(*records),
        "environment": _rows(changes),
        "data": _rows(drift.data_differences(records[0]["data"], records[1]["data"])),
        "steps": [run.get("steps") for run in records],
        "first_difference": first and first.as_record(),
        "weights": weights,
        "rows": rows,
        "changed_files": [
            changed_files(path, run) if "files" in run else []
            for path, run in zip(paths, written, strict=True)
        ],
        "replay": replayed,
    }


def _records(paths: list[pathlib.Path], replay: bool) -> list[dict]:
    """Return the records of two runs, or of two trails of an ordinary fit."""
    fits = [is_fit(path) for path in paths]
    if not any(fits):
        return [read_run(path, sealed=False) for path in paths]
    if not all(fits):
        for path, fit in zip(paths, fits, strict=True):
            if not fit:
                read_run(path, sealed=False)  # or raises what is wrong with it
        raise GpuzooError(
            f"{paths[fits.index(True)]} holds the trail of an ordinary Keras fit and "
            f"{paths[fits.index(False)]} a run of gpuzoo; compare two of a kind"
        )
    if replay:
        raise GpuzooError(
            "--replay re-runs two runs of gpuzoo; the trail of an ordinary Keras fit "
            "cannot be re-run: leave it out"
        )
    return [read_fit(path) for path in paths]


def _other_weights(paths: list[pathlib.Path], records: list[dict]) -> dict:
    """Compare the weights of two runs, if both have some, after as many steps."""
    there = [
        "files" in run or (path / "weights.safetensors").exists()
        for path, run in zip(paths, records, strict=True)
    ]
    if not all(there):
        return {}
    return divergence.weight_differences(*map(divergence.read_weights, paths))


def _other_rows(paths: list[pathlib.Path], trails: list, steps: int) -> list[str]:
    """Describe the rows that differ of two runs whose losses all agree."""
    metrics = [divergence.read_metrics(path) for path in paths]
    return [
        _in_words(name, one, other)
        for name, pair in (("metrics.jsonl", metrics), ("digests.jsonl", trails))
        for one, other in divergence.other_rows(*pair, steps, True)
    ]


def _same_rows(one: dict, other: dict) -> bool:
    """Return whether two runs write rows at the same steps, with the same metrics."""
    names = (
        "log_every", "eval_every", "digest_every", "keep_checkpoints", "tta", "task",
        "validation",
    )  # fmt: skip
    return all(one["recipe"].get(name) == other["recipe"].get(name) for name in names)


def _in_words(file: str, one: dict | None, other: dict | None) -> str:
    """Describe two rows that differ."""
    row = one or other
    if row is None:
        return f"{file}: duplicate rows, or another order"
    where = f"{file}: {row.get('split', 'digest')} row of step {row['step']}"
    if one is None or other is None:
        return f"{where} is only in the {'second' if one is None else 'first'} run"
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return f"{where} differs in {', '.join(keys)}"


def _rows(differences: list[drift.Difference]) -> list[list]:
    return [[d.field, d.recorded, d.here] for d in differences]


def _start(init: dict | None) -> str | None:
    """Describe the run whose weights a training starts from."""
    if not init:
        return None
    return f"{init.get('run')} (weights {init['weights_sha256'][:16]})"


def _settings(one: dict, other: dict) -> list[list]:
    begun = ("weights", "initial_weights_sha256", "compiled")
    sides = [
        {
            **run["recipe"], **run["options"],
            **{name: run.get(name) for name in begun},
            "init": _start(run.get("init")), "parent": _start(run.get("parent")),
        }
        for run in (one, other)
    ]  # fmt: skip
    return [
        [name, sides[0].get(name), sides[1].get(name)]
        for name in sorted({*sides[0], *sides[1]})
        if sides[0].get(name) != sides[1].get(name)
    ]
