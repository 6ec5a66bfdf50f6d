"""Trainings of several processes: the first writes the run folder, the others follow.

All of them do the same steps and evaluations; the first alone stops, writes and prints.
"""

import json
import platform
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError
from gpuzoo.report.notebook import Run
from gpuzoo.runtime.configure import configure
from gpuzoo.runtime.environment import environment
from gpuzoo.runtime.options import Options

if TYPE_CHECKING:
    from gpuzoo.engine.checkpoint import Checkpoint
    from gpuzoo.engine.program import Program, Session

# Fields of the runtime that all processes must have.
_RUNTIME = ("device", "precision", "level", "threads", "tf32", "devices", "processes")


def follows(options: Options, recipe: Recipe) -> bool:
    """Whether this process follows another one, for which it meets the others of its
    job.

    Raises:
        GpuzooError: there is no job, or not all of its processes come.
    """
    if not options.distributed:
        return False
    from gpuzoo.training.session import with_threads

    configure(with_threads(options, recipe), seed=recipe.seed, quiet=True)
    return _processes().rank > 0


def follow(session: "Session") -> Run:
    """Train as a process that follows the first one.

    Returns:
        state, steps and the rank of this process.
    """
    from gpuzoo.engine import checkpoint, loop
    from gpuzoo.training import build

    # The first process is told to stop, and tells the others.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    agree(session)
    program, _, _ = build.trace_and_note(session, lambda line: None)
    sent = program.backend.processes.say(None)
    start = checkpoint.parse(sent) if sent else None
    result = loop.run(program, stop=stop_of(program), resume=start)
    return Run(
        state=result.state, steps=result.steps, rank=program.backend.processes.rank
    )


def agree(session: "Session") -> None:
    """Compare with the other processes what results depend on.

    Raises:
        GpuzooError: one differs; it names the host.
    """
    if session.runtime.processes == 1:
        return
    facts = {"host": platform.node(), **_facts(session)}
    told = [json.loads(text) for text in _processes().each(json.dumps(facts))]
    first = told[0]
    for rank, other in enumerate(told):
        names = [n for n in {**first, **other} if first.get(n) != other.get(n)]
        names = [name for name in names if name != "host"]
        if names:
            name, host = names[0], first["host"]
            raise GpuzooError(
                f"process {rank} on {other['host']} has {name} {other.get(name)!r}, "
                f"and process 0 on {host} has {first.get(name)!r}; they must be the "
                "same in all processes of a training"
            )


def begin(program: "Program", start: "Checkpoint | None") -> None:
    """Send the checkpoint to continue from to the processes that follow."""
    from gpuzoo.engine import checkpoint

    if program.session.runtime.processes > 1:
        program.backend.processes.say(checkpoint.content_of(start) if start else b"")


def stop_of(
    program: "Program", asked: Callable[[], bool] = lambda: False
) -> Callable[[], bool]:
    """Return the function that the loop asks whether to stop: in every process what is
    `asked` of the first one."""
    if program.session.runtime.processes == 1:
        return asked
    processes = program.backend.processes

    def stop() -> bool:
        return processes.say(b"stop" if asked() else b"") == b"stop"

    return stop


def _processes():
    from gpuzoo.engine.backends.processes import Processes

    return Processes()


def _facts(session: "Session") -> dict:
    """Return what results depend on, as JSON values."""
    found, runtime = environment(), session.runtime
    return {
        **{f"version of {name}": one for name, one in found["versions"].items()},
        "version of python": found["python"],
        **{f"runtime.{name}": getattr(runtime, name) for name in _RUNTIME},
        **{f"recipe.{k}": v for k, v in session.recipe.as_record().items()
           if k not in ("data_dir",)},
        "data.fingerprint": session.dataset.as_record()["fingerprint"],
        **{f"module {name}": digest for name, digest in session.code.items()},
        **{f"input {name}": digest for name, digest in session.inputs.items()},
    }  # fmt: skip
