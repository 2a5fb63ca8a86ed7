"""What Prometheus sees."""

from __future__ import annotations

import asyncio
import math

import pytest
from aiohttp import ClientConnectionError
from aiohttp.test_utils import TestClient
from patience import PATIENCE
from prometheus_client.parser import text_string_to_metric_families

from jaxpool import LLM

from .conftest import MODELS, serving
from .test_classify import post


async def scraped(client: TestClient) -> dict[tuple[str, ...], float]:
    """(name, label values sorted by label…) -> value."""
    response = await client.get("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    families = text_string_to_metric_families(await response.text())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_requests_tokens_and_times(llm: LLM) -> None:
    async with serving(llm, max_inputs=8) as client:
        _, answer = await post(client, {"input": ["Hello world", "a", "The movie was great, I loved it!"]})
        await post(client, {"input": ["a"] * 9})
        await post(client, {"input": "a", "model": "nope"})
        await client.get("/nope/1")
        seen = await scraped(client)
    tokens = answer["usage"]["prompt_tokens"]
    assert seen["jaxpool_requests_total", "bert", "/classify", "200"] == 1
    assert seen["jaxpool_requests_total", "", "/classify", "404"] == 1
    assert seen["jaxpool_requests_total", "", "unknown", "404"] == 1
    assert sum(value for key, value in seen.items() if key[0] == "jaxpool_requests_total" and key[-1] == "400") == 1
    assert seen["jaxpool_texts_total", "bert"] == seen["jaxpool_batch_texts_sum", "bert"] == 3
    assert seen["jaxpool_tokens_total", "bert"] == tokens
    shapes = {bucket.rows * bucket.length for bucket in llm.engine.buckets}
    batches = seen["jaxpool_batch_texts_count", "bert"]
    assert 1 <= batches <= 3
    if batches == 1:
        assert seen["jaxpool_padding_tokens_total", "bert"] + tokens in shapes
    parts = [seen[f"jaxpool_{part}_seconds_sum", "bert"] for part in ("tokenise", "queue", "device")]
    total = seen["jaxpool_request_seconds_sum", "bert"]
    assert seen["jaxpool_request_seconds_count", "bert"] == 1
    assert all(part > 0 for part in parts)
    assert 0.02 * total < sum(parts) <= total  # they are the request's time, but for JSON and what else runs here


async def until_queued(client: TestClient, texts: int) -> None:
    """Returns when so many texts are admitted and not answered."""
    async with asyncio.timeout(PATIENCE):
        while (await scraped(client))["jaxpool_queued_texts", "bert"] < texts:
            await asyncio.sleep(0.01)


async def test_the_queue_is_seen_while_it_waits(tampered: LLM) -> None:
    async with serving(tampered) as client:
        tampered.engine.hold = True
        work = [asyncio.create_task(post(client, {"input": ["hello world"] * 40})) for _ in range(10)]
        await until_queued(client, 400)
        held = await scraped(client)
        tampered.engine.release()
        assert {status for status, _ in await asyncio.gather(*work)} == {200}
        after = await scraped(client)
    assert held["jaxpool_queued_tokens", "bert"] > 0
    assert after["jaxpool_queued_texts", "bert"] == after["jaxpool_queued_tokens", "bert"] == 0


async def test_ready_and_compiles(llm: LLM) -> None:
    async with serving(lambda: LLM(str(MODELS / "bert-cls"), max_model_len=16)) as client:  # compiles on demand
        assert (await scraped(client))["jaxpool_model_ready", "bert"] == 1
        assert (await scraped(client))["jaxpool_compiles_after_ready", "bert"] == 0
        await post(client, {"input": "a"})
        assert (await scraped(client))["jaxpool_compiles_after_ready", "bert"] == 1  # a bug, were it warm

    loading = asyncio.Event()

    def never() -> LLM:
        asyncio.run(asyncio.wait_for(loading.wait(), 0.5))
        return llm

    async with serving(never, ready=False) as client:
        assert (await scraped(client))["jaxpool_model_ready", "bert"] == 0
        await asyncio.sleep(0)


async def test_two_servers_in_one_process_count_apart(llm: LLM) -> None:
    async with serving(llm) as one, serving(llm) as other:
        await post(one, {"input": "a"})
        assert (await scraped(one))["jaxpool_texts_total", "bert"] == 1
        assert (await scraped(other))["jaxpool_texts_total", "bert"] == 0


async def test_a_client_that_left_is_counted(tampered: LLM) -> None:
    async with serving(tampered) as client:
        tampered.engine.hold = True
        leaving = asyncio.create_task(post(client, {"input": "a"}))
        await until_queued(client, 1)
        leaving.cancel()
        with pytest.raises((asyncio.CancelledError, ClientConnectionError)):
            await leaving
        async with asyncio.timeout(PATIENCE):
            while ("jaxpool_requests_total", "bert", "/classify", "499") not in await scraped(client):
                await asyncio.sleep(0.01)
        tampered.engine.release()


async def test_openmetrics_for_those_who_accept_it(llm: LLM) -> None:
    async with serving(llm) as client:
        response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await response.text()).endswith("# EOF\n")
        assert not math.isnan((await scraped(client))["process_resident_memory_bytes",])
