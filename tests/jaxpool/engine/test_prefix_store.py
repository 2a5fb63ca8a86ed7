"""The store of shared beginnings against a model of it, and who is found to share what."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jaxpool.engine.beginnings import BLOCK, Beginning, Owner, Recurring, Sums, divide
from jaxpool.engine.prefix_store import PrefixStore

LIMIT = 10
TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(np.array)
OWNERS = st.sampled_from([Owner(), Owner("a"), Owner(None, 1), Owner(None, 2)])


class StoreMachine(RuleBasedStateMachine):
    """Beginnings come and go; what is held, its bytes, its order and its counters equal a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.store = PrefixStore(LIMIT)
        self.model: OrderedDict[Beginning, int] = OrderedDict()
        self.counts = {"hits": 0, "misses": 0, "evictions": 0}

    @rule(text=TEXTS, owner=OWNERS, size=st.integers(0, LIMIT + 2))
    def put(self, text: np.ndarray, owner: Owner, size: int) -> None:
        beginning = Beginning.of(text, len(text), owner)
        self.store.put(beginning, size, size)
        self.model.pop(beginning, None)
        if size > LIMIT:
            return
        while sum(self.model.values()) + size > LIMIT:
            self.model.popitem(last=False)
            self.counts["evictions"] += 1
        self.model[beginning] = size

    @rule(text=TEXTS, owner=OWNERS)
    def get(self, text: np.ndarray, owner: Owner) -> None:
        beginning = Beginning.of(text, len(text), owner)
        assert self.store.get(beginning) == self.model.get(beginning)
        self.counts["hits" if beginning in self.model else "misses"] += 1
        if beginning in self.model:
            self.model.move_to_end(beginning)

    @rule(text=TEXTS, owner=OWNERS, limit=st.integers(0, 6))
    def longest(self, text: np.ndarray, owner: Owner, limit: int) -> None:
        fits = [n for n in range(1, min(limit, len(text)) + 1) if Beginning.of(text, n, owner) in self.model]
        found = self.store.longest(text, owner, min(limit, len(text)))
        assert found == (Beginning.of(text, fits[-1], owner) if fits else None)

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model.clear()

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert self.store.bytes == sum(self.model.values()) <= LIMIT
        assert len(self.store) == len(self.model)
        assert all(beginning in self.store for beginning in self.model)
        assert {name: getattr(self.store, name) for name in self.counts} == self.counts


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)


def test_a_thousand_beginnings_stay_within_the_bound() -> None:
    store, recurring = PrefixStore(1000), Recurring(most=500)
    for number in range(1000):
        text = np.full(4 * BLOCK, number)
        recurring.note(text, Owner())
        store.put(Beginning.of(text, len(text)), object(), 7 + number % 90)
        assert store.bytes <= 1000
        assert len(recurring) <= 500
    assert store.evictions == 1000 - len(store)


def test_blocks_are_counted_as_long_as_all_before_them_are_equal() -> None:
    recurring, text = Recurring(), np.arange(3 * BLOCK + 5)
    assert recurring.note(text, Owner()) == [1, 1, 1]
    assert recurring.note(text, Owner("another")) == [1, 1, 1]
    changed = text.copy()
    changed[BLOCK] += 1
    assert recurring.note(changed, Owner()) == [2, 1, 1]
    assert recurring.note(text, Owner()) == [3, 2, 2]


def worth(common: int, sums: Sums) -> tuple[float, int]:
    """A token computed costs 1, a call 2."""
    return (sums.texts - 1) * common - 2.0, common


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_division_is_exact_and_saves_what_the_best_cut_saves(texts: list[np.ndarray], random: object) -> None:
    limits = np.array([len(text) - 1 for text in texts])
    groups = divide(texts, limits, worth)
    members = [i for group in groups for i in group.texts.tolist()]
    assert len(members) == len(set(members))
    saved = 0.0
    for group in groups:
        beginnings = {tuple(texts[i][: group.length].tolist()) for i in group.texts}
        assert len(beginnings) == 1, "texts of a group share all of its tokens"
        assert all(limits[i] >= group.length for i in group.texts)
        saved += worth(group.length, Sums(len(group.texts), 0.0, 0.0))[0]

    def best(some: list[int], depth: int) -> float:
        """Every set of texts with a common beginning shares it, or parts by the next token."""
        parts: dict[int, list[int]] = {}
        for i in some:
            if len(texts[i]) > depth:
                parts.setdefault(int(texts[i][depth]), []).append(i)
        split = sum(best(part, depth + 1) for part in parts.values())
        alike = len(some) > 1 and depth > 0
        shared = min(depth, *(int(limits[i]) for i in some)) if alike else 0
        return max(split, (len(some) - 1) * shared - 2.0 if shared else 0.0)

    assert saved >= best(list(range(len(texts))), 0) - 1e-9
