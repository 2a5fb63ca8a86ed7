"""The queue in front of the engine: fair, by priority, in time; one bad row hurts nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientConnectionError
from aiohttp.test_utils import TestClient
from patience import PATIENCE, until

from jaxpool import LLM
from jaxpool.engine.buckets import essential
from jaxpool.engine.engine import Row
from jaxpool.engine.packing import fits, plan
from jaxpool.errors import EngineError
from jaxpool_serving.batching.batch_selection import BatchSelection
from jaxpool_serving.batching.batcher import Batcher

from .conftest import TamperedEngine, serving
from .test_classify import offline, post, probs


def row(*ids: int) -> Row:
    return Row(ids)


def batching(engine: TamperedEngine, **options: Any) -> Batcher:
    return Batcher(engine, max_texts=10_000, max_tokens=10**6, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def occupied(client: TestClient, engine: TamperedEngine) -> AsyncIterator[None]:
    """Both device slots are taken inside, each by one text; what comes in waits."""
    with engine.holding():
        first = []
        for n in range(2):
            before = len(engine.batches)
            first.append(asyncio.ensure_future(post(client, {"input": [n + 1], "timeout": PATIENCE})))
            await until(lambda before=before: len(engine.batches) > before)
        yield
    assert [status for status, _ in await asyncio.gather(*first)] == [200, 200]


async def has_queued(client: TestClient, texts: int) -> None:
    """Returns when the server has admitted so many texts and answered none of them."""
    async with asyncio.timeout(PATIENCE):
        while (await (await client.get("/ready")).json())["queued_texts"] != texts:
            await asyncio.sleep(0.005)


@pytest.fixture
def engine(tampered: LLM) -> TamperedEngine:
    return tampered.engine  # type: ignore[return-value]


def test_batches_are_nearly_as_good_as_planned_ones(engine: TamperedEngine) -> None:
    selection = BatchSelection(engine.buckets, engine.cost)
    rng = np.random.default_rng(0)
    waiting = np.clip(rng.lognormal(np.log(12), 0.8, 256), 1, 48).astype(np.int64)
    planned = sum(engine.cost.seconds(b.bucket) for b in plan(waiting, engine.buckets, engine.cost, engine.buckets))
    spent = 0.0
    while waiting.size:
        rows, bucket, places = selection.best(waiting)
        assert 0 in rows
        assert len(rows) == len(set(rows.tolist()))
        assert fits(waiting[rows].tolist(), bucket, places)
        spent += engine.cost.seconds(bucket)
        waiting = np.delete(waiting, rows)
    assert spent < 1.15 * planned


async def test_one_poisoned_row_fails_alone(llm: LLM, tampered: LLM, engine: TamperedEngine) -> None:
    prompts = [[5 + n, 6, 7] for n in range(20)]
    async with serving(tampered) as client:
        async with occupied(client, engine):  # so that the neighbours share its batch
            bad = asyncio.ensure_future(post(client, {"input": [TamperedEngine.poison, 6, 7]}))
            good = [asyncio.ensure_future(post(client, {"input": ids})) for ids in prompts]
            await has_queued(client, 23)
        status, answer = await bad
        assert (status, answer["error"]["type"]) == (500, "InternalServerError")
        answers = await asyncio.gather(*good)
    assert any(len(batch) > 1 and TamperedEngine.poison in row.ids for batch in engine.batches for row in batch)
    assert {status for status, _ in answers} == {200}
    np.testing.assert_allclose(np.concatenate([probs(a) for _, a in answers]), offline(llm, prompts), atol=1e-5)


async def test_a_poisoned_row_fails_its_whole_request(engine: TamperedEngine) -> None:
    batcher = batching(engine)
    with pytest.raises(EngineError):
        await batcher.classify([row(5), row(TamperedEngine.poison), row(6)])
    assert (await batcher.classify([row(5)])).values.shape == (1, 3)
    await batcher.close()


async def test_rows_of_a_client_that_left_are_never_computed(tampered: LLM, engine: TamperedEngine) -> None:
    async with serving(tampered) as client:
        async with occupied(client, engine):
            leaving = asyncio.ensure_future(post(client, {"input": [[77, 78], [77, 79]]}))
            await has_queued(client, 4)
            leaving.cancel()
            with pytest.raises((asyncio.CancelledError, ClientConnectionError)):
                await leaving
            await has_queued(client, 2)
        assert (await post(client, {"input": [5]}))[0] == 200
    assert not any(77 in row.ids for batch in engine.batches for row in batch)


async def test_texts_that_arrive_together_share_a_batch(engine: TamperedEngine) -> None:
    batcher = batching(engine)
    await asyncio.gather(*(batcher.classify([row(5, 6 + n)]) for n in range(8)))
    assert [len(batch) for batch in engine.batches] == [8]
    await batcher.close()


async def test_a_wait_gathers_company_until_a_batch_is_full(engine: TamperedEngine) -> None:
    batcher = batching(engine, max_wait=1.0)
    started = time.monotonic()
    early = asyncio.ensure_future(batcher.classify([row(5)]))
    await asyncio.sleep(0)
    await asyncio.gather(early, batcher.classify([row(6)]))
    assert [len(batch) for batch in engine.batches] == [2]
    assert time.monotonic() - started >= 1.0
    await batcher.close()
    patient = batching(engine, max_wait=10 * PATIENCE)
    async with asyncio.timeout(PATIENCE):  # a full batch waits for nobody
        await patient.classify([row(5)] * max(bucket.rows for bucket in engine.buckets))
    await patient.close()


async def test_programs_that_come_later_are_used_from_then_on(
    engine: TamperedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = list(essential(engine.buckets))
    monkeypatch.setattr(TamperedEngine, "usable", property(lambda _: tuple(usable)))
    batcher, rows = batching(engine), [row(*[5] * 17)] * 4
    await batcher.classify(rows)
    best = BatchSelection(engine.buckets, engine.cost).smallest([17] * 4)
    assert best not in engine.used
    usable[:] = engine.buckets
    await batcher.classify(rows)
    assert engine.used[-1] == best
    await batcher.close()


async def test_single_texts_overtake_a_list_of_3000(tampered: LLM, engine: TamperedEngine) -> None:
    singles = [[60] * length for length in (3, 20, 45)]  # of different buckets: they share no batch
    async with serving(tampered, max_inputs=3000) as client:
        with engine.holding():
            many = asyncio.ensure_future(post(client, {"input": [[5 + n % 40] * (1 + n % 48) for n in range(3000)]}))
            await until(lambda: len(engine.batches) == 2)  # both slots
            few = [asyncio.ensure_future(post(client, {"input": ids})) for ids in singles]
            await has_queued(client, 3003)
        assert [status for status, _ in await asyncio.gather(*few)] == [200, 200, 200]
        assert not many.done()
        status, answer = await many
    assert (status, len(answer["data"])) == (200, 3000)
    places = [n for n, batch in enumerate(engine.batches[2:]) for row in batch if row.ids[0] == 60]
    assert max(places) <= len(singles)  # one batch of the list goes before, and each other's


async def test_a_request_says_its_priority(tampered: LLM, engine: TamperedEngine) -> None:
    async with serving(tampered) as client:
        async with occupied(client, engine):
            texts = [(priority, [30 + priority] * 48) for priority in (2, 1, 0, -1) for _ in range(16)]
            sent = [asyncio.ensure_future(post(client, {"input": ids, "priority": p})) for p, ids in texts]
            await has_queued(client, 2 + len(texts))
        assert {status for status, _ in await asyncio.gather(*sent)} == {200}
    computed = [row.ids[0] - 30 for batch in engine.batches[2:] for row in batch]
    assert computed == sorted(computed)


@pytest.mark.parametrize(
    ("options", "body", "headers"),
    [
        ({}, {"timeout": 0.2}, {}),
        ({}, {"timeout": PATIENCE}, {"X-Request-Timeout": "0.2"}),
        ({"request_timeout": 0.2}, {}, {}),
    ],
    ids=["field", "header", "server"],
)
async def test_a_deadline_is_answered_when_it_passes_and_costs_no_device_time(
    tampered: LLM, engine: TamperedEngine, options: dict[str, float], body: dict[str, float], headers: dict[str, str]
) -> None:
    async with serving(tampered, **options) as client:
        async with occupied(client, engine):
            started = time.monotonic()
            status, answer = await post(client, {"input": [77], **body}, **headers)
            assert time.monotonic() - started >= 0.2  # and the device is held: nothing else can have answered
            assert (status, answer["error"]["type"]) == (504, "GatewayTimeoutError")
            assert "within 0.2 s" in answer["error"]["message"]
        assert (await post(client, {"input": [5], **body}, **{"X-Request-Timeout": str(PATIENCE)}))[0] == 200
    assert not any(77 in row.ids for batch in engine.batches for row in batch)


@pytest.mark.parametrize("word", ["0", "-1", "soon", "inf", "nan"])
async def test_a_deadline_is_a_positive_number(llm: LLM, word: str) -> None:
    async with serving(llm) as client:
        status, answer = await post(client, {"input": "a"}, **{"X-Request-Timeout": word})
        assert status == 400
        assert "X-Request-Timeout" in answer["error"]["message"]
        assert (await post(client, {"input": "a", "timeout": 0}))[0] == 400
