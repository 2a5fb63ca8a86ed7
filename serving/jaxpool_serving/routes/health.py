"""Whether the server lives (``/health``) and is warm (``/ready``)."""

from __future__ import annotations

from aiohttp import web

from jaxpool_serving.keys import MODELS
from jaxpool_serving.models import served

routes = web.RouteTableDef()


@routes.get("/health", allow_head=False)
async def health(_: web.Request) -> web.Response:
    """200 as long as the process answers, warm or not."""
    return web.Response()


@routes.get("/ready", allow_head=False)
async def ready(request: web.Request) -> web.Response:
    """200 once every model is loaded and every program compiled; 503 before."""
    warm = [served(request.app, name) for name in request.app[MODELS]]
    return web.json_response({"status": "ready", "queued_texts": sum(model.batcher.queued for model in warm)})
