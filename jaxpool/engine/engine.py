"""The engine: parameters on devices, programs, and two threads: one batch computes while the next is placed."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import feeding
from jaxpool.engine.adapters import Adapters, Loaded
from jaxpool.engine.batches import fill
from jaxpool.engine.beginnings import Beginning, Owner
from jaxpool.engine.buckets import Bucket, CostModel
from jaxpool.engine.costs import Costs
from jaxpool.engine.packing import fits
from jaxpool.engine.prefixes import Prefixes
from jaxpool.engine.programs import Programs
from jaxpool.errors import EngineError, ValidationError


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised text.

    Attributes:
        ids: token ids, at least one, all below the vocabulary size.
        types: segment types of the same length, or None for all zeros.
        activated: whether scores are wanted after the activation (probabilities) or before it.
        tenant: whose it is: what is computed of a text's beginning serves only texts of an equal one.
        beginning: what it begins with, and its batch computes only what follows.
        adapter: the one that it is computed with, or None; holding it keeps its slot.
    """

    ids: Sequence[int] | np.ndarray
    types: Sequence[int] | np.ndarray | None = None
    activated: bool = True
    tenant: Hashable = None
    beginning: Beginning | None = None
    adapter: Loaded | None = None

    @property
    def owner(self) -> Owner:
        """Whose it is, for what is computed of its beginning."""
        return Owner(self.tenant, 0 if self.adapter is None else self.adapter.serial)

    @property
    def slot(self) -> int:
        """Where its adapter is, from 1; 0 for none."""
        return 0 if self.adapter is None else self.adapter.slot


FORKED = (
    "This LLM was made before the process forked; its threads and its device stayed with the parent. Make the LLM in "
    "the process that uses it, or start processes with multiprocessing.get_context('spawn') instead of 'fork'."
)
NOT_PICKLED = (
    "An LLM cannot be pickled: its weights are on a device and its programs are compiled for this process. Send what "
    "it is made of (the model's name or folder) and make the LLM in the process that uses it."
)

Results = np.ndarray | list[np.ndarray]
"""float32 ``[rows, labels]``; for tasks of tokens one ``[tokens, labels]`` per row. Embeddings: width for labels.

With adapters one array per row: each has labels of its own.
"""


class _Work(NamedTuple):
    rows: Sequence[Row]
    bucket: Bucket
    places: np.ndarray | None
    future: Future[Any]

    @property
    def beginning(self) -> Beginning | None:
        return self.rows[0].beginning if self.rows else None

    @property
    def begun(self) -> int:
        return self.beginning.length if self.beginning is not None else 0

    def fits(self) -> bool:
        alike = all(row.beginning is self.beginning or row.beginning == self.beginning for row in self.rows)
        own = self.beginning is None or all(row.owner == self.beginning.owner for row in self.rows)
        places = self.begun <= self.bucket.prefix and (self.begun > 0) == (self.bucket.prefix > 0)
        lengths = [len(row.ids) - self.begun for row in self.rows]
        return alike and own and places and min(lengths, default=0) > 0 and fits(lengths, self.bucket, self.places)


class _Running(NamedTuple):
    work: _Work
    where: np.ndarray
    out: jax.Array
    started: float
    took: float | None  # where it was computed within the call that started it


