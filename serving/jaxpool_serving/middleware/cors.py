"""Cross-origin requests: which pages of other origins may call the server from a browser. Off unless asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.keys import OPTIONS

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

PREFLIGHT_SECONDS = 600
EXPOSED = "Retry-After, X-Request-Id"


@web.middleware
async def answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what a browser asks before it sends a page's request."""
    asked = request.headers.get("Access-Control-Request-Method")
    origin = request.headers.get("Origin")
    if request.method != "OPTIONS" or asked is None or origin is None:
        return await handler(request)
    options = request.app[OPTIONS]
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not (
        _among(origin, options.allowed_origins)
        and _among(asked, options.allowed_methods)
        and all(_among(name, options.allowed_headers) for name in names)
    ):
        return web.json_response({"error": "Forbidden"}, status=403)
    headers = {"Access-Control-Allow-Methods": asked, "Access-Control-Max-Age": str(PREFLIGHT_SECONDS)}
    if names:
        headers["Access-Control-Allow-Headers"] = ", ".join(names)
    return web.Response(status=204, headers=headers)


async def allow_origin(request: web.Request, response: web.StreamResponse) -> None:
    """A signal before each response: a browser shows it to pages of the allowed origins."""
    origin = request.headers.get("Origin")
    if origin is None:
        return
    response.headers.add("Vary", "Origin")
    if _among(origin, request.app[OPTIONS].allowed_origins):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED


def _among(name: str, allowed: tuple[str, ...]) -> bool:
    return "*" in allowed or name.lower() in (one.lower() for one in allowed)
