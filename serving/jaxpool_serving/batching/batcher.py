"""Turns rows that arrive one by one into device batches, the moment a device slot frees.

Nothing waits on purpose (unless ``max_wait`` says so): an idle device takes a single row at once, and while it
computes, the next batch gathers by itself. Runs in the event loop's thread only, so it needs no locks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpool.engine.packing import doubtful
from jaxpool.errors import EngineError
from jaxpool_serving.batching.admission import Admission, Throughput
from jaxpool_serving.batching.batch_selection import BatchSelection
from jaxpool_serving.batching.request_queue import Item, PendingRequest, RequestQueue

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket
    from jaxpool.engine.engine import Engine, Row


log = logging.getLogger("jaxpool.serving")

NOTHING = np.empty(0, np.float32)


class Computed(NamedTuple):
    """The answer to one request's rows.

    Attributes:
        values: float32 ``[rows, labels]``; for tasks of tokens a list of ``[tokens, labels]``.
        queue: seconds until the last row went to the device.
        device: seconds from then until the last result was back.
        cached: tokens that were not computed for it, as those of ``PendingRequest``.
    """

    values: Any
    queue: float
    device: float
    cached: int = 0


class Batcher:
    """A bounded, fair queue of rows in front of one engine.

    Args:
        engine: a warm engine; the batcher only uses its buckets that cost no compile.
        max_texts: most texts admitted and not yet answered.
        max_tokens: most tokens of those.
        max_wait: seconds that a row waits for company while a slot is free.
        slots: batches handed to the engine at a time; 2 keeps the device busy while results are fetched.
        window: waiting rows looked at when a batch is formed.
        on_batch: called with every batch that goes to the device: its bucket, its rows, and the tokens it computes.
        clock: seconds from any origin, never going back.

    Attributes:
        admission: what is admitted and not yet answered.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_texts: int,
        max_tokens: int,
        max_wait: float = 0.0,
        slots: int = 2,
        window: int = 256,
        on_batch: Callable[[Bucket, int, int], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._throughput = Throughput(engine.buckets, engine.cost)
        self.admission = Admission(max_texts, max_tokens, lambda: self._throughput.tokens_per_second)
        self._slots = slots
        self._window = window
        self._max_wait = max_wait
        self._on_batch = on_batch
        self._clock = clock
        self._queue = RequestQueue()
        self._selection = BatchSelection(engine.usable, engine.cost)
        self._batches: set[asyncio.Task[None]] = set()  # one per slot that is taken
        self._wake: asyncio.Handle | None = None

    @property
    def queued(self) -> int:
        """Texts admitted and not yet answered."""
        return self.admission.texts

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the rows that wait for the device."""
        return self._queue.tokens

    async def classify(self, rows: Sequence[Row], priority: int = 0) -> Computed:
        """Compute one request's rows, in order. Cancelling drops those that are not yet on the device.

        Args:
            rows: at least one.
            priority: lower goes first.

        Raises:
            EngineError: a row of this request failed on the device.
        """
        answer = asyncio.get_running_loop().create_future()
        request = PendingRequest(answer, [NOTHING] * len(rows), len(rows), priority, arrived=self._clock())
        if (prefixes := self.engine.prefixes) is not None:
            cost = self.engine.cost
            rows = [replace(row, beginning=prefixes.find(row, cost)) for row in rows]
        self._queue.add(rows, request)
        try:
            self._wake_up()
            await answer
            values = request.values
        finally:
            self._queue.discard(request)
        found = values if self.engine.spec.per_token else np.stack(values)
        return Computed(found, request.sent - request.arrived, self._clock() - request.sent, request.cached)

    async def close(self) -> None:
        """Wait until the batches in flight have come back (no new rows may arrive meanwhile)."""
        while self._batches:
            await asyncio.wait(set(self._batches))

    def _wake_up(self) -> None:
        """Form batches soon: in this turn of the event loop others may still hand in rows."""
        if len(self._batches) >= self._slots:
            return
        loop = asyncio.get_running_loop()
        wait = self._max_wait
        if wait and len(self._queue) >= self._selection.most_rows:
            wait = 0.0
            if self._wake is not None:
                self._wake.cancel()
                self._wake = None
        if self._wake is None:
            self._wake = loop.call_later(wait, self._launch) if wait else loop.call_soon(self._launch)

    def _launch(self) -> None:
        self._wake = None
        while len(self._batches) < self._slots and (batch := self._next_batch()):
            task = asyncio.get_running_loop().create_task(self._run(*batch))
            self._batches.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, batch: asyncio.Task[None]) -> None:
        self._batches.discard(batch)
        if self._wake is None:
            self._launch()

    def _next_batch(self) -> tuple[list[Item], Bucket, np.ndarray | None] | None:
        """A batch that holds the row whose turn it is; None when nobody waits."""
        known = len(self._selection.buckets)
        if known < len(self.engine.buckets) and len(usable := self.engine.usable) > known:
            self._selection = BatchSelection(usable, self.engine.cost)
        taken = self._queue.take(self._window, self._chosen)
        return None if taken is None else (taken[0], *taken[1])

    def _chosen(self, waiting: Sequence[Row]) -> tuple[np.ndarray, tuple[Bucket, np.ndarray | None]]:
        """Which of the first rows go together, in the order of their turns, and how."""
        beginning, selection, begun = waiting[0].beginning, self._selection, 0
        if beginning is not None and self.engine.prefixes is not None:
            begun, ready = beginning.length, self.engine.programs.ready()
            selection = BatchSelection(self.engine.prefixes.menu(begun, ready), self.engine.cost)
        alike = np.array([i for i, row in enumerate(waiting) if row.beginning == beginning])
        lengths = np.array([len(waiting[i].ids) - begun for i in alike])
        rows, bucket, places = selection.best(lengths)
        in_turn = np.argsort(rows)
        return alike[rows[in_turn]], (bucket, None if places is None else places[in_turn])

    async def _run(self, items: list[Item], bucket: Bucket, places: np.ndarray | None = None) -> None:
        """Compute a batch; whatever happens, no request of it is left without an answer."""
        try:
            await self._compute(items, bucket, places)
        except BaseException as error:
            _fail(items, EngineError(f"a batch was lost: {type(error).__name__}"))
            if not isinstance(error, Exception):
                raise
            log.exception("a batch was lost")

    async def _compute(self, items: list[Item], bucket: Bucket, places: np.ndarray | None = None) -> None:
        """Compute ``items`` in one call; if that fails, halve until the row to blame fails alone."""
        wanted = [index for index, item in enumerate(items) if not item.dropped]  # some may have left since the choice
        if not wanted:
            return
        items, places = [items[index] for index in wanted], None if places is None else places[wanted]
        started = self._clock()
        beginning = items[0].row.beginning
        begun = 0 if beginning is None else beginning.length
        prefixes = self.engine.prefixes
        known = prefixes is not None and beginning is not None and beginning in prefixes.store
        tokens = sum(len(item.row.ids) - begun for item in items)
        if self._on_batch is not None:
            self._on_batch(bucket, len(items), tokens)
        for item in items:
            item.request.sent = started
        try:
            values = await asyncio.wrap_future(self.engine.submit([item.row for item in items], bucket, places))
        except Exception as error:
            if len(items) == 1 and beginning is None:
                _fail(items, error)
                return
            if beginning is not None:  # which may be what failed
                for item in items:
                    item.row = replace(item.row, beginning=None)
                    await self._compute([item], self._selection.smallest([len(item.row.ids)]))
                return
            middle = (len(items) + 1) // 2
            for half in (slice(middle), slice(middle, None)):
                if places is None:
                    shape = self._selection.smallest([len(item.row.ids) for item in items[half]])
                    await self._compute(items[half], shape)
                else:
                    await self._compute(items[half], bucket, places[half])
            return
        self._throughput.landed(bucket, len(items), tokens, started, self._clock())
        for item in items[0 if known else 1 :]:
            item.request.cached += begun
        again = set(doubtful(values, places).tolist())
        for index, (item, value, sound) in enumerate(zip(items, values, _finite(values), strict=True)):
            if index not in again:
                _settle(item, value if sound else None)
        suspects = [items[index] for index in sorted(again)]
        for start in range(0, len(suspects), bucket.rows):
            await self._compute(suspects[start : start + bucket.rows], bucket)


def _finite(values: np.ndarray | list[np.ndarray]) -> Sequence[bool]:
    """Which rows hold nothing but finite numbers."""
    if isinstance(values, np.ndarray):
        return np.isfinite(values.reshape(len(values), -1)).all(axis=1).tolist()
    return [bool(np.isfinite(value).all()) for value in values]


def _settle(item: Item, value: np.ndarray | None) -> None:
    """Hand a row's value to its request, which is answered with its last one."""
    request = item.request
    if item.dropped:
        return
    if value is None:  # JSON has no NaN, and a client has no use for one
        _fail([item], EngineError("scores are not finite"))
        return
    request.values[item.index] = value
    request.uncomputed -= 1
    if not request.uncomputed:
        request.answer.set_result(None)


def _fail(items: Sequence[Item], error: Exception) -> None:
    """Answer the requests of these rows with an error, unless they are answered already."""
    for item in items:
        if not item.dropped:
            item.request.answer.set_exception(error)
