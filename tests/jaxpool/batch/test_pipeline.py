"""Threads in a row: order, errors in their turn, and nothing left behind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool.batch.pipeline import ahead, side_by_side


def numbers(count: int, fails: bool) -> Iterator[int]:
    yield from range(count)
    if fails:
        raise ValueError("after the last")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 12), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_order_is_kept_and_an_error_comes_last(count: int, depth: int, calls: int, fails: bool) -> None:
    before = threading.active_count()
    found = []
    stream = side_by_side(lambda number: number * 2, ahead(numbers(count, fails), depth), calls)
    with pytest.raises(ValueError, match="after the last") if fails else contextlib.nullcontext():
        for item in stream:
            found.append(item)
    assert found == [(number, number * 2) for number in range(count)]
    assert threading.active_count() == before


def test_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    stream = side_by_side(lambda number: number, ahead(iter(range(10**9)), 2), 2)
    assert next(stream) == (0, 0)
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before


def test_a_failing_call_is_raised_in_its_turn() -> None:
    def call(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    stream = side_by_side(call, iter(range(6)), 3)
    assert [next(stream), next(stream)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="two"):
        next(stream)
