"""The server's OpenAPI document, and a page for people made of it.

The document is made of the route tables, the docstrings of their handlers and the schemas. The page needs nothing else,
no script and no other server.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from aiohttp import web
from pydantic import TypeAdapter

from jaxpool_serving.compute import DEADLINE
from jaxpool_serving.schemas.adapters import LoadAdapterRequest, UnloadAdapterRequest
from jaxpool_serving.schemas.classify import (
    ClassifyChatRequest,
    ClassifyRequest,
    ClassifyResponse,
    LabelScore,
    PredictRequest,
    TextClassificationRequest,
)
from jaxpool_serving.schemas.cohere import CohereRequest, CohereResponse
from jaxpool_serving.schemas.embeddings import EmbeddingForms, EmbeddingResponse
from jaxpool_serving.schemas.errors import Detail, ErrorResponse, Unauthorized
from jaxpool_serving.schemas.pooling import PoolingForms, PoolingResponse
from jaxpool_serving.schemas.scoring import RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from jaxpool_serving.schemas.server import Load, ModelList, Readiness, Version
from jaxpool_serving.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeForms,
    TokenizeResponse,
)
from jaxpool_serving.state import PROBES, VERSION


class RouteBodies(NamedTuple):
    """The bodies of a route: types of the JSON ones, content types of others."""

    request: Any = None
    response: Any = None
    also: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()


COMPUTE_STATUSES = (400, 404, 408, 413, 415, 429, 500, 501, 503, 504)
READ_STATUSES = (400, 404, 408, 413, 415, 500, 503)
Classify = ClassifyRequest | ClassifyChatRequest
Inference = list[list[LabelScore]]

ROUTES: Mapping[str, RouteBodies] = {
    "/classify": RouteBodies(Classify, ClassifyResponse, errors=COMPUTE_STATUSES),
    "/pooling": RouteBodies(PoolingForms, PoolingResponse, ("application/octet-stream",), COMPUTE_STATUSES),
    "/v1/embeddings": RouteBodies(EmbeddingForms, EmbeddingResponse, ("application/octet-stream",), COMPUTE_STATUSES),
    "/v2/embed": RouteBodies(CohereRequest, CohereResponse, errors=COMPUTE_STATUSES),
    **dict.fromkeys(("/score", "/v1/score"), RouteBodies(ScoreRequest, ScoreResponse, errors=COMPUTE_STATUSES)),
    **dict.fromkeys(
        ("/rerank", "/v1/rerank", "/v2/rerank"), RouteBodies(RerankRequest, RerankResponse, errors=COMPUTE_STATUSES)
    ),
    "/predict": RouteBodies(PredictRequest, list[LabelScore] | Inference, errors=COMPUTE_STATUSES),
    "/": RouteBodies(TextClassificationRequest, Inference, errors=COMPUTE_STATUSES),
    "/invocations": RouteBodies(
        Classify | PoolingForms | ScoreRequest | RerankRequest | TextClassificationRequest,
        ClassifyResponse | PoolingResponse | ScoreResponse | RerankResponse | Inference,
        ("application/octet-stream",),
        COMPUTE_STATUSES,
    ),
    "/tokenize": RouteBodies(TokenizeForms, TokenizeResponse, errors=READ_STATUSES),
    "/detokenize": RouteBodies(DetokenizeRequest, DetokenizeResponse, errors=READ_STATUSES),
    "/v1/load_lora_adapter": RouteBodies(LoadAdapterRequest, None, ("text/plain",), READ_STATUSES),
    "/v1/unload_lora_adapter": RouteBodies(UnloadAdapterRequest, None, ("text/plain",), READ_STATUSES),
    "/v1/models": RouteBodies(response=ModelList),
    "/version": RouteBodies(response=Version),
    "/load": RouteBodies(response=Load),
    "/health": RouteBodies(),
    "/ready": RouteBodies(response=Readiness, errors=(503,)),
    "/ping": RouteBodies(errors=(503,)),
    "/metrics": RouteBodies(also=("text/plain",)),
    "/openapi.json": RouteBodies(response=dict[str, Any]),
    "/docs": RouteBodies(also=("text/html",)),
}

STATUSES = {
    200: "The answer",
    400: "The body breaks the schema, or cannot be computed as asked",
    401: "None of the API keys",
    404: "There is no such model, or no model that serves this route",
    408: "The body arrived too slowly",
    413: "The body is too large",
    415: "The body is compressed in a way that the server does not read",
    429: "There is no room in the queue; `Retry-After` says when there should be",
    500: "The device or the tokenizer failed",
    501: "The model serves another task",
    503: "The model is still loading",
    504: "The deadline has passed",
}
REFUSALS: Mapping[int, Any] = {400: ErrorResponse | Detail, 401: Unauthorized, 404: ErrorResponse | Detail}
"""Types of the bodies that refuse; `ErrorResponse` for all other statuses."""
RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}}
HEADERS = [
    {"in": "header", "name": "X-Request-Id", "schema": {"type": "string"}, "description": "Part of the answer's id"},
    {
        "in": "header",
        "name": DEADLINE,
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "description": "Seconds after which nobody wants the answer",
    },
]


def openapi_document(routes: Iterable[web.AbstractRoute], *, guarded: bool) -> dict[str, Any]:
    """The document as JSON.

    Args:
        routes: what is served; the path of each must be in `ROUTES`.
        guarded: whether all but probes need an API key.
    """
    found, components = schemas()
    paths: dict[str, dict[str, Any]] = {path: {} for path in ROUTES}
    for route in routes:
        path = route.resource.canonical if route.resource else ""
        described, key_needed = ROUTES[path], guarded and path not in PROBES
        summary, _, rest = (route.handler.__doc__ or "").partition("\n\n")
        operation: dict[str, Any] = {
            "operationId": f"{route.method.lower()} {path}",
            "summary": summary,
            "responses": dict(_responses(path, key_needed, found)),
        }
        if rest.strip():
            operation["description"] = rest.strip()
        if described.request is not None:
            content = {"application/json": {"schema": found[path, "request"]}}
            operation["requestBody"] = {"required": True, "content": content}
        if described.errors == COMPUTE_STATUSES:
            operation["parameters"] = HEADERS
        if key_needed:
            operation["security"] = [{"bearer": []}]
        paths[path][route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jaxpool",
            "version": VERSION,
            "description": "Text classification. Fields that a request has and a schema has not are ignored.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


@functools.cache
def schemas() -> tuple[dict[tuple[str, Any], Any], dict[str, Any]]:
    """JSON schemas by ``(path, "request" or "response")`` and ``("", status)``; and what they refer to, by name."""
    wanted: list[tuple[Any, Any, TypeAdapter[Any]]] = []
    for path, described in ROUTES.items():
        for part in ("request", "response"):
            if (kind := getattr(described, part)) is not None:
                wanted.append(((path, part), "validation", TypeAdapter(kind)))
    for status in STATUSES:
        wanted.append((("", status), "validation", TypeAdapter(REFUSALS.get(status, ErrorResponse))))
    found, definitions = TypeAdapter.json_schemas(wanted, ref_template="#/components/schemas/{model}")
    return {key: schema for (key, _), schema in found.items()}, definitions["$defs"]


def _responses(path: str, key_needed: bool, found: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    described = ROUTES[path]
    content: dict[str, Any] = {name: {} for name in described.also}
    if described.response is not None:
        content = {"application/json": {"schema": found[path, "response"]}, **content}
    yield "200", {"description": STATUSES[200], **({"content": content} if content else {})}
    for status in sorted((*described.errors, *((401,) if key_needed else ()))):
        answer = {
            "description": STATUSES[status],
            "content": {"application/json": {"schema": found["", status]}},
        }
        yield str(status), answer | ({"headers": RETRY_AFTER} if status in (429, 503) else {})


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
code { background: #f3f3f3; padding: 0 .2em } h2 { border-top: 1px solid #ddd; padding-top: 1rem }
table { border-collapse: collapse; width: 100% } td, th { border: 1px solid #ddd; padding: .3em .6em; text-align: left }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } code { background: #333 } }
"""


