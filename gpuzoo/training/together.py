"""Trainings of several processes: the first writes the run folder, the others follow.

All of them do the same steps and evaluations; the first alone stops, writes and prints.
"""

import contextlib
import hashlib
import json
import platform
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError
from gpuzoo.report.notebook import Run
from gpuzoo.runtime.configure import configure
from gpuzoo.runtime.environment import environment
from gpuzoo.runtime.options import Options
from gpuzoo.training import launch
from gpuzoo.workers import one_line

if TYPE_CHECKING:
    from gpuzoo.engine.checkpoint import Checkpoint
    from gpuzoo.engine.program import Program, Session

# Fields of the runtime that all processes must have.
_RUNTIME = (
    "device", "device_name", "precision", "level", "threads", "tf32", "devices",
    "processes", "autotune_sha256",
)  # fmt: skip


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
        The summary of the first process, and the `rank` of this one.
    """
    from gpuzoo.engine import checkpoint, loop
    from gpuzoo.training import build

    with _deaf():
        agree(session)
        program, _, _ = build.trace_and_note(session, lambda line: None)
        processes = program.backend.processes
        sent = begin(program, None)
        start = checkpoint.parse(sent) if sent else None
        loop.run(program, stop=stop_of(program), resume=start)
        summary = json.loads(processes.say(None))
    return Run(summary, rank=processes.rank)


@contextlib.contextmanager
def telling(distributed: bool):
    """Tell the other processes of an error in the block; they might wait for ever."""
    if distributed:
        launch.stop_with_launcher()
    try:
        yield
    except BaseException as error:
        if distributed:
            with contextlib.suppress(Exception):  # they have not met
                _processes().fail(one_line(error) or type(error).__name__)
        raise


def end(distributed: bool, summary: Run) -> Run:
    """Send the summary of a training to the processes that follow; return it."""
    if distributed:
        _processes().say(json.dumps(summary).encode())
    return summary


@contextlib.contextmanager
def _deaf():
    """Ignore signals in the block: the first process gets them, and stops all."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def begin(program: "Program", start: "Checkpoint | None") -> bytes:
    """Return the checkpoint to continue from, that of the first process, as a file.

    Raises:
        GpuzooError: the processes begin with different weights.
    """
    from gpuzoo.engine import checkpoint

    if program.session.runtime.processes == 1:
        return b""
    values = program.state.read(program.state.all)
    whole = hashlib.sha256()
    for name, array in values.items():
        whole.update(name.encode() + array.tobytes())
    processes = program.backend.processes
    told = processes.each(whole.hexdigest())
    if others := [rank for rank, one in enumerate(told) if one != told[0]]:
        raise GpuzooError(
            f"process {others[0]} begins with other weights than process 0; start all "
            "with the same command"
        )
    if processes.rank:
        return processes.say(None)
    return processes.say(checkpoint.content_of(start) if start else b"")


def stop_of(
    program: "Program", asked: Callable[[], bool] = lambda: False
) -> Callable[[], bool]:
    """Return the function that the loop asks whether to stop: in every process what is
    `asked` of the first one."""
    if program.session.runtime.processes == 1:
        return asked
    processes = program.backend.processes

    def stop() -> bool:
        return processes.say(b"stop" if asked() else b"go") == b"stop"

    return stop


def rank() -> int:
    """Return the rank of this process."""
    return _processes().rank


def _processes():
    from gpuzoo.engine.backends.processes import Processes

    return Processes()


def _facts(session: "Session") -> dict:
    """Return what results depend on, as JSON values."""
    found, runtime = environment(), session.runtime
    given = session.given.as_record()
    return {
        "fast_dev_run": session.fast,
        "cpu": found["cpu"],
        **{f"initial {name}": given[name] for name in sorted({*given} - {"findings"})},
        **{f"version of {name}": one for name, one in found["versions"].items()},
        "version of python": found["python"],
        **{f"runtime.{name}": getattr(runtime, name) for name in _RUNTIME},
        **{f"recipe.{k}": v for k, v in session.recipe.as_record().items()
           if k not in ("data_dir",)},
        "data.fingerprint": session.dataset.as_record()["fingerprint"],
        **{f"module {name}": digest for name, digest in session.code.items()},
        **{f"input {name}": digest for name, digest in session.inputs.items()},
    }  # fmt: skip
