"""Runs the application: listens at once, loads meanwhile, drains when told to stop."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool_serving.keys import MODELS, OPTIONS
from jaxpool_serving.open_connections import OPEN_CONNECTIONS, allow_files
from jaxpool_serving.signals import stopped_by_signals

if TYPE_CHECKING:
    from jaxpool.engine import Engine

BACKLOG = 1024
"""Connections that wait to be accepted."""


LINGERING = 2.0
"""Seconds for which the rest of a body is read and thrown away once its request has been refused."""


READ_BUFFER = 2**14
"""Bytes; twice as many are read of a body that nobody has asked for yet."""


class Runner(web.AppRunner):
    """Runs the application; its connections are bounded."""

    async def setup(self) -> None:
        """Start the application."""
        await super().setup()
        assert self.server is not None
        self.app[OPEN_CONNECTIONS].bound(self.server)


def runner_of(app: web.Application) -> web.AppRunner:
    """What runs ``app``, with its limits on connections; requests are cancelled when their clients leave."""
    options = app[OPTIONS]
    return Runner(
        app,
        handler_cancellation=True,
        shutdown_timeout=options.shutdown_timeout,
        keepalive_timeout=options.idle_timeout,
        lingering_time=LINGERING,
        read_bufsize=READ_BUFFER,
        access_log=None,
    )


async def listen(
    app: web.Application, host: str, port: int, *, uds: str | None = None, tls: ssl.SSLContext | None = None
) -> None:
    """Listen at once, load meanwhile; on SIGTERM or SIGINT stop listening, drain, close.

    A second signal ends the process at once.

    Args:
        app: from `init_app`.
        host, port: address to listen on.
        uds: path of a Unix socket to listen on instead.
        tls: certificates for HTTPS; None for HTTP.

    Raises:
        OSError: the address cannot be listened on.
        JaxpoolError: a model cannot be opened; the others are given up.
    """
    allow_files(app[OPTIONS].max_connections)
    with stopped_by_signals(asyncio.get_running_loop()) as stop:
        await _listen(app, host, port, uds, tls, stop)


async def _listen(
    app: web.Application, host: str, port: int, uds: str | None, tls: ssl.SSLContext | None, stop: asyncio.Event
) -> None:
    started, loop = time.monotonic(), asyncio.get_running_loop()
    models = app[MODELS]
    runner = runner_of(app)
    # The address is taken before the model is: a port in use should not cost a load.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = None if uds else socket.create_server((host, port), family=family, backlog=BACKLOG)
    behind: asyncio.Task[None] | None = None
    try:
        await runner.setup()
        if listening is None:
            await web.UnixSite(runner, str(uds), ssl_context=tls, backlog=BACKLOG).start()
            address = f"unix:{uds}"
        else:
            await web.SockSite(runner, listening, ssl_context=tls, backlog=BACKLOG).start()
            address = f"{f'[{host}]' if family is socket.AF_INET6 else host}:{listening.getsockname()[1]}"
        _say(f"listening on {'https' if tls else 'http'}://{address}, loading {', '.join(models)}")
        loading = asyncio.gather(*models.values())
        stopping = loop.create_task(stop.wait())
        first: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            failed = [name for name, model in models.items() if model.done() and model.exception()]
            if failed and len(models) > 1:
                _say(f"the model {failed[0]!r} cannot be opened, so nothing is served")
            loading.result()  # raises what went wrong
            # What loading left behind lives as long as the process: a full collection need not walk over it again,
            # which would stop every request for a tenth of a second.
            gc.collect()
            gc.freeze()
            engines = [served.llm.engine for served in loading.result()]
            _say(f"ready after {time.monotonic() - started:.1f} s")
            behind = loop.create_task(_complete(engines, started))
        await stopping
        _say("stopping: finishing the requests in flight")
    finally:
        if behind is not None:
            behind.cancel()
        await runner.cleanup()
        if listening is not None:
            listening.close()


async def _complete(engines: Sequence[Engine], started: float) -> None:
    """Say when every program is compiled, and which could not be: the server does without them."""
    compiling = [asyncio.wrap_future(one) for engine in engines for one in engine.compiling()]
    results = await asyncio.gather(*compiling, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    _say(f"all {len(compiling) - len(failed)} programs after {time.monotonic() - started:.1f} s")
    if failed:
        _say(f"{len(failed)} programs could not be compiled and are not used: {failed[0]}")


def _say(what: str) -> None:
    print(f"jaxpool serve: {what}", file=sys.stderr, flush=True)