def html_page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML: every route, every status, every body."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    lines = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>',
        f"<h1>{title}</h1><p>{_text(document['info']['description'])} <a href='openapi.json'>openapi.json</a></p>",
    ]
    statuses: dict[str, Mapping[str, Any]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += [f"<h2><code>{method.upper()} {escape(path)}</code></h2>", *_operation(operation)]
            statuses |= operation["responses"]
    lines.append('<h1 id="statuses">Statuses</h1><table><tr><th>status<th>when<th>body</tr>')
    for status, answer in sorted(statuses.items()):
        body = "" if status == "200" else _content(answer["content"])
        lines.append(f"<tr><td>{status}<td>{_text(answer['description'])}<td>{body}</tr>")
    lines.append("</table><h1>Bodies</h1>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += [f'<h2 id="{escape(name)}">{escape(name)}</h2>', *_body(schema)]
    return "\n".join(lines)


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{_text(operation['summary'])}</p><ul>"
    if request := operation.get("requestBody"):
        yield f"<li>Request: {_content(request['content'])}"
    yield f"<li>Answer: {_content(operation['responses']['200'].get('content', {})) or 'empty'}"
    if refusals := [status for status in operation["responses"] if status != "200"]:
        yield f'<li><a href="#statuses">Refusals</a>: {", ".join(refusals)}'
    yield "</ul>"


def _content(content: Mapping[str, Any]) -> str:
    return " or ".join(
        _kind(media["schema"]) if "schema" in media else f"<code>{escape(name)}</code>"
        for name, media in content.items()
    )


def _body(schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{_text(schema.get('description', ''))}</p><table><tr><th>field<th>type<th>default</tr>"
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in schema.get("required", ()) else _default(field)
        yield f"<tr><td><code>{escape(name)}</code><td>{_kind(field)}<td>{default}</tr>"
    yield "</table>"


def _default(field: Mapping[str, Any]) -> str:
    return f"<code>{escape(json.dumps(field['default']))}</code>" if "default" in field else ""


def _text(markdown: str) -> str:
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", escape(markdown))


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a value in words, named ones as links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(map(_kind, schema[union]))
    if "const" in schema or "enum" in schema:
        return " or ".join(
            f"<code>{escape(json.dumps(one))}</code>" for one in schema.get("enum", [schema.get("const")])
        )
    if schema.get("type") == "array":
        items = _kind(schema.get("items", {}))
        return f"list of ({items})" if " or " in items else f"list of {items}"
    limits = [f"{words} {schema[key]}" for key, words in LIMITS.items() if key in schema]
    return " ".join([escape(schema.get("type", "anything")), *limits])


LIMITS = {"minimum": "from", "maximum": "to", "exclusiveMinimum": "above"}
