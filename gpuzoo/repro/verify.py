"""`gpuzoo verify`: re-run from the record alone and compare the bits."""

import dataclasses
import hashlib
import os
import pathlib

from gpuzoo import weights
from gpuzoo.data import balance
from gpuzoo.errors import ExitCode, GpuzooError
from gpuzoo.files import expand, read_inside
from gpuzoo.home import redact
from gpuzoo.repro import causes, processors, rerun
from gpuzoo.runs import derived, evaluation
from gpuzoo.runs import divergence as trail
from gpuzoo.runs import drift as compare
from gpuzoo.runs.folder import RunFolder
from gpuzoo.runs.record import FIT, read_run, run_id, seal
from gpuzoo.runtime.options import Options
from gpuzoo.training import continuing
from gpuzoo.training.session import check_trust, open_recorded, own_files

IDENTICAL, DIFFERS, CANNOT_COMPARE = "identical", "differs", "cannot compare"
OTHER_CLASS = "other class"
"""The re-run was on a processor of another class: only the figures are compared."""
EXIT_CODES = {
    IDENTICAL: ExitCode.DONE,
    DIFFERS: ExitCode.FAILED,
    CANNOT_COMPARE: ExitCode.MISUSE,
    OTHER_CLASS: ExitCode.MISUSE,
}


def verify(
    run: str | pathlib.Path,
    *,
    steps: int = 0,
    data: str | None = None,
    data_dir: str | None = None,
    devices: int | None = None,
    allow_drift: bool = False,
    trust_code: bool = False,
    note=lambda text: None,
) -> dict:
    """Re-run a run and compare it, loss by loss and digest by digest. The verdict is
    recorded in verify.json of the run folder, and report.html shows it.

    Args:
        run: the folder of a finished or stopped run.
        steps: compare only so many steps; 0: all, and the final weights.
        data, data_dir: where the data of the run are on this machine, if not where the
            run had them: a name, file or folder as for `train`. Their fingerprint must
            be the recorded one.
        devices: train again on so many, if not on as many as the run.
        allow_drift: compare although the environment differs.
        trust_code: execute user code, if the model is defined in a user file
            (path.py:function). Review it first if the run is not your own.
        note: called with lines for the user.

    Returns:
        `verdict` (identical, differs, cannot compare; other class, if the bits differ
        and the CPU is of another class than that of the run), `exit_code`, `steps`, how
        many were compared; `processor`, None or the names of both CPUs (`recorded`,
        `here`) if the run is from another one; `compared`, figures of both then
        (`name`, `recorded`, `here`); `first_difference` (step, what, variables; if the
        re-run diverged, the first step without a digest), `weights` (name -> ulp),
        `rows` of metrics.jsonl and digests.jsonl, and `figures` of run.json, that
        differ, `changed_files` (if nothing else differs and none of them can be read,
        the verdict is `cannot compare`), `environment` (fields, modules and inputs that
        differ) and `causes`, the likeliest first.

    Raises:
        GpuzooError: the folder is not a run, the run has not ended, steps is negative,
            or the run has user code and trust_code is False.
    """
    if steps < 0:
        raise GpuzooError(f"steps must be 0, for all, or more: {steps}")
    path = expand(run)
    recorded = read_run(path, sealed=False)
    how = {
        "data": data, "data_dir": data_dir, "devices": devices,
        "allow_drift": allow_drift,
    }  # fmt: skip
    verdict = _compare(path, recorded, steps, trust_code, note, **how)
    _record(path, verdict, recorded, note)
    return verdict


