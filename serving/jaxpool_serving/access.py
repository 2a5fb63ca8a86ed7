"""Who may call: API keys, and the pages of other origins that browsers ask for (CORS)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.state import OPTIONS, PROBES

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

DIGESTS = web.AppKey("DIGESTS", list[bytes])
"""Of the keys that are accepted now."""


def set_api_keys(app: web.Application, keys: Iterable[str]) -> None:
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


PREFLIGHT_SECONDS = 600
EXPOSED = "Retry-After, X-Request-Id"


@web.middleware
async def answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what a browser asks before it sends a page's request."""
    asked = request.headers.get("Access-Control-Request-Method")
    origin = request.headers.get("Origin")
    if request.method != "OPTIONS" or asked is None or origin is None:
        return await handler(request)
    options = request.app[OPTIONS]
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not (
        _allows(origin, options.allowed_origins)
        and _allows(asked, options.allowed_methods)
        and all(_allows(name, options.allowed_headers) for name in names)
    ):
        return web.json_response({"error": "Forbidden"}, status=403)
    headers = {"Access-Control-Allow-Methods": asked, "Access-Control-Max-Age": str(PREFLIGHT_SECONDS)}
    if names:
        headers["Access-Control-Allow-Headers"] = ", ".join(names)
    return web.Response(status=204, headers=headers)


async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A signal before each response: a browser shows it to pages of the allowed origins."""
    origin = request.headers.get("Origin")
    if origin is None:
        return
    response.headers.add("Vary", "Origin")
    if _allows(origin, request.app[OPTIONS].allowed_origins):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED


def _allows(name: str, allowed: tuple[str, ...]) -> bool:
    return "*" in allowed or name.lower() in (one.lower() for one in allowed)
