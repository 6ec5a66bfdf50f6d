"""`gpuzoo serve`: answers, limits, and what a client cannot do to it."""

import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, environment, skip_without
from small import two_classes

import gpuzoo
from gpuzoo.cli.serve import Serve
from gpuzoo.data.images import read_image
from gpuzoo.deploy.serve import export, inputs, sandbox, server
from gpuzoo.deploy.serve.artefact import Artefact, Input
from gpuzoo.deploy.serve.guard import HEADERS, Rates
from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.errors import GpuzooError
from gpuzoo.files import parse_json

for name in ("starlette", "uvicorn", "onnxruntime", "onnx"):
    pytest.importorskip(name, reason="needs the extra serve")

TOKEN = "a-token-of-the-tests-0123456789"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


OWN = """
import keras
import gpuzoo

@gpuzoo.register(task="classify", reference="none")
def net(*, input_shape: tuple[int, ...] = (14, 14, 1), num_classes: int = 2):
    x = keras.Input(input_shape)
    return keras.Model(x, keras.layers.Dense(num_classes)(keras.layers.Flatten()(x)))
"""


def write_artefact(folder, *, classes=tuple("0123456789"), channels=1, side=28, seed=0):
    """An export folder by hand: a linear classifier of images."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size, count = side * side * channels, len(classes)
    matrix = np.random.default_rng(seed).normal(size=(size, count)) / side
    made = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "most"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    tensors = {"matrix": matrix.astype(np.float32), "most": np.float32(255)}
    graph = helper.make_graph(
        made, "linear",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", side, side, channels])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", count])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model, full_check=True)
    write(folder, model, [{"name": "image", "dtype": "uint8", "shape": [None, side, side, channels],
                           "meaning": "pixels 0 to 255"}],
          [{"name": "probabilities", "shape": [None, count], "meaning": "probabilities"}], classes)  # fmt: skip
    return matrix.astype(np.float32)


def write(folder, model, inputs, outputs, classes=()):
    folder.mkdir()
    content = model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    about = {
        "schema": 1, "gpuzoo": "0.1.0", "run_id": "1", "weights_sha256": "0" * 64,
        "recipe": "mnist", "task": "classify", "model": "linear", "classes": list(classes),
        "generates": False, "input": inputs[0], "inputs": inputs, "outputs": outputs,
        "formats": {"onnx": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()}},
    }  # fmt: skip
    (folder / "export.json").write_text(json.dumps(about))


class Service:
    """A `gpuzoo serve` in a process of its own."""

    def __init__(self, folder, where, *words, port=0, env=None, seconds=60):
        self.where = pathlib.Path(where)
        self.home = self.where / "home"
        self.home.mkdir(exist_ok=True)
        place = {"HOME": self.home, "TMPDIR": self.home, "XDG_CACHE_HOME": self.home}
        with open(self.where / "log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpuzoo", "serve", str(folder), "--port", str(port), *words],
                cwd=self.where, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**environment(self.where), **{k: str(v) for k, v in place.items()}, **(env or {})},
            )  # fmt: skip
        deadline = time.monotonic() + seconds
        while not (
            found := re.search(r"Serving .* on http://(\S+):(\d+)", self.text())
        ):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def text(self) -> str:
        return (self.where / "log").read_text()

    def ask(
        self, path="/predict", body=None, kind="application/json", method="", **headers
    ):
        """Return the status, the headers and the body of an answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
        headers = {name.replace("_", "-"): text for name, text in headers.items()}
        if body is not None:
            headers.setdefault("content-type", kind)
        with contextlib.closing(connection):
            connection.request(
                method or ("GET" if body is None else "POST"), path, body, headers
            )
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def error(self, *words, **options) -> tuple[int, str]:
        status, headers, body = self.ask(*words, **options)
        assert headers["content-type"] == "application/json"
        assert headers["connection"] == "close"  # the rest of a body is not awaited
        found = json.loads(body)
        assert set(found) == {"error"} and "\n" not in found["error"]
        return status, found["error"]

    def raw(self, content: bytes, before=b"", timeout=20) -> bytes:
        """Send bytes, and return all that comes back until the service closes; `before`:
        a request that is answered first."""
        with socket.create_connection((self.host, self.port), timeout) as sock:
            if before:
                sock.sendall(before)
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            sock.sendall(content)
            found = b""
            with contextlib.suppress(ConnectionResetError):
                while part := sock.recv(65536):
                    found += part
            return found

    def stop(self, number=signal.SIGTERM) -> dict:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=40)
        return json.loads(out.splitlines()[-1]) if out else {}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def matrix(place):
    return write_artefact(place / "digits")


