"""``GET /metrics``: for Prometheus."""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from jaxpool_serving.metrics import METRICS

routes = web.RouteTableDef()


@routes.get("/metrics", allow_head=False)
async def metrics(request: web.Request) -> web.Response:
    """Every metric as text; OpenMetrics for those who accept it."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(request.app[METRICS].registry), headers={"Content-Type": content_type})
