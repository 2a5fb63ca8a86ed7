"""What every request passes through, one job per module; from the outside in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool_serving.middleware.api_keys import require_api_key
from jaxpool_serving.middleware.compressed import refuse_compressed
from jaxpool_serving.middleware.cors import answer_preflights
from jaxpool_serving.middleware.errors import answer_errors
from jaxpool_serving.middleware.observing import observe
from jaxpool_serving.middleware.sending import send
from jaxpool_serving.middleware.unread import close_unread

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware

    from jaxpool_serving.keys import Options


# What FastAPI does, and vLLM with it; 307 keeps the method and the body.
without_last_slash = web.normalize_path_middleware(
    append_slash=False, remove_slash=True, merge_slashes=False, redirect_class=web.HTTPTemporaryRedirect
)


def middlewares(options: Options) -> list[Middleware]:
    """Those that ``options`` ask for; observed from outside all others, so that a 401 is on record too."""
    chain: list[Middleware] = [send, close_unread, observe]
    if options.allowed_origins:  # browsers send no key with a preflight, so this comes before keys
        chain.append(answer_preflights)
    if options.api_keys:  # before anything that depends on whether a path exists
        chain.append(require_api_key(guard_probes=options.guard_probes))
    return [*chain, without_last_slash, answer_errors, refuse_compressed]
