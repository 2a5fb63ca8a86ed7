"""The requests that wait for the device, and the order of their rows."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import asyncio

    from jaxpool.engine.engine import Row

SWEEP = 1024
"""Places of requests that are gone are swept out when the queue has doubled, and holds at least so many."""

Chosen = TypeVar("Chosen")


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request on its way to its answer.

    Attributes:
        answer: done when every row is computed, one has failed, or the client has left.
        values: per row float32 ``[labels]``, or ``[tokens, labels]``; an empty array until it is computed.
        uncomputed: rows without a value.
        priority: lower goes first.
        arrived: seconds on the batcher's clock, when its rows began to wait.
        sent: when the latest of them went to the device.
        cached: tokens of its rows that were not computed for them: what they begin with had been before.
        waiting: number of a row -> the row, of those that wait for the device; kept by the queue.
    """

    answer: asyncio.Future[None]
    values: list[np.ndarray]
    uncomputed: int
    priority: int = 0
    arrived: float = 0.0
    sent: float = 0.0
    cached: int = 0
    waiting: dict[int, Row] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Item:
    """Row number ``index`` of a request, on its way to the device."""

    row: Row
    request: PendingRequest
    index: int

    @property
    def dropped(self) -> bool:
        """Whether nobody wants it any more: its client left, its deadline passed, or another row failed."""
        return self.request.answer.done()


Place = tuple[int, int, int, PendingRequest, int]
"""Priority, turn and arrival of a row, its request and its number there; sorts as the queue does."""


class RequestQueue:
    """Rows by priority, lower first; within a priority fair between requests.

    Fair means by requests, not rows: the first row of a new request comes right after the next row of those already
    waiting, however long their lists are (start-time fair queueing, one unit per row).

    What a request still waits for is written in the request alone; the heap holds places, which mean nothing once
    their row is gone. So there is no count to keep: how much waits is read off what waits.
    """

    def __init__(self) -> None:
        self._heap: list[Place] = []
        self._turns: dict[int, int] = {}  # priority -> the turn of whoever comes next
        self._arrivals = itertools.count()
        self._sweep_at = SWEEP

    def __len__(self) -> int:
        """Rows that wait and that somebody wants."""
        return sum(1 for _ in self._rows())

    @property
    def tokens(self) -> int:
        """Tokens of those."""
        return sum(len(row.ids) for row in self._rows())

    @property
    def places(self) -> int:
        """Places in the heap, those without a row included: at most `SWEEP`, or twice the rows at the last sweep."""
        return len(self._heap)

    def add(self, rows: Sequence[Row], request: PendingRequest) -> None:
        """Append the rows of a request."""
        priority = request.priority
        turn = self._turns.setdefault(priority, 0)
        request.waiting.update(enumerate(rows))
        for index in range(len(rows)):
            heapq.heappush(self._heap, (priority, turn + index, next(self._arrivals), request, index))
        if len(self._heap) + len(self._turns) > self._sweep_at:
            self._sweep()

    def discard(self, request: PendingRequest) -> None:
        """Nobody wants the request any more: its rows and its values are let go of at once. Safe to call twice."""
        request.waiting.clear()
        request.values = []

    def take(
        self, most: int, choose: Callable[[Sequence[Row]], tuple[Iterable[int], Chosen]]
    ) -> tuple[list[Item], Chosen] | None:
        """Take the rows of a batch out of the queue.

        Args:
            most: rows to choose from; they are the first ones.
            choose: told the rows in the order of their turns, it returns which of them are taken, number 0 among them,
                and anything else. If it fails, all stay.

        Returns:
            The rows in the order of their turns, and what else ``choose`` has said; None if nobody waits.
        """
        window = self._first(most)
        taken: set[int] = set()
        try:
            if not window:
                return None
            rows = [request.waiting[index] for _, _, _, request, index in window]
            numbers, chosen = choose(rows)
            taken = set(map(int, numbers))
        finally:
            for number, place in enumerate(window):
                if number not in taken:
                    heapq.heappush(self._heap, place)
        priority, turn, *_ = window[0]
        self._turns[priority] = max(self._turns[priority], turn + 1)  # requests that arrive now come after it
        items = []
        for number in sorted(taken):
            *_, request, index = window[number]
            items.append(Item(request.waiting.pop(index), request, index))
        return items, chosen

    def _first(self, most: int) -> list[Place]:
        """Take out the first places that hold a row, at most ``most``; those that hold none vanish on the way."""
        found: list[Place] = []
        while self._heap and len(found) < most:
            place = heapq.heappop(self._heap)
            if _holds_a_row(place):
                found.append(place)
        return found

    def _rows(self) -> Iterator[Row]:
        return (place[3].waiting[place[4]] for place in self._heap if _holds_a_row(place))

    def _sweep(self) -> None:
        self._heap = [place for place in self._heap if _holds_a_row(place)]
        heapq.heapify(self._heap)
        priorities = {place[0] for place in self._heap}
        self._turns = {priority: turn for priority, turn in self._turns.items() if priority in priorities}
        self._sweep_at = max(SWEEP, 2 * (len(self._heap) + len(self._turns)))


def _holds_a_row(place: Place) -> bool:
    *_, request, index = place
    return index in request.waiting and not request.answer.done()
