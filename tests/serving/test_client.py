"""``jaxpool.Client`` and ``AsyncClient`` against real servers: healthy, busy, loading, restarting, or not ours."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from patience import PATIENCE

from jaxpool import LLM, AsyncClient, Classification, Client
from jaxpool.errors import ServerError, ValidationError

from .conftest import MODELS, serving
from .test_batcher import has_queued
from .test_classify import TEXTS, offline
from .test_lifecycle import SMALL
from .test_metrics import scraped


def base(client: TestClient) -> str:
    return str(client.make_url("/"))


def probs(results: list[Classification]) -> np.ndarray:
    return np.array([result.probs for result in results])


PAIR = {"prompt": TEXTS[0], "text_pair": TEXTS[1]}  # as LLM.classify has it


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        (TEXTS[0], [TEXTS[0]]),
        (TEXTS, TEXTS),
        ((TEXTS[0], TEXTS[1]), [PAIR]),
        ([(TEXTS[0], TEXTS[1]), TEXTS[2]], [PAIR, TEXTS[2]]),
        ([{"text": TEXTS[0], "text_pair": TEXTS[1]}], [PAIR]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([np.array([5, 6, 7]), [8]], [[5, 6, 7], [8]]),
    ],
    ids=["text", "texts", "pair", "pair and text", "pair by name", "ids", "lists of ids"],
)
async def test_every_form_of_prompt_answers_as_offline(llm: LLM, given: object, prompts: list[object]) -> None:
    async with serving(llm) as server, AsyncClient(base(server)) as client:
        results = await client.classify(given)  # type: ignore[arg-type]
        np.testing.assert_allclose(probs(results), offline(llm, prompts), atol=1e-5)
        expected = [llm.labels[int(row.argmax())] for row in probs(results)]
        assert [result.label for result in results] == expected
        assert [result.labels for result in results] == [[label] for label in expected]


async def test_fields_of_the_request(llm: LLM) -> None:
    async with serving(llm) as server, AsyncClient(base(server)) as client:
        [one] = await client.classify("Hello world", model="bert", threshold=0.0, top_k=2, return_logits=True)
        [raw] = await client.classify("Hello world", use_activation=False)
        assert one.labels == list(llm.labels)
        assert one.top_k is not None
        assert [score for _, score in one.top_k] == sorted(one.probs, reverse=True)[:2]
        assert one.logits == raw.probs
        assert (await client.post("/tokenize", {"prompt": "Hello world"}))["tokens"] == llm.tokenizer.encode(
            ["Hello world"]
        )[0].ids


async def test_a_long_list_becomes_several_requests_in_order(llm: LLM, tampered: LLM) -> None:
    texts = [f"{TEXTS[n % 4]} {n}" for n in range(205)]
    async with serving(tampered) as server, AsyncClient(base(server), max_inputs=20, concurrency=3) as client:
        tampered.engine.hold = True
        work = asyncio.create_task(client.classify(texts))
        async with asyncio.timeout(PATIENCE):
            while (await scraped(server))["jaxpool_queued_texts", "bert"] < 60:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (await scraped(server))["jaxpool_queued_texts", "bert"] == 60  # three requests, not more
        tampered.engine.release()
        results = await work
        assert (await scraped(server))["jaxpool_requests_total", "bert", "/classify", "200"] == 11
    np.testing.assert_allclose(probs(results), offline(llm, texts), atol=1e-5)


async def test_one_refused_request_ends_the_list(llm: LLM) -> None:
    async with serving(llm) as server, AsyncClient(base(server), max_inputs=1, concurrency=2) as client:
        with pytest.raises(ServerError, match="maximum context length is 48") as caught:
            await client.classify(["a", "b", "hello world " * 40, *["c"] * 100])
        assert (caught.value.status, caught.value.parameter) == (400, "input_tokens")
        seen = await scraped(server)
        assert [value for key, value in seen.items() if key[0] == "jaxpool_requests_total" and key[-1] == "400"] == [1]
        assert seen["jaxpool_requests_total", "bert", "/classify", "200"] < 10
        with pytest.raises(ServerError, match=r"404: The model `x` does not exist\."):
            await client.classify("a", model="x")


async def test_a_busy_server_is_asked_again_when_it_says(tampered: LLM) -> None:
    async with serving(tampered, max_queued_texts=4) as server, AsyncClient(base(server)) as client:
        tampered.engine.hold = True
        first = asyncio.create_task(client.classify(TEXTS))
        await has_queued(server, 4)
        async with AsyncClient(base(server), max_retries=0) as hasty:
            with pytest.raises(ServerError, match="busy; try again in 1 s") as caught:
                await hasty.classify("a")
        assert caught.value.status == 429
        started = time.monotonic()
        second = asyncio.create_task(client.classify("a"))
        refusals = ("jaxpool_requests_total", "bert", "/classify", "429")
        async with asyncio.timeout(PATIENCE):
            while (await scraped(server)).get(refusals) != 2:  # the hasty one's, and its own
                await asyncio.sleep(0.01)
        tampered.engine.release()
        await first
        assert len(await second) == 1
        assert time.monotonic() - started >= 1.0  # Retry-After
        assert (await scraped(server))[refusals] == 2  # and not again and again


async def test_time_that_is_up_is_not_asked_for_again(tampered: LLM) -> None:
    async with serving(tampered) as server, AsyncClient(base(server)) as client:
        tampered.engine.hold = True
        with pytest.raises(ServerError, match=r"504: The answer was not ready within 0\.05 s") as caught:
            await client.classify("a", timeout=0.05)
        assert (caught.value.status, caught.value.parameter) == (504, "timeout")
        assert (await scraped(server))["jaxpool_requests_total", "bert", "/classify", "504"] == 1
        tampered.engine.release()


async def test_a_loading_server_is_waited_for(tampered: LLM) -> None:
    warm = threading.Event()

    def open_llm() -> LLM:
        warm.wait(PATIENCE)
        return tampered

    async with serving(open_llm, ready=False) as server, AsyncClient(base(server)) as client:
        with pytest.raises(TimeoutError):
            await client.wait_until_ready(timeout=0.1)
        work = asyncio.create_task(client.classify("a"))
        await asyncio.sleep(0.1)
        assert not work.done()
        warm.set()
        await client.wait_until_ready()
        assert len(await work) == 1


@asynccontextmanager
async def answering(handler: Callable[[web.Request], object]) -> AsyncIterator[str]:
    """Another server, or a proxy before ours, that answers as ``handler`` does."""
    app = web.Application()
    app.router.add_post("/prefix/classify", handler)  # type: ignore[arg-type]
    async with TestServer(app) as server:
        yield str(server.make_url("/prefix"))


ANSWER = {"data": [{"index": 0, "label": "LABEL_0", "probs": [1.0], "num_classes": 1}]}


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_what_a_proxy_says_is_retried(status: int) -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(await request.json())
        if len(asked) > 1:
            return web.json_response(ANSWER)
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=0.9), usegmt=True)  # a date: whole seconds
        return web.Response(status=status, text="<html>sorry</html>", headers={"Retry-After": soon})

    async with answering(handler) as address, AsyncClient(address) as client:
        assert await client.classify("a") == [Classification("LABEL_0", [1.0], ["LABEL_0"])]
    assert asked == [{"input": ["a"]}] * 2


async def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=503, text="maintenance", headers={"Retry-After": "3600"})

    async with answering(handler) as address, AsyncClient(address) as client:
        with pytest.raises(ServerError, match="503: maintenance"):
            await client.classify("a")


async def test_a_connection_that_breaks_is_retried() -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(1)
        if len(asked) < 3:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(ANSWER)

    async with answering(handler) as address, AsyncClient(address) as client:
        assert len(await client.classify("a")) == 1
    assert len(asked) == 3


async def test_a_server_that_does_not_answer() -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(10)
        return web.Response()

    async with answering(handler) as address, AsyncClient(address, timeout=0.2) as client:
        with pytest.raises(TimeoutError, match=r"no answer from \S+ within 0.2 s"):
            await client.classify("a")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with AsyncClient(f"http://127.0.0.1:{port}", max_retries=1) as client:
        with pytest.raises(ConnectionError, match=f"no answer from http://127.0.0.1:{port}"):
            await client.classify("a")


async def test_calls_that_wait_for_their_turn_do_not_time_out() -> None:
    under_way, most = 0, 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.25)
        under_way -= 1
        return web.json_response(ANSWER)

    async with answering(handler) as address, AsyncClient(address, timeout=3.0, concurrency=2) as client:
        results = await asyncio.gather(*(client.classify("a") for _ in range(30)))
    assert len(results) == 30
    assert most == 2


async def test_keys(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(llm, api_keys=("s3cret",)) as server:
        async with AsyncClient(base(server)) as client:
            with pytest.raises(ServerError, match="401: Unauthorized"):
                await client.classify("a")
        async with AsyncClient(base(server), api_key="s3cret") as client:
            assert len(await client.classify("a")) == 1
        monkeypatch.setenv("JAXPOOL_API_KEY", "s3cret")
        async with AsyncClient(base(server)) as client:
            assert len(await client.classify("a")) == 1


@contextmanager
def elsewhere(llm: LLM) -> Iterator[str]:
    """A server in another thread, so that this one may block."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    started: list[str] = []
    up = threading.Event()

    async def serve() -> None:
        async with serving(llm) as server:
            started.append(base(server))
            up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert up.wait(10)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def test_the_blocking_client_inside_a_running_loop(llm: LLM) -> None:
    """As in a notebook."""
    with elsewhere(llm) as address, Client(address, max_inputs=3) as client:
        client.wait_until_ready()
        np.testing.assert_allclose(probs(client.classify(TEXTS * 5)), offline(llm, TEXTS * 5), atol=1e-5)
        assert client.post("/tokenize", {"prompt": "a"})["count"] == 3
        with pytest.raises(ServerError, match="404"):
            client.classify("a", model="x")


