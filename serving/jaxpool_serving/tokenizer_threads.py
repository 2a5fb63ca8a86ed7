"""The threads that tokenise: a text that takes too long is given up, and its thread replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

from aiohttp import web

from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool_serving.keys import OPTIONS, TOKENIZER_THREADS
from jaxpool_serving.schemas.errors import RequestError

P = ParamSpec("P")
T = TypeVar("T")


async def tokenizing(app: web.Application) -> AsyncIterator[None]:
    """A cleanup context of the application: its `TokenizerThreads`."""
    options = app[OPTIONS]
    app[TOKENIZER_THREADS] = threads = TokenizerThreads(options.tokenizer_threads, options.tokenizer_timeout)
    yield
    threads.shutdown(cancel_futures=True)


class TokenizerThreads(DaemonThreads):
    """Threads for a tokenizer, which nobody can interrupt.

    Args:
        count: of the threads.
        seconds: that one work may take, the wait for a thread not counted.
    """

    def __init__(self, count: int, seconds: float) -> None:
        super().__init__(count, "tokenizer")
        self.seconds = seconds

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` returns, in a thread; once nobody waits for it, the thread is replaced.

        Raises:
            RequestError: 504, it takes too long.
        """
        loop, waiting = asyncio.get_running_loop(), True

        def watch() -> None:
            if waiting:
                limit.reschedule(loop.time() + self.seconds)

        def begin() -> T:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(watch)
            return work(*args, **kwargs)

        try:
            async with asyncio.timeout(None) as limit:
                future = self.submit(begin)
                try:
                    return await asyncio.wrap_future(future)
                finally:
                    waiting = False
                    self.abandon(future)
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"The tokenizer was not done within {self.seconds:g} s."
            raise RequestError(504, "GatewayTimeoutError", message) from None
