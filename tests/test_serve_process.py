"""`gpuzoo serve`: its metrics and log, its start from a run, its end, its sandbox."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import serving
from conftest import skip_without
from serving import Service, children, images, png, write_artefact
from small import two_classes

import gpuzoo
from gpuzoo.cli.serve import Serve
from gpuzoo.deploy.serve import export, sandbox, server
from gpuzoo.errors import GpuzooError

serving.skip_without_extra()

OWN = """
import keras
import gpuzoo

@gpuzoo.register(task="classify", reference="none")
def net(*, input_shape: tuple[int, ...] = (14, 14, 1), num_classes: int = 2):
    x = keras.Input(input_shape)
    return keras.Model(x, keras.layers.Dense(num_classes)(keras.layers.Flatten()(x)))
"""


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
            [row["probability"] for row in rows], confidence, atol=1e-5
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


def test_without_bubblewrap_the_sandbox_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GpuzooError, match="bwrap.*not installed"):
        sandbox.find()
    monkeypatch.undo()
    assert os.environ["PATH"]
