"""The two signals that stop a server: the first asks it to, the second ends the process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopped_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Event]:
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
