"""The middleware: what every request passes through, from the outside in.

Its answer is sent and seen off, it is put on record, its errors are made answers of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler

from jaxpool.errors import EngineError, ValidationError
from jaxpool_serving.access import answer_preflights, require_api_key
from jaxpool_serving.batching.admission import QueueFullError
from jaxpool_serving.bodies import BODY_MEMORY, SHARE, Share, refuse_compressed
from jaxpool_serving.connections import OPEN_CONNECTIONS, Connection
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.schemas.request import random_id
from jaxpool_serving.state import MAX_ID, OBSERVERS, OPTIONS, RECORD, RequestRecord
from jaxpool_serving.tokenization import TokenizerError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from jaxpool_serving.options import Options

log = logging.getLogger("jaxpool.serving")


@web.middleware
async def send_response(request: web.Request, handler: Handler) -> web.StreamResponse:
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


VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


@web.middleware
async def record_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Record a request from its arrival to its answer, or to the moment its client leaves."""
    resource = request.match_info.route.resource
    request[RECORD] = record = RequestRecord(
        request_id=request.headers.get("X-Request-Id") or random_id(),
        method=request.method,
        path=request.path,
        route="unknown" if resource is None else resource.canonical,
    )
    started = time.perf_counter()
    try:
        response = await handler(request)
        record.status = response.status
        return response
    except web.HTTPException as error:  # a redirect
        record.status = error.status
        raise
    finally:
        record.total = time.perf_counter() - started
        record.request_id = record.request_id[:MAX_ID]
        for observer in request.app[OBSERVERS]:
            observer(request, record)


async def echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """A signal before each response: it carries the request's id, percent-encoded where a header could not."""
    if record := request.get(RECORD):
        response.headers["X-Request-Id"] = quote(record.request_id, safe=VISIBLE, errors="replace")


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into the JSON answer that clients of vLLM expect; nothing internal leaks."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[OPTIONS].max_body_bytes
        refusal = RequestError(413, "RequestEntityTooLargeError", f"The body is larger than {limit} bytes.")
    except web.HTTPException as error:  # 404, 405: routing, not content
        return web.json_response({"detail": error.reason}, status=error.status, headers=_allow(error))
    except RequestError as error:
        refusal = error
    except ValidationError as error:
        refusal = RequestError(400, "BadRequestError", str(error), error.parameter)
    except QueueFullError as error:
        refusal = RequestError(429, "TooManyRequestsError", str(error), retry_after=error.retry_after)
    except EngineError as error:
        log.error("%s failed on the device: %s", _method_and_path(request), error)
        refusal = RequestError(500, "InternalServerError", "The model could not compute this request.")
    except TokenizerError as error:
        log.error("%s: the tokenizer failed", _method_and_path(request), exc_info=error.__cause__)
        refusal = RequestError(500, "InternalServerError", "The tokenizer could not read this request.")
    except Exception:
        log.exception("%s failed", _method_and_path(request))
        refusal = RequestError(500, "InternalServerError", "Internal error; the server's log says more.")
    return web.json_response(refusal.body, status=refusal.status, headers=refusal.headers)


def _method_and_path(request: web.Request) -> str:
    """Method and path for the log; the path stays percent-encoded, so that it cannot end a line."""
    return f"{request.method} {request.rel_url.raw_path}"


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


# What FastAPI does, and vLLM with it; 307 keeps the method and the body.
strip_trailing_slash = web.normalize_path_middleware(
    append_slash=False, remove_slash=True, merge_slashes=False, redirect_class=web.HTTPTemporaryRedirect
)


def middlewares(options: Options) -> list[Middleware]:
    """Those that ``options`` ask for; observed from outside all others, so that a 401 is on record too."""
    chain: list[Middleware] = [send_response, close_unread, record_request]
    if options.allowed_origins:  # browsers send no key with a preflight, so this comes before keys
        chain.append(answer_preflights)
    if options.api_keys:  # before anything that depends on whether a path exists
        chain.append(require_api_key(guard_probes=options.guard_probes))
    return [*chain, strip_trailing_slash, answer_errors, refuse_compressed]
