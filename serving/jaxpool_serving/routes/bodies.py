"""What the routes do with every request: read its body, find its id."""

from __future__ import annotations

import asyncio

from aiohttp import web

from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.memory import read_body
from jaxpool_serving.record import RECORD
from jaxpool_serving.schemas.common import PoolingRequest
from jaxpool_serving.schemas.errors import RequestError


async def json_body(request: web.Request) -> bytes:
    """The body of a request whose content type says JSON.

    Raises:
        RequestError: 400, it says something else; 408, the body was too slow.
        HTTPRequestEntityTooLarge: it is too large; if its length was announced, nothing of it has been read.
    """
    options = request.app[OPTIONS]
    if request.content_type != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise RequestError(400, "Bad Request", message)
    if (request.content_length or 0) > options.max_body_bytes:
        raise web.HTTPRequestEntityTooLarge(options.max_body_bytes)
    if request.content.is_eof():  # all of it came with the head, as most do: there is nothing to wait for
        return await read_body(request)
    try:
        async with asyncio.timeout(options.body_timeout):
            return await read_body(request)
    except TimeoutError:
        message = f"The body did not arrive within {options.body_timeout:g} s."
        raise RequestError(408, "RequestTimeoutError", message) from None


def request_id(request: web.Request, body: PoolingRequest) -> str:
    """The header ``X-Request-Id``, else what the body says, else a random one; on record from here on."""
    request[RECORD].request_id = found = request.headers.get("X-Request-Id", body.request_id)
    return found
