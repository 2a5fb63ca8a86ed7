"""From listening to warm to gone: nothing accepted is lost."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from patience import PATIENCE

from jaxpool import LLM
from jaxpool.errors import CheckpointError

from .conftest import MODELS, serving
from .test_classify import post


async def test_503_until_the_model_is_warm(tampered: LLM) -> None:
    warm = threading.Event()

    def open_llm() -> LLM:
        warm.wait(PATIENCE)
        return tampered

    async with serving(open_llm, ready=False) as client:
        assert (await client.get("/health")).status == 200
        for response in (await client.get("/ready"), await client.post("/classify", json={"input": "a"})):
            assert response.status == 503
            assert response.headers["Retry-After"]
            assert (await response.json())["error"]["type"] == "ServiceUnavailableError"
        warm.set()
        async with asyncio.timeout(PATIENCE):
            while (await client.get("/ready")).status != 200:
                await asyncio.sleep(0.01)
        assert (await post(client, {"input": "a"}))[0] == 200


async def test_a_model_that_cannot_be_opened_never_gets_ready() -> None:
    def open_llm() -> LLM:
        raise CheckpointError("no such checkpoint")

    async with serving(open_llm, ready=False) as client:
        await asyncio.sleep(0.1)
        assert (await client.get("/ready")).status == 503


@contextmanager
def server(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real command in its own process; yields it with its address."""
    command = [str(Path(sys.executable).parent / "jaxpool"), "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        address = next(found[0] for line in lines if (found := re.search(r"http://[\d.:]+", line)))
        yield process, address
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def heard(process: subprocess.Popen[str], word: str) -> None:
    """Returns once the process has said ``word`` on standard error."""
    assert process.stderr is not None
    assert any(word in line for line in iter(process.stderr.readline, ""))


async def queued(session: aiohttp.ClientSession) -> int:
    """Texts that the server has admitted and not answered; waits for it to be warm."""
    async with asyncio.timeout(PATIENCE):
        while True:
            async with session.get("/ready") as response:
                if response.status == 200:
                    return int((await response.json())["queued_texts"])
            await asyncio.sleep(0.02)


def refused(*arguments: str, **environment: str) -> str:
    """What the real command says when it does not even start."""
    command = [str(Path(sys.executable).parent / "jaxpool"), "serve", *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


SMALL = ("--max-model-len", "16", "--max-num-batched-tokens", "64")  # two programs


async def test_sigterm_under_load_answers_everything_accepted_and_exits_0() -> None:
    requests, texts = 10, 300
    body = {"input": ["It was great."] * texts}
    with server("--model", str(MODELS / "gpt2-cls"), *SMALL) as (process, address):
        async with aiohttp.ClientSession(address) as session:
            await queued(session)

            async def one() -> tuple[int, int]:
                async with session.post("/classify", json=body) as response:
                    return response.status, len((await response.json())["data"])

            load = [asyncio.ensure_future(one()) for _ in range(requests)]
            unfinished = requests
            while await queued(session) < unfinished * texts:  # until all that is under way has been admitted
                unfinished = sum(not request.done() for request in load)
            assert not all(request.done() for request in load)
            process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*load, return_exceptions=True)
        assert answers == [(200, texts)] * requests
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
        with pytest.raises(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as session, session.get(f"{address}/health"):
                pass


async def overload(session: aiohttp.ClientSession) -> list[asyncio.Task[int]]:
    """Four requests under way, all admitted, that take seconds."""

    async def one() -> int:
        async with session.post("/classify", json={"input": ["It was great."] * 1000}) as response:
            return response.status

    load = [asyncio.create_task(one()) for _ in range(4)]
    while await queued(session) < 4000:
        assert not any(request.done() for request in load)
    return load


async def test_a_second_sigterm_exits_at_once() -> None:
    with server("--model", str(MODELS / "gpt2-cls"), *SMALL) as (process, address):
        async with aiohttp.ClientSession(address) as session:
            await queued(session)
            load = await overload(session)
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(heard, process, "stopping")
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, PATIENCE) == 128 + signal.SIGTERM
            await asyncio.gather(*load, return_exceptions=True)


async def test_after_sigkill_the_same_port_serves_again_without_compiling(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = ("--model", str(MODELS / "gpt2-cls"), "--port", str(port), *SMALL)
    compiled: list[set[str]] = []
    for last in (False, True):
        with server(*start, XDG_CACHE_HOME=str(tmp_path)) as (process, address):
            async with aiohttp.ClientSession(address) as session:
                await queued(session)
                compiled.append({path.name for path in (tmp_path / "jaxpool" / "xla").glob("*-cache")})
                async with session.post("/classify", json={"input": "It was great."}) as response:
                    assert response.status == 200
                if not last:
                    load = await overload(session)
                    process.kill()
                    answers = await asyncio.gather(*load, return_exceptions=True)
                    assert all(isinstance(answer, aiohttp.ClientError) for answer in answers)
    assert compiled[0]
    assert compiled[0] == compiled[1]


async def test_sigterm_while_loading_exits_0_at_once() -> None:
    with server("--model", str(MODELS / "gpt2-cls")) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0


def test_an_empty_api_key_does_not_open_the_server() -> None:
    assert "API key is empty" in refused("--port", "0", JAXPOOL_API_KEY="")


def test_a_port_in_use_is_one_sentence_and_costs_no_load() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused("--port", str(taken.getsockname()[1]), "--model", str(MODELS / "gpt2-cls"))
    assert "in use" in said
    assert "loading" not in said


def test_a_missing_model_is_one_sentence_and_a_failure() -> None:
    with server("--model", str(MODELS / "no-such-model")) as (process, _):
        assert process.wait(PATIENCE) != 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert "no-such-model" in said
    assert "Traceback" not in said
