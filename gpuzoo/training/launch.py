"""Start the processes of a training on this machine, and again if one of them ends."""

import dataclasses
import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from gpuzoo.errors import ExitCode, GpuzooError
from gpuzoo.files import expand
from gpuzoo.runs.record import read_run
from gpuzoo.workers import how_it_ended

# Seconds in which the other processes may end by themselves once one has.
_GRACE = 10.0
# Names a pipe whose other end only the launching process holds: it is closed when that
# process ends, however it ends.
_PIPE = "GPUZOO_LAUNCHED"


@dataclasses.dataclass(frozen=True)
class _Ended:
    """How the processes of an attempt have ended."""

    code: int
    """Of the first process; of another one, if that ended first."""
    what: str
    """For the user; empty if all is well."""
    killed: bool = False
    """Whether a signal has ended the first one that failed, and not on request."""


def launch(
    words: list[str],
    processes: int,
    *,
    restarts: int = 3,
    fewer: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """Train in several processes of this machine.

    Args:
        words: `train RECIPE ... --out RUN` or `resume RUN ...`, as for `gpuzoo`.
        processes: each with as many devices as `words` say.
        restarts: when a process ends before its time, all are started again from the
            last checkpoint, at most so often.
        fewer: then with half as many processes.
        note: called with lines for the user.

    Returns:
        The exit code of the first process.

    Raises:
        GpuzooError: the words are not those of a training.
    """
    if processes < 1 or restarts < 0:
        raise GpuzooError(
            f"processes must be at least 1, and restarts 0 or more: {processes}, "
            f"{restarts}"
        )
    run, words = _run_of(words), [*words, "--distributed"]
    _check(run, words, fewer)
    for left in range(restarts, -1, -1):
        ended = _attempt(words, processes)
        if not ended.what:
            return ended.code
        if not (left and ended.killed and _can_go_on(run)):
            note(ended.what)
            return ended.code if ended.code > 0 else ExitCode.MISUSE
        if fewer:
            processes = max(1, processes // 2)
        note(
            f"{ended.what}; restarting from the last checkpoint, {processes} process"
            f"{'es' * (processes != 1)}."
        )
        if words[0] == "train":
            kept = [word for word in words if word in ("--quiet", "--json", "--debug")]
            words = ["resume", str(run), "--distributed", *kept]
    raise AssertionError("not reached")


def _run_of(words: list[str]) -> pathlib.Path:
    """Return the run folder that the words name."""
    verb = words[0] if words else ""
    if verb == "resume":
        if len(words) < 2 or words[1].startswith("-"):
            raise GpuzooError("launch needs the run folder first: launch resume RUN")
        return expand(words[1])
    if verb == "train":
        for place, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name == "--out":
                value = value if equals else "".join(words[place + 1 : place + 2])
                return expand(value)
        raise GpuzooError(
            "launch needs --out RUN of gpuzoo train, the run folder to resume when a "
            "process ends"
        )
    raise GpuzooError(
        f"launch starts gpuzoo train or resume, not {verb!r}: gpuzoo launch "
        "--processes 2 train mnist --backend jax --elastic --out RUN"
    )


def _check(run: pathlib.Path, words: list[str], fewer: bool) -> None:
    """Raise GpuzooError for words that cannot be launched."""
    there = (run / "run.json").exists()
    given = {word.partition("=")[0] for word in words}
    if words[0] == "train" and there:
        raise GpuzooError(
            f"--out {run} is already a run; name another, or resume it: gpuzoo "
            f"launch ... resume {run}"
        )
    if words[0] == "resume" and given & {"--epochs", "--out"}:
        raise GpuzooError(
            "launch finishes an interrupted run: leave --epochs and --out out"
        )
    elastic = "--elastic" in given
    if there:
        elastic = read_run(run, sealed=False)["recipe"].get("elastic", False)
    if fewer and not elastic:
        raise GpuzooError(
            "--fewer needs an elastic training: its results would depend on the number "
            "of processes; add --elastic, or leave --fewer out"
        )


def _can_go_on(run: pathlib.Path) -> bool:
    """Whether a run has begun and not ended."""
    if not (run / "run.json").exists():
        return False
    return read_run(run, sealed=False)["state"] not in ("diverged", "finished")


def _attempt(words: list[str], count: int) -> _Ended:
    """Run all processes until they have ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = [pathlib.Path(folder) / str(rank) for rank in range(count)]
        asked: list[int] = []
        before, (theirs, ours) = _forward(started, asked), os.pipe()
        try:
            for rank in range(count):
                started.append(_start(words, rank, count, port, theirs, logs[rank]))
            ended = _watch(started, logs)
            if asked and ended.what:  # before the training could stop by itself
                return _Ended(ExitCode.INTERRUPTED, "")
            return ended
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(theirs)
            os.close(ours)


def stop_with_launcher() -> None:
    """Let this process get SIGTERM when the `launch` that has started it is gone.

    The first process then stops with a checkpoint, and stops the others.
    """
    pipe = os.environ.pop(_PIPE, "")  # not for processes that this one starts
    if pipe:
        args = (int(pipe),)
        threading.Thread(target=_wait_for_the_end, args=args, daemon=True).start()


def _wait_for_the_end(pipe: int) -> None:
    """Wait until the other end of a pipe is closed; then send SIGTERM to this
    process."""
    os.read(pipe, 1)  # nothing is ever written
    os.kill(os.getpid(), signal.SIGTERM)


def _start(
    words: list[str], rank: int, count: int, port: int, pipe: int, log: pathlib.Path
) -> subprocess.Popen:
    """Start one process; only the first one speaks to the user."""
    env = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank),
        _PIPE: str(pipe),
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "gpuzoo", *words]
    begin = functools.partial(
        subprocess.Popen, command, env=env, start_new_session=True, pass_fds=(pipe,)
    )
    if rank == 0:
        return begin()
    with log.open("wb") as file:
        return begin(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file)


def _forward(started: list[subprocess.Popen], asked: list[int]) -> dict:
    """Let signals reach the first process, which stops all; note them in `asked`, and
    return the handlers that were there before."""

    def forward(number, frame) -> None:
        asked.append(number)
        if started and started[0].poll() is None:
            started[0].send_signal(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        numbers.append(signal.SIGHUP)
    return {number: signal.signal(number, forward) for number in numbers}


def _watch(started: list[subprocess.Popen], logs: list[pathlib.Path]) -> _Ended:
    """Wait until all processes have ended. Once one has failed, the others get some
    time to end by themselves, and are killed then."""
    failed, deadline = None, None
    while any(process.poll() is None for process in started):
        codes = [process.poll() for process in started]
        if failed is None:
            bad = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            # Those that were killed first: others may have failed of that.
            bad.sort(key=lambda rank: codes[rank] >= 0)
            # The first one stops on request, with its own code.
            if bad and codes[0] != ExitCode.INTERRUPTED:
                failed, deadline = bad[0], time.monotonic() + _GRACE
        if deadline and time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in started]
    if codes[0] in (0, ExitCode.FAILED, ExitCode.INTERRUPTED):
        return _Ended(codes[0], "")
    if failed is None:
        failed = next((rank for rank, code in enumerate(codes) if code), 0)
    line = _last_line(logs[failed]) if failed else ""
    what = f"process {failed}: {how_it_ended(codes[failed])}"
    what = f"{what}: {line}" if line else what
    return _Ended(codes[failed], what, codes[failed] < 0)


def _last_line(log: pathlib.Path) -> str:
    """Return what a process has said last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("gpuzoo: error:")]
    return (errors or lines or [""])[-1][:300]
