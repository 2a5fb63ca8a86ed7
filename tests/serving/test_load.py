"""A server that has been through every limit serves as before; what clients hold of its memory is bounded."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from patience import PATIENCE, until

from jaxpool import LLM
from jaxpool_serving.bodies import BODY_MEMORY
from jaxpool_serving.connections import FILES, OPEN_CONNECTIONS, allow_files
from jaxpool_serving.options import Options

from .conftest import TamperedEngine
from .test_faults import Wire, close, head, status_of, whole, wire

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def asked(stream: Stream, request: bytes) -> int:
    """The status of a request on a connection that goes on."""
    reader, writer = stream
    writer.write(request)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
    await reader.readexactly(length)
    return int(lines[0].split()[1])


async def once(server: Wire, body: object) -> int:
    """The status of a request on a connection of its own."""
    reader, writer = await server.open()
    try:
        return await asked((reader, writer), whole(body))
    finally:
        await close(writer)


async def test_past_every_limit_and_then_10_000_requests_without_an_error(tampered: LLM) -> None:
    engine: TamperedEngine = tampered.engine  # type: ignore[assignment]
    limits = {"max_queued_texts": 2500, "max_queued_tokens": 60_000, "max_connections": 60}
    async with wire(tampered, **limits) as server:
        with engine.holding():
            texts = [asyncio.ensure_future(once(server, {"input": [[5]] * 600})) for _ in range(4)]
            await until(lambda: server.queued == 2400)
            assert await once(server, {"input": [[5]] * 600}) == 429  # texts
        assert await asyncio.gather(*texts) == [200] * 4
        with engine.holding():
            tokens = [asyncio.ensure_future(once(server, {"input": [[5] * 48] * 400})) for _ in range(3)]
            await until(lambda: server.queued == 1200)
            assert await once(server, {"input": [[5] * 48] * 400}) == 429  # tokens
            failing = asyncio.ensure_future(once(server, {"input": [[TamperedEngine.poison], *[[5]] * 999]}))
            await until(lambda: server.queued == 2200)
            late = asyncio.ensure_future(once(server, {"input": [[5]] * 300, "timeout": 0.2}))
            assert await late == 504
            left = [await server.open() for _ in range(10)]
            for _, writer in left:
                writer.write(whole({"input": [[5]] * 30}))
            await until(lambda: server.queued == 2500)
            for _, writer in left:
                await close(writer)
            await until(lambda: server.queued == 2200)
        assert await asyncio.gather(*tokens, failing) == [200] * 3 + [500]
        many = [await server.open() for _ in range(100)]  # connections: the longest idle are closed
        await until(lambda: len(server.app[OPEN_CONNECTIONS]) == 60)
        assert Counter([reader.at_eof() for reader, _ in many])[False] >= 60

        plain, seen = whole({"input": "It was great."}), Counter[int]()

        async def client(stream: Stream) -> None:
            for _ in range(250):
                seen[await asked(stream, plain)] += 1

        await asyncio.gather(*(client(stream) for stream in many[-40:]))
        assert seen == {200: 10_000}
        await until(lambda: server.queued == 0)
        batcher = server.batcher
        assert (batcher.admission.texts, batcher.admission.tokens, len(batcher._queue)) == (0, 0, 0)
        assert server.app[BODY_MEMORY].held == 0
        for _, writer in many:
            await close(writer)
    await until(lambda: len(server.app[OPEN_CONNECTIONS]) == 0)


MIB = 2**20


async def test_a_hundred_held_bodies_take_no_more_than_their_memory(llm: LLM) -> None:
    async with wire(llm, max_body_bytes=2 * MIB, max_body_memory=20 * MIB, body_timeout=10 * PATIENCE) as server:
        memory, most = server.app[BODY_MEMORY], 0
        held = [await server.open() for _ in range(100)]
        for number, (_, writer) in enumerate(held):
            writer.write(head(MIB) if number % 2 else head("chunked"))
            part = b'{"input": "' + b"a" * (MIB // 2)
            writer.write(part if number % 2 else b"%x\r\n" % len(part) + part)  # and the rest never comes
            most = max(most, memory.held)
            await asyncio.sleep(0)
        answers = [asyncio.create_task(answer_or_none(reader)) for reader, _ in held]

        def found() -> Counter[int | None]:
            return Counter(one.result() for one in answers if one.done())

        await until(lambda: memory.held > 19 * MIB)
        most = max(most, memory.held)
        assert await once_status(server, {"input": "a" * 900_000}) == 503  # there is no room for more
        await until(lambda: found()[503] >= 55)  # 100 halves of a MiB, less the 20 MiB
        assert found().keys() <= {503, None}
        for one in answers:
            one.cancel()
        assert most <= 20 * MIB
        for _, writer in held:
            await close(writer)
        await until(lambda: memory.held == 0)
        assert await server.classify() == 200


async def answer_or_none(reader: asyncio.StreamReader) -> int | None:
    try:
        return await status_of(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def once_status(server: Wire, body: object) -> int:
    reader, writer = await server.open()
    writer.write(whole(body))
    try:
        return await status_of(reader)
    finally:
        await close(writer)


@contextmanager
def deaf(server: Wire) -> Iterator[socket.socket]:
    """A connection that never reads; the system takes next to nothing for it."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", server.port))
        yield one


