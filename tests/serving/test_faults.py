"""Clients, bodies and models that misbehave: nothing lost, nothing hung, no 500 from bad input."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, web
from patience import PATIENCE, until
from safetensors.numpy import load_file, save_file

from jaxpool import LLM
from jaxpool.errors import WeightsError
from jaxpool_serving.app import init_app
from jaxpool_serving.batching.batcher import Batcher
from jaxpool_serving.connections import Site
from jaxpool_serving.options import Options
from jaxpool_serving.run import make_runner
from jaxpool_serving.schemas import errors, request
from jaxpool_serving.state import MODELS as LOADED

from .conftest import MODELS, TamperedEngine, serving
from .test_batcher import has_queued
from .test_classify import offline, post, probs


class Wire:
    """A server as `jaxpool serve` runs it, and connections to it that need not speak HTTP."""

    def __init__(self, app: web.Application, port: int) -> None:
        self.app, self.port = app, port

    @property
    def batcher(self) -> Batcher:
        return self.app[LOADED]["bert"].result().batcher

    @property
    def queued(self) -> int:
        return self.batcher.queued

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def classify(self, text: str = "It was great.") -> int:
        url = f"http://127.0.0.1:{self.port}/classify"
        async with ClientSession() as session, session.post(url, json={"input": text}) as response:
            return response.status


@contextlib.asynccontextmanager
async def wire(llm: LLM, *, send_buffer: int = 0, **options: Any) -> AsyncIterator[Wire]:
    """``send_buffer``: bytes that the system takes off the server's hands for each connection; 0 for as it likes."""
    app = init_app({"bert": llm}, Options(**options))
    runner = make_runner(app)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        if send_buffer:  # connections inherit it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        await Site(runner, listening).start()
        try:
            yield Wire(app, listening.getsockname()[1])
        finally:
            await runner.cleanup()


