"""Parts come in order, cover everything once, and are worked on one ahead."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool.text.ahead import FIRST, MOST, in_parts


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5 * MOST))
def test_parts_are_everything_in_order(count: int) -> None:
    parts = list(in_parts(count, lambda start, stop: list(range(start, stop))))
    assert [one for part in parts for one in part] == list(range(count))
    assert all(0 < len(part) <= MOST for part in parts)


def test_the_next_part_is_begun_before_it_is_asked_for() -> None:
    begun = threading.Event()

    def work(start: int, stop: int) -> list[int]:
        if start:
            begun.set()
        return list(range(start, stop))

    parts = in_parts(2 * FIRST, work)
    assert len(next(parts)) == FIRST
    assert begun.wait(30)
    parts.close()


def test_an_error_comes_with_its_part() -> None:
    def work(start: int, stop: int) -> list[int]:
        if start:
            raise ValueError("the second part")
        return list(range(stop))

    parts = in_parts(2 * FIRST, work)
    assert len(next(parts)) == FIRST
    with pytest.raises(ValueError, match="second part"):
        next(parts)
