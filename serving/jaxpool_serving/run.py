"""Runs the application: listens at once, loads meanwhile, drains when told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from typing import Any

from aiohttp import web

from jaxpool_serving.keys import MODELS, OPTIONS


async def listen(app: web.Application, host: str, port: int) -> bool:
    """Listen at once, load meanwhile; on SIGTERM or SIGINT stop listening, drain, close.

    A second signal ends the process at once.

    Returns:
        Whether the model had been loaded when the server stopped.
    """
    started = time.monotonic()
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

    options, models = app[OPTIONS], app[MODELS]
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        shutdown_timeout=options.shutdown_timeout,
        keepalive_timeout=options.idle_timeout,
        access_log=None,
    )
    # The address is taken before the model is: a port in use should not cost a load.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=1024)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        address = f"[{host}]" if family is socket.AF_INET6 else host
        _say(f"listening on http://{address}:{listening.getsockname()[1]}, loading {', '.join(models)}")
        loading = asyncio.gather(*models.values())
        stopping = loop.create_task(stop.wait())
        first: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()  # raises what went wrong while loading
            _say(f"ready after {time.monotonic() - started:.1f} s")
        await stopping
        _say("stopping: finishing the requests in flight")
    finally:
        await runner.cleanup()
    return loading.done() and not loading.cancelled()


def _say(what: str) -> None:
    print(f"jaxpool serve: {what}", file=sys.stderr, flush=True)