def test_threads_share_a_blocking_client(llm: LLM) -> None:
    found: dict[int, np.ndarray] = {}
    with elsewhere(llm) as address, Client(address) as client:
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: probs(client.classify(TEXTS[n]))})) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    np.testing.assert_allclose(np.concatenate([found[n] for n in range(4)]), offline(llm, TEXTS), atol=1e-5)


def test_a_blocking_client_leaves_nothing_behind(llm: LLM) -> None:
    with elsewhere(llm) as address:
        before = threading.active_count()
        client = Client(address)
        client.classify("a")
        assert threading.active_count() == before + 1
        client.close()
        client.close()
        assert threading.active_count() == before
        with pytest.raises(ConnectionError, match="the client is closed"):
            client.classify("a")
        forgotten = Client(address)
        forgotten.classify("a")
        del forgotten
        gc.collect()
        assert threading.active_count() == before


def test_ctrl_c_ends_a_blocking_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(address) as client:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                client.classify("a")
        assert time.monotonic() - started < PATIENCE  # nobody answers there, for minutes


@pytest.mark.parametrize("wrong", [{"max_inputs": 0}, {"concurrency": 0}, {"max_retries": -1}])
def test_settings_that_cannot_work(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Client(**wrong)


def test_a_client_needs_no_jax() -> None:
    code = "import sys; from jaxpool import Client, AsyncClient; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "aiohttp" in loaded
    assert not {"jax", "transformers", "numpy"} & set(loaded)


async def test_a_server_that_is_killed_and_started_again_loses_nothing(llm: LLM) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).parent / "jaxpool"), "serve", "--port", port, "--access-log", "off"]
    command += ["--model", str(MODELS / "gpt2-cls"), *SMALL]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    process = start()
    try:
        async with AsyncClient(f"http://127.0.0.1:{port}", max_inputs=50, max_retries=20) as client:
            await client.wait_until_ready(PATIENCE)
            texts = [f"It was number {n}." for n in range(50)]
            expected = await client.classify(texts)
            work = asyncio.create_task(client.classify(texts * 40))
            await asyncio.sleep(0.2)
            assert not work.done()
            process.kill()
            process.wait()
            await asyncio.sleep(0.5)
            process = start()
            results = await work
        np.testing.assert_allclose(probs(results), np.tile(probs(expected), (40, 1)), atol=1e-5)
    finally:
        process.kill()
        process.wait()
