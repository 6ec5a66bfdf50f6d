"""`gpuzoo serve`: what a client cannot do: sizes, times, rates, hosts, tokens."""

import concurrent.futures
import contextlib
import pathlib
import socket
import time

import pytest
import serving
from serving import TOKEN, images

from gpuzoo.deploy.serve import server
from gpuzoo.deploy.serve.guard import Rates
from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.errors import GpuzooError

serving.skip_without_extra()


def test_foreign_host_names_are_refused(service):
    """A page elsewhere whose name leads to 127.0.0.1 (DNS rebinding)."""
    for host in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "0x7f.1",
        "",
    ):
        assert service.error("/health", host=host)[0] == 421
    for host in (
        "localhost",
        f"localhost:{service.port}",
        "127.0.0.1",
        "[::1]:80",
        "127.9.9.9",
    ):
        assert service.ask("/health", host=host)[0] == 200


def test_oversized_bodies_are_refused(service):
    assert service.error(body=b" " * 1_000_000) == (
        413,
        "the body has more than 200,000 bytes",
    )
    # Without an announced length, in chunks: a generator as the body.
    parts = (b" " * 10_000 for _ in range(100))
    assert service.error(body=parts)[0] == 413
    # In chunks without an end: refused when the limit is reached, not when time is up.
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
    with socket.create_connection((service.host, service.port), 20) as sock:
        sock.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        sock.sendall(b"40000\r\n" + b" " * 0x40000 + b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 413")
    # Announced and never sent: at once.
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
    found = service.raw(
        head + b"content-length: 99999999999999999999\r\nexpect: 100-continue\r\n\r\n"
    )
    assert found.startswith(b"HTTP/1.1 413") and b"100 Continue" not in found


def test_slow_bodies_and_headers_are_refused(service):
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 900\r\n"
    kinds = {
        "body": head + b"\r\nabc",
        "header": head,
        "second header": head,
        "nothing": b"",
    }
    first = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"

    def send(kind: str) -> bytes:
        return service.raw(
            kinds[kind], before=first if kind == "second header" else b""
        )

    with concurrent.futures.ThreadPoolExecutor() as pool:
        start = time.monotonic()
        found = dict(zip(kinds, pool.map(send, kinds), strict=True))
        assert 1 < time.monotonic() - start < 15
    for kind in ("body", "header", "second header"):
        assert b"HTTP/1.1 408" in found[kind] and b'{"error": "the ' in found[kind], (
            kind
        )
    assert found["nothing"] in (b"",) or found["nothing"].startswith(b"HTTP/1.1 408")


def test_one_byte_after_the_other_does_not_extend_the_time(service):
    with socket.create_connection((service.host, service.port), 20) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
                     b"content-length: 900\r\n\r\n")  # fmt: skip
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 10:
                sock.sendall(b"x")
                time.sleep(0.2)
        assert time.monotonic() - start < 8


def test_who_does_not_read_is_disconnected(service):
    with socket.create_connection((service.host, service.port), 20) as sock:
        sock.settimeout(1)
        one = b"GET /docs HTTP/1.1\r\nhost: localhost\r\n\r\n"
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - start < 20:
                with contextlib.suppress(TimeoutError):
                    sock.sendall(100 * one)
        assert time.monotonic() - start > 2
    assert service.ask("/health")[0] == 200


def test_what_is_not_http_is_refused(service):
    for text in (b"garbage\r\n\r\n", b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n",
                 b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"x" * 70_000,
                 b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
                 b"content-type: image/png\r\n\r\nzz\r\n"):  # fmt: skip
        found = service.raw(text)
        assert found.startswith(b"HTTP/1.1 4") and b'{"error": ' in found, text[:20]
    # A body that ends early.
    with socket.create_connection((service.host, service.port), 20) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
                     b"content-length: 900\r\n\r\nabc")  # fmt: skip
    assert service.ask("/health")[0] == 200


