"""The server as an aiohttp application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool_serving.access import DIGESTS, add_cors_headers, set_api_keys
from jaxpool_serving.bodies import BODY_MEMORY, BodyMemory
from jaxpool_serving.chat_rendering import renderer_context
from jaxpool_serving.connections import OPEN_CONNECTIONS, OpenConnections
from jaxpool_serving.logs import access_log_context
from jaxpool_serving.metrics import METRICS, Metrics
from jaxpool_serving.middleware import echo_request_id, middlewares
from jaxpool_serving.models import models_context
from jaxpool_serving.options import Options
from jaxpool_serving.routes import ROUTES
from jaxpool_serving.state import BODY_THREAD, MODELS, OBSERVERS, OPTIONS, Observer
from jaxpool_serving.tokenization import tokenizer_context
from jaxpool_serving.tracing import tracing_context

if TYPE_CHECKING:
    from jaxpool.llm import LLM


def init_app(models: Mapping[str, LLM | Callable[[], LLM]], options: Options | None = None) -> web.Application:
    """The server as an aiohttp application; it can be mounted, tested or run by any aiohttp runner.

    Args:
        models: name -> a warm model, ``LLM(…, compile="ahead")`` or ``"behind"``, which stays open when the application
            ends; or a function that opens one, called once, in a thread, when the application starts. Until it returns,
            requests for that model and ``/ready`` answer 503; the application closes what it opened. The first
            model answers requests that name none.
        options: see `Options`.
    """
    options = options or Options()
    app = web.Application(middlewares=middlewares(options), client_max_size=options.max_body_bytes)
    app[OPTIONS] = options
    app[DIGESTS] = []
    set_api_keys(app, options.api_keys)
    app[MODELS] = {}
    app[METRICS] = Metrics(models)
    app[BODY_MEMORY] = BodyMemory(options.body_memory)
    app[OPEN_CONNECTIONS] = OpenConnections(options.max_connections)
    observers: list[Observer] = [app[METRICS].answered]
    app[OBSERVERS] = observers
    if options.allowed_origins:
        app.on_response_prepare.append(add_cors_headers)
    if options.enable_request_id_headers:
        app.on_response_prepare.append(echo_request_id)
    for routes in ROUTES:
        app.add_routes(routes)

    async def body_thread(app: web.Application) -> AsyncIterator[None]:
        app[BODY_THREAD] = thread = DaemonThreads(1, "body")
        yield
        thread.shutdown(cancel_futures=True)

    app.cleanup_ctx.extend(
        [access_log_context, tracing_context, tokenizer_context, renderer_context, body_thread, models_context(models)]
    )
    return app
