"""The processes of a job compare who they are before JAX joins them.

JAX's service would end them without a word of which host is wrong. Each process says
one line of JSON to the first one, and gets one back. Then the port is JAX's.
"""

import contextlib
import json
import platform
import secrets
import select
import socket
import sys
import threading
import time

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.environment import version_of
from gpuzoo.runtime.jobs import Place

_MOST = 4096  # bytes of a line
_PACKAGES = ("gpuzoo", "jax", "jaxlib", "keras")
_AGAIN = 0.2  # seconds between two attempts to reach the first process
_GRACE = 3.0  # seconds for a guest to speak, and for the others once one does not fit
# What a guest says of itself.
_SAID = {"rank": int, "count": int, "host": str, "versions": dict, "id": str}


def meet(place: Place, seconds: float) -> None:
    """Wait for the other processes of a job.

    Args:
        seconds: after which those that are missing are given up.

    Raises:
        GpuzooError: not all of them come, or one does not fit; it names the host.
    """
    waiting = threading.Timer(
        seconds / 4, print,
        [f"Waiting {seconds:.0f} s for the other processes of the job."],
        {"file": sys.stderr},
    )  # fmt: skip
    waiting.daemon = True
    waiting.start()
    me = {
        "rank": place.rank, "count": place.count, "host": platform.node(),
        "versions": {name: version_of(name) for name in _PACKAGES},
        "id": secrets.token_hex(),
    }  # fmt: skip
    try:
        # The port of a second first process is taken: it hears of it as the others do.
        server = _server(place) if place.rank == 0 else None
        error = _as_host(server, place, me, seconds) if server else ""
        if not server:
            error = _introduce(place, me, seconds)
    finally:
        waiting.cancel()
    if error:
        raise GpuzooError(
            f"distributed: the processes of the job do not meet: {error}; start all of "
            "them at once, with the same number of processes and address: by gpuzoo "
            "launch, torchrun, srun, mpirun, or a Kubernetes job"
        )


def _as_host(server: socket.socket, place: Place, me: dict, seconds: float) -> str:
    """Hear all processes, this one too; return why they do not meet, or ""."""
    stop = threading.Event()
    host = threading.Thread(target=_receive, args=(server, me, seconds, stop))
    with server:
        host.start()
        try:
            return _introduce(place, me, seconds)
        finally:
            stop.set()  # if another one has answered: this one does so at its end
            host.join()


def _server(place: Place) -> socket.socket | None:
    """Return a socket that listens on the port of the job; None if another does."""
    try:
        if place.is_here:
            return socket.create_server(("127.0.0.1", place.port), backlog=place.count)
        both = socket.has_dualstack_ipv6()
        return socket.create_server(
            ("", place.port), family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both, backlog=place.count,
        )  # fmt: skip
    except OSError:
        return None


# --- a guest --------------------------------------------------------------------------


def _introduce(place: Place, me: dict, seconds: float) -> str:
    """Say who this process is; return why it cannot take part, or ""."""
    end, why = time.monotonic() + seconds, "it does not answer"
    while (left := end - time.monotonic()) > 0:
        try:
            to = (place.address, place.port)
            with socket.create_connection(to, timeout=left) as wire:
                wire.sendall(json.dumps(me).encode() + b"\n")
                wire.settimeout(seconds + 2 * _GRACE)  # who is missing is said last
                answer = _line(wire)
            if answer and isinstance(answer.get("error"), str):
                return answer["error"]
            why = "another program answers there"
        except OSError as error:
            why = error.strerror or str(error)
        time.sleep(_AGAIN)
    where = f"{place.address}:{place.port}"
    return f"{me['host']} does not reach process 0 at {where} ({why})"


def _line(wire: socket.socket) -> dict | None:
    """Return the object in a line of JSON; None if there is none."""
    read = b""
    while not read.endswith(b"\n"):
        more = wire.recv(_MOST)
        if not more or len(read) > _MOST:
            return None
        read += more
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(read)
        if isinstance(said, dict):
            return said
    return None


# --- the host -------------------------------------------------------------------------


def _receive(
    server: socket.socket, me: dict, seconds: float, stop: threading.Event
) -> None:
    """Hear all processes, this one too; answer all when they are known."""
    end, error = time.monotonic() + seconds, ""
    here: dict[int, dict] = {}
    with contextlib.ExitStack() as stack:
        wires: list[socket.socket] = []
        # Once one does not fit, the others may be on their way.
        while (error or len(here) < me["count"]) and not stop.is_set():
            if time.monotonic() > end:
                error = error or _missing(me["count"], here)
                break
            if not select.select([server], [], [], _AGAIN)[0]:
                continue
            wire, _ = server.accept()
            stack.enter_context(wire)
            wire.settimeout(_GRACE)
            with contextlib.suppress(OSError):
                guest = _line(wire)
                if not (guest and _SAID.items() <= _types(guest).items()):
                    continue  # not of gpuzoo
                wires.append(wire)
                if fault := _misfit(guest, me, here):
                    error, end = error or fault, min(end, time.monotonic() + _GRACE)
                here.setdefault(guest["rank"], guest)
        for wire in wires:
            with contextlib.suppress(OSError):
                wire.sendall(json.dumps({"error": error}).encode() + b"\n")


def _types(guest: dict) -> dict:
    return {name: type(value) for name, value in guest.items()}


def _misfit(guest: dict, me: dict, here: dict[int, dict]) -> str:
    """Return why a process does not fit to those that are here, or ""."""
    rank, host = guest["rank"], guest["host"]
    other = me if rank == 0 else here.get(rank, guest)
    if other["id"] != guest["id"]:
        return f"there are two with rank {rank}, on {other['host']} and {host}"
    for name in ("count", "versions"):
        if guest[name] != me[name]:
            one, two = _differing(guest[name], me[name])
            return (
                f"process {rank} on {host} has {one}, and process 0 on {me['host']} "
                f"{two}"
            )
    return ""


def _differing(*pair) -> list[str]:
    """Return two numbers of processes, or the versions that differ."""
    if not isinstance(pair[0], dict):
        return [f"{count} as the number of processes" for count in pair]
    first = next(name for name in pair[1] if pair[0].get(name) != pair[1][name])
    return [f"{first} {versions.get(first)}" for versions in pair]


def _missing(count: int, here: dict[int, dict]) -> str:
    """Return who has not come, and who has."""
    ranks = ", ".join(str(rank) for rank in range(count) if rank not in here)
    hosts = ", ".join(f"{rank} on {here[rank]['host']}" for rank in sorted(here))
    return f"process {ranks} of {count} has not come, only {hosts or 'none'}"