ANSWERED_AT_LENGTH = whole({"input": ["a"] * 1000})  # with more than 100 kB


async def test_a_hundred_unread_answers_take_no_more_than_their_memory(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    async with wire(llm, send_buffer=4096, max_body_bytes=200_000, max_body_memory=800_000) as server:
        memory, most = server.app[BODY_MEMORY], 0
        with ExitStack() as connections:
            for _ in range(100):
                connections.enter_context(deaf(server)).send(ANSWERED_AT_LENGTH)
                for _ in range(5):
                    await asyncio.sleep(0.01)
                    most = max(most, memory.held)
            await until(lambda: server.queued == 0)
            assert memory.held > 400_000  # they are held, and some have been given up for others
            assert "were not fetched and their memory was needed" in caplog.text
            assert most < memory.limit + 4 * 130_000  # what was being computed when it was full
            await asyncio.sleep(1.1)
            assert await server.classify() == 200  # the others go where somebody else needs it
            assert memory.held <= memory.limit
        await until(lambda: memory.held == 0)


async def test_a_client_that_takes_nothing_of_its_answer_is_let_go_of(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    async with wire(llm, send_buffer=4096, idle_timeout=0.5) as server:
        with deaf(server) as connection:
            connection.send(ANSWERED_AT_LENGTH)
            await until(lambda: "took nothing of its answer" in caplog.text)
            await until(lambda: server.app[BODY_MEMORY].held == 0)
        assert await server.classify() == 200


async def test_a_connection_too_many_is_refused_where_all_are_busy(tampered: LLM) -> None:
    engine: TamperedEngine = tampered.engine  # type: ignore[assignment]
    async with wire(tampered, max_connections=3) as server:
        with engine.holding():
            busy = [asyncio.ensure_future(server.classify()) for _ in range(3)]
            await until(lambda: server.queued == 3)
            reader, writer = await server.open()
            assert await status_of(reader) == 503
            assert await reader.read() == b""
            await close(writer)
        assert await asyncio.gather(*busy) == [200] * 3
        idle = [await server.open() for _ in range(3)]
        assert await server.classify() == 200  # the first of them went for it
        assert await idle[0][0].read() == b""
        for _, writer in idle:
            await close(writer)


@contextmanager
def file_limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_files_as_connections_are_asked_for() -> None:
    with file_limit() as (_, hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        allow_files(1000)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000 + FILES
        allow_files(5)  # never fewer
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000 + FILES


def test_a_body_as_large_as_allowed_always_has_room() -> None:
    assert Options(max_body_memory=10, max_body_bytes=100).body_memory == 100
