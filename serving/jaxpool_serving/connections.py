"""Sockets and the HTTP connections on them.

They are aiohttp's, bounded in number, closed more strictly and logged more discreetly.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from aiohttp import http, http_exceptions, web

from jaxpool_serving.options import Options
from jaxpool_serving.state import OPTIONS

log = logging.getLogger("jaxpool.serving")

BACKLOG = 1024
"""Connections that wait to be accepted."""

READ_BUFFER = 2**14
"""Bytes; twice as many are read of a body that nobody has asked for yet."""

MALFORMED: tuple[tuple[type[BaseException], str], ...] = (
    (http_exceptions.LineTooLong, "The request line or a header is too long."),
    (http_exceptions.BadStatusLine, "The request line is malformed."),
    (http_exceptions.InvalidURLError, "The request line has a malformed URL."),
    (http_exceptions.InvalidHeader, "A header is malformed."),
    (http_exceptions.TransferEncodingError, "The chunks of the body are malformed."),
)
"""Exception of aiohttp's parser -> what is said of it, without a byte of what came: it may be a key."""

REQUEST: type = http.RawRequestMessage
"""What the parser makes of a request; of what is none it makes something else."""

PROBES = (0.1, 0.2, 0.5, 1.0)
"""Seconds between looks at whether a client that sends no more is still there; the last again and again."""


class Connection(web.RequestHandler):
    """One connection. Bodies arrive as they were sent: nothing is unpacked before somebody wants it.

    Args:
        server: of the runner.
        options: see `Options`.
    """

    __slots__ = ()

    def __init__(self, server: web.Server, options: Options) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=options.idle_timeout,
            lingering_time=0.0,  # see `middleware.close_unread`
            read_bufsize=READ_BUFFER,
            access_log=None,  # type: ignore[arg-type]  # None is aiohttp's word for none
            auto_decompress=False,
        )

    def data_received(self, data: bytes) -> None:
        """Bytes came. Where they break HTTP, whoever waits for the rest of a body is told: it will never come."""
        super().data_received(data)
        if not self._messages or isinstance(self._messages[-1][0], REQUEST):
            return
        waiting = [payload for message, payload in self._messages if isinstance(message, REQUEST)]
        if self._current_request is not None:
            waiting.append(self._current_request.content)
        for payload in waiting:
            if not payload.is_eof() and payload.exception() is None:
                payload.set_exception(web.RequestPayloadError("malformed chunks"))

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks, and aiohttp has no answer
        """The client sends no more. It may wait for its answer all the same, or be gone: see `_probe`."""
        if self.ssl_context is not None or self._idle():  # TLS knows no half of a connection
            return False
        self._loop.call_soon(self._probe, iter(PROBES))
        return True

    def _idle(self) -> bool:
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    def _probe(self, waits: Iterator[float]) -> None:
        """Say that the answer is to come, which a client passes over; for one that has gone, the network objects."""
        if self.transport is None or self.transport.is_closing():
            return
        request = self._current_request
        lacks = request is not None and (not request.content.is_eof() or request.version != http.HttpVersion11)
        if lacks or self._idle():  # it cannot be answered, or has been
            self.force_close()
            return
        if request is not None and not request.writer.output_size:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._loop.call_later(next(waits, PROBES[-1]), self._probe, waits)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request: one line in the log, and none of its bytes anywhere."""
        if status != web.HTTPBadRequest.status_code:
            return super().handle_error(request, status, exc, message)
        reason = next((said for kind, said in MALFORMED if isinstance(exc, kind)), "The request is malformed.")
        log.warning("answered 400 to %s: %s", request.remote or "a client", reason)
        response = web.json_response({"detail": reason}, status=status)
        response.force_close()
        return response


class Site(web.BaseSite):
    """Accepts connections on a socket that is listening already.

    Args:
        runner: of the application.
        listening: the socket.
        tls: certificates for HTTPS; None for HTTP.
    """

    __slots__ = ("_listening",)

    def __init__(self, runner: web.AppRunner, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._listening = listening

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"{'https' if self._ssl_context else 'http'}://{self._listening.getsockname()}"

    async def start(self) -> None:
        """Accept connections."""
        await super().start()
        self._server = await self._accept()

    async def renew(self, tls: ssl.SSLContext | None) -> None:
        """Show new certificates to those who connect from now on; connections that are there stay as they are."""
        before, self._ssl_context = self._server, tls
        self._server = await self._accept()
        if before is not None:
            before.close()

    async def _accept(self) -> asyncio.AbstractServer:
        assert isinstance(self._runner, web.AppRunner)  # as `__init__` asks
        assert self._runner.server is not None  # `start` has seen to it
        options = self._runner.app[OPTIONS]
        connection = functools.partial(Connection, self._runner.server, options)
        loop, timeout = asyncio.get_running_loop(), options.idle_timeout if self._ssl_context else None
        unix = self._listening.family is socket.AF_UNIX
        # each server closes its socket in the end, so that each gets a descriptor of its own
        return await (loop.create_unix_server if unix else loop.create_server)(
            connection,
            sock=self._listening.dup(),
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=timeout,
        )


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
