"""From texts that arrive in parts to batches: planned anew when texts come, and when better programs are ready.

What is missing is compiled for two reasons. What this answer waits for pays its whole compile. What would serve later
calls better is compiled behind: nobody waits for it, and the next plan, in this call or another, uses it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.engine.buckets import Batch, Bucket, CostModel
from jaxpool.engine.packing import doubtful, plan, seconds

if TYPE_CHECKING:
    from jaxpool.engine.engine import Engine, Row

AHEAD = 2
"""Batches handed to the engine beyond those it works on. The others can still be planned anew."""

ALONE = 4
"""A call of so few texts is about latency: its shapes are few and worth having."""

LATER = 30.0
"""Calls like this one that a program compiled behind is expected to serve, besides as many as there were."""

LATER_FREE = 1e6
"""The same where compiling takes nothing from computing, the device being another: any program that helps at all."""

NOW_ALONE = 8.0
"""Calls that share a compile which a call of few texts waits for; of others each pays it whole."""


MOST_IDLE = 6
"""A look for better programs that finds none is made half as often as the one before it, down to 1 of 64 calls."""


FILLED = 0.97
"""Share of a packed batch's tokens from which it is as good as full."""


class Planner:
    """Plans for one engine; remembers how many calls there were.

    Args:
        buckets: the shapes to choose from.
        shared: whether the compiler runs on the cores that compute.

    Attributes:
        calls: calls so far.
    """

    def __init__(self, buckets: Sequence[Bucket], shared: bool = True) -> None:
        self.buckets, self.calls, self._shared = tuple(buckets), 0, shared
        self._idle, self._look = 0, 0  # looks behind that found nothing, and the call to look again at

    def now(
        self, lengths: np.ndarray, cost: CostModel, ready: frozenset[Bucket], *, sealed: bool, few: bool
    ) -> list[Batch]:
        """The batches of this call, of which those that are not ``ready`` are waited for."""
        return plan(lengths, self.buckets, self.prices(cost, few=few), ready, sealed)

    def sharing_behind(
        self, cost: CostModel, batches: Sequence[Batch], shared: Sequence[Batch], ready: frozenset[Bucket]
    ) -> list[Bucket]:
        """As `behind`, where ``shared`` beginnings would have served this call but for the compiles."""
        prices = replace(cost, plans_per_program=(LATER if self._shared else LATER_FREE) + self.calls)
        if self.calls < 2 or seconds(shared, prices, ready) >= seconds(batches, prices, ready):
            return []
        return [bucket for bucket in dict.fromkeys(batch.bucket for batch in shared) if bucket not in ready]

    def prices(self, cost: CostModel, *, few: bool) -> CostModel:
        """What a call pays, compiles included; ``few`` if it is of few texts."""
        return replace(cost, plans_per_program=NOW_ALONE if few else 1.0)

    def behind(
        self, lengths: np.ndarray, cost: CostModel, batches: Sequence[Batch], ready: frozenset[Bucket], *, few: bool
    ) -> list[Bucket]:
        """What to compile while ``batches`` are computed, so that later calls like this one cost less.

        Nothing after a first call that is over before a compile would be: there may be no second one.
        """
        if few:
            rows = 2 ** np.ceil(np.log2(np.maximum(lengths, 16)))
            if sum(batch.bucket.tokens for batch in batches) <= rows.sum():
                return []  # no more than a row of the next power of two for each
        elif self.calls < self._look:
            return []
        there = ready | {batch.bucket for batch in batches}
        spent = sum(cost.seconds(batch.bucket) for batch in batches)
        if self.calls < 2 and spent < cost.seconds_per_compile:
            return []
        prices = replace(cost, plans_per_program=(LATER if self._shared and not few else LATER_FREE) + self.calls)
        better = plan(lengths, self.buckets, prices, there)
        missing = [bucket for bucket in dict.fromkeys(batch.bucket for batch in better) if bucket not in there]
        if not few:
            self._idle = 0 if missing else min(self._idle + 1, MOST_IDLE)
            self._look = self.calls + 2**self._idle
        return missing


