"""Answers that come before the whole body has: nobody waits for what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.connections import Connection

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

LINGERING = 2.0
"""Seconds for which what still comes is thrown away, so that the client gets to read its answer."""
SILENCE = 0.2
"""Seconds without a byte after which that ends early."""


@web.middleware
async def close_unread(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Close the connection, once answered, of a request whose body has not been read to its end."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if not request.content.is_eof():
            await _close(request, error)
        raise
    if not request.content.is_eof() or response.status == web.HTTPUnsupportedMediaType.status_code:
        await _close(request, response)
    return response


async def _close(request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    transport = request.transport
    if transport is None:
        return
    if transport.can_write_eof():  # the client sees the end at once; over TLS after the last of what it sends
        transport.write_eof()
    if isinstance(request.protocol, Connection):  # others may unpack what they throw away
        # Closed with bytes unread, the network would tell the client of a broken connection instead of our answer.
        with contextlib.suppress(TimeoutError, web.RequestPayloadError, ConnectionError):
            async with asyncio.timeout(LINGERING):
                while not request.content.is_eof():
                    await asyncio.wait_for(request.content.readany(), SILENCE)
    transport.close()
