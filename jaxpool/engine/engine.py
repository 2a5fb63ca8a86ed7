"""The engine: parameters on devices, programs, and two threads: one batch computes while the next is placed."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine.buckets import Bucket, CostModel, plan
from jaxpool.engine.programs import Programs, pad
from jaxpool.errors import EngineError


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised text.

    Attributes:
        ids: token ids, at least one, all below the vocabulary size.
        types: segment types of the same length, or None for all zeros.
        activated: whether scores are wanted after the activation (probabilities) or before it.
    """

    ids: Sequence[int] | np.ndarray
    types: Sequence[int] | np.ndarray | None = None
    activated: bool = True


FORKED = (
    "This LLM was made before the process forked; its threads and its device stayed with the parent. Make the LLM in "
    "the process that uses it, or start processes with multiprocessing.get_context('spawn') instead of 'fork'."
)
NOT_PICKLED = (
    "An LLM cannot be pickled: its weights are on a device and its programs are compiled for this process. Send what "
    "it is made of (the model's name or folder) and make the LLM in the process that uses it."
)

Results = np.ndarray | list[np.ndarray]
"""float32 ``[rows, labels]``; for tasks of tokens one ``[tokens, labels]`` per row. Embeddings: width for labels."""


class _Work(NamedTuple):
    rows: Sequence[Row]
    bucket: Bucket
    future: Future[Any]


class Engine:
    """Computes batches of rows. ``loading.open_engine`` makes one from a checkpoint.

    Two batches are in flight: while the device computes one, the dispatch thread pads and places the next; the fetch
    thread waits for results. A batch that fails fails its own future and nobody else's.

    Attributes:
        spec: what the model is.
        buckets: the shapes it may compute.
        cost: predicted seconds of a batch, for the planner.
        programs: the compiled executables.
        leaves: the parameters, for programs of other kinds; none once it is closed.
    """

    def __init__(
        self,
        spec: Spec,
        programs: Programs,
        leaves: list[jax.Array],
        buckets: tuple[Bucket, ...],
        cost: CostModel,
    ) -> None:
        self.spec, self.programs, self.buckets, self.cost = spec, programs, buckets, cost
        self.leaves = leaves
        self._plans, self._process = 0, os.getpid()
        self._todo: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        running: queue.Queue[tuple[_Work, jax.Array] | None] = queue.Queue(maxsize=1)
        self._threads = [
            # The threads hold no reference to the engine: it can be collected, which stops them.
            threading.Thread(target=_dispatch, args=(self._todo, running, programs, leaves, spec), daemon=True),
            threading.Thread(target=_fetch, args=(running,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        # Also runs when the interpreter ends: a thread still inside XLA then would abort the process.
        self._stop = weakref.finalize(self, _stop, self._todo, programs, self._threads, self._process)

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
        self.programs.start(self.buckets)
        self.programs.seal()
        self.programs.ensure(self.buckets if first is None else first)

    def check_process(self) -> None:
        """Raise EngineError in a process that was forked from the engine's own: the threads are not here."""
        if os.getpid() != self._process:
            raise EngineError(FORKED)

    def __reduce__(self) -> Any:
        raise TypeError(NOT_PICKLED)

    def submit(self, rows: Sequence[Row], bucket: Bucket) -> Future[Any]:
        """Queues one batch.

        Args:
            rows: 1 to ``bucket.rows`` texts, none longer than ``bucket.length``.
            bucket: one of ``buckets``.

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
        elif not 0 < len(rows) <= bucket.rows or max(len(row.ids) for row in rows) > bucket.length:
            future.set_exception(EngineError(f"{len(rows)} rows do not fit {bucket}"))
        else:
            self._todo.put(_Work(rows, bucket, future))
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
        self.check_process()
        lengths = np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
        # What has been asked often will be asked as often again: the more plans, the less each pays of a compile.
        cost = replace(self.cost, plans_per_program=self.cost.plans_per_program + self._plans)
        self._plans += 1
        batches = plan(lengths, self.buckets, cost, self.programs.ready(), self.programs.sealed)
        # All begin to compile now; a batch waits for its own program only.
        self.programs.start(dict.fromkeys(batch.bucket for batch in batches))
        futures = [self.submit([rows[i] for i in batch.rows], batch.bucket) for batch in batches]
        found: list[np.ndarray] = [np.empty(0)] * len(rows)
        try:
            for batch, future in zip(batches, futures):
                for row, values in zip(batch.rows, future.result()):
                    found[row] = values
                if progress is not None:
                    progress(len(batch.rows))
        finally:
            for future in futures:
                future.cancel()
        if self.spec.per_token:
            return found
        return np.stack(found) if found else np.empty((0, self.spec.num_labels), np.float32)

    def close(self) -> None:
        """Finishes what was submitted, then stops the threads. Safe to call twice."""
        self._stop()
        self.leaves = []


def _stop(
    todo: queue.SimpleQueue[_Work | None], programs: Programs, threads: list[threading.Thread], process: int
) -> None:
    if os.getpid() != process:  # forked: threads and locks are the parent's
        return
    todo.put(None)
    programs.close()
    for thread in threads:
        if thread is not threading.current_thread():  # garbage may be collected in either of them
            thread.join()


def _dispatch(
    todo: queue.SimpleQueue[_Work | None],
    running: queue.Queue[tuple[_Work, jax.Array] | None],
    programs: Programs,
    leaves: list[jax.Array],
    spec: Spec,
) -> None:
    """Pads, places and starts batches; never waits for a result."""
    shardings = programs.input_shardings()
    while (work := todo.get()) is not None:
        if not work.future.set_running_or_notify_cancel():
            continue
        try:
            inputs = pad(
                [np.asarray(row.ids, np.int32) for row in work.rows],
                [None if row.types is None else np.asarray(row.types, np.int32) for row in work.rows],
                [row.activated for row in work.rows],
                work.bucket,
                bool(spec.token_types),
            )
            running.put((work, programs(work.bucket, leaves, jax.device_put(inputs, shardings))))
        except BaseException as error:
            work.future.set_exception(error)
    running.put(None)


def _fetch(running: queue.Queue[tuple[_Work, jax.Array] | None]) -> None:
    """Waits for results and hands them over, padding cut off; never starts anything."""
    while (item := running.get()) is not None:
        work, out = item
        try:
            values = np.asarray(out)[: len(work.rows)]
            per_token = values.ndim == 3
            work.future.set_result(
                [one[: len(row.ids)].copy() for one, row in zip(values, work.rows)] if per_token else values
            )
        except BaseException as error:
            work.future.set_exception(error)
