"""The queue in front of the engine: bounded, fair, and one bad row hurts nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from aiohttp import ClientConnectionError

from jaxpool import LLM
from jaxpool.buckets import plan
from jaxpool.engine import Row
from jaxpool.errors import EngineError
from jaxpool_serving.batcher import Batcher
from jaxpool_serving.choice import Choice

from .conftest import TamperedEngine, serving
from .test_classify import offline, post, probs


def row(*ids: int) -> Row:
    return Row(ids)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def engine(tampered: LLM) -> TamperedEngine:
    return tampered.engine  # type: ignore[return-value]


def test_batches_are_nearly_as_good_as_planned_ones(engine: TamperedEngine) -> None:
    choice = Choice(engine.buckets, engine.cost)
    rng = np.random.default_rng(0)
    waiting = np.clip(rng.lognormal(np.log(12), 0.8, 256), 1, 48).astype(np.int64)
    planned = sum(engine.cost.seconds(b.bucket) for b in plan(waiting, engine.buckets, engine.cost, engine.buckets))
    spent = 0.0
    while waiting.size:
        rows, bucket = choice.best(waiting)
        assert 0 in rows
        assert len(rows) == len(set(rows.tolist())) <= bucket.rows
        assert waiting[rows].max() <= bucket.length
        spent += engine.cost.seconds(bucket)
        waiting = np.delete(waiting, rows)
    assert spent < 1.15 * planned


async def test_one_poisoned_row_fails_alone(llm: LLM, tampered: LLM, engine: TamperedEngine) -> None:
    prompts = [[5 + n, 6, 7] for n in range(20)]
    engine.hold = True  # so that the neighbours share its batch
    async with serving(tampered) as client:
        first = [asyncio.ensure_future(post(client, {"input": [n + 1]})) for n in range(2)]
        await until(lambda: len(engine.batches) == 2)  # both slots taken
        bad = asyncio.ensure_future(post(client, {"input": [TamperedEngine.poison, 6, 7]}))
        good = [asyncio.ensure_future(post(client, {"input": ids})) for ids in prompts]
        await asyncio.sleep(0.2)
        engine.release()
        status, answer = await bad
        assert (status, answer["error"]["type"]) == (500, "InternalServerError")
        assert [status for status, _ in await asyncio.gather(*first)] == [200, 200]
        answers = await asyncio.gather(*good)
    assert any(len(batch) > 1 and TamperedEngine.poison in row.ids for batch in engine.batches for row in batch)
    assert {status for status, _ in answers} == {200}
    np.testing.assert_allclose(np.concatenate([probs(a) for _, a in answers]), offline(llm, prompts), atol=1e-5)


async def test_a_poisoned_row_fails_its_whole_request(engine: TamperedEngine) -> None:
    batcher = Batcher(engine, max_texts=100, max_tokens=10**6)  # type: ignore[arg-type]
    with pytest.raises(EngineError):
        await batcher.classify([row(5), row(TamperedEngine.poison), row(6)])
    assert (await batcher.classify([row(5)])).values.shape == (1, 3)
    await batcher.close()


async def test_rows_of_a_client_that_left_are_never_computed(tampered: LLM, engine: TamperedEngine) -> None:
    engine.hold = True
    async with serving(tampered) as client:
        first = [asyncio.ensure_future(post(client, {"input": [n + 1]})) for n in range(2)]
        await until(lambda: len(engine.batches) == 2)  # both slots taken
        leaving = asyncio.ensure_future(post(client, {"input": [[77, 78], [77, 79]]}))
        await asyncio.sleep(0.2)
        leaving.cancel()
        with pytest.raises((asyncio.CancelledError, ClientConnectionError)):
            await leaving
        await asyncio.sleep(0.2)
        engine.release()
        assert [status for status, _ in await asyncio.gather(*first)] == [200, 200]
        assert (await post(client, {"input": [5]}))[0] == 200
    assert not any(77 in row.ids for batch in engine.batches for row in batch)


async def test_a_single_text_overtakes_a_long_list(engine: TamperedEngine) -> None:
    batcher = Batcher(engine, max_texts=10_000, max_tokens=10**6, slots=1)  # type: ignore[arg-type]
    long = asyncio.gather(batcher.classify([row(*range(5, 45)) for _ in range(500)]))
    await until(lambda: len(engine.batches) >= 2)
    before = len(engine.batches)
    await batcher.classify([row(5, 6)])
    assert len(engine.batches) - before <= 3
    assert not long.done()
    assert (await long)[0].values.shape == (500, 3)
    await batcher.close()
