"""What the server says about itself: models, version, load; and SageMaker's probe."""

from __future__ import annotations

import time
import uuid

from aiohttp import web

from jaxpool_serving.keys import MODELS, VERSION, Served
from jaxpool_serving.models import served
from jaxpool_serving.schemas.server import Load, ModelCard, ModelList, Version

routes = web.RouteTableDef()


@routes.get("/v1/models", allow_head=False)
async def models(request: web.Request) -> web.Response:
    """The models that are loaded."""
    answer: ModelList = {"object": "list", "data": [_card(model) for model in _loaded(request.app)]}
    return web.json_response(answer)


@routes.get("/version", allow_head=False)
async def version(_: web.Request) -> web.Response:
    """The version of jaxpool."""
    answer: Version = {"version": VERSION}
    return web.json_response(answer)


@routes.get("/load", allow_head=False)
async def load(request: web.Request) -> web.Response:
    """How much there is to do."""
    answer: Load = {"server_load": sum(model.batcher.queued for model in _loaded(request.app))}
    return web.json_response(answer)


@routes.get("/ping", allow_head=False)
@routes.post("/ping")
async def ping(request: web.Request) -> web.Response:
    """200 once every model is loaded, 503 before: SageMaker sends requests from then on."""
    for name in request.app[MODELS]:
        served(request.app, name)
    return web.Response()


def _loaded(app: web.Application) -> list[Served]:
    return [model.result() for model in app[MODELS].values() if model.done() and not model.exception()]


def _card(model: Served) -> ModelCard:
    now = int(time.time())
    return {
        "id": model.name,
        "object": "model",
        "created": now,
        "owned_by": "jaxpool",
        "root": model.name,
        "parent": None,
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