def run(
    engine: Engine,
    parts: Iterable[Sequence[Row]],
    found: Callable[[np.ndarray, Any], object],
    progress: Callable[[int], object] | None = None,
    total: int | None = None,
) -> None:
    """Computes rows that come in ``parts``, the first batches before the last part is there.

    Args:
        engine: what computes.
        parts: the rows; waited for only where there is nothing else to do.
        found: called with indices of rows, counted in the order they came, and their scores.
        progress: called with the number of rows of each finished batch.
        total: how many rows will come, where that is known: the last part is then planned as what it is.

    Raises:
        EngineError: or whatever else the first failing batch, or ``parts``, raised.
    """
    engine.planner.calls += 1
    in_flight = engine.under_way + AHEAD
    coming, rows = iter(parts), _Rows()
    waiting: deque[Batch] = deque()
    flying: deque[tuple[Batch, Future[Any]]] = deque()
    again: set[int] = set()

    def send(batch: Batch) -> None:
        engine.tokens += int(rows.lengths[batch.rows].sum()) - len(batch.rows) * _begun(batch)
        engine.slots += batch.bucket.tokens
        texts = [rows.all[i] for i in batch.rows]
        if batch.beginning is not None:
            texts = [replace(row, beginning=batch.beginning) for row in texts]
        flying.append((batch, engine.submit(texts, batch.bucket, batch.places)))

    more, known, arrived = True, 0, False
    try:
        while more or waiting or flying:
            if more and not waiting:
                part = next(coming, None)
                rows.add(part or ())
                more, arrived = part is not None and len(rows.all) != total, True
            ready = engine.programs.ready()
            if arrived or (len(ready) != known and len(waiting) >= in_flight):
                waiting = rows.plan(engine, waiting, ready, more=more, arrived=arrived)
                known, arrived = len(ready), False
            while waiting and len(flying) < in_flight:
                send(waiting.popleft())
            if flying and (waiting or not more):
                batch, future = flying.popleft()
                results = future.result()
                found(batch.rows, results)
                suspects = batch.rows[doubtful(results, batch.places)]
                for start in range(0, len(suspects), batch.bucket.rows):
                    send(replace(batch, rows=suspects[start : start + batch.bucket.rows], places=None))
                if progress is not None and again.isdisjoint(batch.rows.tolist()):
                    progress(len(batch.rows))
                again.update(suspects.tolist())
    finally:
        for _, future in flying:
            future.cancel()


class _Rows:
    """The rows of one call: all that came, their lengths, and which no batch has yet."""

    def __init__(self) -> None:
        self.all: list[Row] = []
        self.lengths = np.empty(0, np.int64)
        self.held = np.empty(0, np.int64)  # of batches that were not full

    def add(self, part: Sequence[Row]) -> None:
        new = np.fromiter((len(row.ids) for row in part), np.int64, len(part))
        self.held = np.append(self.held, np.arange(len(self.all), len(self.all) + len(part)))
        self.lengths = np.append(self.lengths, new)
        self.all += part

    def plan(
        self, engine: Engine, waiting: Iterable[Batch], ready: frozenset[Bucket], *, more: bool, arrived: bool
    ) -> deque[Batch]:
        """What to compute, of all that is left; while ``more`` is to come, only batches that nothing could fill."""
        left = np.concatenate([*(batch.rows for batch in waiting), self.held])
        lengths, few = self.lengths[left], not more and len(self.all) <= ALONE
        planner, programs, cost = engine.planner, engine.programs, engine.cost
        plain = partial(planner.now, cost=cost, ready=ready, sealed=programs.sealed, few=few)
        anyway: list[Batch] = []
        if engine.prefixes is None:
            planned = plain(lengths)
        else:
            texts, prices = [self.all[i] for i in left], planner.prices(cost, few=few)
            planned, anyway = engine.prefixes.plan(texts, lengths, prices, ready, plain, sealed=programs.sealed)
        full = [not more or _is_full(batch, lengths) for batch in planned]
        batches = [batch for batch, whole in zip(planned, full) if whole]
        held = [left[batch.rows] for batch, whole in zip(planned, full) if not whole]
        self.held = np.concatenate([np.empty(0, np.int64), *held])
        if not programs.sealed:
            # All begin to compile now; a batch waits for its own program only.
            shared = dict.fromkeys(batch.beginning for batch in batches if batch.beginning is not None)
            if engine.prefixes is not None:
                programs.start(engine.prefixes.program(one) for one in shared if one not in engine.prefixes.store)
            programs.start(dict.fromkeys(batch.bucket for batch in batches))
            if arrived and not more and anyway and not shared:
                programs.start(planner.sharing_behind(cost, planned, anyway, ready))
            elif arrived and not more and not shared:
                programs.start(planner.behind(self.lengths, cost, planned, ready, few=few))
        return deque(replace(batch, rows=left[batch.rows]) for batch in batches)


def _is_full(batch: Batch, lengths: np.ndarray) -> bool:
    """Whether no text that is to come could be added: no row is left, or where they are packed, hardly a token."""
    if batch.places is None:
        return bool(batch.rows.size == batch.bucket.rows)
    return bool(lengths[batch.rows].sum() - len(batch.rows) * _begun(batch) >= FILLED * batch.bucket.tokens)


def _begun(batch: Batch) -> int:
    """Tokens of each text that its row does not hold."""
    return 0 if batch.beginning is None else int(batch.beginning.length)
