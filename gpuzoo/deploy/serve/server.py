"""Run the service: socket, event loop, graceful stop."""

import asyncio
import contextlib
import ipaddress
import os
import pathlib
import signal
import socket
import stat

from gpuzoo.deploy.serve import artefact as artefacts
from gpuzoo.deploy.serve.guard import Limits
from gpuzoo.errors import GpuzooError
from gpuzoo.files import open_regular
from gpuzoo.runtime.environment import is_installed

_STOP_SECONDS = 30  # for the requests that are being answered
_SHORTEST_TOKEN = 16


def check_installed() -> None:
    """Raise GpuzooError unless the packages of the extra `serve` are installed."""
    for name in ("starlette", "uvicorn", "onnxruntime"):
        if not is_installed(name):
            raise artefacts.missing(name)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket; a port that a killed process left is free at once.

    Raises:
        GpuzooError: the name is unknown, or the port is in use or not allowed.
    """
    if not 0 <= port <= 65535:
        raise GpuzooError(f"port must be in 0..65535: {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Without the protocol, asyncio would not set TCP_NODELAY: 40 ms per answer.
        made = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise GpuzooError(f"host {host!r} is unknown ({error})") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        made.close()
        raise GpuzooError(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another "
            "with --port"
        ) from None
    return made


def is_loopback(sock: socket.socket) -> bool:
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_token(file: str | None, variable: str | None) -> str:
    """Return the token of a file or of the environment; "" if there is neither.

    Raises:
        GpuzooError: both, a file that others may read, or an unsuitable token.
    """
    if file and variable:
        raise GpuzooError(
            "give the token by --token-file or by GPUZOO_SERVE_TOKEN, not by both"
        )
    if not file and variable is None:
        return ""
    where = "GPUZOO_SERVE_TOKEN"
    if file:
        where, path = f"--token-file {file}", pathlib.Path(file).expanduser()
        try:
            with open(open_regular(path), "rb") as opened:
                mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
                text = opened.read(4096)
        except OSError as error:
            raise GpuzooError(
                f"{where} cannot be read: {error.strerror or error}"
            ) from None
        if mode & 0o077:
            raise GpuzooError(
                f"{where} may be read by others (mode {mode:04o}): chmod 600 {file}"
            )
        variable = text.decode("latin-1")
    token = variable.strip()
    if len(token) < _SHORTEST_TOKEN or not all("!" <= sign <= "~" for sign in token):
        raise GpuzooError(
            f"the token of {where} must have at least {_SHORTEST_TOKEN} characters, "
            "printable ASCII without spaces; for example: openssl rand -hex 32"
        )
    return token


def run(
    folder: pathlib.Path, sock: socket.socket, limits: Limits, token: str, quiet: bool,
    started=lambda artefact: None,
) -> dict:  # fmt: skip
    """Serve an export folder until SIGTERM or SIGINT; return counts of the requests.

    Requests that are being answered are finished, for 30 seconds at most.

    Args:
        sock: listens; if it is not on loopback, a token is required.
        started: called with the artefact when the service is about to answer.

    Raises:
        GpuzooError: the artefact cannot be loaded, or a library is missing.
    """
    if not token and not is_loopback(sock):
        raise GpuzooError("a token is required when not on loopback")
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise artefacts.missing(error.name) from None
    from gpuzoo.deploy.serve.app import make_app
    from gpuzoo.deploy.serve.inputs import limit_pixels
    from gpuzoo.deploy.serve.protocol import protocol

    limit_pixels(limits.pixels)
    artefact = artefacts.load(folder)
    app = make_app(artefact, limits, token, is_loopback(sock), quiet)
    config = uvicorn.Config(
        app, http=protocol(limits), ws="none", loop="asyncio", lifespan="off",
        log_config=None, log_level="critical", access_log=False, proxy_headers=False,
        server_header=False, timeout_graceful_shutdown=_STOP_SECONDS,
    )  # fmt: skip
    server = uvicorn.Server(config)
    # Uvicorn would end the process by the signal that stopped it.
    server.capture_signals = contextlib.nullcontext
    started(artefact)
    asyncio.run(_serve(server, sock))
    requests = app.metrics.requests
    return {
        "requests": requests.total(),
        "predictions": requests["POST", "/predict", 200],
        "examples": app.metrics.examples,
        "server_errors": sum(n for key, n in requests.items() if key[2] >= 500),
    }


async def _serve(server, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    await server.serve(sockets=[sock])
