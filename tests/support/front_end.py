"""How many single texts per second the server takes on one core when computing them costs nothing.

    python tests/support/front_end.py [--rounds 5] [--seconds 4] [--clients 64] [--profile FILE]

The server is the real one (sockets, schemas, tokenizer, queue, answers), pinned to one core, with an engine that
answers at once. The load comes from another core, over keep-alive connections, with the bytes of its requests
made beforehand.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import cProfile
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import uvloop

from jaxpool import LLM
from jaxpool.bench.texts import mix
from jaxpool.engine.buckets import Bucket, grid
from jaxpool.engine.engine import Row
from jaxpool_serving.app import init_app
from jaxpool_serving.run import listen

SERVER_CORE, LOAD_CORE = 0, 1


class InstantEngine:
    """What the batcher sees of an engine; every batch is answered before ``submit`` returns."""

    def __init__(self, llm: LLM) -> None:
        self.spec, self.cost = llm.engine.spec, llm.engine.cost
        self.buckets = self.usable = grid(self.spec.max_length, 2048, per_octave=8, row_factor=4)
        self.begun = self.batches = self.rows = 0
        self.under_way = 2
        self.prefixes = None

    def compiling(self) -> list[Future[None]]:
        return []

    def submit(self, rows: Sequence[Row], bucket: Bucket, places: np.ndarray | None = None) -> Future[np.ndarray]:
        self.batches += 1
        self.rows += len(rows)
        answer: Future[np.ndarray] = Future()
        answer.set_result(np.full((len(rows), self.spec.num_labels), 1 / self.spec.num_labels, np.float32))
        return answer


def serve(profile: str | None) -> None:
    """Serve until SIGTERM, on a port that standard error tells."""
    os.sched_setaffinity(0, {SERVER_CORE})
    with LLM() as llm:
        instant = copy.copy(llm)
        instant.engine = InstantEngine(llm)  # type: ignore[assignment]
        profiler = cProfile.Profile()
        if profile:
            profiler.enable()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(listen(init_app({"instant": instant}), "127.0.0.1", 0))
        if profile:
            profiler.dump_stats(profile)
    print(f"rows per batch: {instant.engine.rows / max(instant.engine.batches, 1):.1f}", file=sys.stderr)


class Client(asyncio.Protocol):
    """Sends the next request when the last is answered; counts the answers with status 200."""

    answered = failed = 0

    def __init__(self, requests: Sequence[bytes], first: int) -> None:
        self.requests, self.next, self.seen, self.missing = requests, first, b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.send()

    def send(self) -> None:
        self.next = (self.next + 1) % len(self.requests)
        self.transport.write(self.requests[self.next])

    def data_received(self, data: bytes) -> None:
        self.seen += data
        head, end, body = self.seen.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if not end or length is None or len(body) < int(length[1]):
            return
        Client.answered += head.startswith(b"HTTP/1.1 200")
        Client.failed += not head.startswith(b"HTTP/1.1 200")
        self.seen = b""
        self.send()


def core_seconds(process: int) -> float:
    """Seconds that a process has spent on its core; on a shared machine they say more than those of the clock."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, process: int, clients: int, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Answers per second of the clock, and of the server's core, in each round; the first (cold) one is left out."""
    requests = []
    for text in mix(1000):
        body = json.dumps({"input": text}).encode()
        head = f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        requests.append(f"{head}\r\n\r\n".encode() + body)
    loop = asyncio.get_running_loop()
    for number in range(clients):
        await loop.create_connection(lambda n=number: Client(requests, n * 97), "127.0.0.1", port)
    clock, core = [], []
    for _ in range(rounds + 1):
        before, start, spent = Client.answered, time.perf_counter(), core_seconds(process)
        await asyncio.sleep(seconds)
        answered = Client.answered - before
        clock.append(answered / (time.perf_counter() - start))
        core.append(answered / (core_seconds(process) - spent))
    return clock[1:], core[1:]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--profile", metavar="FILE", help="write a cProfile of the server (which slows it)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.profile)
    os.sched_setaffinity(0, {LOAD_CORE})
    command = [sys.executable, __file__, "--serve", *(["--profile", args.profile] if args.profile else [])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = next(int(found[1]) for line in process.stderr if (found := re.search(r"http://[\d.]+:(\d+)", line)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        clock, core = runner.run(load(port, process.pid, args.clients, args.rounds, args.seconds))
    process.send_signal(signal.SIGTERM)
    for rates, of in ((clock, "of the clock"), (core, "of the server's core")):
        print(f"{args.clients} clients: best {max(rates):.0f} per second {of} ({', '.join(f'{r:.0f}' for r in rates)})")
    print(f"not 200: {Client.failed}; load of the machine: {os.getloadavg()[0]:.1f}")
    print(process.stderr.read().strip().splitlines()[-1])
    return None


if __name__ == "__main__":
    main()