def head(length: int | str, *more: str) -> bytes:
    lines = ["POST /classify HTTP/1.1", "Host: a", "Content-Type: application/json", *more]
    lines.append("Transfer-Encoding: chunked" if length == "chunked" else f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def whole(body: object) -> bytes:
    data = json.dumps(body).encode()
    return head(len(data)) + data


async def status_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(PATIENCE):
        return int((await reader.readuntil(b"\r\n\r\n")).split()[1])


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_thousand_clients_that_leave_cost_nothing(tampered: LLM) -> None:
    engine: TamperedEngine = tampered.engine  # type: ignore[assignment]
    async with wire(tampered, max_queued_texts=1000) as server:
        with engine.holding():
            first = []
            for n in range(2):  # one batch each: both slots are taken
                first.append(asyncio.ensure_future(server.classify()))
                await until(lambda n=n: len(engine.batches) == n + 1)
            leaving = await asyncio.gather(*(server.open() for _ in range(998)))
            for _, writer in leaving:
                writer.write(whole({"input": [77, 78]}))
            await until(lambda: server.queued == 1000)
            assert await server.classify() == 429
            await asyncio.gather(*(close(writer) for _, writer in leaving))
            await until(lambda: server.queued == 2)
            computed = len(engine.batches)
        assert await asyncio.gather(*first) == [200, 200]
        assert await server.classify() == 200
        assert server.queued == 0
    assert not any(77 in row.ids for batch in engine.batches[computed:] for row in batch)


async def test_a_body_of_one_byte_at_a_time_is_cut_and_holds_no_place(llm: LLM) -> None:
    async with wire(llm, body_timeout=0.5, max_queued_texts=1) as server:
        slow = [await server.open() for _ in range(20)]
        for _, writer in slow:
            writer.write(head(1000) + b'{"input": "')
        drips = [asyncio.create_task(dripping([writer for _, writer in slow]))]
        await asyncio.sleep(0.2)
        assert server.queued == 0
        assert await server.classify() == 200
        assert [await status_of(reader) for reader, _ in slow] == [408] * 20
        for reader, _ in slow:  # and then they are cut off
            async with asyncio.timeout(PATIENCE):
                while await reader.read(1000):
                    pass
        drips[0].cancel()
        for _, writer in slow:
            await close(writer)


async def dripping(writers: Sequence[asyncio.StreamWriter]) -> None:
    while True:
        for writer in writers:
            writer.write(b"a")
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("start", [b"", b"POST /classify HTTP/1.1\r\nHost: "], ids=["nothing", "half a head"])
async def test_a_connection_without_a_request_is_closed(llm: LLM, start: bytes) -> None:
    async with wire(llm, idle_timeout=0.3) as server:
        reader, writer = await server.open()
        writer.write(start)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        await close(writer)


async def test_a_client_that_does_not_read_holds_no_place(llm: LLM) -> None:
    async with wire(llm) as server:
        connections = [await server.open() for _ in range(2)]
        for _, writer in connections:
            writer.write(whole({"input": ["a"] * 1000}) * 6)  # answers of 600 kB, which nobody fetches
        await asyncio.sleep(0.5)
        assert await server.classify() == 200
        await until(lambda: server.queued == 0)
        for _, writer in connections:
            await close(writer)


async def test_a_body_of_100_mb_is_refused_unread(llm: LLM) -> None:
    size = 100 * 2**20
    async with wire(llm) as server:
        reader, writer = await server.open()
        writer.write(head(size))
        assert await status_of(reader) == 413
        await close(writer)
    async with wire(llm, max_body_bytes=2**20) as server:
        reader, writer = await server.open()
        writer.write(head("chunked"))
        answer, sent, chunk = asyncio.ensure_future(status_of(reader)), 0, b"10000\r\n" + b" " * 2**16 + b"\r\n"
        while not answer.done() and sent < size:
            writer.write(chunk)
            sent += 2**16
            await writer.drain()
        assert await answer == 413
        assert sent < 20 * 2**20
        await close(writer)


async def test_mangled_bodies_are_never_a_500(llm: LLM) -> None:
    rng = random.Random(0)
    good = b'{"input": ["It was great.", "bad"], "model": "bert", "timeout": 5.0, "truncate_prompt_tokens": 4}'
    parts = [b"{", b"}", b"[", b"]", b'"', b"null", b"1e999", b"-1", b"NaN", b"\\ud800", b"\xff", b"\x00", b",", b"[5]"]
    async with serving(llm) as client:
        for _ in range(300):
            body = bytearray(good)
            for _ in range(rng.randint(1, 3)):
                start = rng.randrange(len(body))
                body[start : start + rng.randint(0, 12)] = rng.choice(parts)
            response = await client.post("/classify", data=bytes(body), headers={"Content-Type": "application/json"})
            assert response.status in (200, 400, 404), (bytes(body), await response.text())
            await response.read()
        assert (await post(client, {"input": "a"}))[0] == 200


@pytest.mark.parametrize(
    ("path", "field", "member", "last"),
    [
        ("/classify", "input", b"1", b'"a"'),
        ("/classify", "input", b'""', b'""'),
        ("/classify", "input", b"[]", b"[]"),
        ("/classify", "input", b"{}", b"{}"),
        ("/classify", "input", b'["a"]', b"[1]"),
        ("/classify", "messages", b"1", b"1"),
        ("/predict", "inputs", b"1", b"1"),
        ("/classify", "unknown", b"1", b"null"),
    ],
)
async def test_bodies_made_to_fill_pages_of_complaints_are_cheap(
    llm: LLM, path: str, field: str, member: bytes, last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their schema is not even looked at."""
    looked: list[Any] = []
    for module in (errors, request):
        monkeypatch.setattr(module, "fail_fast_validator", looked.append)
    data = b'{"%s": [%s, %s]}' % (field.encode(), b",".join([member] * 200_000), last)
    async with serving(llm) as client:
        with io.BytesIO(data) as body:
            async with client.post(path, data=body, headers={"Content-Type": "application/json"}) as response:
                assert response.status == 400
                assert "more than 32768 members" in await response.text()
    assert not looked


async def test_long_lists_of_ids_are_not_too_many_members(llm: LLM) -> None:
    async with serving(llm, max_tokens_per_request=10**6) as client:
        status, answer = await post(client, {"input": [[5] * 40] * 1024})
        assert (status, len(answer["data"])) == (200, 1024)


class Panic(BaseException):
    """As Rust's come through: no Exception."""


class FragileTokenizer:
    """The real tokenizer, until a text asks for something else."""

    def __init__(self, llm: LLM) -> None:
        self.real = llm.tokenizer
        self.vocabulary = llm.tokenizer.vocabulary

    def encode(self, prompts: Sequence[Any], options: Any = None, **place: int | None) -> Any:
        for prompt in prompts:
            for word, error in (("raise", RuntimeError), ("panic", Panic)):
                if prompt.startswith(word):
                    raise error("secret: /srv/model")
        return self.real.encode(prompts, options, **place)


@pytest.mark.parametrize("text", ["raise", "panic", "raise " * 1000, "panic " * 1000], ids=lambda text: text[:5])
async def test_a_tokenizer_that_fails_fails_its_own_request(
    llm: LLM, tampered: LLM, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    tampered.tokenizer = FragileTokenizer(llm)  # type: ignore[assignment]
    texts = ["It was great.", "bad", "a"]
    async with serving(tampered) as client:
        answers = await asyncio.gather(*(post(client, {"input": one}) for one in [*texts, text]))
        status, answer = answers.pop()
        assert (status, answer["error"]["message"]) == (500, "The tokenizer could not read this request.")
        assert {status for status, _ in answers} == {200}
        np.testing.assert_allclose(np.concatenate([probs(a) for _, a in answers]), offline(llm, texts), atol=1e-5)
        await has_queued(client, 0)
    assert "secret" in caplog.text  # for those who run the server, not for those who call it


def tampered_checkpoint(folder: Path, name: str, value: float, rows: slice) -> Path:
    """bert-cls with ``value`` in some rows of one tensor."""
    copied = folder / "model"
    shutil.copytree(MODELS / "bert-cls", copied)
    tensors = load_file(copied / "model.safetensors")
    tensors[name][rows] = value
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    return copied


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = tampered_checkpoint(tmp_path, "classifier.weight", float("nan"), slice(1))
    with pytest.raises(WeightsError, match=r"classifier\.weight holds NaN"):
        LLM(str(folder))


async def test_a_text_whose_scores_overflow_fails_alone(
    llm: LLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    folder = tampered_checkpoint(tmp_path, name, 3e38, slice(60, 61))  # finite; its variance is not
    with LLM(str(folder), max_model_len=16, max_num_batched_tokens=64, compile="ahead") as broken:
        async with serving(broken) as client:
            ids = [[5, 6], [60, 6], [7, 8]]
            answers = await asyncio.gather(*(post(client, {"input": one}) for one in ids))
    assert [status for status, _ in answers] == [200, 500, 200]
    assert answers[1][1]["error"]["message"] == "The model could not compute this request."
    good = np.concatenate([probs(answers[0][1]), probs(answers[2][1])])
    np.testing.assert_allclose(good, offline(llm, [ids[0], ids[2]]), atol=1e-5)
    assert "not finite" in caplog.text
