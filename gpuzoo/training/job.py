"""One training: compile the steps, run the loop, write the results."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from gpuzoo.errors import Diverged
from gpuzoo.home import redact
from gpuzoo.report.notebook import Run
from gpuzoo.report.progress import Screen
from gpuzoo.runs.folder import RunFolder
from gpuzoo.training import together
from gpuzoo.training.failures import raise_readably, record_failure
from gpuzoo.training.watching import OnEvent, Watchers

if TYPE_CHECKING:
    from gpuzoo.engine.program import Session


@dataclasses.dataclass(frozen=True)
class Job:
    """A training: its session, folder and screen."""

    session: "Session"
    folder: RunFolder
    screen: Screen
    begun: float
    on_event: OnEvent | None = None
    model: Any = None
    """The user's model object, which gets the trained weights."""


def carry_out(job: Job, interrupts, start) -> Run:
    """Train, write the results, print the summary."""
    from gpuzoo.engine import checkpoint, loop
    from gpuzoo.engine.backends import compile_cache
    from gpuzoo.runtime.keras_state import whole_tracebacks
    from gpuzoo.training import build, finish

    programs = compile_cache.lend(job.folder.record, job.screen.say)
    begun = start is not None or "resumed" in job.folder.record
    watchers = Watchers(job, programs, begun)
    watchers.before(start.history if start else ())
    interrupts.training, program = True, None
    try:
        with whole_tracebacks():
            together.agree(job.session)
            program, modules, inputs = build.trace_and_note(
                job.session, lambda line: job.screen.say(line, "yellow")
            )
            _record_traced(job, modules, inputs)
            together.begin(program, start)
            asked = lambda: interrupts.asked() or watchers.asked()  # noqa: E731
            result = loop.run(
                program,
                watch=watchers.watch,
                stop=together.stop_of(program, asked),
                folder=(folder := job.folder.sub(checkpoint.FOLDER)),
                keep=lambda one: checkpoint.keep(folder, one),
                resume=start,
                run_id=job.folder.record.get("id", ""),
            )
        job.screen.stop()
        watchers.close_trackers(result.state)
        finish.finish(job, result)
    except BaseException as error:
        if programs:
            programs.end()
        job.screen.stop()
        begun = watchers.begun or isinstance(error, Diverged)
        if begun:
            record_failure(job.folder, error)
            if isinstance(error, Diverged):
                if program:
                    _diagnose(job, error, program, interrupts)
                finish.write_report(job.folder, job.screen.say)
            watchers.failed(error)
        else:  # nothing to resume: leave the folder as it was
            job.folder.discard()
        raise_readably(job.folder, error, begun=begun)
    summary = finish.summary_of(job.folder)
    finish.say_end(job, summary)
    if job.model is not None:
        from gpuzoo.engine import model_objects

        described = job.session.given.architecture
        model_objects.give_back(job.model, job.folder.locate(), described)
    watchers.end(summary)
    return summary


def _diagnose(job: Job, error: Diverged, program, interrupts) -> None:
    """Find out why a training diverged; add it to the error and the record."""
    from gpuzoo.training import diagnosis

    job.screen.say(f"{error.what}; replaying the last steps to find out why.", "yellow")
    rows = []
    with contextlib.suppress(OSError):  # there are none before the first is logged
        rows = job.folder.metrics()
    found = diagnosis.diagnose(program, error, rows, interrupts.asked)
    error.diagnosis, error.run_dir = found, redact(str(job.folder.locate()))
    for line in found["lines"]:
        job.screen.say(line)
    with contextlib.suppress(OSError):
        job.folder.update(error=str(error), diagnosis=found)


def _record_traced(job: Job, modules: dict, inputs: dict) -> None:
    """Record imports and inputs that only tracing needed, before the first step counts.
    What is recorded already stays: a run continues as it began."""
    record = job.folder.record
    modules = dict(sorted({**modules, **record["code"]}.items()))
    inputs = dict(sorted({**inputs, **record["inputs"]}.items()))
    if (modules, inputs) != (record["code"], record["inputs"]):
        job.folder.update(code=modules, inputs=inputs)
