"""What SageMaker asks of a container: ``/ping``, and ``POST /invocations``, where it sends every request."""

from __future__ import annotations

from aiohttp import web

from jaxpool_serving.bodies import parse_body
from jaxpool_serving.models import find_model
from jaxpool_serving.routes import classify, embeddings, scoring
from jaxpool_serving.schemas.errors import RequestError, SchemaError, parse_object
from jaxpool_serving.state import MODELS

routes = web.RouteTableDef()

HANDLERS = {
    "classify": classify.classify,
    "pooling": classify.pooling,
    "embedding": embeddings.embeddings,
    "score": scoring.score,
    "rerank": scoring.rerank,
    "inference": classify.inference,
}
"""What a request may be, tried in this order; the first that understands it and serves it answers."""


@routes.get("/ping", allow_head=False)
@routes.post("/ping")
async def ping(request: web.Request) -> web.Response:
    """200 once every model is loaded, 503 before: SageMaker sends requests from then on."""
    for name in request.app[MODELS]:
        find_model(request.app, name)
    return web.Response()


@routes.post("/invocations")
async def invocations(request: web.Request) -> web.StreamResponse:
    """A request of any kind, told by its fields."""
    await parse_body(request, parse_object)
    for handler in HANDLERS.values():
        try:
            return await handler(request)
        except (SchemaError, web.HTTPNotFound):
            continue
        except RequestError as error:
            if error.status != web.HTTPNotImplemented.status_code:
                raise
    message = f"Cannot find suitable handler for request. Expected one of: {list(HANDLERS)}"
    raise RequestError(400, "BadRequestError", message)
