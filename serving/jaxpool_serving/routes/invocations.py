"""``POST /invocations``, where SageMaker sends every request."""

from __future__ import annotations

from aiohttp import web

from jaxpool_serving.routes import classify, pooling, predict, scoring
from jaxpool_serving.routes.bodies import parsed
from jaxpool_serving.schemas.errors import RequestError, SchemaError, document

routes = web.RouteTableDef()

HANDLERS = {
    "classify": classify.classify,
    "pooling": pooling.pooling,
    "score": scoring.score,
    "rerank": scoring.rerank,
    "inference": predict.inference,
}
"""What a request may be, tried in this order; the first that understands it and serves it answers."""


@routes.post("/invocations")
async def invocations(request: web.Request) -> web.StreamResponse:
    """A request of any kind, told by its fields."""
    await parsed(request, document)
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
