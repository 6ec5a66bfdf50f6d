"""Resume: finish a stopped or killed run, or train a finished one for more epochs."""

import pathlib
import time
from collections.abc import Iterable

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.report.notebook import Run
from gpuzoo.report.progress import Screen
from gpuzoo.runs import drift
from gpuzoo.runs.derived import REPORT
from gpuzoo.runs.folder import RunFolder
from gpuzoo.runs.record import architecture_of, now, options_of, read_run, recipe_of
from gpuzoo.training import autotune, continuing, together, watching
from gpuzoo.training.failures import raise_readably
from gpuzoo.training.interrupts import Interrupts
from gpuzoo.training.job import Job, carry_out
from gpuzoo.training.session import (
    Recorded,
    open_recorded,
    own_files,
    set_onednn,
    with_devices,
)
from gpuzoo.training.train import of_session, say_start, train_new
from gpuzoo.training.watching import OnEvent


def resume(
    run: str | pathlib.Path,
    *,
    epochs: int | None = None,
    out: str | None = None,
    allow_drift: bool = False,
    devices: int | None = None,
    distributed: bool = False,
    on_event: OnEvent | None = None,
    track: str | Iterable[str] | None = None,
    quiet: bool = False,
) -> Run:
    """Finish a run that was stopped or killed, with the same results to the bit; or go
    on with a finished run for more epochs, as a new run.

    Args:
        run: the run folder.
        epochs: of a finished run: train so many more, from its final weights, state of
            the optimizer and place in the order of examples. The learning rate is that
            of the whole length: with a constant one, the new run ends with the weights
            that the run would have with so many epochs.
        out: with epochs: the new run folder; default: the next free one.
        allow_drift: continue although the environment has changed; that is recorded.
        devices: continue on so many, if not on as many as before.
        distributed: continue together with the other processes of a job.
        on_event: as for `train`.
        track: other trackers than those of the run, () for none.
        quiet: print nothing.

    Returns:
        The summary, as `train` does; of a run that had already finished, too.

    Raises:
        GpuzooError: the environment or the data differ from those of the run (the
            fields are named), the run diverged, or the weights or rows of a finished
            run have been changed.
    """
    begun = time.perf_counter()
    if epochs is not None:
        if distributed:
            raise GpuzooError(
                "distributed is for the rest of an interrupted run; leave it or epochs "
                "out"
            )
        if allow_drift:
            raise GpuzooError(
                "allow_drift is for the rest of an interrupted run, and with epochs a "
                "new one begins; leave it out"
            )
        watched = on_event, track
        return _go_on(
            run, epochs, begun, devices, out=out, watched=watched, quiet=quiet
        )
    if out is not None:
        raise GpuzooError(
            f"out={out!r} is for the new run of resume with epochs; a run is resumed "
            "in its own folder: leave it out"
        )
    where = {"devices": devices, "distributed": distributed}
    with together.telling(distributed):
        if distributed and _follows(run, devices):
            return _follow(run, allow_drift, where)
        done = _finish(
            run, allow_drift, where, begun, watched=(on_event, track), quiet=quiet
        )
        return together.end(distributed, done)


def _follow(run: str | pathlib.Path, allow_drift: bool, where: dict) -> Run:
    """Continue as a process that follows the first one."""
    record = read_run(run, sealed=False)
    if record["state"] == "finished":
        return Run(state="finished", rank=together.rank())
    opened = open_recorded(
        record, expand(run), lambda text: None, allow_drift=allow_drift, **where
    )
    return together.follow(opened.session)


def _finish(
    run, allow_drift: bool, where: dict, begun: float, *, watched, quiet: bool
) -> Run:
    """Finish a run that was interrupted."""
    on_event, track = watched
    screen = Screen(quiet)
    with Interrupts() as interrupts, RunFolder.open(run) as folder:
        folder.say = lambda text: screen.say(text, "yellow")
        recorded = folder.record
        if recorded["state"] == "finished":
            # Read before anything is said of it: a damaged model is refused.
            architecture_of(recorded, folder.path, folder.read_file)
            return _summary(folder, screen, run, track)
        names = watching.check(
            on_event, recorded.get("track", ()) if track is None else track
        )
        opened = _open(folder, screen, allow_drift, where)
        drifted = _differences(opened, folder, screen, allow_drift)
        start = _last_checkpoint(folder, screen)
        if opened.session.model is None:
            what = "cannot be resumed, its model cannot be built"
            drift.refuse(drifted, f"{folder.path} {what}")
        interrupts.end_if_asked()
        step = start.step if start else opened.session.given.step
        try:
            _record_again(folder, opened, names, {"step": step, "drift": drifted})
            folder.restore(start.history if start else [])
        except OSError as error:
            raise_readably(folder, error)
        say_start(screen, opened.session)
        screen.say(f"Resuming after step {step}.")
        job = Job(opened.session, folder, screen, begun, on_event)
        return carry_out(job, interrupts, start)


