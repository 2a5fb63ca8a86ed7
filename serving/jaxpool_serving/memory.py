"""The bound on bytes that come from clients, and on those that clients do not fetch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from aiohttp import web

from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.schemas.errors import RequestError

log = logging.getLogger("jaxpool.serving")

PATIENCE = 1.0
"""Seconds for which an answer is left alone; after them its connection is closed when the memory is needed."""


class BodyMemory:
    """Counts bytes: of bodies until their requests are answered, of answers until they are sent.

    Where they do not fit, answers that have not been fetched for a while are given up, the oldest first; where there
    is none, whoever sends a body is refused.

    Args:
        limit: most bytes at a time. An answer is never refused, for it has cost its computation: if it does not fit,
            the bound is passed by its size, and no body is taken meanwhile.
        clock: seconds from any origin, never going back.

    Attributes:
        held: bytes now.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.held = limit, 0
        self._clock = clock
        self._unsent: dict[Share, float] = {}  # answers, in the order in which they began to wait, and since when

    def share(self) -> Share:
        """What one request holds, nothing at first; a context manager that gives it back."""
        return Share(self)

    def _make_room(self, size: int) -> None:
        for share, since in list(self._unsent.items()):
            if self.held + size <= self.limit or self._clock() - since < PATIENCE:
                return
            share.give_up()


class Share:
    """What one request holds of a `BodyMemory`."""

    __slots__ = ("_cut", "_memory", "size")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory, self.size = memory, 0
        self._cut: Callable[[], object] | None = None

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_error: object) -> None:
        self._memory._unsent.pop(self, None)
        self._cut = None
        self._becomes(0)

    def grow(self, size: int) -> None:
        """So many more bytes of the body are there.

        Raises:
            RequestError: 503, there is no room for them now.
        """
        memory = self._memory
        if memory.held + size > memory.limit:
            memory._make_room(size)
            if memory.held + size > memory.limit:
                message = "The bodies under way fill the memory that the server has for them; try again in 1 s."
                raise RequestError(503, "ServiceUnavailableError", message, retry_after=1)
        self._becomes(self.size + size)

    def answer(self, size: int, cut: Callable[[], object]) -> None:
        """The body is done with, and so many bytes of the answer wait to be fetched; ``cut`` closes the connection."""
        memory = self._memory
        self._becomes(0)
        memory._make_room(size)
        self._becomes(size)
        self._cut = cut
        memory._unsent[self] = memory._clock()

    def give_up(self) -> None:
        """Close the connection of an answer that nobody fetches."""
        memory, cut, size = self._memory, self._cut, self.size
        self.__exit__()
        if cut is not None:
            since = f"{size} bytes of an answer were not fetched and their memory was needed"
            log.warning("%s (%d of %d bytes held): its connection is closed", since, memory.held, memory.limit)
            cut()

    def _becomes(self, size: int) -> None:
        self._memory.held += size - self.size
        self.size = size


BODY_MEMORY = web.AppKey("BODY_MEMORY", BodyMemory)
SHARE = web.RequestKey("SHARE", Share)
BODY = web.RequestKey("BODY", bytes)


async def read_body(request: web.Request) -> bytes:
    """The body of a request, also when asked for again; every byte is counted before the next is read.

    Raises:
        RequestError: 503, there is no room for it now.
        HTTPRequestEntityTooLarge: it is larger than ``max_body_bytes``.
    """
    if BODY in request:
        return request[BODY]
    share, most = request[SHARE], request.app[OPTIONS].max_body_bytes
    chunks: list[bytes] = []
    while chunk := await request.content.readany():
        if share.size + len(chunk) > most:
            raise web.HTTPRequestEntityTooLarge(most)
        share.grow(len(chunk))
        chunks.append(chunk)
    request[BODY] = body = b"".join(chunks)
    return body
