"""The planner against brute force, its invariants, and the figures it promises."""

from __future__ import annotations

import functools
import itertools
import time
from itertools import pairwise

import numpy as np
import pytest

from jaxpool.engine.buckets import Batch, Bucket, CostModel, essential, grid, plan, waste

# A BERT-like encoder of 6 layers, 384 wide, on two CPU cores.
SMALL_BERT = CostModel(
    flops_per_token=2 * 6 * 12 * 384 * 384,
    flops_per_token_pair=6 * 4 * 384,
    flops_per_second=2e11,
    seconds_per_call=1e-3,
    seconds_per_compile=0.5,
)
FREE_COMPILES = CostModel(1e6, 1e3, 1e11, 1e-3, 0.0)


def lognormal(n: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed).lognormal(np.log(60), 0.8, n)
    return np.clip(np.round(draws), 1, 512).astype(np.int64)


def seconds(batches: list[Batch], cost: CostModel, compiled: frozenset[Bucket]) -> float:
    compiles = len({b.bucket for b in batches} - compiled)
    per_program = cost.seconds_per_compile / cost.plans_per_program
    return sum(cost.seconds(b.bucket) for b in batches) + compiles * per_program


def brute_force(lengths: np.ndarray, buckets: list[Bucket], cost: CostModel, compiled: frozenset[Bucket]) -> float:
    """Least cost over every sequence of batches.

    Longest text first loses nothing: any set of batches that can hold the texts can hold them in that order.
    """
    order = sorted(lengths.tolist(), reverse=True)
    per_program = cost.seconds_per_compile / cost.plans_per_program

    @functools.cache
    def best(done: int, opened: frozenset[Bucket]) -> float:
        if done >= len(order):
            return 0.0
        return min(
            cost.seconds(b) + (0.0 if b in opened else per_program) + best(done + b.rows, opened | {b})
            for b in buckets
            if b.length >= order[done]
        )

    return best(0, compiled)


def check(batches: list[Batch], lengths: np.ndarray) -> None:
    chosen = np.concatenate([b.rows for b in batches])
    assert sorted(chosen.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert batch.rows.dtype == np.int64
        assert 0 < batch.rows.size <= batch.bucket.rows
        assert lengths[batch.rows].max() <= batch.bucket.length


@pytest.mark.parametrize("seed", range(60))
def test_plan_is_the_brute_force_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 33, rng.integers(1, 9))
    menu = [Bucket(2**r, length) for r in range(4) for length in (4, 8, 12, 16, 24, 32)]
    buckets = [menu[i] for i in rng.choice(len(menu), 6, replace=False)]
    buckets.append(Bucket(int(2 ** rng.integers(0, 3)), 32))
    compiled = frozenset(b for b in buckets if rng.random() < 0.3)
    cost = CostModel(
        1.0, float(rng.choice([0.0, 0.05])), 1.0, float(rng.choice([0, 3, 30])), float(rng.choice([0, 9, 90]))
    )
    batches = plan(lengths, buckets, cost, compiled)
    check(batches, lengths)
    assert seconds(batches, cost, compiled) == pytest.approx(brute_force(lengths, buckets, cost, compiled))


@pytest.mark.parametrize("seed", range(12))
def test_every_text_once_in_a_bucket_that_holds_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    longest = int(rng.integers(1, 3000))
    lengths = rng.integers(1, longest + 1, rng.integers(1, 700))
    row_multiple = int(rng.choice([1, 2, 3, 8]))
    buckets = grid(
        longest, int(rng.integers(1, 20_000)), row_multiple=row_multiple, per_octave=int(rng.choice([2, 8, 16]))
    )
    compiled = {b for b in buckets if rng.random() < 0.2}
    batches = plan(lengths, buckets, SMALL_BERT, compiled)
    check(batches, lengths)
    assert all(b.bucket.rows % row_multiple == 0 for b in batches)
    upper = [b.bucket.length for b in batches]
    assert upper == sorted(upper, reverse=True), "long batches come first"


def test_waste_below_six_percent_with_realistic_compiles() -> None:
    lengths = lognormal(10_000)
    batches = plan(lengths, grid(512, 4096), SMALL_BERT)
    check(batches, lengths)
    padded = sum(b.bucket.rows * b.bucket.length for b in batches)
    assert waste(batches, lengths) == pytest.approx(1 - lengths.sum() / padded)
    assert waste(batches, lengths) < 0.06
    assert len({b.bucket for b in batches}) <= 32


def test_waste_below_five_percent_when_everything_is_compiled() -> None:
    lengths, buckets = lognormal(10_000), grid(512, 4096)
    assert waste(plan(lengths, buckets, SMALL_BERT, buckets, sealed=True), lengths) < 0.05


def test_dearer_compiles_open_fewer_programs() -> None:
    lengths, opened = lognormal(2_000), []
    for compile_seconds in (0.0, 0.1, 1.0, 10.0, 1000.0):
        cost = CostModel(2e7, 9e3, 2e11, 1e-3, compile_seconds)
        opened.append(len({b.bucket for b in plan(lengths, grid(512, 4096), cost)}))
    assert opened == sorted(opened, reverse=True)
    assert opened[0] > 20
    assert opened[-1] == 1


