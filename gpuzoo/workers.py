"""Worker processes: `python -m MODULE` with a JSON line as request, and as answer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable

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
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(lines[:2])[:400]
        if not isinstance(error, GpuzooError):
            text = f"{type(error).__name__}: {text}".removesuffix(": ")
        send({"error": text})


def command(module: str) -> list[str]:
    """Return the command that starts a worker."""
    return [sys.executable, "-m", module]


def ask(
    module: str, request: dict, env: dict[str, str], seconds: float | None = None
) -> dict:
    """Run a worker with these environment variables; return its first answer.

    Its `error`, if there is one, is that of the job, or says how the process ended.
    """
    try:
        done = subprocess.run(
            command(module), input=json.dumps(request) + "\n", env=env, text=True,
            capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"the process took longer than {seconds} s"}
    if done.stdout.strip():
        return json.loads(done.stdout)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("F")] or lines[-1:]
    return {"error": f"{how_it_ended(done.returncode)}: {''.join(fatal)[:300]}"}


def how_it_ended(code: int) -> str:
    """Describe the exit code of a process that sent no answer."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the process {how}"
