"""Our own server in a process of its own, for the time of a measurement."""

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