@pytest.fixture(scope="module")
def service(place, matrix):
    """With a short time limit, small bodies, and no limit of the rate."""
    made = Service(
        place / "digits", place, "--rate", "0", "--timeout", "1.5", "--max-bytes", "200000",
        "--max-pixels", "1000000", "--max-examples", "8", "--concurrency", "4",
    )  # fmt: skip
    yield made
    made.stop()


def png(pixels) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def expected(matrix, images) -> np.ndarray:
    logits = images.reshape(len(images), -1).astype(np.float32) / 255 @ matrix
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def images(count: int, side=28) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, side, side), np.uint8)


def test_json_and_images_give_what_the_model_gives(service, matrix):
    given = images(3)
    status, headers, body = service.ask(body={"inputs": given.tolist()})
    assert status == 200 and headers["content-type"] == "application/json"
    rows = json.loads(body)["predictions"]
    wanted = expected(matrix, given)
    np.testing.assert_allclose(
        [row["probabilities"] for row in rows], wanted, atol=1e-6
    )
    assert [row["index"] for row in rows] == wanted.argmax(1).tolist()
    assert [row["label"] for row in rows] == [str(i) for i in wanted.argmax(1)]
    assert rows[0]["confidence"] == max(rows[0]["probabilities"])
    # With an axis for the channel, and as a file: the same numbers.
    again = service.ask(body={"inputs": given[..., None].tolist()})[2]
    assert again == body
    for row, image in zip(rows, given, strict=True):
        found = json.loads(service.ask(body=png(image), kind="image/png")[2])
        assert found["predictions"] == [row]


def test_large_and_colored_pictures_are_read_as_for_training(service, matrix, tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (90, 120, 3), np.uint8)
    file = tmp_path / "photo.jpg"
    PIL.Image.fromarray(pixels).save(file, exif=exif(orientation=6))
    read = read_image(file, (28, 28), 1).pixels
    (row,) = json.loads(service.ask(body=file.read_bytes(), kind="image/jpeg")[2])[
        "predictions"
    ]
    np.testing.assert_allclose(
        row["probabilities"], expected(matrix, read[None])[0], atol=1e-6
    )


def exif(orientation: int) -> PIL.Image.Exif:
    found = PIL.Image.Exif()
    found[0x0112] = orientation
    return found


