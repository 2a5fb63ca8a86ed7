"""Connections that break HTTP, close by halves or ask for too much; and what is never shown of them."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from patience import PATIENCE, until

from jaxpool import LLM

from .conftest import TamperedEngine, serving
from .test_classify import post
from .test_faults import close, head, status_of, whole, wire

SECRET = "s3cret-key"


@pytest.mark.parametrize(
    "request_",
    [
        f"GET /version HTTP/1.1\r\nHost: a\r\nAuthorization Bearer {SECRET}\r\n\r\n",
        f"GET /version HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\x00\r\n\r\n",
        f"GET /version HTTP/1.1\r\nHost: a\r\nAuth orization: {SECRET}\r\n\r\n",
        f"GET /version HTTP/1.1\r\nHost: a\r\nAuthorization: {SECRET * 1000}\r\n\r\n",
        f"{SECRET} /version HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /version?key={SECRET} HTTP/9.1\r\nHost: a\r\n\r\n",
        f"GET /version HTTP/1.1\r\nAuthorization: {SECRET}\r\n\r\n",
        f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: {SECRET}\r\n\r\n",
    ],
)
async def test_what_breaks_http_is_one_line_in_the_log_without_a_byte_of_it(
    llm: LLM, request_: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with wire(llm) as server:
        reader, writer = await server.open()
        writer.write(request_.encode("latin-1"))
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        await close(writer)
    assert answer.split()[1] == b"400", answer
    assert "detail" in json.loads(answer.partition(b"\r\n\r\n")[2])
    [line] = [record for record in caplog.records if record.name.startswith(("aiohttp", "jaxpool"))]
    assert line.exc_info is None
    assert "answered 400" in line.getMessage()
    assert SECRET not in caplog.text + answer.decode()


async def test_a_header_is_not_repeated_in_an_answer(llm: LLM) -> None:
    async with serving(llm) as client:
        status, answer = await post(client, {"input": "a"}, **{"X-Request-Timeout": SECRET})
        assert status == 400
        assert SECRET not in json.dumps(answer)


@pytest.mark.parametrize("chunk", [b"xyz\r\n", b"5\r\n123456789\r\n"])
async def test_a_bad_chunk_is_answered_whenever_it_comes(llm: LLM, chunk: bytes) -> None:
    async with wire(llm) as server:
        reader, writer = await server.open()
        writer.write(head("chunked") + b"1\r\n{\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)  # the handler waits for more by now
        writer.write(chunk)
        assert await status_of(reader) == 400
        async with asyncio.timeout(PATIENCE):
            await reader.read()
        await close(writer)
        assert await server.classify() == 200


async def test_who_sends_no_more_gets_an_answer(tampered: LLM) -> None:
    engine: TamperedEngine = tampered.engine  # type: ignore[assignment]
    async with wire(tampered) as server:
        reader, writer = await server.open()
        with engine.holding():
            writer.write(whole({"input": "It was great."}))
            writer.write_eof()
            await until(lambda: bool(engine.batches))
            await asyncio.sleep(0.5)  # and it is looked after more than once
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()  # to the end: the connection is closed, too
        await close(writer)
    answers = answer.split(b"HTTP/1.1 ")[1:]
    assert [one.split()[0] for one in answers] == [b"100"] * (len(answers) - 1) + [b"200"]


async def test_no_answer_repeats_megabytes(llm: LLM) -> None:
    long = "x" * 500_000
    async with serving(llm) as client:
        for path, body in (
            ("/classify", {"input": "a", "model": long}),
            ("/tokenize", {"prompt": "a", "model": long}),
            ("/classify", {"input": "a", "request_id": long}),
            ("/classify", {"input": [{"text": "a", long: 1}]}),
            ("/pooling", {"input": "a", "request_id": long, "encoding_format": "bytes"}),
            ("/pooling", {"input": ["a"] * 1000, "encoding_format": "bytes"}),
        ):
            response = await client.post(path, json=body)
            assert len(await response.read()) < 10_000, (path, list(body))
            assert sum(len(name) + len(value) for name, value in response.headers.items()) < 10_000
        assert response.status == 400
        assert "bytes_only" in await response.text()
        response = await client.post("/pooling", json={"input": ["a"] * 10, "encoding_format": "bytes"})
        assert len(json.loads(response.headers["metadata"])["data"]) == 10


async def test_arguments_of_tools_in_thousands_of_brackets(tmp_path: Path, llm: LLM) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    body = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    async with serving(llm, chat_template="{{ messages[0].tool_calls[0].function.name }}") as client:
        status, answer = await post(client, body)
        assert status == 200, answer


async def test_paths_without_a_key_answer_alike(llm: LLM) -> None:
    async with serving(llm, api_keys=(SECRET,)) as client:
        for method in ("GET", "POST", "DELETE"):
            for path in ("/classify", "/classify/", "/nope", "/nope/", "/health/x"):
                response = await client.request(method, path, allow_redirects=False)
                assert (response.status, await response.json()) == (401, {"error": "Unauthorized"}), (method, path)
        assert (await client.get("/health/")).status == 200
