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
    """200 once no request has to wait for a load or a compile; 503 before.

    ``programs_to_come`` counts the programs that are still compiled in the background, to make answers faster.
    """
    warm = [served(request.app, name) for name in request.app[MODELS]]
    queued = sum(model.batcher.queued for model in warm)
    engines = [model.llm.engine for model in warm]
    to_come = sum(len(engine.buckets) - len(engine.usable) for engine in engines)
    return web.json_response({"status": "ready", "queued_texts": queued, "programs_to_come": to_come})
