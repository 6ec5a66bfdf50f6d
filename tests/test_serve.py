"""`gpuzoo serve`: what it answers to JSON, to images and to what is damaged, and its
pages.
"""

import io
import json
import re
import struct
import time
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import pytest
import serving
from conftest import ROOT
from serving import expected, images, png, write

from gpuzoo.data.images import read_image
from gpuzoo.deploy.serve import inputs
from gpuzoo.deploy.serve.artefact import Artefact, Input
from gpuzoo.deploy.serve.guard import HEADERS
from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.files import parse_json

serving.skip_without_extra()


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
    assert [row["class"] for row in rows] == [str(i) for i in wanted.argmax(1)]
    assert rows[0]["probability"] == max(rows[0]["probabilities"])
    # With an axis for the channel, and as a file: the same numbers.
    again = service.ask(body={"inputs": given[..., None].tolist()})[2]
    assert again == body
    for row, image in zip(rows, given, strict=True):
        found = json.loads(service.ask(body=png(image), kind="image/png")[2])
        assert found["predictions"] == [row]


def test_a_dark_digit_on_light_paper(service, matrix):
    """It is said, as `gpuzoo predict` does, and exchanged by ?invert=true."""
    paper = np.full((28, 28), 240, np.uint8)
    paper[6:22, 12:16] = 10
    body = {"inputs": [np.zeros_like(paper).tolist(), paper.tolist()]}
    bodies = {"application/json": body, "image/png": png(paper)}
    for number, (kind, body) in enumerate(bodies.items()):
        found = json.loads(service.ask(body=body, kind=kind)[2])
        (line,) = found["warnings"]
        assert f"inputs[{1 - number}] is light at its border" in line
        if number:
            again = json.loads(service.ask("/predict?invert=true", body, kind)[2])
            assert list(again) == ["predictions"]
            np.testing.assert_allclose(
                again["predictions"][-1]["probabilities"],
                expected(matrix, 255 - paper[None])[0], atol=1e-6,
            )  # fmt: skip
    body = {"inputs": [(255 - paper).tolist()]}
    assert list(json.loads(service.ask(body=body)[2])) == ["predictions"]
    (line,) = json.loads(service.ask("/predict?invert=true", body)[2])["warnings"]
    assert "at its border when inverted" in line
    assert line.endswith("light on dark: leave ?invert=true out")
    body = {"inputs": [(paper < 99).astype(int).tolist()]}
    found = json.loads(service.ask(body=body)[2])["warnings"]
    assert found == ["inputs[0]: the brightest pixel is 1 of 255"]
    for query in ("invert=1", "invert", "inverted=true", "invert=true&top=3"):
        status, text = service.error(f"/predict?{query}", body=body)
        assert status == 422 and "invert" in text


def test_large_and_colored_pictures_are_read_as_for_training(service, matrix, tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (90, 120, 3), np.uint8)
    file = tmp_path / "photo.jpg"
    PIL.Image.fromarray(pixels).save(file, exif=exif(orientation=6))
    read = read_image(file, (28, 28), 1).pixels
    found = json.loads(service.ask(body=file.read_bytes(), kind="image/jpeg")[2])
    (row,) = found["predictions"]
    assert found["warnings"] == ["turned upright (EXIF)"]
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
     ("0.5", "integers"), ("1e30", "0..255"), ("9" * 30, "0..255"), ("-" + "9" * 400, "finite"), ("true", "numbers"), ('"1"', "numbers"),
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
            inputs.as_arrays(inputs.examples_of(body, 4), served)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 5e6


def test_words_in_a_name_of_an_input_are_not_values():
    two = [Input(name, "float32", (2,), "", None) for name in ("true", "false")]
    served = Artefact({"outputs": []}, tuple(two), None)
    body = b'{"inputs": [{"true": [1, 2], "false": [3, 4.5]}]}'
    found = inputs.as_arrays(inputs.examples_of(body, 4), served)
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
        ("text/plain", "got text/plain; with curl: -H 'Content-Type: application/json' "
         "for JSON, -H 'Content-Type: image/png' for a PNG file"),
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
            inputs.as_arrays(inputs.examples_of(b'{"inputs": %s}' % wrong, 4), made)
    # The model overflows: an internal error, and not an answer with infinities.
    with pytest.raises(FloatingPointError):
        made.predict(
            {"code": np.full((1, 3), np.inf, "f4"), "label": np.zeros(1, "i4")}
        )


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
