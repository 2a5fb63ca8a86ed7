"""Turns rows that arrive one by one into device batches, the moment a device slot frees.

Nothing waits on purpose: an idle device takes a single row at once, and while it computes, the next batch
gathers by itself. Runs in the event loop's thread only, so it needs no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxpool.errors import EngineError

if TYPE_CHECKING:
    from jaxpool.buckets import Bucket
    from jaxpool.engine import Engine, Row


class QueueFullError(Exception):
    """The bounded queue has no room for a request; it should have some after ``retry_after`` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The server is busy; try again in {retry_after} s.")
        self.retry_after = retry_after


@dataclass(slots=True, eq=False)
class Item:
    """One row on its way to its answer, float32 ``[labels]``; cancelling ``answer`` drops the row."""

    row: Row
    answer: asyncio.Future[np.ndarray]


class Batcher:
    """A bounded, fair queue of rows in front of one engine.

    Fairness is between requests, not rows: the first row of a new request comes right after the next row of
    those already waiting, however long their lists are (start-time fair queueing, one unit per row).

    Args:
        engine: a warm engine; the batcher only uses its compiled buckets.
        max_queued: most rows admitted and not yet answered.
        slots: batches handed to the engine at a time; 2 keeps the device busy while results are fetched.
        window: waiting rows looked at when a batch is formed.
    """

    def __init__(self, engine: Engine, *, max_queued: int, slots: int = 2, window: int = 256) -> None:
        self.engine = engine
        self.max_queued = max_queued
        self.queued = 0  # rows admitted and not yet answered
        self._free_slots = slots
        self._window = window
        self._waiting: list[tuple[int, int, Item]] = []  # heap of (turn, arrival, item)
        self._turn = 0
        self._arrivals = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rows_per_second = 0.0
        self._bucket_rows = np.array([bucket.rows for bucket in engine.buckets])
        self._bucket_lengths = np.array([bucket.length for bucket in engine.buckets])
        self._bucket_seconds = np.array([engine.cost.seconds(bucket) for bucket in engine.buckets])

    @contextlib.contextmanager
    def room(self, rows: int) -> Iterator[None]:
        """Hold room for ``rows`` in the queue while a request is tokenised, waits and is computed.

        Raises:
            QueueFullError: there is not enough room now.
        """
        if self.queued + rows > self.max_queued:
            raise QueueFullError(self._seconds_to_drain())
        self.queued += rows
        try:
            yield
        finally:
            self.queued -= rows

    async def classify(self, rows: Sequence[Row]) -> np.ndarray:
        """Compute one request's rows; float32 ``[len(rows), labels]``, in order.

        Cancelling drops the rows that are not yet on the device.

        Raises:
            EngineError: a row of this request failed on the device.
        """
        loop = asyncio.get_running_loop()
        items = [Item(row, loop.create_future()) for row in rows]
        for turn, item in enumerate(items, start=self._turn):
            heapq.heappush(self._waiting, (turn, next(self._arrivals), item))
        self._launch()
        try:
            return np.stack(await asyncio.gather(*(item.answer for item in items)))
        finally:
            for item in items:  # after a failure or a disconnect nobody wants the rest
                item.answer.cancel()

    async def close(self) -> None:
        """Wait until the batches in flight have come back (no new rows may arrive meanwhile)."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _launch(self) -> None:
        while self._free_slots and (batch := self._next_batch()):
            self._free_slots -= 1
            task = asyncio.get_running_loop().create_task(self._run(*batch))
            self._tasks.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free_slots += 1
        self._launch()

    def _next_batch(self) -> tuple[list[Item], Bucket] | None:
        """A batch that holds the row whose turn it is; None when nobody waits."""
        window: list[tuple[int, int, Item]] = []
        while self._waiting and len(window) < self._window:
            entry = heapq.heappop(self._waiting)
            if not entry[2].answer.done():  # done: its client left
                window.append(entry)
        if not window:
            return None
        rows, bucket = self._choose(np.array([len(item.row.ids) for _, _, item in window]))
        taken = set(rows.tolist())
        for index, entry in enumerate(window):
            if index not in taken:
                heapq.heappush(self._waiting, entry)
        self._turn = max(self._turn, window[0][0] + 1)
        return [window[index][2] for index in sorted(taken)], bucket

    def _choose(self, lengths: np.ndarray) -> tuple[np.ndarray, Bucket]:
        """The bucket that does most real work per second, and the rows to put into it; row 0 is among them.

        The offline planner is better by a few percent and tens of times slower: here the next choice comes
        with the next free slot, and knows who arrived meanwhile.
        """
        order = np.argsort(-lengths, kind="stable")  # longest first: those that fit a bucket are a suffix
        sizes = lengths[order]
        work = sizes * self.engine.cost.flops_per_token + sizes**2 * self.engine.cost.flops_per_token_pair
        until = np.concatenate([[0.0], np.cumsum(work)])
        first = int(np.flatnonzero(order == 0)[0])
        start = np.searchsorted(-sizes, -self._bucket_lengths)
        stop = np.minimum(start + self._bucket_rows, len(sizes))
        done = until[stop] - until[start] + np.where(first < stop, 0.0, work[first] - work[stop - 1])
        rate = np.where(self._bucket_lengths >= lengths[0], done / self._bucket_seconds, -1.0)
        best = int(rate.argmax())
        rows = order[start[best] : stop[best]]
        if first >= stop[best]:
            rows[-1] = 0
        return rows, self.engine.buckets[best]

    async def _run(self, items: list[Item], bucket: Bucket) -> None:
        """Compute ``items`` in one call; if that fails, halve until the row to blame fails alone."""
        started = time.monotonic()
        try:
            values = await asyncio.wrap_future(self.engine.submit([item.row for item in items], bucket))
        except Exception as error:
            items = [item for item in items if not item.answer.done()]
            if len(items) == 1:
                items[0].answer.set_exception(error)
            for half in (items[: len(items) // 2], items[len(items) // 2 :]) if len(items) > 1 else ():
                await self._run(half, self._smallest(half))
            return
        finite = np.isfinite(values).all(axis=1)
        for item, value, sound in zip(items, values, finite, strict=True):
            if item.answer.done():
                continue
            if sound:
                item.answer.set_result(value)
            else:  # JSON has no NaN, and a client has no use for one
                item.answer.set_exception(EngineError("scores are not finite"))
        rate = len(items) / max(time.monotonic() - started, 1e-6)
        self._rows_per_second += (rate - self._rows_per_second) * 0.1 if self._rows_per_second else rate

    def _smallest(self, items: list[Item]) -> Bucket:
        length = max(len(item.row.ids) for item in items)
        fitting = [b for b in self.engine.buckets if b.rows >= len(items) and b.length >= length]
        return min(fitting, key=self.engine.cost.seconds)

    def _seconds_to_drain(self) -> int:
        """Honest Retry-After: what waits now divided by the measured rate, 1 to 60 s (1 before any measure)."""
        seconds = self.queued / self._rows_per_second if self._rows_per_second else 1.0
        return int(min(max(seconds, 1.0), 60.0))
