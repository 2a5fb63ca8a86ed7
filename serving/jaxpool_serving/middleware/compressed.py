"""Compressed bodies: a small one may hold gigabytes, so they are refused unless the server is told otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from jaxpool_serving.connections import Connection
from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.unpacking import FORMATS, encoding_of

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler


@web.middleware
async def refuse_compressed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 415 to a body in an encoding that this server does not read, on every path."""
    if not request.body_exists or (encoding := encoding_of(request)) is None:
        return await handler(request)
    # elsewhere than in `jaxpool serve`, aiohttp unpacks by itself, and without a bound
    reads = request.app[OPTIONS].compressed_bodies and isinstance(request.protocol, Connection)
    accepted = sorted(FORMATS) if reads else ["identity"]
    if encoding not in accepted:
        message = f"This server reads bodies of Content-Encoding {' or '.join(accepted)} only; send this one so."
        refusal = RequestError(415, "UnsupportedMediaTypeError", message)
        refusal.headers[hdrs.ACCEPT_ENCODING] = ", ".join(accepted)
        raise refusal
    return await handler(request)
