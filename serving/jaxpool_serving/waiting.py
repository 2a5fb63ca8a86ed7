"""The rows that wait for the device, in the order of their turns."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    import numpy as np

    from jaxpool.engine import Row

SWEEP = 1024
"""Rows of clients that left are swept out when the queue has doubled, and holds at least so many."""


@dataclass(slots=True, eq=False)
class Asked:
    """One request on its way to its answer; cancelling ``answer`` drops its rows.

    Attributes:
        answer: done when every row is computed, or one has failed; its result is ``values``.
        values: per row float32 ``[labels]``, or ``[tokens, labels]``; an empty array until it is computed.
        uncomputed: rows without a value.
        priority: lower goes first.
        arrived: ``time.monotonic()`` when its rows began to wait.
        sent: ``time.monotonic()`` when the latest of them went to the device.
    """

    answer: asyncio.Future[list[np.ndarray]]
    values: list[np.ndarray]
    uncomputed: int
    priority: int = 0
    arrived: float = field(default_factory=time.monotonic)
    sent: float = 0.0


@dataclass(slots=True, eq=False)
class Item:
    """Row number ``index`` of a request."""

    row: Row
    asked: Asked
    index: int

    @property
    def dropped(self) -> bool:
        """Whether nobody wants it any more: its client left, its deadline passed, or another row failed."""
        return self.asked.answer.done()


Entry = tuple[int, int, Item]
"""Turn, arrival and the item itself; sorts as the queue does."""


@dataclass(slots=True, eq=False)
class _Lane:
    """The rows of one priority: a heap, and the turn of whoever comes next."""

    heap: list[Entry] = field(default_factory=list)
    turn: int = 0


class Waiting:
    """Rows by priority, lower first; within a priority fair between requests.

    Fair means by requests, not rows: the first row of a new request comes right after the next row of those already
    waiting, however long their lists are (start-time fair queueing, one unit per row).
    """

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}
        self._size = 0
        self._arrivals = itertools.count()
        self._sweep_at = SWEEP

    def __len__(self) -> int:
        """Rows, those that nobody wants any more included until they are met or swept out."""
        return self._size

    @property
    def tokens(self) -> int:
        """Tokens of the rows that somebody wants."""
        entries = (entry for lane in self._lanes.values() for entry in lane.heap)
        return sum(len(item.row.ids) for _, _, item in entries if not item.dropped)

    def add(self, rows: Sequence[Row], asked: Asked) -> None:
        """Append the rows of a request."""
        self._size += len(rows)
        if self._size > self._sweep_at:
            self._sweep()
        if asked.priority not in self._lanes:
            self._lanes[asked.priority] = _Lane()
            self._lanes = dict(sorted(self._lanes.items()))
        lane = self._lanes[asked.priority]
        for index, row in enumerate(rows):
            heapq.heappush(lane.heap, (lane.turn + index, next(self._arrivals), Item(row, asked, index)))

    def pop(self, most: int) -> list[Entry]:
        """Take out the first rows, at most ``most``; empty only if nobody waits. Dropped rows vanish on the way."""
        found: list[Entry] = []
        for priority, lane in list(self._lanes.items()):
            before = len(found)
            while lane.heap and len(found) < most:
                entry = heapq.heappop(lane.heap)
                self._size -= 1
                if not entry[2].dropped:
                    found.append(entry)
            if not lane.heap and len(found) == before:
                del self._lanes[priority]
            if len(found) == most:
                break
        return found

    def put_back(self, entries: Iterable[Entry]) -> None:
        """Return rows that were popped and not sent; they keep their turns."""
        for entry in entries:
            self._size += 1
            heapq.heappush(self._lanes[entry[2].asked.priority].heap, entry)

    def served(self, first: Entry) -> None:
        """The row whose turn it was has been sent: requests that arrive now come after its turn."""
        lane = self._lanes[first[2].asked.priority]
        lane.turn = max(lane.turn, first[0] + 1)

    def _sweep(self) -> None:
        for lane in self._lanes.values():
            lane.heap = [entry for entry in lane.heap if not entry[2].dropped]
            heapq.heapify(lane.heap)
        self._size = sum(len(lane.heap) for lane in self._lanes.values())
        self._sweep_at = max(SWEEP, 2 * self._size)
