"""What is refused before it costs anything, and what a refused client is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient

from jaxpool import LLM
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.engine import Row
from jaxpool_serving.batching.admission import Admission, QueueFullError
from jaxpool_serving.batching.batcher import Batcher
from jaxpool_serving.tokenization import PIECE, _pieces

from .conftest import TamperedEngine, serving
from .test_batcher import has_queued, occupied
from .test_classify import post
from .test_retry_after import simulated


@pytest.fixture
def engine(tampered: LLM) -> TamperedEngine:
    return tampered.engine  # type: ignore[return-value]


async def refused_when_full(client: TestClient, body: dict[str, Any]) -> None:
    response = await client.post("/classify", json=body)
    answer = await response.json()
    assert (response.status, answer["error"]["type"]) == (429, "TooManyRequestsError")
    assert f"try again in {response.headers['Retry-After']} s" in answer["error"]["message"]
    assert 1 <= int(response.headers["Retry-After"]) <= 600


@pytest.mark.parametrize(
    ("limit", "body"),
    [({"max_queued_texts": 3}, {"input": "one too many"}), ({"max_queued_tokens": 12}, {"input": [5] * 3})],
    ids=["texts", "tokens"],
)
async def test_a_full_queue_answers_429_and_recovers(
    tampered: LLM, engine: TamperedEngine, limit: dict[str, int], body: dict[str, Any]
) -> None:
    async with serving(tampered, **limit) as client:
        async with occupied(client, engine):  # a token each
            third = asyncio.ensure_future(post(client, {"input": [5] * 8}))
            await has_queued(client, 3)
            await refused_when_full(client, body)
        assert (await third)[0] == 200
        assert (await post(client, body))[0] == 200
        assert (await post(client, {"input": [5] * 12}))[0] == 200  # as much as the queue holds


async def test_room_is_given_back_whatever_happens() -> None:
    admission = Admission(2, 100, lambda: 0.0)
    with admission.room(2, 10), pytest.raises(QueueFullError), admission.room(1, 1):
        pass
    with admission.room(1, 10) as room:
        room.holds(99, 1)
        with pytest.raises(QueueFullError), admission.room(1, 2):
            pass
        with admission.room(1, 1) as other, pytest.raises(QueueFullError):
            other.holds(2, 1)
    with pytest.raises(RuntimeError, match="boom"), admission.room(2, 10):
        raise RuntimeError("boom")
    assert (admission.texts, admission.tokens) == (0, 0)


class Metronome:
    """An engine that answers every batch after a time, one at a time; right in shape only."""

    seconds = 0.02

    def __init__(self, engine: TamperedEngine) -> None:
        self.spec, self.cost = engine.spec, engine.cost
        self.buckets = self.usable = engine.buckets
        self.prefixes = None
        self._free_at = 0.0

    def submit(self, rows: Sequence[Row], bucket: Bucket, places: np.ndarray | None = None) -> Future[np.ndarray]:
        answer: Future[np.ndarray] = Future()
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + self.seconds
        loop.call_at(self._free_at, answer.set_result, np.zeros((len(rows), self.spec.num_labels), np.float32))
        return answer


def test_retry_after_is_the_time_the_queue_takes(engine: TamperedEngine) -> None:
    async def work(clock: Callable[[], float]) -> None:
        batcher = Batcher(Metronome(engine), max_texts=500, max_tokens=10**6, clock=clock)  # type: ignore[arg-type]
        await batcher.classify([Row([5] * 48)] * 40)  # measured
        clients = [asyncio.ensure_future(admitted(batcher)) for _ in range(500)]
        started = clock()
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError) as full, batcher.admission.room(1, 48):
            pass
        await asyncio.gather(*clients)
        assert full.value.retry_after - 1.2 < clock() - started < full.value.retry_after + 0.2
        assert full.value.retry_after > 1
        await batcher.close()

    simulated(work)


async def admitted(batcher: Batcher) -> None:
    with batcher.admission.room(1, 48):
        await batcher.classify([Row([5] * 48)])


LIMITED = {"max_inputs": 8, "max_text_chars": 1000, "max_tokens_per_request": 60, "max_body_bytes": 20_000}
TOO_MUCH: list[tuple[dict[str, Any], int, str]] = [
    ({"input": ["a"] * 10_000}, 413, "larger than 20000 bytes"),
    ({"input": ["a"] * 9}, 400, "9 prompts and the server takes at most 8"),
    ({"input": "a " * 501, "truncate_prompt_tokens": 5}, 400, "1002 characters (or token ids) and the server takes"),
    ({"input": ["a", "a " * 501], "truncate_prompt_tokens": 5}, 400, "Prompt 1 has 1002 characters"),
    ({"input": [5] * 1001, "truncate_prompt_tokens": 5}, 400, "Prompt 0 has 1001 characters (or token ids)"),
    ({"input": [[5] * 40] * 2}, 400, "80 tokens and the server takes at most 60"),
    ({"input": ["a b c d e f g h"] * 8}, 400, "80 tokens and the server takes at most 60"),
]


async def test_every_limit_has_its_own_words(tampered: LLM, engine: TamperedEngine) -> None:
    async with serving(tampered, **LIMITED) as client:
        for body, expected, words in TOO_MUCH:
            status, answer = await post(client, body)
            assert (status, answer["error"]["code"]) == (expected, expected), answer
            assert words in answer["error"]["message"]
        assert not engine.batches
        assert (await post(client, {"input": "a " * 500, "truncate_prompt_tokens": 5}))[0] == 200


async def test_10_000_texts_are_refused_before_they_are_tokenised(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenised: list[Any] = []
    monkeypatch.setattr(llm.tokenizer, "encode", lambda prompts, *_: tokenised.append(prompts))
    async with serving(llm) as client:
        status, answer = await post(client, {"input": ["It was great."] * 10_000})
        assert status == 400
        assert not tokenised
        assert "10000 prompts and the server takes at most 1024" in answer["error"]["message"]


async def test_texts_as_long_as_books_do_not_delay_short_ones(llm: LLM) -> None:
    # both tokenizer threads are busy with them for a good part of a second
    long = {"input": ["word " * 60_000] * 3, "truncate_prompt_tokens": 5}
    async with serving(llm) as client:
        slow = [asyncio.ensure_future(post(client, long)) for _ in range(4)]
        await has_queued(client, 12)
        for _ in range(3):
            assert (await post(client, {"input": "short"}))[0] == 200
        assert not all(request.done() for request in slow)
        assert {status for status, _ in await asyncio.gather(*slow)} == {200}


@pytest.mark.parametrize("sizes", [[1] * 10, [PIECE + 1] * 3, [1, PIECE, 1, PIECE // 2, PIECE // 2, 1], [5]])
def test_lists_are_cut_into_pieces_that_lose_nothing(sizes: list[int]) -> None:
    pieces = list(_pieces(sizes))
    assert [index for start, stop in pieces for index in range(start, stop)] == list(range(len(sizes)))
    assert all(sum(sizes[start:stop]) <= PIECE or stop - start == 1 for start, stop in pieces)