BAD_JSON = [
    (b"", 400, "JSON"), (b"{", 400, "JSON"), (b'{"inputs": [1,]}', 400, "JSON"), (b"\xff\xfe{}", 400, "JSON"),
    (b'{"inputs": [[1]], "inputs": [[2]]}', 400, "JSON"), (b"[" * 100_000, 400, "JSON"),
    (b'{"inputs": ' + b"9" * 5000 + b"}", 400, "JSON"),
    (b"[]", 422, "inputs"), (b"1", 422, "inputs"), (b"null", 422, "inputs"), (b"{}", 422, "inputs"),
    (b'{"inputs": [[1]], "more": 1}', 422, "inputs"), (b'{"inputs": []}', 422, "list of examples"),
    (b'{"inputs": {"a": 1}}', 422, "list of examples"), (b'{"inputs": "abc"}', 422, "list of examples"),
    (b'{"inputs": [1, 2]}', 422, "shape"), (b'{"inputs": [[1, 2], [1]]}', 422, "shape"),
    (b'{"inputs": ' + b"[" * 60 + b"1" + b"]" * 60 + b"}", 422, "shape"),
    (b'{"inputs": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", 422, "shape"),
    (b'{"inputs": [{"image": 1}]}', 422, "shape"), (b'{"inputs": [null]}', 422, "shape"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "text"), BAD_JSON)
def test_damaged_json_is_refused(body, status, text, service):
    found = service.error(body=body)
    assert found[0] == status and text in found[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [("NaN", "finite"), ("Infinity", "finite"), ("1e999", "finite"), ("-1", "0..255"), ("256", "0..255"),
     ("0.5", "whole"), ("1e30", "0..255"), ("9" * 30, "0..255"), ("-" + "9" * 400, "finite"), ("true", "numbers"), ('"1"', "numbers"),
     ("null", "numbers, not null"), ("[]", "shape"), ("[1]", "shape"), ("{}", "numbers, not an object")],
)  # fmt: skip
def test_bad_values_are_refused(value, text, service):
    row = "[" + ",".join(["0"] * 28) + "]"
    first = "[" + ",".join([value] + ["0"] * 27) + "]"
    body = f'{{"inputs": [[{",".join([first] + [row] * 27)}]]}}'
    found = service.error(body=body.encode())
    assert found[0] == 422 and text in found[1]


def test_a_string_among_numbers_takes_no_memory():
    """NumPy would give each value the space of the string: here 400 MB."""
    one = Input("series", "float32", (2000, 1), "", None)
    served = Artefact({"outputs": []}, (one,), None)
    for word in ("x" * 50_000, ["x" * 50_000]):
        body = json.dumps({"inputs": [[*[0] * 1999, word]]}).encode()
        tracemalloc.start()
        with pytest.raises(Refused):
            inputs.from_json(body, served, 4)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 5e6


def test_words_in_a_name_of_an_input_are_not_values():
    two = [Input(name, "float32", (2,), "", None) for name in ("true", "false")]
    served = Artefact({"outputs": []}, tuple(two), None)
    body = b'{"inputs": [{"true": [1, 2], "false": [3, 4.5]}]}'
    found = inputs.from_json(body, served, 4)
    assert found["true"].tolist() == [[1, 2]] and found["false"].tolist() == [[3, 4.5]]


def test_a_key_that_is_twice_among_many_is_found_fast():
    text = "{" + ",".join(f'"{n}":0' for n in [*range(20_000), 19_999]) + "}"
    start = time.process_time()
    with pytest.raises(ValueError, match="it has the key '19999' twice"):
        parse_json(text)
    assert time.process_time() - start < 1


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def bomb(side: int) -> bytes:
    """A small file of side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((-(-side // 8) + 1) * side), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def test_decompression_bombs_are_refused_by_their_header(service):
    for side in (1200, 20_000):  # up to twice the limit, Pillow only warns
        body = bomb(side)
        assert len(body) < 200_000
        status, text = service.error(body=body, kind="image/png")
        assert status == 413 and "pixels" in text
    assert service.ask(body=bomb(900), kind="image/png")[0] == 200


def test_damaged_images_are_refused(service):
    good = png(images(1)[0])
    wide = io.BytesIO()
    PIL.Image.fromarray(images(1)[0].astype(np.uint16)).save(wide, "png")
    gif = io.BytesIO()
    PIL.Image.fromarray(images(1)[0]).save(gif, "gif")
    bodies = [
        b"",
        b"abc",
        good[:60],
        good[:-200],
        good[8:],
        wide.getvalue(),
        gif.getvalue(),
    ]
    for body in bodies:
        status, text = service.error(body=body, kind="image/png")
        assert status == 400 and str(ROOT) not in text, body[:20]
    found = service.error(body=good, kind="image/jpeg")
    assert found[0] == 400 and "send it with Content-Type: image/png" in found[1]


def test_other_requests_are_refused(service):
    good = {"inputs": images(1).tolist()}
    for kind, fix in (
        ("text/plain", "got text/plain; with curl: -H 'Content-Type: image/png'"),
        ("multipart/form-data; boundary=x", "--data-binary @FILE"),
        ("image/gif", "save the image as PNG or JPEG"), ("", "got none"),
    ):  # fmt: skip
        status, text = service.error(body=good, kind=kind)
        assert status == 415 and fix in text
        assert text.startswith("expected Content-Type application/json or image/png or")
    assert service.error(body=good, content_encoding="gzip")[0] == 415
    assert service.ask(body=good, kind="Application/JSON; charset=utf-8")[0] == 200
    assert service.error("/predict")[0] == 405
    assert service.error("/health", body=good)[0] == 405
    assert service.error("/predict", method="DELETE")[0] == 405
    for path in ("/docs/", "//", "/../etc/passwd", "/%2e%2e/", "/static", "/predict/x"):
        assert service.error(path)[0] == 404
    assert service.error(body={"inputs": images(9).tolist()}) == (
        422,
        "inputs has more than 8 examples",
    )
    assert service.ask(body={"inputs": images(8).tolist()})[0] == 200


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


def test_pages_and_headers(service):
    for path, kind in (("/", "text/html"), ("/docs", "text/html"), ("/health", "application/json"),
                       ("/openapi.json", "application/json"), ("/metrics", "text/plain"), ("/no", "application/json")):  # fmt: skip
        _, headers, body = service.ask(path)
        assert headers["content-type"].startswith(kind)
        assert HEADERS.items() - headers.items() <= {
            ("content-security-policy", HEADERS["content-security-policy"])
        }
        assert (
            "server" not in headers
            and "frame-ancestors 'none'" in headers["content-security-policy"]
        )
        assert str(ROOT).encode() not in body
        if kind == "text/html":
            # Nothing from elsewhere, and nothing inline without this answer's nonce.
            (nonce,) = set(re.findall(rb'nonce="([\w-]+)"', body))
            assert (
                f"script-src 'nonce-{nonce.decode()}'"
                in headers["content-security-policy"]
            )
            assert not re.findall(
                rb"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", body
            )
            assert len(re.findall(rb"<(?:script|style)\b", body)) == body.count(
                b'nonce="'
            )
            assert nonce not in service.ask(path)[2]
    assert service.ask("/", method="HEAD")[::2] == (200, b"")


def test_the_description_is_openapi(service):
    about = json.loads(service.ask("/openapi.json")[2])
    assert about["openapi"] == "3.1.0" and set(about["paths"]) == {
        "/", "/predict", "/health", "/metrics", "/openapi.json", "/docs"
    }  # fmt: skip
    import jsonschema

    post = about["paths"]["/predict"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    body = {"inputs": images(1)[..., None].tolist()}
    jsonschema.validate(body, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"inputs": [[300]]}, schema)
    answer = post["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(json.loads(service.ask(body=body)[2]), answer)
    for status in ("400", "408", "413", "415", "422", "429", "503"):
        assert status in post["responses"]


def numbers_of(text: str) -> dict[str, float]:
    """Parse Prometheus's text format, strictly."""
    found, types = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            types[name] = kind
        elif not line.startswith("# HELP "):
            name, value = re.fullmatch(
                r'([a-z_]+(?:\{(?:[a-z]+="[^"\\]*",?)+\})?) (\S+)', line
            ).groups()
            family = re.sub(r"\{.*|_bucket\{.*|_(sum|count|bucket)$", "", name)
            assert family.removesuffix("_bucket") in types or family in types, line
            found[name] = float(value)
    assert set(types.values()) == {"counter", "histogram", "gauge"}
    return found


def test_metrics_count(service):
    before = numbers_of(service.ask("/metrics")[2].decode())
    service.ask(body={"inputs": images(5).tolist()})
    service.ask(body=b"{")
    service.ask("/%22%7D%0Aevil%7B%7D%201")
    text = service.ask("/metrics")[2].decode()
    after = numbers_of(text)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert (
        grown['gpuzoo_requests_total{method="POST",path="/predict",status="200"}'] == 1
    )
    assert (
        grown['gpuzoo_requests_total{method="POST",path="/predict",status="400"}'] == 1
    )
    assert grown['gpuzoo_requests_total{method="GET",path="other",status="404"}'] == 1
    assert grown["gpuzoo_examples_total"] == 5 and "evil" not in text
    assert (
        grown["gpuzoo_predict_seconds_count"]
        == grown['gpuzoo_predict_seconds_bucket{le="+Inf"}']
        == 1
    )
    bounds = [v for k, v in after.items() if "_bucket" in k]
    assert bounds == sorted(bounds) and after["gpuzoo_in_flight"] == 1
    assert (
        grown["gpuzoo_received_bytes_total"] > 5 * 28 * 28
        and grown["gpuzoo_sent_bytes_total"] > 0
    )
    assert 1e7 < after["gpuzoo_resident_bytes"] < 1e9


def test_the_process_has_neither_tensorflow_nor_keras_and_writes_nothing(service):
    maps = pathlib.Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert not re.findall(r"/(?:tensorflow|jaxlib|keras)/", maps)
    # ONNX Runtime would write an id of the device, and send it with its usage data.
    assert list(service.home.rglob("*")) == []


def test_serving_imports_no_keras(place, matrix):
    code = f"""if True:
    import pathlib, sys
    from gpuzoo.deploy.serve import app, artefact, guard, inputs
    made = artefact.load(pathlib.Path({str(place / "digits")!r}))
    app.make_app(made, guard.Limits(), "", True, True)
    body = pathlib.Path("image.png").read_bytes()
    print(app.answer(made, guard.Limits(), "image/png", body)[0])
    print(sorted(n for n in ("tensorflow", "keras", "jax", "matplotlib", "scipy") if n in sys.modules))
    """
    (place / "image.png").write_bytes(png(images(1)[0]))
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.splitlines() == ["1", "[]"], done.stdout


def test_the_log_has_neither_bodies_nor_what_clients_write(service):
    service.ask(
        "/secret-path?secret=query",
        user_agent="secret-agent",
        authorization="Bearer secret-word",
    )
    service.ask(body=b'{"inputs": ["secret-body"]}')
    service.ask("/health", method="secret-method")
    text = service.text()
    assert (
        "GET other 404" in text and "POST /predict 422" in text and "secret" not in text
    )


# --- tokens, rates, addresses ---------------------------------------------------------


@pytest.fixture(scope="module")
def closed(place, matrix):
    """On all addresses, with a token; a low rate."""
    where = place / "closed"
    where.mkdir()
    (where / "token").write_text(TOKEN + "\n")
    (where / "token").chmod(0o600)
    made = Service(
        place / "digits",
        where,
        "--host",
        "0.0.0.0",
        "--token-file",
        "token",
        "--rate",
        "5",
    )
    made.host = "127.0.0.1"
    yield made
    made.stop()


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


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 2}, "schema is 2"), ({"outputs": []}, "have no names"), ({"classes": ["a"]}, "shape"),
        ({"formats": {}}, "no ONNX model"), ({"formats": {"onnx": {"file": "../digits/model.onnx", "sha256": ""}}}, "cannot be read"),
        ({"formats": {"onnx": {"file": "model.onnx", "sha256": "0" * 64}}}, "sha256"),
        ({"inputs": [{"name": "image", "dtype": "float32", "shape": [None, 28, 28, 1]}]}, "its inputs are"),
        ({"inputs": [{"name": "image", "dtype": "object", "shape": [None, 28, 28, 1]}]}, "'object'"),
        ({"inputs": [{"name": "image", "dtype": "uint8", "shape": [None, 27, 28, 1]}]}, "fails with zeros"),
        ({"inputs": [{"name": "image", "dtype": "uint8", "shape": [None, -1, None, 1]}]}, "damaged"),
        ({"outputs": [{"name": "logit"}]}, "no output logit"), ({"inputs": 5}, "damaged"),
    ],
)  # fmt: skip
def test_damaged_artefacts_are_refused(change, text, place, matrix, tmp_path):
    from gpuzoo.deploy.serve.artefact import load

    shutil.copytree(place / "digits", tmp_path / "a")
    file = tmp_path / "a" / "export.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(GpuzooError, match=text):
        load(tmp_path / "a")


