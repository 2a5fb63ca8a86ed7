"""The queue, the admission and the memory keep no count that can drift: sequences of operations against a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jaxpool.engine.engine import Row
from jaxpool_serving.batching.admission import Admission, QueueFullError, Room
from jaxpool_serving.batching.request_queue import SWEEP, PendingRequest, RequestQueue
from jaxpool_serving.bodies import BodyMemory, Share
from jaxpool_serving.schemas.errors import RequestError

SEQUENCES = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def pending(priority: int = 0, rows: int = 1) -> PendingRequest:
    # a concurrent future has what the queue asks for (done), and needs no event loop
    return PendingRequest(Future(), [np.empty(0)] * rows, rows, priority)  # type: ignore[arg-type]


class QueueMachine(RuleBasedStateMachine):
    """The queue against a list of what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = RequestQueue()
        self.model: list[tuple[PendingRequest, int, Row]] = []
        self.requests: list[PendingRequest] = []

    @rule(
        rows=st.one_of(st.integers(1, 5), st.sampled_from([SWEEP // 3, 600, SWEEP, 2 * SWEEP + 1])),
        priority=st.one_of(st.integers(-2, 2), st.integers()),
    )
    def add(self, rows: int, priority: int) -> None:
        request = pending(priority, rows)
        given = [Row([5] * (1 + n % 3)) for n in range(rows)]
        self.queue.add(given, request)
        self.requests.append(request)
        self.model += [(request, index, row) for index, row in enumerate(given)]

    @rule(most=st.integers(1, 300), data=st.data())
    def take(self, most: int, data: st.DataObject) -> None:
        told: list[int] = []

        def choose(rows: Sequence[Row]) -> tuple[list[int], str]:
            told.extend(len(row.ids) for row in rows)
            return [0, *(n for n in range(1, len(rows)) if data.draw(st.booleans()) or n % 2)][:50], "bucket"

        found = self.queue.take(most, choose)
        if found is None:
            assert not self.model
            return
        items, chosen = found
        assert chosen == "bucket"
        assert len(told) == min(most, len(self.model))
        assert items[0].request.priority == min(request.priority for request, _, _ in self.model)
        for item in items:
            self.model.remove((item.request, item.index, item.row))  # ValueError if it was not there, or twice

    @rule()
    def a_choice_fails(self) -> None:
        def choose(_rows: Sequence[Row]) -> tuple[list[int], None]:
            raise RuntimeError("boom")

        if self.model:
            with pytest.raises(RuntimeError, match="boom"):
                self.queue.take(100, choose)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), told=st.booleans())
    def leave(self, data: st.DataObject, told: bool) -> None:
        """A client leaves, or a row has failed; the queue hears of it at once, or has not yet."""
        request = data.draw(st.sampled_from(self.requests))
        self.requests.remove(request)
        request.answer.cancel()
        if told:
            self.queue.discard(request)
            assert not request.waiting
            assert not request.values
        self.model = [one for one in self.model if one[0] is not request]

    @rule()
    def sweep(self) -> None:
        self.queue._sweep()
        assert self.queue.places == len(self.model)

    @invariant()
    def its_length_is_what_it_holds(self) -> None:
        assert len(self.queue) == len(self.model)
        assert self.queue.tokens == sum(len(row.ids) for _, _, row in self.model)
        assert self.queue.places >= len(self.model)

    def teardown(self) -> None:
        drained = 0
        while found := self.queue.take(256, lambda rows: (range(len(rows)), None)):
            drained += len(found[0])
        assert drained == len(self.model)
        assert (len(self.queue), self.queue.tokens, self.queue.places) == (0, 0, 0)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(SEQUENCES, max_examples=25)  # long queues take time to compare


def test_two_lists_of_600_and_a_drain_leave_nothing() -> None:
    queue = RequestQueue()
    for _ in range(2):
        queue.add([Row([5])] * 600, pending(rows=600))
    assert len(queue) == 1200
    while queue.take(256, lambda rows: (range(len(rows)), None)):
        pass
    assert len(queue) == 0


def test_what_nobody_wants_does_not_pile_up_behind_a_slow_device() -> None:
    queue = RequestQueue()
    for n in range(100):
        request = pending(priority=n, rows=SWEEP // 2)
        queue.add([Row([5])] * (SWEEP // 2), request)
        request.answer.cancel()
        queue.discard(request)
    assert (len(queue), queue.tokens) == (0, 0)
    assert queue.places <= 2 * SWEEP
    for n in range(5000):  # and priorities leave nothing either
        queue.add([Row([5])], pending(priority=n))
        queue.take(1, lambda _: ([0], None))
    assert len(queue._turns) <= SWEEP + 1


def test_lower_priorities_go_first_and_requests_take_turns_within_one() -> None:
    queue = RequestQueue()
    for token, rows, priority in ((1, 3, 0), (2, 2, 0), (3, 1, 5), (4, 2, -1), (5, 1, 0)):
        queue.add([Row([token])] * rows, pending(priority, rows))
    order = []
    while found := queue.take(3, lambda _: ([0], None)):
        order.append(found[0][0].row.ids[0])
        if len(order) == 5:  # a new one comes after the turn that is due, not after the whole list
            queue.add([Row([6])], pending())
    assert order == [4, 4, 1, 2, 5, 1, 2, 6, 1, 3]


class AdmissionMachine(RuleBasedStateMachine):
    """Admission against the rooms that are held."""

    @initialize(texts=st.integers(1, 8), tokens=st.integers(1, 100))
    def start(self, texts: int, tokens: int) -> None:
        self.limits = texts, tokens
        self.admission = Admission(texts, tokens, lambda: 0.0)
        self.rooms: dict[Room, tuple[int, int]] = {}

    def fits(self, texts: int, tokens: int, leaving: Room | None = None) -> bool:
        others = [held for room, held in self.rooms.items() if room is not leaving]
        return sum(n for n, _ in others) + texts <= self.limits[0] and (
            not others or sum(n for _, n in others) + tokens <= self.limits[1]
        )

    @rule(texts=st.integers(1, 4), tokens=st.integers(0, 120))
    def enter(self, texts: int, tokens: int) -> None:
        room = self.admission.room(texts, tokens)
        if self.fits(texts, tokens):
            room.__enter__()
            self.rooms[room] = texts, tokens
        else:
            with pytest.raises(QueueFullError):
                room.__enter__()
            room.__exit__()  # gives back nothing

    @precondition(lambda self: self.rooms)
    @rule(data=st.data(), tokens=st.integers(0, 120), windows=st.integers(0, 4))
    def tokenised(self, data: st.DataObject, tokens: int, windows: int) -> None:
        """Long texts have become so many more."""
        room = data.draw(st.sampled_from(list(self.rooms)))
        before = self.rooms[room]
        texts, others = before[0] + windows, [held for other, held in self.rooms.items() if other is not room]
        few_tokens = tokens <= before[1] or sum(n for _, n in others) + tokens <= self.limits[1]
        few_texts = not windows or sum(n for n, _ in others) + texts <= self.limits[0]
        if not others or (few_tokens and few_texts):
            room.holds(tokens, texts)
            self.rooms[room] = texts, tokens
        else:
            with pytest.raises(QueueFullError):
                room.holds(tokens, texts)

    @precondition(lambda self: self.rooms)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        room = data.draw(st.sampled_from(list(self.rooms)))
        del self.rooms[room]
        for _ in range(2):  # the second time is nothing
            room.__exit__()
        with pytest.raises(RuntimeError):
            room.holds(5, 1)

    @invariant()
    def it_holds_what_the_rooms_hold(self) -> None:
        texts, tokens = (sum(held[n] for held in self.rooms.values()) for n in (0, 1))
        assert (self.admission.texts, self.admission.tokens) == (texts, tokens)
        assert texts <= self.limits[0] or len(self.rooms) == 1
        assert tokens <= self.limits[1] or len(self.rooms) == 1


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = SEQUENCES


class MemoryMachine(RuleBasedStateMachine):
    """Body memory against the shares that are held."""

    LIMIT = 1000

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.memory = BodyMemory(self.LIMIT, lambda: self.now)
        self.reading: list[Share] = []
        self.unsent: list[Share] = []
        self.cut: list[Share] = []

    @rule()
    def arrive(self) -> None:
        self.reading.append(self.memory.share().__enter__())

    @rule(seconds=st.sampled_from([0.1, 0.9, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), size=st.integers(0, 700))
    def receive(self, data: st.DataObject, size: int) -> None:
        share, before = data.draw(st.sampled_from(self.reading)), self.memory.held
        refused = None
        try:
            share.grow(size)
        except RequestError as error:
            refused = error.status
        if refused is None:
            assert self.memory.held <= self.LIMIT
        else:
            assert (refused, before + size > self.LIMIT) == (503, True)

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), size=st.integers(0, 1500))
    def answer(self, data: st.DataObject, size: int) -> None:
        share = data.draw(st.sampled_from(self.reading))
        self.reading.remove(share)
        self.unsent.append(share)
        share.answer(size, lambda: self.cut.append(share))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if here := [*self.reading, *self.unsent]:
            share = data.draw(st.sampled_from(here))
            for of in (self.reading, self.unsent):
                if share in of:
                    of.remove(share)
            share.__exit__()

    @invariant()
    def it_holds_what_the_shares_hold(self) -> None:
        for share in self.cut:
            assert share.size == 0
        assert self.memory.held == sum(share.size for share in [*self.reading, *self.unsent])

    def teardown(self) -> None:
        for share in [*self.reading, *self.unsent, *self.cut]:
            share.__exit__()
        assert self.memory.held == 0
        assert not self.memory._unsent


TestMemory = MemoryMachine.TestCase
TestMemory.settings = SEQUENCES


def test_an_event_loop_s_future_is_what_the_queue_takes_it_for() -> None:
    async def done() -> bool:
        answer = asyncio.get_running_loop().create_future()
        request = PendingRequest(answer, [np.empty(0)], 1)
        queue = RequestQueue()
        queue.add([Row([5])], request)
        answer.cancel()
        return len(queue) == 0

    assert asyncio.run(done())