class Engine:
    """Computes batches of rows. ``loading.open_engine`` makes one from a checkpoint.

    Two batches are in flight: while the device computes one, the dispatch thread pads and places the next; the fetch
    thread waits for results. In a pipeline every stage has one, and the next is placed. A batch that fails fails its
    own future and nobody else's.

    Attributes:
        spec: what the model is.
        buckets: the shapes it may compute.
        costs: what its programs take, as it is learned.
        planner: what it plans batches with.
        programs: the compiled executables.
        tokens, slots: computed by ``run`` so far: real tokens, and places for tokens, padding included.
        leaves: the parameters, for programs of other kinds; none once it is closed.
        adapters: where a model has room for some.
        prefixes: shared beginnings of texts, computed once; None where the model, or the user, has none of it.
    """

    def __init__(
        self,
        spec: Spec,
        programs: Programs,
        leaves: list[jax.Array],
        buckets: tuple[Bucket, ...],
        costs: Costs,
        prefixes: Prefixes | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.spec, self.programs, self.buckets, self.costs = spec, programs, buckets, costs
        self.planner, self._process = feeding.Planner(buckets, programs.shares_cores), os.getpid()
        self.tokens = self.slots = 0
        self.leaves, self.prefixes, self.adapters = leaves, prefixes, adapters
        self._todo: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        running: queue.Queue[_Running | None] = queue.Queue(maxsize=programs.depth)
        self._threads = [
            # The threads hold no reference to the engine: it can be collected, which stops them.
            threading.Thread(
                target=_dispatch, args=(self._todo, running, programs, leaves, spec, prefixes), daemon=True
            ),
            threading.Thread(target=_fetch, args=(running, programs, costs, adapters), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        # Also runs when the interpreter ends: a thread still inside XLA then would abort the process.
        self._stop = weakref.finalize(self, _stop, self._todo, programs, costs, self._threads, self._process)

    @property
    def cost(self) -> CostModel:
        """Predicted seconds of a batch, as they are known now."""
        return self.costs.model

    @property
    def under_way(self) -> int:
        """Batches it works on at a time: one a stage, and one that is placed."""
        return self.programs.depth + 1

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        return self.programs.compiles

    @property
    def begun(self) -> int:
        """Compiles begun so far, those that are done included; never grows once the engine is warm."""
        return self.programs.begun

    def compiling(self) -> list[Future[Any]]:
        """One future per bucket of a warm engine, done when its program is there or has failed to compile."""
        return self.programs.start(self.buckets)

    @property
    def usable(self) -> tuple[Bucket, ...]:
        """The buckets that cost no compile; while compiling on demand is allowed, all of them."""
        if not self.programs.sealed:
            return self.buckets
        ready = self.programs.ready()
        return tuple(bucket for bucket in self.buckets if bucket in ready)

    def warm(self, first: Iterable[Bucket] | None = None) -> None:
        """Begins to compile every bucket, and returns when ``first`` (default: all) have their programs.

        From then on nothing waits for a compile, and none can begin; the others become ``usable`` one by one.
        """
        every = (*self.buckets, *(() if self.prefixes is None else self.prefixes.ahead))
        self.programs.start(every)
        self.programs.seal()
        self.programs.ensure(every if first is None else first)

    def check_process(self) -> None:
        """Raise EngineError in a process that was forked from the engine's own: the threads are not here."""
        if os.getpid() != self._process:
            raise EngineError(FORKED)

    def __reduce__(self) -> Any:
        raise TypeError(NOT_PICKLED)

    def submit(self, rows: Sequence[Row], bucket: Bucket, places: np.ndarray | None = None) -> Future[Any]:
        """Queues one batch.

        Args:
            rows: texts that fit into the bucket, of one and the same ``beginning`` and, if they have one, of its owner.
            bucket: one of ``buckets``; or of ``prefixes``, with places for the beginning.
            places: for packed buckets: int ``[rows]``, the row of the bucket that each text goes to. None: each text
                has a row of its own.

        Returns:
            A future of ``Results``. Cancelling it before its turn costs nothing. It fails with
            EngineError if the engine is closed.

        Raises:
            EngineError: as `check_process`.
        """
        future: Future[Any] = Future()
        self.check_process()
        if not self._stop.alive:
            future.set_exception(EngineError("the engine is closed"))
        elif self.adapters is not None and self.adapters.headless and any(row.adapter is None for row in rows):
            future.set_exception(ValidationError("This model has no head of its own: name an adapter that brings one."))
        else:
            work = _Work(rows, bucket, places, future)
            if work.fits():
                self._todo.put(work)
            else:
                future.set_exception(EngineError(f"{len(rows)} rows do not fit {bucket}"))
        return future

    def run(self, rows: Sequence[Row], progress: Callable[[int], object] | None = None) -> Any:
        """Scores of any number of rows, planned into batches.

        Args:
            rows: tokenised texts.
            progress: called with the number of rows of each finished batch.

        Returns:
            ``Results`` in the order of ``rows``.

        Raises:
            EngineError: or whatever else the first failing batch raised.
        """
        return self.stream([rows], progress, len(rows))

    def stream(
        self,
        parts: Iterable[Sequence[Row]],
        progress: Callable[[int], object] | None = None,
        total: int | None = None,
    ) -> Any:
        """As `run`, of rows that come in parts, ``total`` in all where that is known.

        The first batches are computed before the last part is there.
        """
        self.check_process()
        values: list[Any] = []

        def found(texts: np.ndarray, results: Any) -> None:
            missing = int(texts.max()) + 1 - len(values)
            values.extend([None] * missing)
            for text, one in zip(texts.tolist(), results):
                values[text] = one

        feeding.run(self, parts, found, progress, total)
        if self.spec.per_token or self.adapters is not None:
            return values
        return np.stack(values) if values else np.empty((0, self.spec.num_labels), np.float32)

    def close(self) -> None:
        """Finishes what was submitted, then stops the threads. Safe to call twice."""
        self._stop()
        self.leaves.clear()  # in place: others hold the list, too
        if self.prefixes is not None:
            self.prefixes.store.clear()


def _stop(
    todo: queue.SimpleQueue[_Work | None],
    programs: Programs,
    costs: Costs,
    threads: list[threading.Thread],
    process: int,
) -> None:
    if os.getpid() != process:  # forked: threads and locks are the parent's
        return
    todo.put(None)
    programs.close()
    for thread in threads:
        if thread is not threading.current_thread():  # garbage may be collected in either of them
            thread.join()
    costs.save()


def _dispatch(
    todo: queue.SimpleQueue[_Work | None],
    running: queue.Queue[_Running | None],
    programs: Programs,
    leaves: list[jax.Array],
    spec: Spec,
    prefixes: Prefixes | None,
) -> None:
    """Fills, places and starts batches; never waits for a result."""
    while (work := todo.get()) is not None:
        if not work.future.set_running_or_notify_cancel():
            work = None
            continue
        try:
            begun = work.begun
            inputs, where = fill(
                [np.asarray(row.ids[begun:], np.int32) for row in work.rows],
                [None if row.types is None else np.asarray(row.types, np.int32) for row in work.rows],
                [row.activated for row in work.rows],
                work.bucket,
                bool(spec.token_types),
                work.places,
                [row.slot for row in work.rows] if programs.adapted else None,
            )
            arrays = programs.place(inputs)
            if work.beginning is not None and prefixes is not None:
                past, known = prefixes.computed(work.beginning, leaves, work.rows[0].slot)
                prefixes.saved += begun * (len(work.rows) - (not known))
                arrays = arrays._replace(past=past)
            programs.ensure((work.bucket,))  # a wait for the compiler is no part of what the batch takes
            started = time.perf_counter()
            out = programs(work.bucket, leaves, arrays)
            took = time.perf_counter() - started if _is_ready(out) else None
            running.put(_Running(work, where, out, started, took))
        except BaseException as error:
            work.future.set_exception(error)
        work = None  # as in _fetch
    running.put(None)


def _is_ready(out: Any) -> bool:
    return bool(out.is_ready())  # of every jax.Array, and not declared


def _fetch(running: queue.Queue[_Running | None], programs: Programs, costs: Costs, adapters: Adapters | None) -> None:
    """Waits for results and hands them over, padding cut off; never starts anything."""
    free, known, disturbed = 0.0, True, False
    while (item := running.get()) is not None:
        work, where, out, started, took = item
        try:
            disturbed |= programs.busy
            late = _is_ready(out)  # done before anybody looked: when is not known
            values = np.asarray(out)
            done = time.perf_counter()
            # A batch has the device from when it was started, or from when the one before it was done.
            if took is None and not late and (known or started > free):
                # Alone in a pipeline it passed stage after stage; others follow it at the pace of one.
                took = (done - started) / programs.depth if started > free else done - free
            if took is not None:
                costs.ran(work.bucket, took, disturbed=disturbed or programs.busy)
            free, known, disturbed = done, not late, programs.busy
            work.future.set_result(_results(work, where, values, adapters))
        except BaseException as error:
            work.future.set_exception(error)
        item = work = None  # type: ignore[assignment]  # what waits for the next batch must not hold an adapter's slot


def _results(work: _Work, where: np.ndarray, values: np.ndarray, adapters: Adapters | None) -> Any:
    """``Results`` of the rows of a batch, of what its program made."""
    if values.ndim == 3:
        starts = zip(work.rows, where[:, 0], where[:, 2])
        found: Any = [values[row, at : at + len(one.ids)].copy() for one, row, at in starts]
    else:
        found = values[where[:, 0] * work.bucket.segments + where[:, 1]]
    if adapters is None:
        return found
    return [adapters.answer(row.adapter, one, activated=row.activated) for row, one in zip(work.rows, found)]
