"""Threads that can be given up: what is asked gets done, whatever is abandoned, and nothing holds the process up."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from jaxpool.engine.daemon_threads import MOST_ABANDONED, DaemonThreads, at_work

ACTIONS = st.lists(st.sampled_from(["quick", "stuck", "fails", "abandon"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(actions=ACTIONS, count=st.integers(1, 2))
def test_work_is_done_whatever_is_stuck_once_that_is_abandoned(actions: list[str], count: int) -> None:
    threads, release = DaemonThreads(count, "test"), threading.Event()
    quick: list[Future[int]] = []
    failing: list[Future[float]] = []
    stuck: list[Future[bool]] = []
    abandoned = 0
    try:
        for number, action in enumerate(actions):
            if action == "quick":
                quick.append(threads.submit(abs, -number))
            elif action == "fails":
                failing.append(threads.submit(divmod, 1, 0))
            elif action == "stuck" and len(stuck) < count and abandoned + len(stuck) < MOST_ABANDONED * count:
                begun = threading.Event()
                stuck.append(threads.submit(lambda begun=begun: begun.set() or release.wait(60)))
                assert begun.wait(30)  # one thread is free, however many are left
            elif action == "abandon" and stuck:
                threads.abandon(stuck.pop(0))
                abandoned += 1
        for future in stuck:
            threads.abandon(future)
        assert [future.result(30) for future in quick] == [n for n, action in enumerate(actions) if action == "quick"]
        assert all(isinstance(future.exception(30), ZeroDivisionError) for future in failing)
    finally:
        release.set()
        threads.shutdown(wait=True)


def test_an_abandoned_work_that_has_not_begun_never_does() -> None:
    threads, release = DaemonThreads(1, "test"), threading.Event()
    begun = threading.Event()
    first = threads.submit(lambda: begun.set() or release.wait(30))
    assert begun.wait(30)
    assert at_work()
    second = threads.submit(begun.clear)
    threads.abandon(second)
    with pytest.raises(CancelledError):
        second.result()
    release.set()
    assert first.result(30)
    threads.shutdown(wait=True)
    assert begun.is_set()
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(begun.set)


def test_what_is_queued_is_cancelled_and_the_process_ends() -> None:
    code = (
        "import threading; from jaxpool.engine.daemon_threads import DaemonThreads;"
        "threads = DaemonThreads(1, 'test'); begun = threading.Event();"
        "threads.submit(lambda: begun.set() or threading.Event().wait(600)); begun.wait();"
        "queued = threads.submit(print, 'never'); threads.shutdown(cancel_futures=True); print(queued.cancelled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.split() == ["True"]
