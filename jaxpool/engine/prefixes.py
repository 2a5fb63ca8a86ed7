"""Shared beginnings of texts, computed once: which are worth it, the batches behind them, and what is kept of them.

Only for causal models whose pooling reads a text's last tokens, and for language models. Programs come in few sizes: a
beginning is computed in one row, padded to a power of two, and what follows it in packed or padded rows, by programs
with places for so many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.batches import Past, pad
from jaxpool.engine.beginnings import BLOCK, Beginning, Owner, Recurring, Sums, divide
from jaxpool.engine.buckets import Batch, Bucket, CostModel, grid
from jaxpool.engine.packing import packed_grid, plan, seconds
from jaxpool.engine.prefix_store import PrefixStore
from jaxpool.engine.programs import Programs

if TYPE_CHECKING:
    from jaxpool.engine.engine import Row

SHORTEST, LONGEST = 128, 4096
"""Places for tokens of a beginning: powers of two from one to the other. What is longer is read with the text."""

LONGEST_REST = 512
"""Most tokens behind a beginning, where the beginning has no more places itself; longer texts are read whole."""

LEAST = 16
"""Fewest tokens worth sharing."""

FREE_SHARE = 0.1
"""Share of the memory that is free beside the weights which the store may take."""


def suits(spec: Spec) -> bool:
    """Whether a model's texts can go on from what was computed of their beginnings, exactly."""
    continues = getattr(spec.config, "continues", None)
    reads_the_end = spec.pooling in ("LAST", "EOS", "NOT_PAD") and not spec.per_token
    plain = (reads_the_end or spec.language is not None) and not spec.token_types
    return plain and continues is not None and continues(spec.max_length)


