"""The bound on connections."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

FILES = 256
"""Descriptors for all that is no connection."""

REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class OpenConnections:
    """Counts connections. Where one is too many, that which has had no request for longest is closed.

    If every one has a request under way, the new one is closed, with a 503.

    Args:
        most: connections at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: set[Any] = set()  # protocols
        self._idle: dict[Any, None] = {}  # those without a request, in the order in which they fell idle

    def __len__(self) -> int:
        """Connections now."""
        return len(self._open)

    def bound(self, server: web.Server) -> None:
        """Count and bound the connections of this server."""
        made, lost = server.connection_made, server.connection_lost

        def connection_made(handler: web.RequestHandler, transport: asyncio.Transport) -> None:
            made(handler, transport)
            self.opened(handler, transport)

        def connection_lost(handler: web.RequestHandler, exc: BaseException | None = None) -> None:
            lost(handler, exc)
            self.closed(handler)

        # the only two calls that a connection makes to its server as it comes and goes
        server.connection_made = connection_made  # type: ignore[method-assign]
        server.connection_lost = connection_lost  # type: ignore[method-assign]

    def opened(self, connection: Any, transport: asyncio.Transport) -> None:
        """A connection is there; it may be closed at once."""
        self._open.add(connection)
        self._idle[connection] = None
        if len(self._open) <= self.most:
            return
        longest = next(iter(self._idle))
        if longest is connection:
            transport.write(REFUSAL)
        self.closed(longest)
        longest.force_close()

    def closed(self, connection: Any) -> None:
        """A connection is gone, or as good as gone. Safe to call twice."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def busy(self, connection: Any) -> None:
        """A request has come."""
        self._idle.pop(connection, None)

    def idle(self, connection: Any) -> None:
        """It has been answered, and the answer sent."""
        if connection in self._open:
            self._idle.pop(connection, None)
            self._idle[connection] = None


OPEN_CONNECTIONS = web.AppKey("OPEN_CONNECTIONS", OpenConnections)


def allow_files(connections: int) -> None:
    """Ask the system for as many open files as so many connections need; what it refuses, accepting will meet."""
    try:
        import resource
    except ImportError:  # no Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