def test_models_with_several_inputs(tmp_path):
    """A generator by class: a code and a label."""
    from onnx import TensorProto, helper

    from gpuzoo.deploy.serve import app, artefact
    from gpuzoo.deploy.serve.guard import Limits

    nodes = [
        helper.make_node("Cast", ["label"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "axis"], ["column"]),
        helper.make_node("Add", ["code", "column"], ["samples"]),
    ]
    infos = helper.make_tensor_value_info
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        nodes, "g",
        [infos("code", TensorProto.FLOAT, ["n", 3]), infos("label", TensorProto.INT32, ["n"])],
        [infos("samples", TensorProto.FLOAT, ["n", 3])], [axis],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    given = [{"name": "code", "dtype": "float32", "shape": [None, 3], "meaning": ""},
             {"name": "label", "dtype": "int32", "shape": [None], "meaning": ""}]  # fmt: skip
    write(tmp_path / "a", model, given, [{"name": "samples", "shape": [None, 3]}], "xy")
    made = artefact.load(tmp_path / "a")
    body = b'{"inputs": [{"code": [1, 2, 3.5], "label": 1}, {"code": [0, 0, 0], "label": 0}]}'
    count, text = app.answer(made, Limits(), "application/json", body)
    assert count == 2
    assert json.loads(text)["predictions"] == [
        {"samples": [2, 3, 4.5]},
        {"samples": [0, 0, 0]},
    ]
    for wrong in (b'[{"code": [1, 2, 3]}]', b'[{"code": [1, 2, 3], "label": 2}]', b"[[1, 2, 3]]",
                  b'[{"code": [1, 2, 1e39], "label": 1}]', b'[{"code": [1, 2, 3], "label": 0.5}]'):  # fmt: skip
        with pytest.raises(Refused):
            inputs.from_json(b'{"inputs": %s}' % wrong, made, 4)
    # The model overflows: an internal error, and not an answer with infinities.
    with pytest.raises(FloatingPointError):
        made.predict(
            {"code": np.full((1, 3), np.inf, "f4"), "label": np.zeros(1, "i4")}
        )


