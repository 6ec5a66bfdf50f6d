"""A service in a process of its own, and an artefact for it; fixtures of the whole
session (conftest.py).
"""

import contextlib
import hashlib
import http.client
import io
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
from conftest import environment

TOKEN = "a-token-of-the-tests-0123456789"


def skip_without_extra() -> None:
    """Skip the module that is imported if packages of the extra are missing."""
    for name in ("starlette", "uvicorn", "onnxruntime", "onnx"):
        pytest.importorskip(name, reason="needs the extra serve")


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
        "recipe": "mnist", "task": "classify", "model": "linear", "data": "mnist",
        "classes": list(classes),
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


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="session")
def matrix(place):
    return write_artefact(place / "digits")


@pytest.fixture(scope="session")
def service(place, matrix):
    """With a short time limit, small bodies, and no limit of the rate."""
    made = Service(
        place / "digits", place, "--rate", "0", "--timeout", "1.5", "--max-bytes", "200000",
        "--max-pixels", "1000000", "--max-examples", "8", "--concurrency", "4",
    )  # fmt: skip
    yield made
    made.stop()


@pytest.fixture(scope="session")
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


def children(pid: int) -> list[int]:
    return [
        int(w)
        for w in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
