"""Sends answers: their bytes are counted until they are gone, and a client that takes none is let go of."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.memory import BODY_MEMORY, SHARE, Share
from jaxpool_serving.open_connections import OPEN_CONNECTIONS

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = logging.getLogger("jaxpool.serving")


@web.middleware
async def send(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a request and see the answer off, counting what is held for either."""
    connections = request.app[OPEN_CONNECTIONS]
    connections.busy(request.protocol)
    try:
        with request.app[BODY_MEMORY].share() as share:
            request[SHARE] = share
            response = await handler(request)
            await _send(request, response, share)
            return response
    finally:
        connections.idle(request.protocol)


async def _send(request: web.Request, response: web.StreamResponse, share: Share) -> None:
    transport = request.transport
    if transport is None:  # the client has left
        return
    body = response.body if isinstance(response, web.Response) else None
    share.answer(len(body) if isinstance(body, bytes | bytearray) else 0, transport.abort)
    transport.set_write_buffer_limits(0)  # an answer is sent when its last byte is, not when the rest is bearable
    watch = _Watch(transport, request.app[OPTIONS].idle_timeout)
    try:
        await response.prepare(request)
        await response.write_eof()
    except ConnectionError:
        pass  # aiohttp will find the same, and is silent about it
    finally:
        watch.end()


class _Watch:
    """Closes a connection that takes nothing of what waits for it for ``seconds``."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport, self._seconds = transport, seconds
        self._left: float = float("inf")
        self._again()

    def end(self) -> None:
        self._handle.cancel()

    def _again(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        if left < self._left:
            self._left = left
            self._again()
            return
        log.warning("a client took nothing of its answer for %g s: its connection is closed", self._seconds)
        self._transport.abort()
