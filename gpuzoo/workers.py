"""Worker processes: `python -P -m MODULE` with JSON lines as request and answer."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator

from gpuzoo.errors import GpuzooError


def serve(job: Callable[[dict], Iterable[dict]]) -> None:
    """Run a worker: read the request and send each answer of `job(request)` as a line,
    one more on each line `go`. Its exception is the answer {"error": one line}.

    Whatever else the process prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        for answer in job(json.loads(sys.stdin.readline())):
            send(answer)
            if sys.stdin.readline() != "go\n":
                return
    except Exception as error:  # of a library or of the user's model, too
        send({"error": one_line(error)})


def one_line(error: Exception) -> str:
    """Return the first lines of an exception as one, with its type if not gpuzoo's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])[:400]
    if isinstance(error, GpuzooError):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def command(module: str) -> list[str]:
    """Return the command that starts a worker.

    With -P, as Python would import any file of the current folder before a library of
    that name. The folder of a user's model is added when the model is loaded.
    """
    return [sys.executable, "-P", "-m", module]


def ask(
    module: str, request: dict, env: dict[str, str], seconds: float | None = None
) -> dict:
    """Run a worker with these environment variables; return its first answer.

    Its `error`, if there is one, is that of the job, or says how the process ended.
    """
    return next(answers(module, request, env, seconds))


def answers(
    module: str, request: dict, env: dict[str, str], seconds: float | None = None
) -> Iterator[dict]:
    """Run a worker; yield its answers, the last one with how the process ended.

    Args:
        seconds: the longest time until each answer.
    """
    with (
        tempfile.TemporaryFile("w+") as messages,
        subprocess.Popen(
            command(module), env=env, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=messages,
        ) as process,
    ):  # fmt: skip
        line = json.dumps(request)
        while True:
            answer, late = _say(process, line, seconds)
            if not answer.endswith("\n"):
                break
            yield json.loads(answer)
            line = "go"
        process.wait()
        messages.seek(0)
        lines = [line for line in messages.read().splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("F")] or lines[-1:]
    how = (
        f"the process took longer than {seconds} s"
        if late
        else (f"{how_it_ended(process.returncode)}: {''.join(fatal)[:300]}")
    )
    yield {"error": how}


def _say(process: subprocess.Popen, line: str, seconds: float | None):
    """Send a line; return the answer, and whether it came too late."""
    clock = threading.Timer(seconds or threading.TIMEOUT_MAX, process.kill)
    clock.daemon = True
    clock.start()
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    except KeyboardInterrupt:
        process.kill()  # it may not get the signal, and write on
        raise
    late = clock.finished.is_set()
    clock.cancel()
    return answer, late


def how_it_ended(code: int) -> str:
    """Describe the exit code of a process that sent no answer."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the process {how}"