# --- the page -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra test")
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield made
        made.close()


def open_page(browser, service):
    """The page, and what went wrong or elsewhere on it."""
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if message.type == "error" else None
        ),
    )
    home = f"http://{service.host}:{service.port}/"
    page.on(
        "request",
        lambda one: (
            None
            if one.url.startswith((home, "blob:", "data:"))
            else problems.append(one.url)
        ),
    )
    page.goto(home)
    return page, problems


def draw(page, *points):
    box = page.locator("#canvas").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
        if not number:
            page.mouse.down()
    page.mouse.up()


def test_a_person_draws_and_sees_the_answer(browser, service, matrix, tmp_path):
    page, problems = open_page(browser, service)
    assert page.title() == "linear" and not page.locator("#label").inner_text()
    draw(page, (140, 40), (140, 240))
    page.wait_for_selector("#label:not(:empty)")
    sent = page.evaluate("centred().toDataURL()").partition(",")[2]
    pixels = read_image(base64.b64decode(sent), (28, 28), 1).pixels
    wanted = expected(matrix, pixels[None])[0]
    assert page.locator("#label").inner_text() == str(wanted.argmax())
    assert page.locator("#sure").inner_text() == f"{100 * wanted.max():.1f} %"
    # The drawing is in the middle: 20 of 28 pixels high.
    light = np.argwhere(pixels[..., 0] > 100)
    assert light.min(0)[0] in (3, 4, 5) and light.max(0)[0] in (22, 23, 24)
    assert len(page.locator("#bars progress").all()) == 5
    page.click("#clear")
    assert not page.locator("#label").inner_text()
    # A file, and one that is no image.
    (tmp_path / "picture.png").write_bytes(png(images(1)[0]))
    page.set_input_files("#file", tmp_path / "picture.png")
    page.wait_for_selector("#label:not(:empty)")
    assert page.locator("#label").inner_text() == str(
        expected(matrix, images(1))[0].argmax()
    )
    assert problems == []
    # A dark stroke on light paper: said, and exchanged if the person wants it.
    paper = np.full((56, 56), 230, np.uint8)
    paper[10:46, 24:30] = 20
    (tmp_path / "paper.png").write_bytes(png(paper))
    page.set_input_files("#file", tmp_path / "paper.png")
    page.wait_for_selector("#hint:not(:empty)")
    assert "light on dark" in page.locator("#hint").inner_text()
    with page.expect_response("**/predict") as answer:
        page.check("#invert")
    dark = read_image(png(255 - paper), (28, 28), 1).pixels
    np.testing.assert_allclose(
        answer.value.json()["predictions"][0]["probabilities"],
        expected(matrix, dark[None])[0], atol=1e-5,
    )  # fmt: skip
    page.wait_for_function("!document.getElementById('hint').textContent")
    page.uncheck("#invert")
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.set_input_files("#file", tmp_path / "broken.png")
    page.wait_for_selector("#problem:not(:empty)")
    assert "image" in page.locator("#problem").inner_text()
    assert page.goto(page.url + "docs").ok and "POST /predict" in page.inner_text(
        "body"
    )
    page.close()


