"""How long a test waits for something that must happen: on a busy machine, and not for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 180.0
"""Seconds after which a test gives up: nothing here takes as long, so that it hangs, however slow the machine."""


async def until(condition: Callable[[], bool]) -> None:
    """Returns once ``condition`` holds, however long that takes; TimeoutError after `PATIENCE`."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool]) -> None:
    """As `until`, without an event loop."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)