def _summary(folder, screen, run, track) -> Run:
    """Return the summary of a finished run, with what a kill at its very end left."""
    from gpuzoo.training import finish

    if track:
        screen.say(f"{run} has finished: there is nothing to track.", "yellow")
    finish.check_results(folder)
    finish.remove_checkpoints(folder)  # killed before it did
    if not folder.find(REPORT):
        finish.write_report(folder, folder.say)
    screen.say(f"{folder.path} has finished: nothing is left to train.")
    return finish.summary_of(folder)


def _follows(run: str | pathlib.Path, devices: int | None) -> bool:
    """Whether this process follows another one."""
    record = read_run(run, sealed=False)
    options = with_devices(options_of(record), record, devices, True)
    return together.follows(options, recipe_of(record))


def _open(folder, screen, allow_drift: bool, where: dict) -> Recorded:
    """Open the session of a run that has not finished."""
    recorded = folder.record
    described = architecture_of(recorded, folder.path, folder.read_file)
    if recorded["state"] == "diverged":
        raise GpuzooError(f"{folder.path} has diverged: {recorded['error']}")
    if allow_drift and options_of(recorded).level == "strict":
        raise GpuzooError(
            f"{folder.path} was trained at level strict, which allows no drift; "
            "leave --allow-drift out"
        )
    for file in own_files(recorded):
        screen.say(f"Executing the run's own code: {file}.")
    if recorded["runtime"] is None:  # killed during set-up
        recipe, options = recipe_of(recorded), options_of(recorded)
        autotune.tune(recipe, options, described, screen.say)
    return open_recorded(
        recorded, folder.path, folder.say, allow_drift=allow_drift, **where
    )


def _differences(opened: Recorded, folder, screen, allow_drift: bool) -> list:
    """Return what differs here from the environment of the run.

    Raises:
        GpuzooError: it may change bits and is not allowed, or the data are others.
    """
    found = list(opened.differences)
    if opened.processor:
        found = [opened.processor, *found]
    what = "cannot be resumed, its data have changed"
    drift.refuse(opened.other_data, f"{folder.path} {what}")
    if opened.processor and drift.promises(folder.record) and len(found) == 1:
        screen.say(f"Resuming on another processor: {opened.processor}.")
    elif not allow_drift:
        what = "cannot be resumed to the same bits (--allow-drift does it anyway)"
        if opened.processor:
            what = (
                "cannot be resumed to the same bits on another processor, which "
                "only level portable promises (--allow-drift does it anyway)"
            )
        drift.refuse(found, f"{folder.path} {what}")
    return found


def _last_checkpoint(folder, screen):
    """Return the last whole checkpoint, or None if the run had none yet."""
    from gpuzoo.engine import checkpoint

    recorded = folder.record
    start, damaged = checkpoint.load(folder.sub(checkpoint.FOLDER), recorded.get("id"))
    for name in damaged:
        screen.say(
            f"Checkpoint {name} is damaged, a link or of another run; using an "
            "older one.", "yellow",
        )  # fmt: skip
    if start is None and (damaged or recorded["state"] == "stopped"):
        raise GpuzooError(
            f"{folder.path} cannot be resumed: its checkpoints are missing or "
            "damaged; restore them, or train again with another --out"
        )
    return start


def _record_again(folder, opened: Recorded, names, resumed: dict) -> None:
    """Let the record say that the run was resumed, and where."""
    recorded, given = folder.record, opened.session.given
    known = {"recipe", "code", "inputs", *given.as_record()}
    if opened.processor and not opened.differences:
        known.add("runtime")  # its reasons are those of where it began
    if recorded["runtime"] is None:  # killed before they were known
        folder.clear_trail()
        known = set()
    drifted = list(map(str, resumed["drift"]))
    folder.update(
        state="running",
        error=None,
        metrics={},  # those of a stop
        **({"evaluation": {}} if "evaluation" in recorded else {}),
        best=None,
        **({"trail": None} if "trail" in recorded else {}),
        **({"track": list(names)} if names or "track" in recorded else {}),
        **({"reductions": []} if "reductions" in recorded else {}),
        **{k: v for k, v in of_session(opened.session).items() if k not in known},
        resumed=[
            *recorded.get("resumed", []),
            {"at": now(), **resumed, "drift": drifted},
        ],
    )


def _go_on(run, epochs: int, begun: float, devices, *, watched, **how) -> Run:
    """Go on with a finished run, as a new one."""
    recipe, options, given, record = continuing.from_parent(run, epochs)
    options = with_devices(options, record, devices, False)
    on_event, track = watched
    track = watching.check(
        on_event, record.get("track", ()) if track is None else track
    )
    own = [f"Executing the run's own code: {file}." for file in own_files(record)]
    set_onednn(record)
    return train_new(
        recipe, options, given, begun, source=run, watched=(on_event, track), **how,
        first_lines=lambda session: own + continuing.check(record, session, run),
    )  # fmt: skip
