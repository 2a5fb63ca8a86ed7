"""``GET /openapi.json`` and ``GET /docs``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from jaxpool_serving.docs import page
from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.openapi import document

routes = web.RouteTableDef()


@routes.get("/openapi.json", allow_head=False)
async def openapi(request: web.Request) -> web.Response:
    """This server's routes and bodies, for programs."""
    return web.json_response(_document(request.app))


@routes.get("/docs", allow_head=False)
async def docs(request: web.Request) -> web.Response:
    """This server's routes and bodies, for people."""
    return web.Response(text=page(_document(request.app)), content_type="text/html")


def _document(app: web.Application) -> dict[str, Any]:
    return document(app.router.routes(), guarded=bool(app[OPTIONS].api_keys))
