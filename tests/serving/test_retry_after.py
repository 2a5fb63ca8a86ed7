"""What a refused client is told about the queue, on a clock that runs as fast as the test does."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxpool.engine.buckets import Bucket, CostModel, grid
from jaxpool.engine.engine import Row
from jaxpool.errors import EngineError
from jaxpool_serving.batching.admission import QueueFullError
from jaxpool_serving.batching.batcher import Batcher


class _NoWaiting(selectors.SelectSelector):
    """Instead of waiting for a time-out, the clock is put forward."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout:
            self.now += timeout
        return super().select(0 if timeout is not None else None)


def simulated(work: Callable[[Callable[[], float]], Awaitable[None]]) -> None:
    """Run ``work``, told the clock, in an event loop that never waits."""
    selector = _NoWaiting()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(work(loop.time))
    finally:
        loop.close()


class Device:
    """Computes one batch after the other, as slowly as it is told; a row with a 99 fails its batch."""

    def __init__(self, seconds: Callable[[Bucket], float], cost: CostModel) -> None:
        self.seconds, self.cost = seconds, cost
        self.buckets = self.usable = grid(128, 2048, per_octave=4, row_factor=4)
        self.spec = type("Spec", (), {"per_token": False})
        self.free_at, self.prefixes = 0.0, None
        self.computed: list[Row] = []

    def submit(self, rows: Sequence[Row], bucket: Bucket, places: None) -> Future[np.ndarray]:
        loop, answer = asyncio.get_running_loop(), Future[np.ndarray]()
        self.free_at = max(self.free_at, loop.time()) + self.seconds(bucket)
        self.computed += rows

        def land() -> None:
            if any(99 in row.ids for row in rows):
                answer.set_exception(EngineError("99"))
            else:
                answer.set_result(np.array([[sum(row.ids)] for row in rows], np.float32))

        loop.call_at(self.free_at, land)
        return answer


COST = CostModel(2e7, 1e3, 1e12, 0.002, 1.0)
SLOWNESS = {
    "as predicted": COST.seconds,
    "five times slower": lambda bucket: 5 * COST.seconds(bucket),
    "a call costs more": lambda bucket: 0.01 + COST.seconds(bucket),
}


BURST = 3000


async def request(batcher: Batcher, length: int, texts: int = 1) -> None:
    with batcher.admission.room(texts, texts * length):
        await batcher.classify([Row([1] * length)] * texts)


@pytest.mark.parametrize("device", list(SLOWNESS))
@pytest.mark.parametrize("length", [5, 120])
def test_bursts_after_quiet_traffic_are_told_the_truth_within_a_factor_of_two(device: str, length: int) -> None:
    async def work(clock: Callable[[], float]) -> None:
        engine: Any = Device(SLOWNESS[device], COST)
        batcher = Batcher(engine, max_texts=BURST, max_tokens=10**9, clock=clock)
        for waits in ((0.3, 0.3), (0.0, 0.3)):  # when some batches are back; the second time, before any is
            for _ in range(60):  # one at a time
                await request(batcher, length)
                await asyncio.sleep(0.05)
            started = clock()
            burst = [asyncio.ensure_future(request(batcher, length)) for _ in range(BURST)]
            told = []
            for wait in waits:
                await asyncio.sleep(wait)
                with pytest.raises(QueueFullError) as full, batcher.admission.room(BURST, 1):
                    pass
                told.append((clock() - started, full.value.retry_after))
            await asyncio.gather(*burst)
            for since, seconds in told:
                truth = clock() - started - since
                assert truth / 2 - 1 < seconds < truth * 2 + 1, (since, truth)
        await batcher.close()

    simulated(work)


@pytest.mark.parametrize("device", ["as predicted", "five times slower"])
def test_even_before_a_full_batch_has_come_back(device: str) -> None:
    async def work(clock: Callable[[], float]) -> None:
        engine: Any = Device(SLOWNESS[device], COST)
        batcher = Batcher(engine, max_texts=BURST, max_tokens=10**9, clock=clock)
        for _ in range(60):
            await request(batcher, 5)
        started = clock()
        burst = [asyncio.ensure_future(request(batcher, 120)) for _ in range(BURST)]
        await asyncio.sleep(0)
        seconds = batcher.admission.seconds_to_drain()
        await asyncio.gather(*burst)
        assert (clock() - started) / 2 - 1 < seconds < (clock() - started) * 2 + 1
        await batcher.close()

    simulated(work)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.lists(st.integers(1, 128), min_size=1, max_size=40), st.integers(-1, 1)),
        st.tuples(st.just("fail"), st.integers(1, 20), st.integers(-1, 1)),
        st.tuples(st.just("leave"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.05, 1.0]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(steps=STEPS, max_wait=st.sampled_from([0.0, 0.01]))
def test_every_request_is_answered_right_or_for_its_own_fault(steps: list[Any], max_wait: float) -> None:
    async def work(clock: Callable[[], float]) -> None:
        engine: Any = Device(COST.seconds, COST)
        batcher = Batcher(engine, max_texts=10**6, max_tokens=10**9, max_wait=max_wait, clock=clock)
        asked: list[tuple[asyncio.Task[Any], list[Row]]] = []
        left: set[int] = set()
        for kind, what, priority in steps:
            if kind == "wait":
                await asyncio.sleep(what)
            elif kind == "leave":
                if asked and not asked[what % len(asked)][0].done():
                    asked[what % len(asked)][0].cancel()
                    left.add(what % len(asked))
            else:
                rows = [Row([1] * n) for n in what] if kind == "ask" else [Row([1])] * what + [Row([99])]
                asked.append((asyncio.ensure_future(batcher.classify(rows, priority)), rows))
        async with asyncio.timeout(3600):  # of its own time: nothing hangs
            answers = await asyncio.gather(*(task for task, _ in asked), return_exceptions=True)
            await batcher.close()
        for number, ((_, rows), answer) in enumerate(zip(asked, answers, strict=True)):
            if number in left:
                assert isinstance(answer, asyncio.CancelledError)
            elif any(99 in row.ids for row in rows):
                assert isinstance(answer, EngineError)
            else:
                np.testing.assert_array_equal(answer.values[:, 0], [sum(row.ids) for row in rows])
        assert (len(batcher._queue), batcher.waiting_tokens, batcher._batches) == (0, 0, set())
        await batcher.classify([Row([1])])
        await batcher.close()

    simulated(work)


def test_rows_of_a_failed_request_are_not_computed() -> None:
    async def work(clock: Callable[[], float]) -> None:
        engine: Any = Device(COST.seconds, COST)
        batcher = Batcher(engine, max_texts=10**6, max_tokens=10**9, clock=clock)
        with pytest.raises(EngineError):
            await batcher.classify([Row([99]), *[Row([77])] * 20_000])
        waited, computed = len(batcher._queue), len(engine.computed)
        await batcher.close()
        await asyncio.sleep(10)
        assert (waited, len(engine.computed)) == (0, computed)
        assert computed < 3000

    simulated(work)


def test_a_batch_that_is_lost_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def work(clock: Callable[[], float]) -> None:
        engine: Any = Device(COST.seconds, COST)

        def on_batch(*_: object) -> None:
            raise ZeroDivisionError

        batcher = Batcher(engine, max_texts=10, max_tokens=10**9, clock=clock, on_batch=on_batch)
        for _ in range(5):  # more than there are slots
            with pytest.raises(EngineError, match="a batch was lost: ZeroDivisionError"):
                await batcher.classify([Row([1]), Row([2])])

    simulated(work)
    assert "a batch was lost" in caplog.text
