"""How long a client waits: counted from the arrival of its request, whatever the request is at by then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from jaxpool.errors import ValidationError
from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.record import RECORD
from jaxpool_serving.schemas.errors import RequestError

DEADLINE = "X-Request-Timeout"
"""Header with the seconds that the client waits; it beats the field ``timeout``."""


@asynccontextmanager
async def in_time(request: web.Request, timeout: float | None = None) -> AsyncIterator[None]:
    """Inside, everything is cancelled once the deadline of ``request`` has passed.

    Args:
        request: from whose arrival the seconds count.
        timeout: what its body says of them, or None; then the server's default counts.

    Raises:
        RequestError: 504, the deadline has passed.
        ValidationError: the header `DEADLINE` is no number of seconds.
    """
    seconds = _seconds(request, timeout)
    if seconds is None:
        yield
        return
    try:
        async with asyncio.timeout(request[RECORD].arrived + seconds - time.monotonic()) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        message = f"The answer was not ready within {seconds:g} s."
        raise RequestError(504, "GatewayTimeoutError", message, "timeout") from None


def _seconds(request: web.Request, timeout: float | None) -> float | None:
    word = request.headers.get(DEADLINE)
    if word is None:
        return request.app[OPTIONS].request_timeout if timeout is None else timeout
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValidationError(f"The header {DEADLINE} must be a positive number of seconds, not {word[:100]!r}.")
    return seconds
