"""What does not end by itself is ended: templates, tokenizers, starts that fail, and the process when it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient
from patience import PATIENCE, until

from jaxpool import LLM
from jaxpool_serving.chat_rendering import PROCESSES
from jaxpool_serving.state import RENDERERS
from jaxpool_serving.tokenization import TokenizerThreads

from .conftest import MODELS, serving
from .test_lifecycle import SMALL, heard, queued, server

TALK = [{"role": "user", "content": "Well?"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
QWEN = MODELS / "qwen2-cls"


async def post(client: TestClient, path: str = "/classify", **body: Any) -> tuple[int, str]:
    response = await client.post(path, json={"messages": TALK, **body})
    answer = await response.json()
    return response.status, answer["error"]["message"] if response.status != 200 else ""


async def test_a_template_that_does_not_end_is_504_and_stops_nobody(llm: LLM) -> None:
    async with serving(llm, trust_request_chat_template=True, template_timeout=2.0) as client:
        endless = [asyncio.create_task(post(client, chat_template=ENDLESS)) for _ in range(2 * PROCESSES)]
        meanwhile = 0
        for _ in range(20):  # texts long enough for the tokenizer's threads among them
            async with client.post("/classify", json={"input": ["a", "b " * 1200], "truncate_prompt_tokens": 8}) as one:
                assert one.status == 200
            meanwhile += not all(task.done() for task in endless)
        assert meanwhile
        assert await asyncio.gather(*endless) == [(504, "The chat template was not done within 2 s.")] * 2 * PROCESSES
        assert await post(client, chat_template="{{ 'a' }}") == (200, "")
        renderers = client.server.app[RENDERERS]  # type: ignore[union-attr]
        assert renderers.started == 2 * PROCESSES + 1
        assert await post(client, "/tokenize", chat_template=ENDLESS) == (
            504,
            "The chat template was not done within 2 s.",
        )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{{ 'abcdefghij' }}{% endfor %}", "more than 500000 characters"),
        ("{{ 'a' * 600000 }}", "more than 500000 characters"),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{{ ('%' ~ 10 ** 10 ~ 'd') % 1 }}", ""),
    ],
)
async def test_a_template_that_writes_too_much_is_refused(template: str, said: str, llm: LLM) -> None:
    async with serving(llm, trust_request_chat_template=True) as client:
        for _ in range(2):
            status, message = await post(client, chat_template=template)
            assert status == 400
            assert said in message
        assert client.server.app[RENDERERS].started == 1  # type: ignore[union-attr]


async def test_a_deadline_counts_from_the_arrival_of_the_request(llm: LLM) -> None:
    said = "The answer was not ready within 0.3 s."
    async with serving(llm, trust_request_chat_template=True, template_timeout=10 * PATIENCE) as client:
        assert await post(client, chat_template=ENDLESS, timeout=0.3) == (504, said)
        response = await client.post(
            "/tokenize", json={"messages": TALK, "chat_template": ENDLESS}, headers={"X-Request-Timeout": "0.3"}
        )
        assert response.status == 504
        assert await post(client, chat_template="{{ 'a' }}") == (200, "")

        async def slow() -> Any:
            yield json.dumps({"input": "a", "timeout": 0.3})[:-1].encode()
            await asyncio.sleep(0.5)
            yield b"}"

        async with client.post("/classify", data=slow(), headers={"Content-Type": "application/json"}) as late:
            assert late.status == 504


async def test_the_process_of_a_client_that_left_is_freed(llm: LLM) -> None:
    async with serving(llm, trust_request_chat_template=True, template_timeout=10 * PATIENCE) as client:
        for _ in range(2 * PROCESSES):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await post(client, chat_template=ENDLESS)
        async with asyncio.timeout(PATIENCE):
            assert await post(client, chat_template="{{ 'a' }}") == (200, "")


async def test_a_process_that_was_killed_is_replaced(llm: LLM) -> None:
    async with serving(llm, chat_template="{{ 'a' }}") as client:
        assert await post(client) == (200, "")
        renderers = client.server.app[RENDERERS]  # type: ignore[union-attr]
        os.kill(renderers._idle[0]._process.pid, signal.SIGKILL)
        assert await post(client) == (200, "")
        assert renderers.started == 2


async def test_a_tokenizer_that_hangs_is_504_and_its_thread_is_replaced() -> None:
    threads, release = TokenizerThreads(1, 1.0), threading.Event()
    try:
        for _ in range(3):
            with pytest.raises(Exception, match="The tokenizer was not done within") as raised:
                await threads.run(release.wait, PATIENCE)
            assert raised.value.status == 504
        async with asyncio.timeout(PATIENCE):
            assert await threads.run(len, "abc") == 3
            waiting = asyncio.create_task(threads.run(release.wait, PATIENCE))
            await asyncio.sleep(0.05)
            waiting.cancel()
            assert await threads.run(len, "abcd") == 4
    finally:
        release.set()
        threads.shutdown(wait=True)


def modules(process_id: int) -> str:
    return Path(f"/proc/{process_id}/maps").read_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
async def test_conversations_need_no_transformers_and_sigterm_ends_endless_ones(tmp_path: Path) -> None:
    """The real command: its first conversation, then a template of the model's own that loops where it is asked to."""
    folder = Path(shutil.copytree(QWEN, tmp_path / "model"))
    template = folder / "chat_template.jinja"
    template.write_text("{% if messages[0].content == 'loop' %}" + ENDLESS + "{% endif %}" + template.read_text())
    start = ("--model", str(folder), *SMALL, "--template-timeout", "6000")
    cache = str(tmp_path / "cache")
    for turn, signals in enumerate((0, 1, 2)):
        options = ("--shutdown-timeout", "1" if turn == 1 else "6000")
        with server(*start, *options, JAXPOOL_CACHE_DIR=cache) as (process, address):
            async with aiohttp.ClientSession(address) as session:
                await queued(session)
                short = {"messages": [{"role": "user", "content": "a"}]}
                async with session.post("/classify", json=short | {"truncate_prompt_tokens": -1}) as response:
                    assert response.status == 200, await response.text()
                # The first start remembers what transformers says (which brings regex), the next ones need none of it.
                assert ("/regex/" in modules(process.pid)) == (not signals)
                if not signals:
                    continue
                loops = {"messages": [{"role": "user", "content": "loop"}]}
                requests = [asyncio.create_task(_status(session, loops)) for _ in range(2 * PROCESSES)]
                await until(lambda: len(renderers(process.pid)) == PROCESSES)
                await asyncio.sleep(1.0)
                assert not any(request.done() for request in requests)
                rendering = renderers(process.pid)
                assert len(rendering) == PROCESSES
                process.send_signal(signal.SIGTERM)
                if signals == 2:
                    await asyncio.to_thread(heard, process, "stopping")
                    process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, PATIENCE) == (0 if signals == 1 else 128 + signal.SIGTERM)
                await asyncio.gather(*requests, return_exceptions=True)
                async with asyncio.timeout(PATIENCE):  # nothing goes on rendering for a server that is gone
                    while any(map(is_renderer, rendering)):
                        await asyncio.sleep(0.1)


