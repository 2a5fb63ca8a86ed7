"""Compressed bodies, unpacked within bounds."""

from __future__ import annotations

import zlib

from aiohttp import hdrs, web

from jaxpool_serving.schemas.errors import RequestError

FORMATS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""``Content-Encoding`` -> zlib's word for it (RFC 9110: "deflate" is zlib's format)."""

ALWAYS = 2**16
"""Bytes that any body may unpack to, however small it is."""


def encoding_of(request: web.Request) -> str | None:
    """How the body is encoded, in lower case; None for not at all."""
    found = ",".join(request.headers.getall(hdrs.CONTENT_ENCODING, ())).strip().lower()
    return None if found in ("", "identity") else found


def unpacked(body: bytes, encoding: str, most_bytes: int, most_ratio: int) -> bytes:
    """A body as it was before it was compressed. For a thread: zlib lets the event loop go on meanwhile.

    Args:
        body: as it came.
        encoding: one of `FORMATS`.
        most_bytes: largest result.
        most_ratio: most bytes of the result per byte of ``body``.

    Raises:
        RequestError: 413, the result would be larger; 400, it is damaged, cut off or followed by something.
    """
    limit = min(most_bytes, max(most_ratio * len(body), ALWAYS))
    unpacking = zlib.decompressobj(FORMATS[encoding])
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
