"""Threads that never keep a process alive: for work that nobody can interrupt, such as a compile or a tokenizer's."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Work = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads(Executor):
    """An executor that the interpreter does not join at its end, unlike those of ``concurrent.futures``.

    Its threads last until it is shut down.

    Args:
        count: threads at a time.
        name: of the threads.
        stack_bytes: of each thread; 0 for the platform's default.
    """

    def __init__(self, count: int, name: str, stack_bytes: int = 0) -> None:
        self._name, self._stack_bytes, self._count = name, stack_bytes, count
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed, self._process = False, os.getpid()
        self._workers: set[_Worker] = set()
        for _ in range(count):
            self._add()

    def _add(self) -> None:
        worker = _Worker(self._works, self._name)
        with _STACK_SIZE:
            before = threading.stack_size(self._stack_bytes)
            try:
                worker.start()
            finally:
                threading.stack_size(before)
        self._workers.add(worker)

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future of ``work``'s result, which a thread computes when its turn comes.

        Raises:
            RuntimeError: the executor is shut down.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._works.put((future, lambda: work(*args, **kwargs)))
        return future

    def abandon(self, future: Future[Any]) -> None:
        """Nobody waits for ``future`` any more: it is cancelled, or another thread takes the place of the one at it.

        That one ends with its work. At most `MOST_ABANDONED` times ``count`` are left so at a time; beyond it the next
        work waits for one of them.
        """
        if future.cancel() or future.done():
            return
        with self._lock:
            self._workers = {worker for worker in self._workers if worker.is_alive()}
            worker = next((worker for worker in self._workers if worker.future is future), None)
            left = sum(worker.abandoned for worker in self._workers)
            if worker is None or self._closed or left >= MOST_ABANDONED * self._count:
                return
            if worker.abandon(future):
                self._add()

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Take no more work; the threads end after what is queued, or with what they are at now.

        Args:
            wait: until they have ended.
            cancel_futures: cancel what is queued.
        """
        if os.getpid() != self._process:  # forked: the threads, and whoever held the lock, are in the parent
            return
        with self._lock:
            closed, self._closed = self._closed, True
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while True:
                    if (work := self._works.get_nowait()) is not None:
                        work[0].cancel()
            closed = False  # what ends the threads was taken out, too
        if not closed:
            for _ in self._workers:
                self._works.put(None)
        for worker in self._workers if wait else ():
            if worker is not threading.current_thread():
                worker.join()


MOST_ABANDONED = 4
"""Abandoned threads for each of the executor's own; they end with their work, which is bounded elsewhere."""

_STACK_SIZE = threading.Lock()
"""Held while the stack size of new threads, which is the process's, is another one."""


class _Worker(threading.Thread):
    """Takes one work after the other.

    Attributes:
        future: of the work it is at, or None.
        abandoned: whether it ends with that.
    """

    def __init__(self, works: queue.SimpleQueue[Work | None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._works, self._lock = works, threading.Lock()
        self.future: Future[Any] | None = None
        self.abandoned = False

    def abandon(self, future: Future[Any]) -> bool:
        """End with ``future``; False if it is done."""
        with self._lock:
            if self.future is not future or self.abandoned:
                return False
            self.abandoned = True
            return True

    def run(self) -> None:
        while (work := self._works.get()) is not None:
            self._work(*work)
            del work
            with self._lock:
                self.future = None
                if self.abandoned:
                    return

    def _work(self, future: Future[Any], work: Callable[[], Any]) -> None:
        with self._lock:
            self.future = future
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def at_work() -> bool:
    """Whether a thread of any `DaemonThreads` is at a work now.

    Native code that comes back from it while the interpreter ends aborts the process; leave with ``os._exit`` instead.
    """
    return any(isinstance(thread, _Worker) and thread.future is not None for thread in threading.enumerate())