def menus(max_length: int, token_budget: int, row_multiple: int, *, ahead: bool) -> dict[int, tuple[Bucket, ...]]:
    """Places for a beginning -> shapes of what may follow it.

    Args:
        max_length, token_budget, row_multiple: as for `buckets.grid`.
        ahead: whether all are compiled: then they are fewer.
    """
    found, reach = {}, SHORTEST
    while reach <= LONGEST and reach < 2 * max_length:
        longest = min(max_length, LONGEST_REST if ahead else max(reach, LONGEST_REST))
        # Scores are of every token of the batch with every place: their memory stays the same.
        budget = max(64 * row_multiple, token_budget * LONGEST_REST // max(reach, LONGEST_REST))
        shapes = {*packed_grid(longest, budget, row_multiple=row_multiple, row_factor=16 if ahead else 4)}
        if ahead:
            shapes.add(Bucket(row_multiple, min(64, max_length)))
        else:
            shapes |= {*grid(longest, budget, row_multiple=row_multiple, per_octave=2)}
        found[reach] = tuple(sorted(replace(shape, prefix=reach) for shape in shapes))
        reach *= 4 if ahead else 2
    return found


class Prefixes:
    """What one engine knows of its texts' beginnings.

    Args:
        spec: of the model.
        programs: that compute.
        shapes: from `menus`; those of beginnings that the store has room for are kept.
        limit: most bytes on each device that the store takes; None for a share of what is free.
        ahead: as for `menus`.

    Attributes:
        store: what was computed.
        shapes: places for a beginning -> shapes of what may follow it.
        saved: tokens of texts that were not computed because the store had them.
    """

    def __init__(
        self,
        spec: Spec,
        programs: Programs,
        shapes: dict[int, tuple[Bucket, ...]],
        limit: int | None = None,
        *,
        ahead: bool,
    ) -> None:
        self._spec, self._programs, self._ahead = spec, programs, ahead
        self.store = PrefixStore(free_bytes(programs.mesh) if limit is None else limit)
        # What the store has no room for would be computed again for every batch.
        per_place = programs.noted_bytes(SHORTEST) / SHORTEST if shapes else 0.0
        self.shapes = {reach: menu for reach, menu in shapes.items() if reach * per_place <= self.store.limit}
        self._recurring = Recurring()
        self.saved = 0

    @property
    def ahead(self) -> tuple[Bucket, ...]:
        """Every shape of a program that beginnings need, where all are compiled ahead; else none.

        Hundreds to choose from are not hundreds to compile: some 400 programs take all memory maps of a process.
        """
        if not self._ahead:
            return ()
        first = [self._programs.beginning(reach) for reach in self.shapes]
        return (*first, *(bucket for shapes in self.shapes.values() for bucket in shapes))

    def menu(self, length: int, ready: frozenset[Bucket] | None = None) -> tuple[Bucket, ...]:
        """Shapes of what may follow a beginning of so many tokens; if ``ready`` is given, only of these."""
        reach = self._reach(length)
        shapes = self.shapes.get(reach, ())
        if ready is None:
            return shapes
        if self._programs.beginning(reach) not in ready:
            return ()
        return tuple(shape for shape in shapes if shape in ready)

    def _reach(self, length: int) -> int:
        return max(SHORTEST, 1 << (length - 1).bit_length())

    def limit(self, ids: np.ndarray) -> int:
        """Most tokens of a text that a beginning may hold: what pooling reads, or the last one, stays with the text."""
        spec, last = self._spec, len(ids) - 1
        if spec.pooling == "LAST":
            return last
        marks = np.flatnonzero(ids == spec.eos_token if spec.pooling == "EOS" else ids != spec.pad_token)
        if marks.size:
            return int(marks[-1])
        return last if spec.pooling == "EOS" else 0

    def plan(
        self,
        rows: Sequence[Row],
        lengths: np.ndarray,
        cost: CostModel,
        ready: frozenset[Bucket],
        whole: Callable[[np.ndarray], list[Batch]],
        *,
        sealed: bool,
    ) -> tuple[list[Batch], list[Batch]]:
        """The batches of some texts, behind shared beginnings where that costs less; and those with them anyway.

        The latter are empty where nothing worth a word is shared: they tell what programs would serve later calls.

        Args:
            rows, lengths: the texts, and the tokens of each.
            cost: the prices.
            ready: programs that need no compile.
            whole: the batches of texts of such lengths that are read whole.
            sealed: use nothing but what is ready.
        """
        usable = ready if sealed else None
        plain = whole(lengths)
        groups = self._groups(rows, lengths, cost, usable)
        if not groups:
            return plain, []
        batches, others, first = [], np.ones(len(rows), np.bool_), set()
        for beginning, texts in groups:
            menu = self.menu(beginning.length, usable)
            others[texts] = False
            for batch in plan(lengths[texts] - beginning.length, menu, cost, ready, sealed):
                batches.append(replace(batch, rows=texts[batch.rows], beginning=beginning))
            if beginning not in self.store:
                first.add(beginning)
        left = np.flatnonzero(others)
        batches += [replace(batch, rows=left[batch.rows]) for batch in (whole(lengths[left]) if left.size else [])]
        anyway = [*batches, *(Batch(self.program(one), np.empty(0, np.int64)) for one in first)]
        return batches if seconds(anyway, cost, ready) < seconds(plain, cost, ready) else plain, anyway

    def program(self, beginning: Beginning) -> Bucket:
        """What computes a beginning."""
        return self._programs.beginning(self._reach(beginning.length))

    def _groups(
        self, rows: Sequence[Row], lengths: np.ndarray, cost: CostModel, usable: frozenset[Bucket] | None
    ) -> list[tuple[Beginning, np.ndarray]]:
        """Beginnings worth computing, or computed already, and the texts (indices) behind each."""
        ids = [np.asarray(row.ids, np.int32) for row in rows]
        limits = np.array([self.limit(one) for one in ids])
        found: dict[Beginning, list[int]] = {}
        left = set(range(len(rows)))

        def add(beginning: Beginning, texts: Sequence[int]) -> None:
            longest = max((shape.length for shape in self.menu(beginning.length, usable)), default=0)
            fits = [i for i in texts if lengths[i] - beginning.length <= longest and limits[i] >= beginning.length]
            left.difference_update(fits)
            if fits:
                found.setdefault(beginning, []).extend(fits)

        def worth(common: int, sums: Sums) -> tuple[float, int]:
            return max((self._saving(cost, length, sums, usable), length) for length in rounded(common))

        owners: dict[Owner, list[int]] = {}
        for i, row in enumerate(rows):
            if limits[i] >= LEAST:
                owners.setdefault(row.owner, []).append(i)
        for owner, members in owners.items():
            for group in divide([ids[i] for i in members], limits[members], worth):
                texts = [members[i] for i in group.texts]
                beginning = Beginning.of(ids[texts[0]], group.length, owner)
                known = self.store.longest(ids[texts[0]], owner, group.length)
                if known is not None and known != beginning:
                    sums = _sums(lengths[texts])
                    again = self._saving(cost, group.length, sums, usable)
                    if self._saving(cost, known.length, sums, usable, computed=True) >= again:
                        beginning = known
                add(beginning, texts)
        if len(self.store):
            for i in sorted(left):
                known = self.store.longest(ids[i], rows[i].owner, int(limits[i]))
                if known is not None:
                    sums = _sums(lengths[[i]])
                    if self._saving(cost, known.length, sums, usable, computed=True) > 0:
                        add(known, [i])
        return [(beginning, np.array(texts)) for beginning, texts in found.items()]

    def _saving(
        self, cost: CostModel, length: int, sums: Sums, usable: frozenset[Bucket] | None, *, computed: bool = False
    ) -> float:
        """Predicted seconds that some texts save by sharing so many tokens; nothing is not worth the trouble."""
        if length < LEAST or not self.menu(length, usable):
            return 0.0
        reach, rest = self._reach(length), sums.tokens - sums.texts * length
        squares = sums.squares - 2 * length * sums.tokens + sums.texts * length**2
        tokens, pairs = sums.tokens - rest, sums.squares - squares - reach * rest
        saved = (tokens * cost.flops_per_token + pairs * cost.flops_per_token_pair) / cost.flops_per_second
        return saved - (0.0 if computed else cost.seconds(self._programs.beginning(reach)))

    def find(self, row: Row, cost: CostModel) -> Beginning | None:
        """What a text that came alone should go on from, or None; it is remembered for those to come.

        An entry of the store, or as much as so many texts before began with that computing it once more pays.
        """
        ids = np.asarray(row.ids, np.int32)
        limit, ready = self.limit(ids), self._programs.ready()
        if limit < LEAST:
            return None
        known = self.store.longest(ids, row.owner, limit)
        so_far = 0 if known is None else known.length
        best, length, size = 0.0, so_far, float(len(ids))
        for number, count in enumerate(self._recurring.note(ids[:limit], row.owner), 1):
            if count > 1 and number * BLOCK > so_far and (tokens := number * BLOCK) <= LONGEST:
                # As many are to come as have come.
                like_it = Sums(count, count * size, count * size**2)
                gained = self._saving(cost, tokens, like_it, ready)
                gained -= self._saving(cost, so_far, like_it, ready, computed=True)
                if gained > best:
                    best, length = gained, tokens
        longest = max((shape.length for shape in self.menu(length, ready)), default=0) if length else 0
        return Beginning.of(ids, length, row.owner) if 0 < len(ids) - length <= longest else None

    def computed(self, beginning: Beginning, leaves: list[jax.Array], slot: int = 0) -> tuple[Past, bool]:
        """What programs need of a beginning, from the store or computed now, and whether the store had it.

        ``slot`` is where its owner's adapter is now, from 1; 0 for none. Whoever asks keeps the adapter there.
        """
        found = self.store.get(beginning)
        if found is not None:
            return found, True
        programs, bucket = self._programs, self.program(beginning)
        slots = [slot] if programs.adapted else None
        inputs = pad([beginning.tokens], [None], [False], bucket, bool(self._spec.token_types), slots)
        programs.ensure((bucket,))
        arrays = sharding.placed(inputs, programs.input_sharding)
        # Waits: what failed on the device must not be kept for others.
        notes = jax.block_until_ready(programs(bucket, leaves, arrays))
        length = sharding.placed(np.asarray(beginning.length, np.int32), sharding.whole(programs.mesh))
        past = Past(bucket.length, length, notes)
        self.store.put(beginning, past, sharding.bytes_of(notes))
        return past, False


def rounded(length: int) -> set[int]:
    """So many tokens, or as few as leave no places empty: the others are read with the text."""
    below = 1 << (max(length, 1).bit_length() - 1)
    return {min(length, LONGEST), min(below, LONGEST)}


def _sums(lengths: np.ndarray) -> Sums:
    sizes = lengths.astype(np.float64)
    return Sums(len(sizes), sizes.sum(), (sizes**2).sum())


def free_bytes(mesh: Any) -> int:
    """The store's share of the memory of a device; of the host's on the CPU."""
    stats = mesh.local_devices[0].memory_stats() if mesh.devices.flat[0].platform != "cpu" else None
    if stats:
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(FREE_SHARE * max(free, 0))
