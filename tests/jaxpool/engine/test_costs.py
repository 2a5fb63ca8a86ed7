"""What is learned about programs: it holds against odd files, merges, corrects neighbours, and survives processes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool.engine.buckets import Bucket, CostModel, grid
from jaxpool.engine.costs import Costs

PRIOR = CostModel(2e7, 1e3, 1e11, 1e-3, 4.0)
MENU = grid(512, 4096)


class Kept:
    def __init__(self) -> None:
        self.content: bytes | None = None
        self.entries = {"a", "b"}

    def costs(self) -> Costs:
        def write(content: bytes) -> None:
            self.content = content

        return Costs(PRIOR, MENU, lambda: self.content, write, self.entries.__contains__)


def test_what_was_measured_replaces_the_formula_and_corrects_its_neighbours() -> None:
    costs, bucket, near, far = Costs(PRIOR, MENU), Bucket(8, 64), Bucket(8, 72), Bucket(1, 512)
    assert replace(costs.model, seconds_per_load=0.0) == PRIOR
    for _ in range(3):
        costs.ran(bucket, 3 * PRIOR.seconds(bucket))
        costs.ran(far, PRIOR.seconds(far))
    model = costs.model
    assert model.seconds(bucket) == pytest.approx(3 * PRIOR.seconds(bucket))
    assert 2.5 < model.seconds(near) / PRIOR.seconds(near) <= 3
    assert model.seconds(far) == pytest.approx(PRIOR.seconds(far))
    assert set(model.known) == set(MENU)


def test_a_first_run_and_disturbed_ones_give_way_to_quiet_ones() -> None:
    costs, bucket = Costs(PRIOR, MENU), Bucket(8, 64)
    costs.ran(bucket, 9.0)
    assert not costs.seconds()
    costs.ran(bucket, 8.0, disturbed=True)
    assert costs.seconds()[bucket] == 8.0
    assert costs.model.known == {bucket: 8.0}, "nothing else is foretold from it"
    costs.ran(bucket, 0.25)
    assert costs.seconds()[bucket] == 0.25
    costs.ran(bucket, 8.0, disturbed=True)
    assert costs.seconds()[bucket] == 0.25


def test_programs_on_disk_cost_their_load_and_only_while_they_lie_there() -> None:
    kept, bucket, other = Kept(), Bucket(8, 64), Bucket(8, 72)
    first = kept.costs()
    first.compiled(bucket, 6.0, "a")
    first.compiled(other, 8.0, "gone")
    model = kept.costs().model
    assert model.on_disk == {bucket}
    assert model.seconds_per_compile == 7.0
    assert model.charge(bucket) < model.charge(other) / 5
    again = kept.costs()
    again.compiled(bucket, 0.25, "a", found=True)
    assert again.model.seconds_per_load == 0.25
    assert again.model.seconds_per_compile == 7.0
    kept.entries.clear()
    assert not kept.costs().model.on_disk


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(MENU), st.floats(1e-6, 1e3)), max_size=30))
def test_processes_that_share_a_file_keep_what_each_measured(steps: list[tuple[int, Bucket, float]]) -> None:
    """Any interleaving of three processes: what one saved last of a bucket, or another after it, is there."""
    kept = Kept()
    processes = [kept.costs() for _ in range(3)]
    for who, bucket, seconds in steps:
        processes[who].ran(bucket, seconds)
        processes[who].save()
    known = kept.costs().seconds()
    ran = Counter((who, bucket) for who, bucket, _ in steps)
    assert set(known) == {bucket for (_, bucket), times in ran.items() if times > 1}  # a first run tells nothing
    for bucket, seconds in known.items():
        assert any(seconds == pytest.approx(one.seconds().get(bucket, -1), rel=0.03) for one in processes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "runs": 3, "keys": [], "compiles": [], "loads": []}',
        json.dumps({"format": 9, "runs": [[8, 64, 1.0]], "keys": [], "compiles": [1.0], "loads": []}).encode(),
        b'{"format": 1, "runs": [[8, 64, NaN], [8, -64, 1.0], [8, 64, "x"], [true, 64, 1.0], [8, 1.0]], "keys": [],'
        b' "compiles": [-1, Infinity, "a"], "loads": []}',
    ],
)
def test_an_odd_file_is_no_file(content: bytes) -> None:
    assert replace(Costs(PRIOR, MENU, lambda: content).model, seconds_per_load=0.0) == PRIOR


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_nonsense_is_not_learned(seconds: float) -> None:
    costs = Costs(PRIOR, MENU)
    costs.ran(MENU[0], seconds)
    assert replace(costs.model, seconds_per_load=0.0) == PRIOR


def test_small_batches_are_chosen_where_large_ones_leave_fast_memory() -> None:
    from jaxpool.engine.buckets import plan

    lengths = [128] * 1024
    for spill, tokens in ((1.0, 16384), (1.3, 8192)):
        cost = CostModel(2e8, 0.0, 1e14, 1e-4, 0.0, fast_tokens=10_000, spill=spill)
        assert {batch.bucket.tokens for batch in plan(lengths, grid(512, 16384), cost)} == {tokens}
