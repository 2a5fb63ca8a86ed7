"""The tree of answers: nothing lost, nothing twice, and no branch that sees another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxpool.bench.shapes import SHAPES
from jaxpool.zero_shot.served import READS, STEPS
from jaxpool.zero_shot.tree import Cutter, Limits, Piece, Tree, grow
from tests.bench.label_costs import flops

ANSWERS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=8, unique=True)
CONTEXT = [7, 8, 9]


def predicted(piece: Piece, tree: Tree) -> dict[int, tuple[int, ...]]:
    """For each step that a piece computes: the tokens that its reader sees, and the one that it predicts."""
    found = {}
    for (slot, token), place in zip(piece.steps, piece.places):
        at = piece.reads[slot]
        until = piece.until if piece.until is not None else np.full(len(piece.ids), len(piece.ids))
        seen = [i for i in range(at + 1) if at < until[i]]
        if piece.positions is not None:
            assert piece.positions[seen].tolist() == list(range(len(seen)))
        assert place not in found
        found[place] = (*piece.ids[seen].tolist(), token)
    return found


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANSWERS, st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_every_step_sees_its_own_branch_and_is_computed_once(
    answers: list[tuple[int, ...]], room: int, reads: int, steps: int, branches: bool
) -> None:
    tree = grow(answers)
    limits = Limits(len(CONTEXT) + tree.depth + room, reads, steps, branches)
    found: dict[int, tuple[int, ...]] = {}
    for piece in Cutter(tree, limits).pieces(CONTEXT):
        assert len(piece.ids) <= limits.tokens
        assert len(piece.reads) <= reads
        assert 0 < len(piece.steps) <= steps
        assert piece.until is None or branches
        assert piece.ids[: piece.text].tolist() == CONTEXT
        new = predicted(piece, tree)
        assert not found.keys() & new.keys()
        found |= new
    assert sorted(found) == list(range(len(tree.steps)))
    for answer, places in zip(answers, tree.answers):
        assert [found[place] for place in places] == [(*CONTEXT, *answer[: i + 1]) for i in range(len(answer))]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANSWERS)
def test_a_row_holds_the_whole_tree_or_a_branch(answers: list[tuple[int, ...]]) -> None:
    tree = grow(answers)
    most = len(CONTEXT) + len(tree.tokens)
    [whole] = Cutter(tree, Limits(most)).pieces(CONTEXT)
    assert len(whole.ids) == most
    leaves = set(range(len(tree.tokens))) - set(tree.parents)
    assert len(Cutter(tree, Limits(most, branches=False)).pieces(CONTEXT)) == max(1, len(leaves))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANSWERS)
def test_shared_beginnings_are_shared(answers: list[tuple[int, ...]]) -> None:
    tree = grow(answers)
    beginnings = {answer[:i] for answer in answers for i in range(1, len(answer))}
    assert len(tree.tokens) == len(beginnings)
    assert len(tree.steps) == len({answer[:i] for answer in answers for i in range(1, len(answer) + 1)})
    assert tree.depth == max(len(answer) - 1 for answer in answers)


@pytest.mark.parametrize("context", [172, 572])
def test_twenty_labels_cost_little_more_than_one(context: int) -> None:
    """Counted at Qwen2.5-0.5B's shape: 1 to 4 tokens each, none shared, one row of a server's program."""
    shape = SHAPES["qwen2.5-0.5b"]
    labels = [tuple(range(4 * n, 4 * n + 1 + n % 4)) for n in range(20)]
    limits = Limits(1024, READS, STEPS)
    one, many = (Cutter(grow(asked), limits).pieces([1] * context) for asked in (labels[:1], labels))
    assert len(many) == 1
    assert flops([many], shape) < 1.3 * flops([one], shape)
