"""What stands between the network and the service: limits, token, headers, log."""

import asyncio
import collections
import dataclasses
import hmac
import ipaddress
import json
import math
import sys
import time

from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.deploy.serve.metrics import Metrics

PATHS = ("/", "/predict", "/health", "/metrics", "/openapi.json", "/docs")
# A browser cannot send a token with these; they hold no more than the model's form.
OPEN = ("/", "/health", "/openapi.json", "/docs")
_METHODS = ("GET", "HEAD", "POST")
_CLIENTS = 10_000  # whose rates are remembered
_DRAIN_BYTES, _DRAIN_SECONDS = 16_000_000, 2.0
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        bytes: of a body.
        pixels: of an image.
        examples: of a request.
        rate: requests per second of one client, with twice as many at once; 0: any.
        concurrency: requests that are answered at the same time.
        seconds: for receiving a request's header, and its body.
        threads: that compute.
    """

    bytes: int = 4_000_000
    pixels: int = 16_000_000
    examples: int = 256
    rate: float = 50.0
    concurrency: int = 64
    seconds: float = 10.0
    threads: int = 2


class Rates:
    """A token bucket for each client."""

    def __init__(self, rate: float):
        self.rate = rate
        self._buckets: collections.OrderedDict = collections.OrderedDict()

    def check(self, client: str, now: float) -> None:
        """Count a request.

        Raises:
            Refused: the client has sent too many.
        """
        if not self.rate:
            return
        burst = max(1.0, 2 * self.rate)
        left, then = self._buckets.pop(client, (burst, now))
        left = min(burst, left + (now - then) * self.rate)
        self._buckets[client] = (max(0.0, left - 1) if left >= 1 else left, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = math.ceil((1 - left) / self.rate)
            raise Refused(429, "too many requests", retry_after=str(wait))


class Guard:
    """ASGI: admit a request or refuse it; count, time and log it."""

    def __init__(
        self, app, limits: Limits, metrics: Metrics, token: str, local: bool,
        quiet: bool,
    ):  # fmt: skip
        self.app, self.limits, self.metrics = app, limits, metrics
        self.token, self.local, self.quiet = token.encode(), local, quiet
        self.rates = Rates(limits.rate)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        answer = _Answer(send, self.metrics)
        start = time.perf_counter()
        self.metrics.in_flight += 1
        try:
            self._admit(scope)
            await self.app(scope, receive, answer)
        except Refused as error:
            await refuse(answer, error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._log_error(error)
            if not answer.status:
                await refuse(answer, Refused(500, "internal error"))
        finally:
            self.metrics.in_flight -= 1
            self._count(scope, answer, time.perf_counter() - start)

    def _admit(self, scope) -> None:
        path = scope["path"]
        if self.metrics.in_flight > self.limits.concurrency:
            raise Refused(503, "too many requests at the same time", retry_after="1")
        if path != "/health":
            self.rates.check(_client(scope), time.monotonic())
        names = [value for name, value in scope["headers"] if name == b"host"]
        if self.local and not (len(names) == 1 and _is_local(names[0])):
            # A foreign page whose name leads to this machine (DNS rebinding).
            raise Refused(421, "the Host header must be that of this machine")
        if self.token and path not in OPEN and not self._knows(scope):
            raise Refused(
                401, "a token is required: Authorization: Bearer TOKEN",
                www_authenticate="Bearer",
            )  # fmt: skip

    def _knows(self, scope) -> bool:
        given = [v for name, v in scope["headers"] if name == b"authorization"]
        scheme, _, word = (given[0] if len(given) == 1 else b"").partition(b" ")
        same = hmac.compare_digest(word.strip(), self.token)
        return same and scheme.lower() == b"bearer"

    def _count(self, scope, answer: "_Answer", seconds: float) -> None:
        # Only known words: whatever a client sends stays out of the log and the labels.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        path = scope["path"] if scope["path"] in PATHS else "other"
        status = answer.status or 499  # the client has gone
        self.metrics.count(method, path, status)
        if path == "/predict" and status == 200:
            self.metrics.time(seconds)
        if not self.quiet:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            _write(
                f"{now} {_client(scope)} {method} {path} {status} "
                f"{answer.bytes} bytes {1000 * seconds:.1f} ms"
            )

    def _log_error(self, error: Exception) -> None:
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        code = trace.tb_frame.f_code
        _write(
            f"gpuzoo: internal error: {type(error).__name__} in {code.co_name}, line "
            f"{trace.tb_lineno} of {code.co_filename}"
        )


class _Answer:
    """ASGI send: adds the headers of every answer, counts its bytes."""

    def __init__(self, send, metrics: Metrics):
        self._send, self._metrics = send, metrics
        self.status = self.bytes = 0

    async def __call__(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = dict(message["headers"])
            for name, value in HEADERS.items():
                headers.setdefault(name.encode(), value.encode())
            if self.status >= 400:
                # The rest of a refused body is not waited for.
                headers[b"connection"] = b"close"
            message = {**message, "headers": list(headers.items())}
        else:
            size = len(message.get("body", b""))
            self.bytes += size
            self._metrics.sent += size
        await self._send(message)


async def refuse(send, error: Refused) -> None:
    """Answer with a line of JSON."""
    body = error_body(str(error))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error.headers,
    }
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    start = {"type": "http.response.start", "status": error.status, "headers": raw}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def error_body(text: str) -> bytes:
    return json.dumps({"error": text}).encode() + b"\n"


async def read_body(request, limits: Limits, metrics: Metrics) -> bytes:
    """Return a request's body.

    Raises:
        Refused: it is too large, whether or not its length was announced, or slow.
    """
    too_large = Refused(413, f"the body has more than {limits.bytes:,} bytes")
    length = request.headers.get("content-length", "")
    stream, body = request.stream(), bytearray()
    if length.isdecimal() and int(length) > limits.bytes:
        if "expect" not in request.headers:  # else the client waits for permission
            await _drain(stream)
        raise too_large
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in stream:
                metrics.received += len(chunk)
                body += chunk
                if len(body) > limits.bytes:
                    break
    except TimeoutError:
        raise Refused(
            408, f"the body was not received within {limits.seconds:g} seconds"
        ) from None
    if len(body) > limits.bytes:
        body.clear()
        await _drain(stream)
        raise too_large
    return bytes(body)


async def _drain(stream) -> None:
    """Discard the rest of a body for a moment: a client that is still sending would
    see a closed connection in place of the answer."""
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return
    except TimeoutError:
        return


def _client(scope) -> str:
    """Return the client's address; of IPv6 the network, which one client often has."""
    text = (scope.get("client") or ("unknown",))[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "unknown"
    if address.version == 6 and not address.is_loopback:
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _is_local(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    name = name.rpartition(":")[0] if name.rpartition(":")[2].isdecimal() else name
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _write(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # whoever read the log has gone
        return
