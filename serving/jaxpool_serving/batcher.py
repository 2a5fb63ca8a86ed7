"""Turns rows that arrive one by one into device batches, the moment a device slot frees.

Nothing waits on purpose (unless ``max_wait`` says so): an idle device takes a single row at once, and while it
computes, the next batch gathers by itself. Runs in the event loop's thread only, so it needs no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpool.errors import EngineError
from jaxpool.packing import doubtful
from jaxpool_serving.admission import Admission
from jaxpool_serving.choice import Choice
from jaxpool_serving.waiting import Asked, Item, Waiting

if TYPE_CHECKING:
    from jaxpool.buckets import Bucket
    from jaxpool.engine import Engine, Row


NOTHING = np.empty(0, np.float32)


class Computed(NamedTuple):
    """The answer to one request's rows.

    Attributes:
        values: float32 ``[rows, labels]``; for tasks of tokens a list of ``[tokens, labels]``.
        queue: seconds until the last row went to the device.
        device: seconds from then until the last result was back.
    """

    values: Any
    queue: float
    device: float


class Batcher:
    """A bounded, fair queue of rows in front of one engine.

    Args:
        engine: a warm engine; the batcher only uses its buckets that cost no compile.
        max_texts: most texts admitted and not yet answered.
        max_tokens: most tokens of those.
        max_wait: seconds that a row waits for company while a slot is free.
        slots: batches handed to the engine at a time; 2 keeps the device busy while results are fetched.
        window: waiting rows looked at when a batch is formed.
        on_batch: called with every batch that goes to the device: its bucket, its rows, and their tokens.

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
    ) -> None:
        self.engine = engine
        self.admission = Admission(max_texts, max_tokens)
        self._free_slots = slots
        self._window = window
        self._max_wait = max_wait
        self._on_batch = on_batch
        self._waiting = Waiting()
        self._choice = Choice(engine.usable, engine.cost)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake: asyncio.Handle | None = None

    @property
    def queued(self) -> int:
        """Texts admitted and not yet answered."""
        return self.admission.texts

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the rows that wait for the device."""
        return self._waiting.tokens

    async def classify(self, rows: Sequence[Row], priority: int = 0) -> Computed:
        """Compute one request's rows, in order. Cancelling drops those that are not yet on the device.

        Args:
            rows: at least one.
            priority: lower goes first.

        Raises:
            EngineError: a row of this request failed on the device.
        """
        asked = Asked(asyncio.get_running_loop().create_future(), [NOTHING] * len(rows), len(rows), priority)
        self._waiting.add(rows, asked)
        self._wake_up()
        values = await asked.answer
        found = values if self.engine.spec.per_token else np.stack(values)
        return Computed(found, asked.sent - asked.arrived, time.monotonic() - asked.sent)

    async def close(self) -> None:
        """Wait until the batches in flight have come back (no new rows may arrive meanwhile)."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _wake_up(self) -> None:
        """Form batches soon: in this turn of the event loop others may still hand in rows."""
        if not self._free_slots:
            return
        loop = asyncio.get_running_loop()
        full = len(self._waiting) >= self._choice.most_rows
        if self._wake is None:
            wait = 0.0 if full else self._max_wait
            self._wake = loop.call_later(wait, self._launch) if wait else loop.call_soon(self._launch)
        elif full and self._max_wait:
            self._wake.cancel()
            self._wake = loop.call_soon(self._launch)

    def _launch(self) -> None:
        self._wake = None
        while self._free_slots and (batch := self._next_batch()):
            self._free_slots -= 1
            task = asyncio.get_running_loop().create_task(self._run(*batch))
            self._tasks.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free_slots += 1
        if self._wake is None:
            self._launch()

    def _next_batch(self) -> tuple[list[Item], Bucket, np.ndarray | None] | None:
        """A batch that holds the row whose turn it is; None when nobody waits."""
        window = self._waiting.pop(self._window)
        if not window:
            return None
        known = len(self._choice.buckets)
        if known < len(self.engine.buckets) and len(usable := self.engine.usable) > known:
            self._choice = Choice(usable, self.engine.cost)
        rows, bucket, places = self._choice.best(np.array([len(item.row.ids) for _, _, item in window]))
        taken = set(rows.tolist())
        self._waiting.put_back(entry for index, entry in enumerate(window) if index not in taken)
        self._waiting.served(window[0])
        in_turn = np.argsort(rows)
        return [window[index][2] for index in rows[in_turn]], bucket, None if places is None else places[in_turn]

    async def _run(self, items: list[Item], bucket: Bucket, places: np.ndarray | None = None) -> None:
        """Compute ``items`` in one call; if that fails, halve until the row to blame fails alone."""
        started = time.monotonic()
        tokens = sum(len(item.row.ids) for item in items)
        if self._on_batch is not None:
            self._on_batch(bucket, len(items), tokens)
        for item in items:
            item.asked.sent = started
        try:
            values = await asyncio.wrap_future(self.engine.submit([item.row for item in items], bucket, places))
        except Exception as error:
            items = [item for item in items if not item.dropped]
            if len(items) == 1:
                items[0].asked.answer.set_exception(error)
            middle = len(items) // 2
            for half in (slice(middle), slice(middle, None)) if len(items) > 1 else ():
                if places is None:
                    await self._run(items[half], self._choice.smallest([len(item.row.ids) for item in items[half]]))
                else:
                    await self._run(items[half], bucket, places[half])
            return
        self.admission.landed(tokens, started)
        again = set(doubtful(values, places).tolist())
        for index, (item, value, sound) in enumerate(zip(items, values, _finite(values), strict=True)):
            if index not in again:
                _settle(item, value if sound else None)
        suspects = [items[index] for index in sorted(again)]
        for start in range(0, len(suspects), bucket.rows):
            await self._run(suspects[start : start + bucket.rows], bucket)


def _finite(values: np.ndarray | list[np.ndarray]) -> Sequence[bool]:
    """Which rows hold nothing but finite numbers."""
    if isinstance(values, np.ndarray):
        return np.isfinite(values.reshape(len(values), -1)).all(axis=1).tolist()
    return [bool(np.isfinite(value).all()) for value in values]


def _settle(item: Item, value: np.ndarray | None) -> None:
    """Hand a row's value to its request, which is answered with its last one."""
    asked = item.asked
    if item.dropped:
        return
    if value is None:  # JSON has no NaN, and a client has no use for one
        asked.answer.set_exception(EngineError("scores are not finite"))
        return
    asked.values[item.index] = value
    asked.uncomputed -= 1
    if not asked.uncomputed:
        asked.answer.set_result(asked.values)
