"""What the routes do with every request: read its body, find its id."""

from __future__ import annotations

from aiohttp import web

from jaxpool_serving.schemas.common import PoolingRequest
from jaxpool_serving.schemas.errors import RequestError


async def json_body(request: web.Request) -> bytes:
    """The body of a request whose content type says JSON.

    Raises:
        RequestError: 400, it says something else.
    """
    if request.content_type != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise RequestError(400, "Bad Request", message)
    return await request.read()


def request_id(request: web.Request, body: PoolingRequest) -> str:
    """The header ``X-Request-Id``, else what the body says, else a random one."""
    return request.headers.get("X-Request-Id", body.request_id)