def test_too_many_at_once_are_refused(service):
    """Four slow requests take all places; those after them get 503 at once."""
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 9\r\n\r\n"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(service.raw, head) for _ in range(4)]
        deadline = time.monotonic() + 1.4
        while (found := service.ask("/health"))[
            0
        ] != 503 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found[0] == 503 and found[1]["retry-after"] == "1", found
        assert all(b"HTTP/1.1 408" in one.result() for one in waiting)
    assert service.ask("/health")[0] == 200


# --- tokens, rates, addresses ---------------------------------------------------------


def test_a_token_is_required(closed):
    good = {"inputs": images(1).tolist()}
    assert closed.ask(body=good, authorization=f"Bearer {TOKEN}")[0] == 200
    for word in (
        None,
        "",
        TOKEN,
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
    ):
        headers = {} if word is None else {"authorization": word}
        status, headers, _ = closed.ask(body=good, **headers)
        assert status == 401 and headers["www-authenticate"] == "Bearer"
    time.sleep(0.5)
    assert closed.error("/metrics")[0] == 401
    for path in ("/", "/docs", "/health"):
        assert closed.ask(path, host="any.example")[0] == 200
    assert TOKEN not in closed.text()
    command = pathlib.Path(f"/proc/{closed.process.pid}/cmdline").read_text()
    assert TOKEN not in command


def test_a_client_that_asks_too_often_is_refused(closed):
    found = [closed.ask("/docs") for _ in range(40)]
    refused = [headers for status, headers, _ in found if status == 429]
    assert refused and all(int(headers["retry-after"]) >= 1 for headers in refused)
    assert closed.ask("/health")[0] == 200
    time.sleep(1)
    assert closed.ask("/docs")[0] == 200


def test_rates_are_those_of_a_token_bucket():
    rates = Rates(10)

    def allowed(client, now) -> bool:
        try:
            rates.check(client, now)
        except Refused as error:
            assert error.status == 429
            return False
        return True

    assert sum(allowed("a", 0) for _ in range(100)) == 20
    assert sum(allowed("b", 0) for _ in range(100)) == 20
    assert sum(allowed("a", 0.5) for _ in range(100)) == 5
    assert sum(allowed("a", 100) for _ in range(100)) == 20
    for number in range(30_000):
        rates.check(str(number), 100)
    assert len(rates._buckets) == 10_000
    unlimited = Rates(0)
    for _ in range(1000):
        unlimited.check("a", 0)


def test_wrong_use(place, matrix, cli, tmp_path):
    folder = place / "digits"

    def fails(text, *words, env=None):
        done = cli("serve", *words, env=env)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert text in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1

    fails("needs a token", folder, "--host", "0.0.0.0")
    (tmp_path / "open").write_text(TOKEN)
    (tmp_path / "open").chmod(0o644)
    fails("may be read by others", folder, "--token-file", "open")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        fails(f"cannot listen on port {port}", folder, "--port", port)
    fails("neither a run folder nor", tmp_path)
    fails("--rate", folder, "--rate", "nan")


def test_answers_are_sent_without_delay():
    """asyncio sets TCP_NODELAY only on sockets that know their protocol."""
    with server.open_socket("127.0.0.1", 0) as made:
        assert made.proto == socket.IPPROTO_TCP and server.is_loopback(made)
    with server.open_socket("0.0.0.0", 0) as made:
        assert not server.is_loopback(made)
    for host, port in (("no such host", 0), ("127.0.0.1", 70_000), ("192.0.2.1", 0)):
        with pytest.raises(GpuzooError):
            server.open_socket(host, port)


def test_tokens_that_are_refused(tmp_path):
    def fails(text, *arguments):
        with pytest.raises(GpuzooError, match=text):
            server.read_token(*arguments)

    fails("at least 16", None, "short")
    fails("at least 16", None, "")
    fails("without spaces", None, "two words, which are long")
    fails("not by both", "file", TOKEN)
    fails("cannot be read", str(tmp_path / "missing"), None)
    fails("cannot be read", str(tmp_path), None)
    assert server.read_token(None, None) == ""
    assert server.read_token(None, TOKEN) == TOKEN
