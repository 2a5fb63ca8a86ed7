"""The bodies of requests: read in time, unpacked within bounds, and counted.

Their bytes count together with those of answers that clients do not fetch, against one limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from aiohttp import hdrs, web

from jaxpool_serving.connections import Connection
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.schemas.json_body import AT_ONCE
from jaxpool_serving.schemas.request import PoolingRequest
from jaxpool_serving.state import BODY_THREAD, MAX_ID, OPTIONS, RECORD

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

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


Parsed = TypeVar("Parsed")


async def parse_body(request: web.Request, parse: Callable[[bytes], Parsed]) -> Parsed:
    """What ``parse`` makes of the body of a request; in a thread where the body is large.

    Raises:
        RequestError, HTTPException: as `read_json` does, and ``parse``.
    """
    body = await read_json(request)
    return parse(body) if len(body) <= AT_ONCE else await _in_thread(request, parse, body)


async def read_json(request: web.Request) -> bytes:
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
    if (encoding := content_encoding(request)) is None:
        return body
    found = await _in_thread(request, decompress, body, encoding, options.max_body_bytes, options.max_body_ratio)
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


ZLIB_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""``Content-Encoding`` -> zlib's word for it (RFC 9110: "deflate" is zlib's format)."""

MIN_UNPACKED = 2**16
"""Bytes that any body may unpack to, however small it is."""


def content_encoding(request: web.Request) -> str | None:
    """How the body is encoded, in lower case; None for not at all."""
    found = ",".join(request.headers.getall(hdrs.CONTENT_ENCODING, ())).strip().lower()
    return None if found in ("", "identity") else found


def decompress(body: bytes, encoding: str, most_bytes: int, most_ratio: int) -> bytes:
    """A body as it was before it was compressed. For a thread: zlib lets the event loop go on meanwhile.

    Args:
        body: as it came.
        encoding: one of `ZLIB_WINDOW`.
        most_bytes: largest result.
        most_ratio: most bytes of the result per byte of ``body``.

    Raises:
        RequestError: 413, the result would be larger; 400, it is damaged, cut off or followed by something.
    """
    limit = min(most_bytes, max(most_ratio * len(body), MIN_UNPACKED))
    unpacking = zlib.decompressobj(ZLIB_WINDOW[encoding])
    try:
        found = unpacking.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(400, "Bad Request", f"The body is not {encoding}, or damaged.") from None
    if len(found) > limit:
        message = f"The body unpacks to more than {limit} bytes."
        raise RequestError(413, "RequestEntityTooLargeError", message)
    if not unpacking.eof or unpacking.unused_data:
        raise RequestError(400, "Bad Request", f"The body is not one whole {encoding} stream.")
    return found


@web.middleware
async def refuse_compressed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 415 to a body in an encoding that this server does not read, on every path."""
    if not request.body_exists or (encoding := content_encoding(request)) is None:
        return await handler(request)
    # elsewhere than in `jaxpool serve`, aiohttp unpacks by itself, and without a bound
    reads = request.app[OPTIONS].compressed_bodies and isinstance(request.protocol, Connection)
    accepted = sorted(ZLIB_WINDOW) if reads else ["identity"]
    if encoding not in accepted:
        message = f"This server reads bodies of Content-Encoding {' or '.join(accepted)} only; send this one so."
        refusal = RequestError(415, "UnsupportedMediaTypeError", message)
        refusal.headers[hdrs.ACCEPT_ENCODING] = ", ".join(accepted)
        raise refusal
    return await handler(request)
