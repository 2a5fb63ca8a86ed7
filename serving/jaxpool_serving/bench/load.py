"""Load on one server: a fixed number of clients (closed loop), or arrivals that wait for nobody (open loop)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

PATIENCE = 120.0
"""Seconds after which a request counts as lost."""

LOST = 0
"""Status of a request that was never answered."""


@dataclass(slots=True)
class Sample:
    """What a load saw.

    Attributes:
        seconds: from the first request to the last answer.
        statuses: HTTP status -> answers; ``LOST`` for none.
        latencies: seconds of every answer with status 200; in an open loop from the moment it was due.
    """

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Texts classified per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """Latency in milliseconds that ``percent`` of the answers did not exceed; NaN without answers."""
        return float(np.percentile(self.latencies, percent)) * 1e3 if self.latencies else float("nan")


def connect(url: str, key: str | None = None) -> aiohttp.ClientSession:
    """A session without a limit on connections."""
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=PATIENCE),
        headers={"Authorization": f"Bearer {key}"} if key else None,
    )


async def closed_loop(session: aiohttp.ClientSession, texts: Sequence[str], clients: int, seconds: float) -> Sample:
    """``clients`` clients, each sending its next text when the last is answered, for ``seconds``."""
    sample, feed, start = Sample(), itertools.cycle(texts), time.perf_counter()

    async def client() -> None:
        while (sent := time.perf_counter()) < start + seconds:
            await _send(session, next(feed), sent, sample)

    await asyncio.gather(*(client() for _ in range(clients)))
    sample.seconds = time.perf_counter() - start
    return sample


async def open_loop(
    session: aiohttp.ClientSession, texts: Sequence[str], rate: float, seconds: float, *, seed: int = 0
) -> Sample:
    """A Poisson stream of ``rate`` texts per second for ``seconds``; returns when all are answered."""
    sample, feed, start = Sample(), itertools.cycle(texts), time.perf_counter()
    async with asyncio.TaskGroup() as sending:
        for due in _arrivals(rate, seconds, seed):
            if (wait := start + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            sending.create_task(_send(session, next(feed), start + due, sample))
            if wait <= 0:
                await asyncio.sleep(0)  # behind schedule: still let answers be read
    sample.seconds = time.perf_counter() - start
    return sample


def _arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    rng, due = np.random.default_rng(seed), 0.0
    while (due := due + rng.exponential(1 / rate)) < seconds:
        yield due


async def _send(session: aiohttp.ClientSession, text: str, since: float, sample: Sample) -> None:
    try:
        # truncated: how many tokens a word is depends on the tokenizer
        async with session.post("/classify", json={"input": text, "truncate_prompt_tokens": -1}) as response:
            await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        status = LOST
    sample.statuses[status] += 1
    if status == 200:
        sample.latencies.append(time.perf_counter() - since)
