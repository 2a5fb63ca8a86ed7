"""Where layers are cut into stages: against every cut there is."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpool.engine.cutting import cut

COSTS = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=8)


def parts(at: tuple[int, ...], units: list[float], before: float, after: float) -> list[float]:
    found = [sum(units[first:end]) for first, end in pairwise(at)]
    found[0] += before
    found[-1] += after
    return found


@given(COSTS, st.integers(1, 8), st.integers(0, 30), st.integers(0, 30))
def test_the_dearest_stage_is_as_cheap_as_in_any_cut(
    seconds: list[float], stages: int, before: int, after: int
) -> None:
    if stages > len(seconds):
        with pytest.raises(ValueError, match="cannot be cut"):
            cut(seconds, stages)
        return
    at = cut(seconds, stages, before=before, after=after)
    assert (at[0], at[-1], len(at)) == (0, len(seconds), stages + 1)
    assert list(at) == sorted(set(at)), "every stage has a unit"
    inner = combinations(range(1, len(seconds)), stages - 1)
    least = min(max(parts((0, *some, len(seconds)), seconds, before, after)) for some in inner)
    assert max(parts(at, seconds, before, after)) == least


@given(st.data(), st.integers(1, 4))
def test_of_cuts_that_cost_the_same_the_lightest_is_taken(data: st.DataObject, stages: int) -> None:
    seconds = data.draw(st.lists(st.integers(1, 9).map(float), min_size=stages, max_size=7))
    sizes = data.draw(st.lists(st.integers(1, 9).map(float), min_size=len(seconds), max_size=len(seconds)))
    table = float(data.draw(st.integers(0, 30)))
    at = cut(seconds, stages, sizes=sizes, size_before=table, slack=0.25)
    every = [(0, *some, len(seconds)) for some in combinations(range(1, len(seconds)), stages - 1)]
    limit = 1.25 * min(max(parts(one, seconds, 0, 0)) for one in every)
    good = [one for one in every if max(parts(one, seconds, 0, 0)) <= limit]
    assert at in good
    assert max(parts(at, sizes, table, 0)) == min(max(parts(one, sizes, table, 0)) for one in good)


def test_embedding_and_head_count() -> None:
    assert cut([1.0] * 8, 2) == (0, 4, 8)
    assert cut([1.0] * 8, 2, before=2.0) == (0, 3, 8)
    assert cut([1.0] * 8, 2, after=4.0) == (0, 6, 8)
    assert cut([1.0, 1.0, 6.0, 1.0, 1.0], 3) == (0, 2, 3, 5)