def is_renderer(pid: int) -> bool:
    try:
        return b"jaxpool_serving.render_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def renderers(server: int) -> list[int]:
    """Process ids of the renderers of a server."""
    children = Path(f"/proc/{server}/task").glob("*/children")
    return [int(pid) for listed in children for pid in listed.read_text().split() if is_renderer(int(pid))]


async def _status(session: aiohttp.ClientSession, body: dict[str, Any]) -> int:
    async with session.post("/classify", json=body) as response:
        return response.status


def _without_a_tensor(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["transformer.ln_f.other"] = header.pop("transformer.ln_f.weight")
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + content[8 + size :])


def _with_many_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 10_000_000}))


def _broken(tmp_path: Path, how: Callable[[Path], None]) -> str:
    folder = Path(shutil.copytree(MODELS / "gpt2-cls", tmp_path / "model"))
    how(folder)
    return str(folder)


def test_a_checkpoint_that_does_not_load_ends_the_process(tmp_path: Path) -> None:
    """Its 80 programs are queued by then; those that nobody has begun are not compiled any more."""
    environment = {"JAXPOOL_CACHE_DIR": str(tmp_path / "cache")}
    with server("--model", _broken(tmp_path, _without_a_tensor), **environment) as (process, _):
        assert process.stderr is not None
        said = process.stderr.readline()
        assert process.wait(PATIENCE) == 1
        assert "transformer.ln_f.other" in said + process.stderr.read()
    assert len(list((tmp_path / "cache" / "xla").glob("*-cache"))) < 60


@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_sigterm_ends_a_start_that_would_take_for_ever(seconds: float, tmp_path: Path) -> None:
    with server("--model", _broken(tmp_path, _with_many_layers)) as (process, _):
        time.sleep(seconds)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