def _record(path: pathlib.Path, verdict: dict, recorded: dict, note) -> None:
    """Write the verdict into the run folder, and the report with it; say so if that
    cannot be done: the verdict holds all the same."""
    from gpuzoo import __version__
    from gpuzoo.report import page

    try:
        with RunFolder.open(path, sealed=False) as folder:
            folder.say = note
            if folder.record["seal"] == recorded["seal"]:
                content = derived.verdict_file(verdict, recorded, __version__)
                folder.write_file(derived.VERDICT, content)
                page.write(folder)
    except (GpuzooError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        note(f"{derived.VERDICT} and {derived.REPORT} were not written: {reason}")


def _compare(
    path: pathlib.Path, recorded: dict, steps: int, trust_code: bool, note, **how
) -> dict:
    """Return the verdict, as `verify` does; `how` to open the run."""
    check_ended(path, recorded, "verified")
    check_trust(path, own_files(recorded), trust_code, note)
    verdict: dict = {
        "verdict": IDENTICAL, "run_dir": redact(str(path)), "steps": 0,
        "first_difference": None, "weights": {}, "rows": [], "figures": [],
        "environment": [], "causes": [], "changed_files": changed_files(path, recorded),
        "processor": None, "compared": [],
    }  # fmt: skip

    try:
        recorded_rows, recorded_metrics, recorded_weights = (
            trail.read_digests(path),
            trail.read_metrics(path),
            trail.read_weights(path),
        )
        if recorded.get("initial_weights_sha256"):
            trail.read_weights(path, "initial_weights.safetensors")
    except GpuzooError:
        if not verdict["changed_files"]:
            raise
        word = of_files(path, verdict["changed_files"])
        return _conclude(verdict, word, path, recorded)

    opened = open_recorded(recorded, path, note, **how)
    session, differences = opened.session, opened.differences
    note(session.runtime.line())
    verdict["environment"] = [str(d) for d in (*differences, *opened.other_data)]
    verdict["processor"] = processors.names_of(opened)
    if session.model is None or processors.prevent(opened, how["allow_drift"]):
        return _conclude(verdict, CANNOT_COMPARE, path, recorded)

    stored = recorded_rows, recorded_metrics, recorded_weights
    differs = _run_again(verdict, opened, recorded, stored, steps)
    word = of_files(path, verdict["changed_files"])
    if differs and word != DIFFERS:
        word = _of_processors(verdict, opened, recorded)
    return _conclude(verdict, word, path, recorded)


def _run_again(
    verdict: dict, opened, recorded: dict, stored: tuple, steps: int
) -> bool:
    """Train the steps again, add what differs to the verdict, return whether any does.

    Args:
        stored: the rows of digests, the rows of metrics and the weights of the run.
        steps: how many, 0 for all.
    """
    session, (recorded_rows, recorded_metrics, recorded_weights) = (
        opened.session,
        stored,
    )
    verdict["figures"] = other_start(recorded, opened)
    before = session.given.step
    until = min(before + steps if steps else recorded["steps"], recorded["steps"])
    # A run that ended early by itself is not stopped: its last evaluation may reduce
    # the learning rate, too.
    early = (recorded.get("best") or {}).get("stopped_early", False)
    done = rerun.first_steps(opened, until + (early and until == recorded["steps"]))
    verdict["steps"] = until - before
    divergence = trail.first_divergence(recorded_rows, done.digests, until)
    if done.diverged:
        divergence = divergence or trail.Divergence(until, "weights", ())
        reason = str(done.diverged).partition(";")[0]
        verdict["causes"] = [f"in the re-run, {reason}"]
    if divergence:
        verdict["first_difference"] = divergence.as_record()
    whole = until == recorded["steps"] and not done.diverged
    for name, rows, theirs in (
        ("metrics.jsonl", recorded_metrics, done.metrics),
        ("digests.jsonl", recorded_rows, done.digests),
    ):
        pairs = trail.other_rows(rows, theirs, until, whole)
        verdict["rows"] += [in_words(name, *pair) for pair in pairs]
    if whole:
        result = done.result
        verdict["weights"] = trail.weight_differences(recorded_weights, result.weights)
        verdict["figures"] += other_fields(recorded, result, opened)
        verdict["figures"] += _other_trail(recorded, recorded_rows, done)
        if opened.processor:
            verdict["compared"] = processors.figures_of(recorded, result)
    if divergence and divergence.step <= recorded["recipe"]["digest_every"]:
        verdict["causes"] += causes.of_the_model(session)
    parts = ("weights", "rows", "figures")
    return bool(divergence) or any(verdict[part] for part in parts)


def _of_processors(verdict: dict, opened, recorded: dict) -> str:
    """Return the verdict on bits that differ; name another processor as the cause."""
    if opened.processor:
        verdict["causes"].insert(0, processors.cause(opened, recorded))
    return of_bits(opened, recorded, verdict["figures"])


def of_bits(opened, recorded: dict, told: list[str]) -> str:
    """Return the verdict on bits that differ: on another processor it is no proof that
    the record is false, unless the level promises the same bits there.

    Args:
        told: lines about figures that differ; some follow no processor.
    """
    promised = not opened.processor or compare.promises(recorded)
    certain = any(map(processors.does_not_depend, told))
    if certain or (promised and not processors.only_class(opened)):
        return DIFFERS
    return OTHER_CLASS if processors.is_other_class(opened) else CANNOT_COMPARE


def check_ended(path: pathlib.Path, recorded: dict, what: str) -> None:
    """Raise GpuzooError if a run has not ended, or diverged, and cannot be `what`."""
    if recorded["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"{path} is {recorded['state']}: only a finished or stopped run can be "
            + what
            + "; gpuzoo resume finishes it" * (recorded["state"] != "diverged")
        )


def of_files(path: pathlib.Path, changed: list[str]) -> str:
    """Return the verdict on changed files alone; unreadable ones are not compared."""
    if not changed:
        return IDENTICAL
    read = [name for name in changed if name == "run.json" or _digest(path, name)]
    return DIFFERS if read else CANNOT_COMPARE


def other_fields(recorded: dict, result, opened) -> list[str]:
    """Return fields of the record that the re-run does not reproduce."""
    session = opened.session
    before = dict(recorded["metrics"])
    here = dict(result.metrics)
    content = weights.weights_bytes(result.weights)
    here["weights_sha256"] = hashlib.sha256(content).hexdigest()
    for name in ("state", "steps", "epochs", "parameters", "best"):
        here[name] = getattr(result, name)
    before |= {name: recorded.get(name) for name in here if name not in result.metrics}
    data = session.dataset.as_record()
    of_place = () if opened.elsewhere else ("source", "findings")
    for name in (
        "classes", "input_shape", "train_examples", "val_examples", "test_examples",
        "scale", "table", "series", "text", *of_place,
    ):  # fmt: skip
        before[f"data/{name}"] = recorded["data"].get(name)
        here[f"data/{name}"] = data.get(name)
    before["error"], here["error"] = recorded["error"], None
    if sha256 := recorded["files"].get(continuing.STATE):
        again = hashlib.sha256(continuing.state_bytes(result)).hexdigest()
        before[continuing.STATE], here[continuing.STATE] = sha256, again
    if "init" in recorded:
        before["init"] = recorded["init"]["weights_sha256"]
        here["init"] = recorded.get("initial_weights_sha256")
    before["sparsity"], here["sparsity"] = recorded.get("sparsity"), result.sparsity
    before["reductions"], here["reductions"] = (
        recorded.get("reductions", []), result.reductions,
    )  # fmt: skip
    weights_of_classes = balance.class_weights(
        session.recipe.class_weight, session.dataset
    )
    before["class_weights"] = recorded.get("class_weights")
    here["class_weights"] = weights_of_classes
    for mine, record in ((before, recorded), (here, _record_again(opened))):
        runtime = record["runtime"]
        mine["runtime/seed"], mine["runtime/level"] = runtime["seed"], runtime["level"]
        if not (opened.differences or opened.processor):  # else there are others
            mine["runtime/reasons"] = _reasons(runtime)
        mine["weights"] = record.get("weights")
        mine["findings"] = record.get("findings", [])
    before["findings"] = before["findings"][len(_of_compile(recorded, opened)) :]
    for name, pair in evaluation.differences(recorded, result.evaluation).items():
        before[name], here[name] = pair
    return [
        f"{name}: {before.get(name)} in the run, {here.get(name)} again"
        for name in sorted({*before, *here})
        if repr(before.get(name)) != repr(here.get(name))
    ]


def _other_trail(recorded: dict, rows: list[dict], done: rerun.Done) -> list[str]:
    """Return how the root of the trail and the kept checkpoints differ; one that was
    lost before the run ended is not listed, and not compared."""
    found, again, mine = [], done.checkpoints, recorded.get("trail")
    if mine and mine != done.result.trail:
        found.append(f"trail: {mine} in the run, {done.result.trail} again")
    elif mine and not all("chain" in row for row in rows):
        found.append("trail: rows of digests.jsonl have no chain")
    listed = {c["step"]: c["state_sha256"] for c in recorded.get("checkpoints", [])}
    return found + [
        f"checkpoint of step {step}: {listed[step]} in the run, {again.get(step)} again"
        for step in sorted(listed)
        if listed[step] != again.get(step)
    ]


def other_start(recorded: dict, opened) -> list[str]:
    """Check what a run was started with and no re-run shows: the settings by its id,
    and that initial weights and state are from where the record says."""
    own, found = recorded.get("id", ""), []
    if own != run_id(recorded, _of_compile(recorded, opened), own[:16]):
        found.append(
            "id: recipe name, start time, command, options or compiled settings and "
            "the findings on them are not those that the run was started with"
        )
    init, parent = recorded.get("init"), recorded.get("parent")
    initial = recorded.get("initial_weights_sha256")
    if initial and not (init or parent or recorded.get("architecture_sha256")):
        found.append(
            "weights: the run began with weights of a file, and its record names "
            "neither a model object nor a run that they are from"
        )
    if recorded.get("initial_state_sha256") and not parent:
        found.append(
            "weights: the run began with the state of a file, and its record names no "
            "run that it goes on with"
        )
    if init and init["weights_sha256"] != initial:
        found.append("init: the initial weights are not those of the named run")
    return found


def _of_compile(recorded: dict, opened) -> list[str]:
    """Return the findings on the compile() of a model object: those before the others,
    which the re-run finds again."""
    if opened.session.given.architecture is None:
        return []
    found = recorded.get("findings", [])
    return found[: max(0, len(found) - len(opened.findings))]


def _record_again(opened) -> dict:
    """Return the fields of the record that are known when a run is set up."""
    session, seed = opened.session, opened.session.recipe.seed
    given = session.given
    fresh = given.fresh or given.content is None  # only a file holds given weights
    given = dataclasses.replace(given, fresh=fresh, findings=opened.findings)
    runtime = {**session.runtime.as_record(), "seed": seed}
    return {"runtime": runtime, **given.as_record()}


def _reasons(runtime: dict) -> dict:
    """Return the reasons for the runtime's settings that no option chooses: whether an
    option was named or left to gpuzoo may differ between processes of one runtime, and
    its value is compared itself."""
    left_out = {"onednn", *(field.name for field in dataclasses.fields(Options))}
    left_out.remove("level")
    return {k: v for k, v in sorted(runtime["reasons"].items()) if k not in left_out}


def in_words(file: str, recorded: dict | None, here: dict | None) -> str:
    """Describe a pair of rows that differ."""
    row = recorded or here
    if row is None:
        return f"{file}: duplicate rows, or another order"
    name = f"{file}: {row.get('split', 'digest')} row of step {row['step']}"
    if recorded is None:
        return f"{name} is missing"
    if here is None:
        return f"{name} is not in the re-run"
    keys = [k for k in {**recorded, **here} if recorded.get(k) != here.get(k)]
    values = [
        f"{key} {_short(recorded.get(key))} in the run, {_short(here.get(key))} again"
        for key in keys[:3]
    ]
    return f"{name}: {', '.join(values)}"


def _short(value) -> str:
    text = str(value)
    return text if len(text) < 24 else text[:20] + "..."


def changed_files(path: pathlib.Path, recorded: dict) -> list[str]:
    """Return files of a run that have changed since it ended.

    Links, pipes, devices and paths outside the folder are not read and count as
    changed; so do files that are missing or cannot be read.
    """
    own = FIT if "settings" in recorded else "run.json"
    changed = [] if recorded["seal"] == seal(recorded) else [own]
    for name, sha256 in recorded["files"].items():
        if _digest(path, name) != sha256:
            changed.append(name)
    if recorded["weights_sha256"] != recorded["files"].get("weights.safetensors"):
        changed.append("weights.safetensors")
    return list(dict.fromkeys(changed))


def _digest(path: pathlib.Path, name: str) -> str | None:
    """Return the sha256 of a file of a run; None if it cannot be read."""
    try:
        return hashlib.sha256(read_inside(path, name)).hexdigest()
    except (OSError, ValueError):
        return None


def _conclude(verdict: dict, word: str, path: pathlib.Path, recorded: dict) -> dict:
    verdict["verdict"], verdict["exit_code"] = word, EXIT_CODES[word]
    likely = verdict["causes"]
    if word == DIFFERS:
        likely += causes.of_other_environments(recorded)
    likely += causes.of_changed_files(path, verdict["changed_files"])
    likely += verdict["environment"]
    if not verdict["first_difference"] and not verdict["weights"]:
        likely += [
            *verdict["rows"][:3],
            *verdict["figures"],
        ]  # else they are consequences
    if word == DIFFERS and verdict["first_difference"]:
        if not recorded["runtime"]["deterministic"]:
            likely.append(
                "the run was at level fast, which does not guarantee identical results"
            )
        here = os.environ.get("PYTHONHASHSEED", "")
        if not compare.set_order(recorded) or not here.isdecimal():
            likely.append("the order of Python sets: PYTHONHASHSEED was not fixed")
        if not likely and verdict["first_difference"]["step"] == 1:
            likely.append(
                "other initial weights or examples, though code, data and package "
                "versions are those of the run: a package was edited"
            )
        if not verdict["changed_files"]:
            likely.append("a nondeterministic operation")
            likely.append("faulty hardware")
    return verdict
