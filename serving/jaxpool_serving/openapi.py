"""The server's OpenAPI document, made of the route tables, the docstrings of their handlers and the schemas."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from aiohttp import web
from pydantic import TypeAdapter

from jaxpool_serving.deadlines import DEADLINE
from jaxpool_serving.keys import PROBES, VERSION
from jaxpool_serving.schemas.classify import ClassifyChatRequest, ClassifyRequest, ClassifyResponse, LabelScore
from jaxpool_serving.schemas.pooling import PoolingForms, PoolingResponse
from jaxpool_serving.schemas.predict import PredictRequest, TextClassificationRequest
from jaxpool_serving.schemas.problems import Detail, ErrorResponse, Unauthorized
from jaxpool_serving.schemas.scoring import RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from jaxpool_serving.schemas.server import Load, ModelList, Readiness, Version
from jaxpool_serving.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeForms,
    TokenizeResponse,
)


class Described(NamedTuple):
    """The bodies of a route: types of the JSON ones, content types of others."""

    request: Any = None
    response: Any = None
    also: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()


COMPUTES = (400, 404, 408, 413, 415, 429, 500, 501, 503, 504)
READS = (400, 404, 408, 413, 415, 500, 503)
Classify = ClassifyRequest | ClassifyChatRequest
Inference = list[list[LabelScore]]

ROUTES: Mapping[str, Described] = {
    "/classify": Described(Classify, ClassifyResponse, errors=COMPUTES),
    "/pooling": Described(PoolingForms, PoolingResponse, ("application/octet-stream",), COMPUTES),
    **dict.fromkeys(("/score", "/v1/score"), Described(ScoreRequest, ScoreResponse, errors=COMPUTES)),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), Described(RerankRequest, RerankResponse, errors=COMPUTES)),
    "/predict": Described(PredictRequest, list[LabelScore] | Inference, errors=COMPUTES),
    "/": Described(TextClassificationRequest, Inference, errors=COMPUTES),
    "/invocations": Described(
        Classify | PoolingForms | ScoreRequest | RerankRequest | TextClassificationRequest,
        ClassifyResponse | PoolingResponse | ScoreResponse | RerankResponse | Inference,
        ("application/octet-stream",),
        COMPUTES,
    ),
    "/tokenize": Described(TokenizeForms, TokenizeResponse, errors=READS),
    "/detokenize": Described(DetokenizeRequest, DetokenizeResponse, errors=READS),
    "/v1/models": Described(response=ModelList),
    "/version": Described(response=Version),
    "/load": Described(response=Load),
    "/health": Described(),
    "/ready": Described(response=Readiness, errors=(503,)),
    "/ping": Described(errors=(503,)),
    "/metrics": Described(also=("text/plain",)),
    "/openapi.json": Described(response=dict[str, Any]),
    "/docs": Described(also=("text/html",)),
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


def document(routes: Iterable[web.AbstractRoute], *, guarded: bool) -> dict[str, Any]:
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
        if described.errors == COMPUTES:
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
