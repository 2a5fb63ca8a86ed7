"""Keeps a record of every request and hands it, once answered, to whoever watches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from jaxpool_serving.keys import OBSERVERS
from jaxpool_serving.record import MAX_ID, RECORD, Record
from jaxpool_serving.schemas.common import random_id

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Record a request from its arrival to its answer, or to the moment its client leaves."""
    resource = request.match_info.route.resource
    request[RECORD] = record = Record(
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
