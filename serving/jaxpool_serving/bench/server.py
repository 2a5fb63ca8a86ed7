"""Our own server in a process of its own, for the time of a measurement, and what it did with its device."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from jaxpool.errors import JaxpoolError

STARTING = 600.0
"""Seconds that a server gets to become warm."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server to measure.

    Attributes:
        name: in the report.
        url: its address.
        process: process id if it is ours, else None.
        ready: seconds from start to warm if we started it, else None.
    """

    name: str
    url: str
    process: int | None = None
    ready: float | None = None

    def resident_mib(self) -> float | None:
        """Resident memory of the process, where the system tells (Linux)."""
        if self.process is None:
            return None
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process}/status").read_text()
            if found := re.search(r"VmRSS:\s+(\d+) kB", status):
                return int(found[1]) / 1024
        return None


@contextlib.asynccontextmanager
async def own_server(arguments: Sequence[str]) -> AsyncIterator[Running]:
    """``jaxpool serve`` on a free port, warm; stopped when the context ends.

    Raises:
        JaxpoolError: it did not start; the message ends with what it said.
    """
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jaxpool", "serve", "--port", "0", *arguments),
        stdout=subprocess.DEVNULL,  # the access log
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said, url = "", ""
    try:
        async with asyncio.timeout(STARTING):
            ready = 0.0
            while "programs after" not in said:  # those that are compiled behind would take part in the measurement
                line = (await process.stderr.readline()).decode()
                if not line:
                    raise JaxpoolError(f"the server did not start: {said.strip()}")
                said = said[-2000:] + line
                if found := re.search(r"listening on (https?://\S+?),", line):
                    url = found[1]
                ready = ready or ("ready after" in line) * (time.monotonic() - started)
        draining = asyncio.create_task(process.stderr.read())  # a full pipe would block the server
        yield Running("jaxpool", url, process.pid, ready)
        draining.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Batches(NamedTuple):
    """Device batches so far, or between two looks.

    Attributes:
        calls: batches.
        texts: texts in them.
        tokens: tokens of these texts.
        padding: tokens computed besides.
    """

    calls: float = 0.0
    texts: float = 0.0
    tokens: float = 0.0
    padding: float = 0.0

    def since(self, before: Batches) -> Batches:
        """What came after ``before``."""
        return Batches(*(now - then for now, then in zip(self, before, strict=True)))

    def figures(self) -> dict[str, float]:
        """Texts per batch, and the share of computed tokens that is padding; nothing if there was no batch."""
        if not self.calls:
            return {}
        return {"texts_per_batch": self.texts / self.calls, "padding": self.padding / (self.tokens + self.padding)}


_NAMES = ("jaxpool_batch_texts_count", "jaxpool_texts_total", "jaxpool_tokens_total", "jaxpool_padding_tokens_total")


async def read_batches(session: aiohttp.ClientSession) -> Batches:
    """The counters of all models of a server; all 0 for a server that has none of ours."""
    async with session.get("/metrics") as response:
        if response.status != 200:
            return Batches()
        text = await response.text()
    sums = dict.fromkeys(_NAMES, 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
    return Batches(*sums.values())
