"""Threads in a row: one iterator runs ahead of who draws from it, some calls run side by side, order is kept."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END = object()


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items; a thread draws at most ``depth`` of them before they are asked for. Errors come in their turn."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def draw() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # handed over to who waits
            put(_END, error)

    thread = threading.Thread(target=draw, name="jaxpool-read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def side_by_side(function: Callable[[T], R], items: Iterable[T], calls: int) -> Iterator[tuple[T, R]]:
    """Each item with ``function`` of it, in order; ``calls`` of them run at a time. Errors come in their turn."""
    with ThreadPoolExecutor(calls, thread_name_prefix="jaxpool-compute") as threads:
        under_way: deque[tuple[T, Future[R]]] = deque()
        drawn, failed = iter(items), None
        try:
            while True:
                try:
                    item = next(drawn)
                except StopIteration:
                    break
                except BaseException as error:  # what was drawn before is done before
                    failed = error
                    break
                under_way.append((item, threads.submit(function, item)))
                if len(under_way) > calls:
                    first, future = under_way.popleft()
                    yield first, future.result()
            while under_way:
                first, future = under_way.popleft()
                yield first, future.result()
            if failed is not None:
                raise failed
        finally:
            for _, future in under_way:
                future.cancel()
            if hasattr(drawn, "close"):
                drawn.close()
