"""Many prompts tokenised in parts, each while the one before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

FIRST, MOST = 1024, 16384
"""Prompts of the first part, and of any: each has twice as many as the one before it, so that plans leave few rests."""


def in_parts(count: int, work: Callable[[int, int], list[T]]) -> Iterator[list[T]]:
    """``work(start, stop)`` of parts of ``count`` things, in order, one part ahead of whoever asks.

    Raises:
        Exception: what ``work`` raised, at the part that raised it.
    """
    if count <= FIRST:  # not worth a thread
        if count:
            yield work(0, count)
        return
    starts, size = [0], FIRST
    while starts[-1] + size < count:
        starts.append(starts[-1] + size)
        size = min(2 * size, MOST)
    stops = [*starts[1:], count]
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
        ahead = pool.submit(work, starts[0], stops[0])
        for start, stop in zip([*starts[1:], count], [*stops[1:], count]):
            part = ahead.result()
            if start < count:
                ahead = pool.submit(work, start, stop)
            yield part
