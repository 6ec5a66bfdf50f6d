"""Load `gpuzoo serve` on loopback, and check every answer.

    python benchmarks/deploy/load.py RUN [--clients 8] [--seconds 60] [--damaged 10000]

RUN is the run of a classifier of images, or an export of one. Clients in this process
keep a connection each and send JSON and PNG in turn; an answer must be the one that the
first request for the same image got. Then damaged requests follow: bodies and heads
with bytes that are changed, left out, doubled or added. The record is
benchmarks/records/serve.json: requests, errors, milliseconds as the clients see them,
memory of the service. Exit code 1 if a request failed, was lost, or got another answer,
or a damaged one got an answer of 500 or above.
"""

import argparse
import collections
import http.client
import io
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import PIL.Image

from gpuzoo.runs.code import code_sha256
from gpuzoo.runtime import environment

RECORD = pathlib.Path(__file__).resolve().parent.parent / "records" / "serve.json"
IMAGES = 64


class Client(threading.Thread):
    def __init__(self, port: int, bodies: list, start: int, until: float):
        super().__init__()
        self.port, self.bodies, self.turn, self.until = port, bodies, start, until
        self.milliseconds: list[float] = []
        self.errors: list[str] = []
        self.sent = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while time.monotonic() < self.until:
            kind, body, wanted = self.bodies[self.turn % len(self.bodies)]
            self.turn += 1
            self.sent += 1
            begun = time.perf_counter()
            try:
                status, found = ask(connection, kind, body)
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            self.milliseconds.append(1000 * (time.perf_counter() - begun))
            if status != 200 or found != wanted:
                self.errors.append(f"{status}: {found[:100]!r}")
        connection.close()


def ask(connection, kind: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/predict", body, {"content-type": kind})
    answer = connection.getresponse()
    return answer.status, answer.read()


def bodies_of(connection) -> list[tuple]:
    """Content type, body and answer of each request that is sent."""
    connection.request("GET", "/health")
    about = json.loads(connection.getresponse().read())
    (given,) = about["inputs"]
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *given["shape"]))
    found = []
    for image in images.astype(np.uint8):
        file = io.BytesIO()
        PIL.Image.fromarray(image.squeeze()).save(file, "png")
        text = json.dumps({"inputs": [image.tolist()]}).encode()
        for kind, body in (
            ("image/png", file.getvalue()),
            ("application/json", text),
        ):
            status, answer = ask(connection, kind, body)
            if status != 200:
                sys.exit(f"the first request failed: {status} {answer!r}")
            found.append((kind, body, answer))
        if found[-1][2] != found[-2][2]:
            sys.exit("JSON and PNG of the same image get different answers")
    return found


def requests_of(port: int) -> int:
    """Return how many requests the service has counted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    counts = re.findall(r"^gpuzoo_requests_total\S+ (\d+)$", text, re.M)
    return sum(map(int, counts))


def send_damaged(port: int, bodies: list[tuple], count: int) -> dict:
    """Send damaged requests; return how many got which status, how many a closed
    connection, and for how many the service waits for more bytes."""
    rng = np.random.default_rng(1)
    found: collections.Counter = collections.Counter()
    for number in range(count):
        kind, body, _ = bodies[number % len(bodies)]
        if number % 3:
            body = damage(body, rng)
        head = (
            f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        ).encode()
        if number % 3 == 0:
            head = damage(head, rng)
        patience = 30 if number % 3 else 0.1
        found[status_of(port, head + body, patience)] += 1
    return dict(sorted(found.items()))


def damage(content: bytes, rng) -> bytes:
    for _ in range(int(rng.integers(1, 4))):
        start, end = sorted(map(int, rng.integers(0, len(content) + 1, 2)))
        end = min(end, start + int(rng.integers(1, 40)))
        part = content[start:end]
        other = rng.integers(0, 256, len(part), np.uint8).tobytes()
        by = [b"", part * 2, other, bytes(len(part)), b'[{"9e:\r\n']
        content = content[:start] + by[int(rng.integers(len(by)))] + content[end:]
    return content


def status_of(port: int, content: bytes, patience: float) -> str:
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.settimeout(patience)
        answer = b""
        try:
            sock.sendall(content)
            while part := sock.recv(65536):
                answer += part
        except TimeoutError:
            return answer[9:12].decode() or "waits"
        except ConnectionError:
            pass
    return answer[9:12].decode() or "closed"


def resident(pid: int) -> float:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--damaged", type=int, default=10_000)
    parser.add_argument("--out", default=str(RECORD))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        words = ["serve", given.run, "--port", "0", "--rate", "0"]
        with open(log, "w") as errors:
            service = subprocess.Popen(
                [sys.executable, "-m", "gpuzoo", *words],
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            record = measure(given, service, log)
        finally:
            service.terminate()
        last = json.loads(service.communicate(timeout=60)[0].splitlines()[-1])
    record["server_errors"] = last["server_errors"]
    pathlib.Path(given.out).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    return int(any(record[key] for key in ("errors", "lost", "server_errors")))


def measure(given, service, log: pathlib.Path) -> dict:
    while not (found := re.search(r"Serving .* on .*:(\d+)", log.read_text())):
        if service.poll() is not None:
            sys.exit(log.read_text())
        time.sleep(0.1)
    port = int(found[1])
    bodies = bodies_of(http.client.HTTPConnection("127.0.0.1", port, timeout=30))
    until = time.monotonic() + given.seconds
    clients = [Client(port, bodies, 37 * i, until) for i in range(given.clients)]
    before, cpu = resident(service.pid), cpu_seconds(service.pid)
    for client in clients:
        client.start()
    memory = []
    while any(client.is_alive() for client in clients):
        time.sleep(0.5)
        memory.append(resident(service.pid))
    cpu = cpu_seconds(service.pid) - cpu
    errors = [error for client in clients for error in client.errors]
    times = np.concatenate([client.milliseconds for client in clients])
    warm = memory[len(memory) // 10]
    sent = sum(client.sent for client in clients)
    # The first ones, those of the clients, and one of /health.
    lost = 2 * IMAGES + 1 + sent - requests_of(port)
    damaged = send_damaged(port, bodies, given.damaged)
    return {
        "what": "gpuzoo serve under load on loopback; the load comes from the same "
        "machine, which other programs used too",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/deploy/load.py RUN --clients {given.clients} "
        f"--seconds {given.seconds:g}",
        "environment": environment.environment(),
        "code_sha256": code_sha256(),
        "cores": environment.available_cores(),
        "clients": given.clients,
        "seconds": given.seconds,
        "sent": sent,
        "answered": len(times),
        "lost": lost,
        "errors": len(errors),
        "first_errors": errors[:3],
        "requests_per_second": round(len(times) / given.seconds, 1),
        "server_cpu_us_per_request": round(1e6 * cpu / len(times)),
        "milliseconds": {
            **{f"p{p}": round(float(np.percentile(times, p)), 2) for p in (50, 90, 99)},
            "largest": round(float(times.max()), 2),
        },
        "resident_mb": {
            "before": before,
            "after a tenth of the time": warm,
            "at the end": memory[-1],
            "largest": max(memory),
            "after the damaged requests": resident(service.pid),
        },
        "damaged": damaged,
    }


def cpu_seconds(pid: int) -> float:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
