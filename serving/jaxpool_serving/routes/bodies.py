"""What the routes do with every request: read its body, find its id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from jaxpool_serving.keys import BODY_THREAD, OPTIONS
from jaxpool_serving.memory import SHARE, read_body
from jaxpool_serving.record import MAX_ID, RECORD
from jaxpool_serving.schemas.common import PoolingRequest
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.schemas.json_text import AT_ONCE
from jaxpool_serving.unpacking import encoding_of, unpacked

Parsed = TypeVar("Parsed")


async def parsed(request: web.Request, parse: Callable[[bytes], Parsed]) -> Parsed:
    """What ``parse`` makes of the body of a request; in a thread where the body is large.

    Raises:
        RequestError, HTTPException: as `json_body` does, and ``parse``.
    """
    body = await json_body(request)
    return parse(body) if len(body) <= AT_ONCE else await _in_thread(request, parse, body)


async def json_body(request: web.Request) -> bytes:
    """The body of a request whose content type says JSON.

    Raises:
        RequestError: 400, it says something else, or is damaged; 408, the body was too slow; 413, it unpacks to
            too much.
        HTTPRequestEntityTooLarge: it is too large; if its length was announced, nothing of it has been read.
    """
    options = request.app[OPTIONS]
    if request.content_type != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise RequestError(400, "Bad Request", message)
    if (request.content_length or 0) > options.max_body_bytes:
        raise web.HTTPRequestEntityTooLarge(options.max_body_bytes)
    body = await _read(request, options.body_timeout)
    if (encoding := encoding_of(request)) is None:
        return body
    found = await _in_thread(request, unpacked, body, encoding, options.max_body_bytes, options.max_body_ratio)
    request[SHARE].grow(len(found))
    return found


async def _read(request: web.Request, seconds: float) -> bytes:
    try:
        if request.content.is_eof():  # all of it came with the head, as most do: there is nothing to wait for
            return await read_body(request)
        async with asyncio.timeout(seconds):
            return await read_body(request)
    except TimeoutError:
        message = f"The body did not arrive within {seconds:g} s."
        raise RequestError(408, "RequestTimeoutError", message) from None
    except web.RequestPayloadError:
        raise RequestError(400, "Bad Request", "The chunks of the body are malformed.") from None


async def _in_thread(request: web.Request, work: Callable[..., Parsed], *arguments: object) -> Parsed:
    return await asyncio.get_running_loop().run_in_executor(request.app[BODY_THREAD], work, *arguments)


def request_id(request: web.Request, body: PoolingRequest) -> str:
    """The header ``X-Request-Id``, else what the body says, else a random one; on record from here on, cut."""
    request[RECORD].request_id = found = request.headers.get("X-Request-Id", body.request_id)[:MAX_ID]
    return found
