"""The pages of the service and its description; nothing is loaded from elsewhere."""

import dataclasses
import html
import json
import pathlib

from gpuzoo import __version__
from gpuzoo.deploy.serve import rows, sentences, windows
from gpuzoo.deploy.serve.artefact import Artefact, Input
from gpuzoo.deploy.serve.guard import OPEN, Limits
from gpuzoo.deploy.serve.inputs import IMAGE_TYPES

POLICY = (
    "default-src 'none'; script-src 'nonce-NONCE'; style-src 'nonce-NONCE'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HERE = pathlib.Path(__file__).parent
_ERRORS = {
    400: "The body is not JSON, or not a readable image.",
    401: "The token is missing or wrong.",
    405: "The method is not one of this page.",
    408: "The body was not received in time.",
    413: "The body or the image is too large.",
    415: "The content type is not accepted.",
    421: "The Host header does not name this machine.",
    422: "The inputs have another shape, or values that are not allowed.",
    429: "Too many requests of this client; see Retry-After.",
    503: "Too many requests at the same time; see Retry-After.",
}


def kinds(artefact: Artefact) -> tuple[str, ...]:
    """Content types that /predict takes."""
    return ("application/json", *(IMAGE_TYPES if artefact.takes_images else ()))


def summary(artefact: Artefact) -> dict:
    """What is served."""
    about = artefact.about
    scale = {"scale": about["scale"]} if about.get("scale") else {}
    if artefact.table or artefact.series:  # its numbers are in their own unit
        scale = {}
    return {
        "model": about.get("model", ""),
        "task": about.get("task", ""),
        "classes": list(artefact.classes),
        **(
            {"target": artefact.table.target.name, "columns": artefact.table.used}
            if artefact.table
            else {
                "targets": list(artefact.series.names),
                "columns": windows.names(artefact.series),
                "rows": artefact.series.window,
            }
            if artefact.series
            else {"columns": list(artefact.text.columns)}
            if artefact.text
            else {"inputs": [dataclasses.asdict(one) for one in artefact.inputs]}
        ),
        **scale,
        "gpuzoo": __version__,
    }


def openapi(artefact: Artefact, limits: Limits, token: bool) -> dict:
    """Return the service's description, OpenAPI 3.1."""
    error = {"$ref": "#/components/schemas/Error"}

    def answers(content: dict, *errors: int) -> dict:
        found = {"200": {"description": "OK", "content": content}}
        for status in errors:
            found[str(status)] = {
                "description": _ERRORS[status],
                "content": {"application/json": {"schema": error}},
            }
        return found

    bodies: dict = {"application/json": {"schema": _inputs(artefact, limits)}}
    for kind in kinds(artefact)[1:]:
        bodies[kind] = {"schema": {"type": "string", "format": "binary"}}
    predict: dict = {
        "summary": "Predict",
        "description": _description(artefact),
        "requestBody": {"required": True, "content": bodies},
        "responses": answers(
            {"application/json": {"schema": _predictions(artefact)}}, *_ERRORS
        ),
    }
    if artefact.takes_images:
        predict["parameters"] = [{
            "name": "invert", "in": "query", "schema": {"type": "boolean"},
            "description": "Exchange dark and light, for a dark digit on white paper.",
        }]  # fmt: skip
    pages = {
        "/health": (
            "Whether the service answers, and what it serves",
            "application/json",
        ),
        "/metrics": ("Counters in Prometheus's text format", "text/plain"),
        "/openapi.json": ("This description", "application/json"),
        "/docs": ("This description as a page", "text/html"),
        "/": ("Draw a digit, or choose an image", "text/html"),
    }
    paths: dict = {"/predict": {"post": predict}}
    for path, (text, kind) in pages.items():
        content = {kind: {"schema": {"type": "string" if kind[0] == "t" else "object"}}}
        errors = () if path == "/health" else (429,)
        found = answers(content, *errors)
        paths[path] = {"get": {"summary": text, "responses": found}}
    components: dict = {
        "schemas": {
            "Error": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "string"}},
            }
        }
    }
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, found in paths.items():
            if path not in OPEN:
                for one in found.values():
                    one["security"] = [{"token": []}]
    title = artefact.about.get("model") or "gpuzoo"
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{title}, served by gpuzoo", "version": __version__},
        "paths": paths,
        "components": components,
    }


def _description(artefact: Artefact) -> str:
    if artefact.table:
        used = ", ".join(artefact.table.used)
        return f"rows of a table, column -> value (null: missing): {used}"
    if artefact.series:
        return (
            f"series, column -> at least its last {artefact.series.window} values, "
            f"oldest first: {', '.join(windows.names(artefact.series))}"
        )
    if artefact.text:
        return sentences.described(artefact.text)
    return "; ".join(
        f"{one.name} {list(one.shape)}: {one.meaning}" for one in artefact.inputs
    )


