"""The error answers."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from jaxpool.errors import EngineError, ValidationError
from jaxpool_serving.admission import QueueFullError
from jaxpool_serving.keys import OPTIONS
from jaxpool_serving.schemas.errors import RequestError
from jaxpool_serving.tokenise import TokenizerError

log = logging.getLogger("jaxpool.serving")


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
        log.error("%s failed on the device: %s", _what(request), error)
        refusal = RequestError(500, "InternalServerError", "The model could not compute this request.")
    except TokenizerError as error:
        log.error("%s: the tokenizer failed", _what(request), exc_info=error.__cause__)
        refusal = RequestError(500, "InternalServerError", "The tokenizer could not read this request.")
    except Exception:
        log.exception("%s failed", _what(request))
        refusal = RequestError(500, "InternalServerError", "Internal error; the server's log says more.")
    return web.json_response(refusal.body, status=refusal.status, headers=refusal.headers)


def _what(request: web.Request) -> str:
    """Method and path for the log; the path stays percent-encoded, so that it cannot end a line."""
    return f"{request.method} {request.rel_url.raw_path}"


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
