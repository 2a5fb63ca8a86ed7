"""The API key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.keys import PROBES

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware


DIGESTS = web.AppKey("DIGESTS", list[bytes])
"""Of the keys that are accepted now."""


def accept_keys(app: web.Application, keys: Iterable[str]) -> None:
    """From now on accept these keys, and no others."""
    app[DIGESTS][:] = map(_digest, keys)


def require_api_key(*, guard_probes: bool = False) -> Middleware:
    """A middleware that answers 401 unless ``Authorization: Bearer <key>`` names one of the accepted keys.

    Args:
        guard_probes: whether health, readiness and metrics need a key too.
    """
    exempt: frozenset[str] = frozenset() if guard_probes else PROBES

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (request.path.rstrip("/") or "/") in exempt:
            return await handler(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = _digest(token.strip())
        # every key is compared, in constant time: neither its content, nor length, nor place shows in the timing
        matches = [hmac.compare_digest(given, digest) for digest in request.app[DIGESTS]]
        if scheme.lower() == "bearer" and any(matches):
            return await handler(request)
        return web.json_response({"error": "Unauthorized"}, status=401, headers={"WWW-Authenticate": "Bearer"})

    return middleware


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
