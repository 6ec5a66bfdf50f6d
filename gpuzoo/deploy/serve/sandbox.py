"""Run the service inside bubblewrap, which has no network and no writable file."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import gpuzoo
from gpuzoo.deploy.serve.guard import Limits
from gpuzoo.errors import GpuzooError

_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf",
           "/etc/ld.so.conf.d")  # fmt: skip
_INSIDE = "/artefact"
_PACKAGE = pathlib.Path(gpuzoo.__file__).parent


def find() -> str:
    """Return the path of bwrap.

    Raises:
        GpuzooError: it is not installed.
    """
    if not (found := shutil.which("bwrap")):
        raise GpuzooError(
            "--sandbox needs bubblewrap (bwrap), which is not installed: apt install "
            "bubblewrap, or leave --sandbox out"
        )
    return found


def run(
    folder: pathlib.Path, sock: socket.socket, limits: Limits, token: str, quiet: bool,
    started=lambda: None,
) -> dict:  # fmt: skip
    """Serve an export folder as `server.run` does, in a sandbox.

    The service inherits the listening socket; it has no other network, no capabilities,
    a file system that it cannot write, and sees only Python and the export folder.

    Raises:
        GpuzooError: bwrap is missing or fails, or the service does.
    """
    command = [find(), *_options(folder)]
    ends = os.pipe(), os.pipe()  # what bwrap and what the service reports
    (info, info_end), (report, report_end) = ends
    command[1:1] = ["--info-fd", str(info_end)]
    command += [sys.executable, "-P", "-m", "gpuzoo.deploy.serve.worker"]
    settings = {
        "folder": _INSIDE, "socket": sock.fileno(), "report": report_end,
        "limits": dataclasses.asdict(limits), "token": token, "quiet": quiet,
    }  # fmt: skip
    with open(info) as information, open(report) as reports:
        # In a session of its own: Ctrl-C in a terminal must not kill bwrap.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            start_new_session=True, env=_environment(),
            pass_fds=(sock.fileno(), info_end, report_end),
        )  # fmt: skip
        os.close(info_end)
        os.close(report_end)
        sock.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(settings).encode())
            process.stdin.close()
        with _forwarded(information.read()):
            found = _follow(reports, started)
            code = process.wait()
    if "error" in found:
        raise GpuzooError(found["error"])
    if "requests" not in found:
        raise GpuzooError(
            f"the service in the sandbox ended with exit code {code}; try without "
            "--sandbox"
        )
    return found


def _follow(reports, started) -> dict:
    """Read the service's reports until it ends; return the last."""
    found: dict = {}
    for line in reports:
        found = json.loads(line)
        if found == {"started": True}:
            started()
    return found


@contextlib.contextmanager
def _forwarded(information: str):
    """Pass SIGTERM and SIGINT on to the service, which stops when its answers are
    sent."""
    number = json.loads(information)["child-pid"] if information else 0

    def stop(*_) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number:
                os.kill(number, signal.SIGTERM)

    before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _options(folder: pathlib.Path) -> list[str]:
    found = [
        "--unshare-all", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL",
        "--uid", "65534", "--gid", "65534", "--hostname", "gpuzoo", "--proc", "/proc",
        "--dev", "/dev",
    ]  # fmt: skip
    for path in _SYSTEM:
        found += ["--ro-bind-try", path, path]
    for path in _python():
        found += ["--ro-bind", path, path]
    found += ["--ro-bind", str(folder.resolve()), _INSIDE, "--chdir", "/"]
    return [*found, "--remount-ro", "/dev", "--remount-ro", "/"]


def _python() -> list[str]:
    """Return the folders of Python, its packages and gpuzoo, without those inside of
    another. The folder around an editable install holds more than the package."""
    paths = {sys.prefix, sys.base_prefix, str(_PACKAGE), *_packages()}
    kept: list[str] = []
    for path in sorted(map(os.path.abspath, paths)):
        if not any(f"{path}/".startswith(f"{other}/") for other in (*kept, "/usr")):
            kept.append(path)
    return kept


def _packages() -> list[str]:
    """Of the import path, without the current folder and what the user has added."""
    return [path for path in sys.path if path.endswith("-packages")]


def _environment() -> dict[str, str]:
    """Nothing of the user's: variables often hold secrets."""
    paths = os.pathsep.join([str(_PACKAGE.parent), *_packages()])
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": paths, "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
