"""What the server says about itself.

Whether it lives and is ready, its models, version, load and metrics, and its own description.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from jaxpool_serving.metrics import METRICS
from jaxpool_serving.models import find_model, loaded
from jaxpool_serving.openapi import html_page, openapi_document
from jaxpool_serving.schemas.server import Load, ModelCard, ModelList, Version
from jaxpool_serving.state import MODELS, OPTIONS, VERSION, ServedModel

routes = web.RouteTableDef()


@routes.get("/health", allow_head=False)
async def health(_: web.Request) -> web.Response:
    """200 as long as the process answers, warm or not."""
    return web.Response()


@routes.get("/ready", allow_head=False)
async def ready(request: web.Request) -> web.Response:
    """200 once no request has to wait for a load or a compile; 503 before.

    ``programs_to_come`` counts the programs that are still compiled in the background, to make answers faster.
    """
    warm = [find_model(request.app, name) for name in request.app[MODELS]]
    queued = sum(model.batcher.queued for model in warm)
    engines = [model.batcher.engine for model in warm]
    to_come = sum(len(engine.buckets) - len(engine.usable) for engine in engines)
    return web.json_response({"status": "ready", "queued_texts": queued, "programs_to_come": to_come})


@routes.get("/v1/models", allow_head=False)
async def models(request: web.Request) -> web.Response:
    """The models that are loaded, and their adapters."""
    aliases = request.app[OPTIONS].aliases
    first, *_ = [*request.app[MODELS]]
    named = [
        (name, one) for one in _listed(request.app) for name in (one.name, *(aliases if one.name == first else ()))
    ]
    answer: ModelList = {"object": "list", "data": [_card(name, model) for name, model in named]}
    return web.json_response(answer)


@routes.get("/version", allow_head=False)
async def version(_: web.Request) -> web.Response:
    """The version of jaxpool."""
    answer: Version = {"version": VERSION}
    return web.json_response(answer)


@routes.get("/load", allow_head=False)
async def load(request: web.Request) -> web.Response:
    """How much there is to do."""
    answer: Load = {"server_load": sum(model.batcher.queued for model in loaded(request.app))}
    return web.json_response(answer)


def _listed(app: web.Application) -> list[ServedModel]:
    found = []
    for model in loaded(app):
        adapters = {} if model.llm.engine.adapters is None else model.llm.engine.adapters.held()
        found += [model, *(replace(model, name=name, adapter=one, base=model.name) for name, one in adapters.items())]
    return found


def _card(name: str, model: ServedModel) -> ModelCard:
    now = int(time.time())
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "jaxpool",
        "root": model.name,
        "parent": model.base,
        "max_model_len": model.llm.engine.spec.max_length,
        "permission": [
            {
                "id": f"modelperm-{uuid.uuid4().hex[:16]}",
                "object": "model_permission",
                "created": now,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }


@routes.get("/metrics", allow_head=False)
async def metrics(request: web.Request) -> web.Response:
    """Every metric as text; OpenMetrics for those who accept it."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(request.app[METRICS].registry), headers={"Content-Type": content_type})


@routes.get("/openapi.json", allow_head=False)
async def openapi(request: web.Request) -> web.Response:
    """This server's routes and bodies, for programs."""
    return web.json_response(_document(request.app))


@routes.get("/docs", allow_head=False)
async def docs(request: web.Request) -> web.Response:
    """This server's routes and bodies, for people."""
    return web.Response(text=html_page(_document(request.app)), content_type="text/html")


def _document(app: web.Application) -> dict[str, Any]:
    return openapi_document(app.router.routes(), guarded=bool(app[OPTIONS].api_keys))
