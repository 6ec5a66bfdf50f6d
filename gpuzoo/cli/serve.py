"""`gpuzoo serve`: a trained model as an HTTP service."""

import dataclasses
import math
import os

from gpuzoo.cli.parsing import Common, Flag, Output, Word
from gpuzoo.errors import GpuzooError


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve a trained model over HTTP: gpuzoo serve RUN, or a folder of gpuzoo export.

    A run is exported to ONNX first. Then http://127.0.0.1:8000/ is a page to draw a
    digit, and POST /predict takes JSON {"inputs": [...]} or a PNG or JPEG image; see
    /docs there. The service runs without TensorFlow, until Ctrl-C or SIGTERM.

    It listens on localhost. To serve other machines, use --host 0.0.0.0, which needs a
    token: --token-file FILE (mode 600), or GPUZOO_SERVE_TOKEN.
    """

    run: Word
    """A run folder, or a folder that `gpuzoo export` wrote."""
    host: str = "127.0.0.1"
    """Address or name to listen on; needs a token if it is not this machine's own."""
    port: int = 8000
    """Port to listen on; 0: a free one, which is printed."""
    token_file: str | None = None
    """File with the token, not readable by others: clients send it as
    "Authorization: Bearer TOKEN"."""
    sandbox: Flag = False
    """Run in bubblewrap (bwrap): no network but this port, no file to write."""
    max_bytes: int = 4_000_000
    """Largest body of a request, in bytes."""
    max_pixels: int = 16_000_000
    """Largest image, in pixels."""
    max_examples: int = 256
    """Most examples in a request."""
    rate: float = 50.0
    """Requests per second of one client (twice as many at once); 0: unlimited."""
    concurrency: int = 64
    """Requests that are answered at the same time."""
    timeout: float = 10.0
    """Seconds for receiving the header of a request, and its body."""
    threads: int = 2
    """Threads that compute predictions."""
    allow_drift: Flag = False
    """Export the run although the code of its model has changed."""
    trust_code: Flag = False
    """Execute the run's own code to export it, if its model is defined in a user's
    file."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy.serve import export, sandbox, server

        limits = self._limits()
        server.check_installed()  # before minutes of exporting
        token = server.read_token(
            self.token_file, os.environ.pop("GPUZOO_SERVE_TOKEN", None)
        )
        if self.sandbox:
            sandbox.find()
        sock = server.open_socket(self.host, self.port)
        with sock:
            if not token and not server.is_loopback(sock):
                raise GpuzooError(
                    f"--host {self.host} can be reached from other machines and needs "
                    "a token: --token-file FILE or GPUZOO_SERVE_TOKEN"
                )
            permitted = {
                "--allow-drift": self.allow_drift,
                "--trust-code": self.trust_code,
            }
            options = tuple(name for name, on in permitted.items() if on)
            folder = export.folder_of(self.run, self.output.note, options)
            url = server.url_of(sock)

            def started(*_) -> None:
                self.output.note(f"Serving {self.run} on {url} (Ctrl-C stops)")

            run = sandbox.run if self.sandbox else server.run
            found = run(folder, sock, limits, token, self.output.quiet, started)
        self.output.last_line({"url": url, **found})
        return 0

    def _limits(self):
        from gpuzoo.deploy.serve.guard import Limits

        whole = ("max_bytes", "max_pixels", "max_examples", "concurrency", "threads")
        for name in (*whole, "timeout"):
            if not 0 < getattr(self, name) < 10**9:
                flag = "--" + name.replace("_", "-")
                raise GpuzooError(f"{flag} must be above 0: {getattr(self, name)}")
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise GpuzooError(f"--rate must be 0 (unlimited) or more: {self.rate}")
        return Limits(
            self.max_bytes, self.max_pixels, self.max_examples, self.rate,
            self.concurrency, self.timeout, self.threads,
        )  # fmt: skip
