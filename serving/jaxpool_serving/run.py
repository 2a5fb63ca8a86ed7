"""Runs the application: listens at once, loads meanwhile, drains when a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from aiohttp import web

from jaxpool.errors import JaxpoolError
from jaxpool_serving.connections import BACKLOG, OPEN_CONNECTIONS, Site, allow_files
from jaxpool_serving.state import MODELS, OPTIONS

if TYPE_CHECKING:
    from jaxpool.engine.engine import Engine


class Runner(web.AppRunner):
    """Runs the application; its connections are bounded."""

    async def setup(self) -> None:
        """Start the application."""
        await super().setup()
        assert self.server is not None
        self.app[OPEN_CONNECTIONS].bound(self.server)


def make_runner(app: web.Application) -> web.AppRunner:
    """What runs ``app`` behind a `Site`; requests are cancelled when their clients leave."""
    options = app[OPTIONS]
    return Runner(
        app,
        handler_cancellation=True,
        shutdown_timeout=options.shutdown_timeout,
    )


async def listen(
    app: web.Application,
    host: str,
    port: int,
    *,
    uds: str | None = None,
    tls: ssl.SSLContext | None = None,
    reload: Callable[[], ssl.SSLContext | None] | None = None,
) -> None:
    """Listen at once, load meanwhile; on SIGTERM or SIGINT stop listening, drain, close.

    A second signal ends the process at once.

    Args:
        app: from `init_app`.
        host, port: address to listen on.
        uds: path of a Unix socket to listen on instead.
        tls: certificates for HTTPS; None for HTTP.
        reload: called at SIGHUP, reads keys and certificates anew and returns the latter.

    Raises:
        OSError: the address cannot be listened on.
        JaxpoolError: a model cannot be opened; the others are given up.
    """
    allow_files(app[OPTIONS].max_connections)
    with stop_on_signals(asyncio.get_running_loop()) as stop:
        await _listen(app, host, port, uds, tls, reload, stop)


async def _listen(
    app: web.Application,
    host: str,
    port: int,
    uds: str | None,
    tls: ssl.SSLContext | None,
    reload: Callable[[], ssl.SSLContext | None] | None,
    stop: asyncio.Event,
) -> None:
    started, loop = time.monotonic(), asyncio.get_running_loop()
    hangup = asyncio.Event()
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
    models = app[MODELS]
    runner = make_runner(app)
    # The address is taken before the model is: a port in use should not cost a load.
    listening = _socket(host, port, uds)
    behind: asyncio.Task[None] | None = None
    reloading: asyncio.Task[None] | None = None
    try:
        await runner.setup()
        site = Site(runner, listening, tls)
        await site.start()
        if reload is not None:
            reloading = loop.create_task(_reloading(hangup, site, reload))
        address = f"unix:{uds}"
        if not uds:
            address = f"{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
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
            engines = [served.batcher.engine for served in loading.result()]
            _say(f"ready after {time.monotonic() - started:.1f} s")
            behind = loop.create_task(_report_compiles(engines, started))
        await stopping
        _say("stopping: finishing the requests in flight")
    finally:
        for task in (behind, reloading):
            if task is not None:
                task.cancel()
        await runner.cleanup()
        listening.close()
        loop.remove_signal_handler(signal.SIGHUP)  # uvloop leaves its own behind


def _socket(host: str, port: int, uds: str | None) -> socket.socket:
    """A socket that listens at the address."""
    if uds is None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    path = Path(uds)
    if path.is_socket():  # of a process that has ended, or that gives way to this one
        path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(uds)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, error.strerror, uds) from error
    return listening


async def _reloading(hangup: asyncio.Event, site: Site, reload: Callable[[], ssl.SSLContext | None]) -> None:
    """After every SIGHUP; what cannot be read leaves everything as it was."""
    while await hangup.wait():
        hangup.clear()
        try:
            await site.renew(reload())
        except (JaxpoolError, OSError) as error:
            _say(f"keys and certificates stay as they were: {error}")
        else:
            _say("keys and certificates are read anew")


async def _report_compiles(engines: Sequence[Engine], started: float) -> None:
    """Say when every program is compiled, and which could not be: the server does without them."""
    compiling = [asyncio.wrap_future(one) for engine in engines for one in engine.compiling()]
    results = await asyncio.gather(*compiling, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    _say(f"all {len(compiling) - len(failed)} programs after {time.monotonic() - started:.1f} s")
    if failed:
        _say(f"{len(failed)} programs could not be compiled and are not used: {failed[0]}")


def _say(what: str) -> None:
    print(f"jaxpool serve: {what}", file=sys.stderr, flush=True)


STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Event]:
    """An event of ``loop``, set by the first signal; the second exits at once.

    The handlers are not the loop's: a loop that stands still, or is being closed, would not call them. Without a first
    signal the handlers from before are back afterwards; else they stay, since the process is about to end.
    """
    stop, stopping = asyncio.Event(), False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, handle) for number in STOPPING}
    try:
        yield stop
    finally:
        if not stopping:
            for number, handler in before.items():
                signal.signal(number, handler)