def test_names_of_classes_are_not_executed(browser, place):
    names = [
        "</script><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "ABOUT",
        "NONCE",
        "\u2028",
    ]
    write_artefact(place / "hostile", classes=names, side=8)
    (place / "hostile-log").mkdir()
    service = Service(place / "hostile", place / "hostile-log", "--rate", "0")
    try:
        page, problems = open_page(browser, service)
        draw(page, (100, 100), (150, 180))
        page.wait_for_selector("#label:not(:empty)")
        assert page.locator("#label").text_content() in names
        assert set(page.locator("#bars span").all_text_contents()) >= set(names)
        page.goto(page.url + "docs")
        assert problems == []
        page.close()
    finally:
        service.stop()


def test_the_page_asks_for_the_token(browser, closed):
    page, _ = open_page(browser, closed)
    draw(page, (140, 40), (140, 240))
    page.wait_for_selector("#problem:not(:empty)")
    assert "token" in page.locator("#problem").inner_text()
    page.fill("#token", TOKEN)
    draw(page, (140, 40), (140, 240))
    page.wait_for_selector("#label:not(:empty)")
    page.close()


# --- a run ----------------------------------------------------------------------------


def test_a_run_is_exported_once_and_served(cli, tmp_path):
    """What is served predicts what the trained model does, for arrays and for files."""
    skip_without("tensorflow")
    pytest.importorskip("tf2onnx", reason="needs the extra export")
    done = cli(
        "train", "mnist", "--data", "digits", "--model", "mlp", "--epochs", "2",
        "--precision", "float32", "--quiet", "--out", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = """if True:
    import json, numpy as np, gpuzoo
    trained = gpuzoo.load("run")
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28, 1), np.uint8)
    found = trained.predict(images)
    print(json.dumps([found["predicted"].tolist(), found["confidence"].tolist()]))
    """
    expected = cli("-c", code, program=())
    assert expected.returncode == 0, expected.stderr
    predicted, confidence = json.loads(expected.stdout.splitlines()[-1])
    for text in ("to ONNX, checked", "Serving the export"):
        service = Service(tmp_path / "run", tmp_path, seconds=200)
        assert text in service.text()
        given = images(3)
        rows = json.loads(service.ask(body={"inputs": given.tolist()})[2])[
            "predictions"
        ]
        assert [row["index"] for row in rows] == predicted
        np.testing.assert_allclose(
            [row["confidence"] for row in rows], confidence, atol=1e-5
        )
        assert service.stop()["predictions"] == 1
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "cache" / "exports")
    done = cli("serve", "run", "--port", "0")
    assert done.returncode == 2 and "the export of" in done.stderr, done.stderr