def _inputs(artefact: Artefact, limits: Limits) -> dict:
    """The schema of a JSON body."""
    columns = {one.name: _input(one) for one in artefact.inputs}
    example = columns[artefact.inputs[0].name]
    if artefact.table:
        example = rows.schema(artefact.table)
    elif artefact.series:
        example = windows.schema(artefact.series)
    elif artefact.text:
        example = sentences.schema(artefact.text)
    elif len(columns) > 1:
        example = {"type": "object", "required": [*columns], "properties": columns}
    examples = {"type": "array", "items": example, "minItems": 1}
    return {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {"inputs": {**examples, "maxItems": limits.examples}},
    }


def _input(one: Input) -> dict:
    value: dict = {"type": "number" if one.dtype == "float32" else "integer"}
    if one.range:
        value |= {"minimum": one.range[0], "maximum": one.range[1]}
    for size in reversed(one.shape):
        value = {"type": "array", "minItems": size, "maxItems": size, "items": value}
    return value


def _predictions(artefact: Artefact) -> dict:
    row: dict = {one["name"]: _output(one) for one in artefact.about["outputs"]}
    if artefact.labels:
        row = {
            "class": {"type": "string", "enum": list(artefact.classes)},
            "index": {"type": "integer"},
            "probability": {"type": "number"},
            **row,
        }
    if artefact.segments:
        row = _of_mask(artefact)
    if artefact.series and "forecast" in row:
        values = {"type": "array", "items": {"type": "number"}}
        targets = dict.fromkeys(artefact.series.names, values)
        row = {"forecast": {"type": "object", "properties": targets}}
    return {
        "type": "object",
        "required": ["predictions"],
        "properties": {
            "predictions": {
                "type": "array",
                "items": {"type": "object", "properties": row},
            },
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
    }


def _of_mask(artefact: Artefact) -> dict:
    """The schema of a predicted mask."""
    area = {
        "class": {"type": "string", "enum": list(artefact.classes)},
        "pixels": {"type": "integer"},
        "fraction": {"type": "number"},
    }
    return {
        "mask": {
            "type": "string", "contentEncoding": "base64",
            "contentMediaType": "image/png",
            "description": "PNG with a palette; a pixel is an index into classes",
        },
        "areas": {
            "type": "array", "items": {"type": "object", "properties": area},
            "description": "what part each class has, the largest first",
        },
        "confidence": {
            "type": "number",
            "description": "mean probability of the classes of the pixels",
        },
    }  # fmt: skip


def _output(one: dict) -> dict:
    """The schema of one example's output; its sizes may be unknown."""
    found: dict = {"type": "number"}
    for _ in one.get("shape", [None])[1:]:
        found = {"type": "array", "items": found}
    return found | {"description": one.get("meaning", "")}


def draw(artefact: Artefact, limits: Limits, token: bool, nonce: str) -> str:
    """Return the page on which a person draws a digit."""
    about = {
        **summary(artefact),
        "draws": artefact.classifies_images,
        "token": token,
        "bytes": limits.bytes,
    }
    text = (_HERE / "draw.html").read_text(encoding="utf-8")
    # No text of a class name may end the script.
    data = json.dumps(about).replace("<", "\\u003c")
    return text.replace("NONCE", nonce).replace("ABOUT", data, 1)


def docs(about: dict, nonce: str) -> str:
    """Return the description as a page."""
    parts = []
    for path, methods in about["paths"].items():
        for method, one in methods.items():
            parts.append(_section(path, method, one))
    title = html.escape(about["info"]["title"])
    text = (_HERE / "docs.html").read_text(encoding="utf-8")
    return (
        text.replace("NONCE", nonce)
        .replace("TITLE", title)
        .replace("SECTIONS", "\n".join(parts), 1)
    )


def _section(path: str, method: str, one: dict) -> str:
    lines = [f"<h2><code>{method.upper()} {path}</code></h2>"]
    lines.append(f"<p>{html.escape(one['summary'])}.</p>")
    if one.get("description"):
        lines.append(f"<p>Input: {html.escape(one['description'])}.</p>")
    if "security" in one:
        lines.append("<p>Needs <code>Authorization: Bearer TOKEN</code>.</p>")
    if body := one.get("requestBody"):
        for kind, content in body["content"].items():
            lines.append(f"<h3>Body: <code>{kind}</code></h3>")
            if content["schema"]["type"] == "object":
                lines.append(_schema(content["schema"]))
            else:
                lines.append("<p>The bytes of one image file.</p>")
    lines.append("<h3>Answers</h3><table>")
    for status, found in one["responses"].items():
        text = html.escape(found["description"])
        lines.append(f"<tr><td>{status}</td><td>{text}</td></tr>")
    lines.append("</table>")
    found = one["responses"]["200"]["content"].get("application/json")
    if found and "properties" in found["schema"]:
        lines.append(_schema(found["schema"]))
    return "\n".join(lines)


def _schema(schema: dict) -> str:
    text = html.escape(json.dumps(schema, indent=1))
    return f"<details><summary>Schema</summary><pre>{text}</pre></details>"