def test_a_compiled_program_is_preferred_to_a_slightly_better_new_one() -> None:
    lengths, ready = np.full(4, 20), Bucket(4, 32)
    buckets = [Bucket(4, 24), ready]
    assert {b.bucket for b in plan(lengths, buckets, SMALL_BERT)} == {Bucket(4, 24)}
    assert {b.bucket for b in plan(lengths, buckets, SMALL_BERT, [ready])} == {ready}
    many = np.full(100_000, 20)  # here the compile pays
    assert {b.bucket for b in plan(many, buckets, SMALL_BERT, [ready])} == {Bucket(4, 24)}


def test_sealed_uses_nothing_but_compiled() -> None:
    buckets = grid(512, 4096)
    compiled = {Bucket(8, 512), Bucket(16, 128), Bucket(1, 128)}
    lengths = lognormal(3_000)
    batches = plan(lengths, buckets, SMALL_BERT, compiled, sealed=True)
    check(batches, lengths)
    assert {b.bucket for b in batches} <= compiled


def test_empty_slots_of_a_long_bucket_take_shorter_texts() -> None:
    lengths = np.array([100, 10, 10, 10])
    batches = plan(lengths, [Bucket(4, 16), Bucket(4, 128)], FREE_COMPILES)
    assert [(b.bucket, b.rows.size) for b in batches] == [(Bucket(4, 128), 4)]


def test_equal_input_gives_equal_plan_and_order_does_not_change_the_cost() -> None:
    lengths = lognormal(500)
    first, again = (plan(lengths, grid(512, 4096), SMALL_BERT) for _ in range(2))
    assert [b.rows.tolist() for b in first] == [b.rows.tolist() for b in again]
    shuffled = plan(np.random.default_rng(1).permutation(lengths), grid(512, 4096), SMALL_BERT)
    assert [b.bucket for b in shuffled] == [b.bucket for b in first]


def test_edges() -> None:
    buckets = grid(512, 4096)
    assert plan(np.array([], np.int64), buckets, SMALL_BERT) == []
    assert plan([], buckets, SMALL_BERT) == []
    [only] = plan([512], buckets, SMALL_BERT)
    assert only.bucket == Bucket(1, 512)
    assert only.rows.tolist() == [0]
    assert waste([], []) == 0.0


@pytest.mark.parametrize(
    ("lengths", "arguments", "words"),
    [
        ([10, 513], {}, "513 tokens is longer than the longest bucket .512 tokens"),
        ([10, 0], {}, "a text of 0 tokens"),
        ([10], {"sealed": True}, "none of them is compiled"),
        ([300], {"sealed": True, "compiled": [Bucket(1, 256)]}, "longest bucket .256 tokens"),
    ],
)
def test_impossible_plans_are_refused_in_words(lengths: list[int], arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(lengths, grid(512, 4096), SMALL_BERT, **arguments)


@pytest.mark.parametrize(("per_octave", "row_factor"), [(16, 2), (8, 4), (2, 4)])
@pytest.mark.parametrize("max_length", [1, 15, 16, 17, 100, 512, 8192])
@pytest.mark.parametrize(("budget", "row_multiple"), [(1, 1), (1000, 1), (4096, 8), (65536, 3)])
def test_grid(max_length: int, budget: int, row_multiple: int, per_octave: int, row_factor: int) -> None:
    buckets = grid(max_length, budget, row_multiple=row_multiple, per_octave=per_octave, row_factor=row_factor)
    lengths = sorted({b.length for b in buckets})
    assert list(buckets) == sorted(set(buckets))
    assert lengths[-1] == max_length
    assert all(length % 8 == 0 for length in lengths[:-1])
    assert all(b - a <= max(8, a / per_octave) for a, b in itertools.pairwise(lengths))
    for bucket in buckets:
        assert bucket.rows % row_multiple == 0
        assert bucket.tokens <= budget or bucket.rows == row_multiple
    assert {Bucket(row_multiple, length) for length in lengths} <= set(buckets)


def test_grid_sizes_stay_as_documented() -> None:
    assert len(grid(512, 4096)) == 245
    assert len(grid(512, 4096, per_octave=8, row_factor=4)) == 111
    assert len(grid(512, 4096, per_octave=2, row_factor=4)) == 43
    assert max(b.rows for b in grid(512, 10**9, max_rows=256)) == 256


@pytest.mark.parametrize("arguments", [(0, 4096), (512, 0)])
def test_grid_refuses_nonsense(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        grid(*arguments)


def test_planning_is_fast() -> None:
    """Promised: 50 ms for 10,000 texts, 1 s for a million. Seconds of this process, and a margin for busy machines."""
    for n, limit in ((10_000, 0.5), (1_000_000, 10.0)):
        lengths, buckets, best = lognormal(n), grid(512, 4096), np.inf
        for _ in range(3):
            start = time.process_time()
            plan(lengths, buckets, SMALL_BERT)
            best = min(best, time.process_time() - start)
        assert best < limit


def test_essential_buckets_hold_any_text_with_at_most_half_of_it_padding() -> None:
    buckets = grid(500, 1024, per_octave=8, row_factor=4)
    few = essential(buckets)
    assert set(few) <= set(buckets)
    assert len(few) < len(buckets) / 4
    lengths = sorted({bucket.length for bucket in few})
    assert lengths[-1] == 500
    assert all(longer <= 2.5 * shorter for shorter, longer in pairwise(lengths))  # lengths are multiples of 8
    for length in lengths:
        rows = [bucket.rows for bucket in buckets if bucket.length == length]
        assert {bucket.rows for bucket in few if bucket.length == length} == {min(rows), max(rows)}