def test_an_export_that_does_not_hold_is_made_again_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path))
    (tmp_path / "exports").mkdir()
    run, cached = tmp_path / "run", tmp_path / "exports" / ("5" * 32)
    beside, second = tmp_path / "run-export", cached.with_name(f"{cached.name}-2")
    record = {"id": "1", "weights_sha256": "0" * 64, "seal": "5" * 64, "recipe": {"task": "classify"}}  # fmt: skip

    def change(folder, **fields):
        file = folder / "export.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    assert export._place(run, record) == (cached, False)
    write_artefact(beside)
    assert export._place(run, record) == (beside, True)
    for fields in ({"generates": True}, {"generates": False, "run_id": "2"}):
        change(beside, **fields)
        assert export._place(run, record) == (cached, False)
    record["recipe"]["task"] = "diffusion"  # a generator, which can be nothing else
    change(beside, generates=True, run_id="1")
    assert export._place(run, record) == (beside, True)
    record["recipe"]["task"] = "autoencode"
    write_artefact(cached)
    assert export._place(run, record) == (cached, True)
    (cached / "model.onnx").write_bytes(b"damaged")
    assert export._place(run, record) == (second, False)
    (cached / "model.onnx").unlink()
    assert export._place(run, record) == (second, False)
    write_artefact(second)
    assert export._place(run, record) == (second, True)
    change(second, schema=2)  # of another version of gpuzoo
    assert export._place(run, record) == (second.with_name(f"{cached.name}-3"), False)


def test_an_export_executes_nothing_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("typeguard", "tyro", "numpy", "gpuzoo"):
        pathlib.Path(f"{name}.py").write_text("open('executed', 'w')")
    with pytest.raises(GpuzooError, match="is not a run folder"):
        export._export(pathlib.Path("-missing"), tmp_path / "to")
    assert not pathlib.Path("executed").exists()


