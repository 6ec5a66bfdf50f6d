"""The service's answers."""

import asyncio
import base64
import concurrent.futures
import json
import secrets

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gpuzoo.data import masks
from gpuzoo.deploy.serve import inputs, pages, rows, sentences, windows
from gpuzoo.deploy.serve.artefact import Artefact
from gpuzoo.deploy.serve.guard import Guard, Limits, read_body
from gpuzoo.deploy.serve.inputs import Refused
from gpuzoo.deploy.serve.metrics import TYPE, Metrics


def make_app(artefact: Artefact, limits: Limits, token: str, local: bool, quiet: bool):
    """Return the ASGI application.

    Args:
        token: required of each request; "" for none.
        local: accept only requests to a name of this machine.
        quiet: write no line for each request.
    """
    metrics, predict = Metrics(), _predict(artefact, limits)
    about = pages.openapi(artefact, limits, bool(token))

    async def post(request):
        count, text = await predict(request, metrics)
        metrics.examples += count
        return Response(text, media_type="application/json")

    async def health(request):
        return _as_json({"status": "ok", **pages.summary(artefact)})

    async def show_metrics(request):
        return Response(metrics.text(), headers={"content-type": TYPE})

    async def show_openapi(request):
        return _as_json(about)

    async def show_docs(request):
        return _page(lambda nonce: pages.docs(about, nonce))

    async def draw(request):
        return _page(lambda nonce: pages.draw(artefact, limits, bool(token), nonce))

    routes = {
        "/": ("GET", draw),
        "/predict": ("POST", post),
        "/health": ("GET", health),
        "/metrics": ("GET", show_metrics),
        "/openapi.json": ("GET", show_openapi),
        "/docs": ("GET", show_docs),
    }

    async def app(scope, receive, send):
        method, handler = routes.get(scope["path"], ("", None))
        if not handler:
            raise Refused(404, "there is no such page")
        if scope["method"] not in (method, "HEAD" if method == "GET" else method):
            raise Refused(405, f"this page takes {method}", allow=method)
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)

    return Guard(app, limits, metrics, token, local, quiet)


def _as_json(value) -> Response:
    text = json.dumps(value, allow_nan=False) + "\n"
    return Response(text, media_type="application/json")


def _page(make) -> Response:
    """Return an HTML page, of a function of the nonce of its scripts and styles."""
    nonce = secrets.token_urlsafe(16)
    policy = pages.POLICY.replace("NONCE", nonce)
    headers = {"content-security-policy": policy}
    return Response(make(nonce), media_type="text/html", headers=headers)


def _predict(artefact: Artefact, limits: Limits):
    """Return a function of a request: the number of examples, and the answer."""
    pool = concurrent.futures.ThreadPoolExecutor(limits.threads, "predict")

    async def predict(request: Request, metrics: Metrics) -> tuple[int, str]:
        invert = _inverts(request.query_params.multi_items(), artefact)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in pages.kinds(artefact):
            raise Refused(415, _expected(artefact, kind))
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "compressed bodies are not accepted; send it as it is")
        try:
            body = await read_body(request, limits, metrics)
        except ClientDisconnect:
            raise Refused(400, "the body ended early") from None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            pool, answer, artefact, limits, kind, body, invert
        )

    return predict


def _expected(artefact: Artefact, kind: str) -> str:
    """Return the error about another content type than those of a model."""
    taken = pages.kinds(artefact)
    text = f"expected Content-Type {' or '.join(taken)}, got {kind[:80] or 'none'}"
    if kind.startswith("multipart/"):
        return f"{text}; send the file alone as the body (curl --data-binary @FILE)"
    if kind.startswith("image/") and len(taken) > 1:
        return f"{text}; save the image as PNG or JPEG"
    header = f"with curl: -H 'Content-Type: {taken[0]}'"
    if len(taken) > 1:
        header += f" for JSON, -H 'Content-Type: {taken[1]}' for a PNG file"
    return f"{text}; {header}"


def _inverts(query: list[tuple[str, str]], artefact: Artefact) -> bool:
    """Return whether dark and light are to be exchanged, by the query of a URL."""
    if not query:
        return False
    if not artefact.takes_images:
        raise Refused(422, "the URL takes no query for this model")
    if [name for name, _ in query] != ["invert"]:
        raise Refused(422, "the URL takes the query ?invert=true and no other")
    if (value := query[0][1]) not in ("true", "false"):
        raise Refused(422, f"invert must be true or false, not {value[:20]!r}")
    return value == "true"


def answer(
    artefact: Artefact, limits: Limits, kind: str, body: bytes, invert: bool = False
) -> tuple[int, str]:
    """Return the number of examples in a body and the answer as JSON.

    Args:
        invert: exchange dark and light in images.

    Raises:
        Refused: see `inputs`.
    """
    said: list[str] = []
    if kind == "application/json":
        given = inputs.examples_of(body, limits.examples)
        if artefact.table:
            examples, said = rows.from_examples(given, artefact.table)
        elif artefact.series:
            examples, said = windows.from_examples(given, artefact.series)
        elif artefact.text:
            examples, said = sentences.from_examples(given, artefact.text)
        else:
            examples = inputs.as_arrays(given, artefact)
    else:
        examples, said = inputs.from_image(body, kind, artefact)
    if invert:
        examples = inputs.inverted(examples, artefact)
    found = artefact.predict(examples)
    count = len(next(iter(examples.values())))
    predictions = [
        _row(artefact, {name: values[i] for name, values in found.items()})
        for i in range(count)
    ]
    said += inputs.warnings(examples, artefact, invert)
    answers = {"predictions": predictions, **({"warnings": said} if said else {})}
    text = json.dumps(answers, allow_nan=False)
    return count, text + "\n"


def _row(artefact: Artefact, outputs: dict[str, np.ndarray]) -> dict:
    row = {}
    if artefact.series and "forecast" in outputs:
        return {"forecast": windows.in_units(outputs["forecast"], artefact.series)}
    if artefact.segments:
        mask = outputs["mask"].astype(np.uint8)
        return {
            "mask": base64.b64encode(masks.png(mask)).decode(),
            "areas": masks.areas(mask, artefact.classes),
            "confidence": float(outputs["confidence"].mean()),
        }
    if artefact.labels:
        probabilities = outputs["probabilities"]
        best = int(probabilities.argmax())
        row = {
            "class": artefact.classes[best],
            "index": best,
            "probability": float(probabilities[best]),
        }
    return row | {name: values.tolist() for name, values in outputs.items()}
