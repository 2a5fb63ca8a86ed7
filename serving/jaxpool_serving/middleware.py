"""What every request passes through: the error answers and the API key."""

from __future__ import annotations

import hmac
import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from jaxpool.errors import EngineError, ValidationError
from jaxpool_serving.batcher import QueueFullError
from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.schemas.errors import RequestError

log = logging.getLogger("jaxpool.serving")

OPEN_PATHS = frozenset({"/health", "/ready"})


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
        log.error("%s %s failed on the device: %s", request.method, request.path, error)
        refusal = RequestError(500, "InternalServerError", "The model could not compute this request.")
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        refusal = RequestError(500, "InternalServerError", "Internal error; the server's log says more.")
    return web.json_response(refusal.body, status=refusal.status, headers=refusal.headers)


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


@web.middleware
async def require_api_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 401 unless ``Authorization: Bearer <key>`` names one of the keys; probes stay open."""
    keys = request.app[OPTIONS].api_keys
    if keys and request.path not in OPEN_PATHS:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        # every key is compared, in constant time: neither its content nor its place shows in the timing
        matches = [hmac.compare_digest(given, key.encode()) for key in keys]
        if scheme.lower() != "bearer" or not any(matches):
            return web.json_response({"error": "Unauthorized"}, status=401)
    return await handler(request)