def test_a_crash_of_an_export_is_told_by_its_last_line(tmp_path, monkeypatch):
    """It has the exit code of an export that fails its checks, and prints no JSON."""
    (tmp_path / "tyro.py").write_text("raise RuntimeError('a broken library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(GpuzooError, match="failed: RuntimeError: a broken library"):
        export._export(tmp_path / "run", tmp_path / "to")


def test_a_run_of_a_users_model_is_exported_if_its_code_is_trusted(
    tmp_path, runtime, monkeypatch
):
    """`serve` takes the option that the refusal names."""
    monkeypatch.setenv("GPUZOO_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("tf2onnx", reason="needs the extra export")
    (tmp_path / "own.py").write_text(OWN)
    np.savez(tmp_path / "tiny.npz", **two_classes())
    gpuzoo.train(
        "mnist", model=f"{tmp_path}/own.py:net", data=str(tmp_path / "tiny.npz"),
        epochs=1, batch_size=16, augment=(), quiet=True, out=str(tmp_path / "run"),
    )  # fmt: skip
    served = []
    monkeypatch.setattr(server, "run", lambda folder, *_: served.append(folder) or {})
    with pytest.raises(GpuzooError, match="then add --trust-code"):
        Serve(str(tmp_path / "run"), port=0)()
    assert Serve(str(tmp_path / "run"), port=0, trust_code=True)() == 0
    assert (served[0] / "model.onnx").is_file()


def test_packages_are_looked_for_before_the_run(tmp_path, monkeypatch):
    for name in ("starlette", "uvicorn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)  # as if it were not installed
            with pytest.raises(GpuzooError, match=rf"{name} .*gpuzoo\[serve\]"):
                Serve(str(tmp_path / "missing"), port=0)()


# --- start and stop -------------------------------------------------------------------


def test_requests_in_flight_are_finished_at_the_end(place, matrix, tmp_path):
    service = Service(place / "digits", tmp_path)
    body = json.dumps({"inputs": images(1).tolist()}).encode()
    with socket.create_connection((service.host, service.port), 20) as sock:
        head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body[:100])
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError):  # no new ones
            socket.create_connection((service.host, service.port), 1).close()
        sock.sendall(body[100:])
        found = b""
        while part := sock.recv(65536):
            found += part
    assert found.startswith(b"HTTP/1.1 200") and b"predictions" in found
    last = service.stop(0)
    assert service.process.returncode == 0
    assert last["predictions"] == last["requests"] == 1 and last["server_errors"] == 0


def test_killed_and_started_again_on_the_same_port(place, matrix, tmp_path):
    first = Service(place / "digits", tmp_path)
    with socket.create_connection((first.host, first.port)) as kept:  # still connected
        kept.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" in kept.recv(100)
        first.stop(signal.SIGKILL)
        assert first.process.returncode == -signal.SIGKILL
        second = Service(place / "digits", tmp_path, port=first.port)
        assert second.port == first.port and second.ask("/health")[0] == 200
    assert second.stop(signal.SIGINT)["requests"] == 1
    assert second.process.returncode == 0
    assert list(first.home.rglob("*")) == []


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
def test_the_sandbox(place, matrix, tmp_path):
    service = Service(place / "digits", tmp_path, "--sandbox")
    (bwrap,) = children(service.process.pid)
    (inner,) = children(bwrap)
    try:
        status, _, body = service.ask(body={"inputs": images(1).tolist()})
        assert status == 200 and b"predictions" in body
        proc = pathlib.Path(f"/proc/{inner}")
        status = (proc / "status").read_text()
        assert re.search(r"^CapEff:\s+0+$", status, re.M) and re.search(
            r"^NoNewPrivs:\s+1$", status, re.M
        )
        assert re.findall(r"^ *(\w+):", (proc / "net/dev").read_text(), re.M) == ["lo"]
        assert not (proc / "root" / str(tmp_path).lstrip("/")).exists()
        assert (
            not (proc / "root/etc/passwd").exists()
            and not (proc / "root/home").exists()
        )
        assert (proc / "root/artefact/export.json").exists()
        for line in (proc / "mountinfo").read_text().splitlines():
            where, options = line.split()[4:6]
            assert (
                options.startswith("ro")
                or where in ("/proc", "/dev/pts")
                or where.startswith("/dev/")
            ), line
        variables = (proc / "environ").read_text().split("\0")
        assert {v.partition("=")[0] for v in variables if v} <= {
            "PATH",
            "PYTHONPATH",
            "LANG",
            "PYTHONDONTWRITEBYTECODE",
            "PWD",
        }
    finally:
        last = service.stop()
    assert service.process.returncode == 0 and last["predictions"] == 1
    # Killed: nothing is left, and the port is free.
    again = Service(place / "digits", tmp_path, "--sandbox", port=service.port)
    (bwrap,) = children(again.process.pid)
    again.stop(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while pathlib.Path(f"/proc/{bwrap}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    server.open_socket("127.0.0.1", service.port).close()


def children(pid: int) -> list[int]:
    return [
        int(w)
        for w in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def test_without_bubblewrap_the_sandbox_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GpuzooError, match="bwrap.*not installed"):
        sandbox.find()
    monkeypatch.undo()
    assert os.environ["PATH"]
