"""Packing: several texts in one row, and the choice between rows that are packed and rows that are padded.

`buckets` plans padded batches. Here the same texts are also packed, into rows of a few lengths, and the plan that costs
less wins: packed rows waste next to nothing and need few programs, but attention pays for the whole row's square.
Like `buckets`, numpy in, numpy out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import combinations
from statistics import NormalDist

import numpy as np

from jaxpool.engine.buckets import Batch, Bucket, Column, CostModel, grid
from jaxpool.engine.buckets import plan as plan_padded

SHORTEST_ROW = 128
"""Tokens of the shortest packed row: below it attention costs nothing worth saving, and rows are hard to fill."""

TOKENS_PER_SEGMENT = 8
"""A packed row has one place for a text per so many tokens."""

WORTH = 0.04
"""Share of the cost that packing, and every further length of its rows, must save: predictions are no better."""


FEWER_PROGRAMS = 0.05
"""Share of the cost that a fourth of the programs is worth, where all of them are compiled ahead."""


def packed_grid(
    max_length: int, token_budget: int, *, max_rows: int = 1024, row_multiple: int = 1, row_factor: int = 4
) -> tuple[Bucket, ...]:
    """Packed shapes for texts of at most ``max_length`` tokens, sorted; arguments as for `buckets.grid`.

    Rows are 128, 256, 512 … tokens long, the longest at least ``max_length``. Row counts are ``row_multiple`` times
    powers of ``row_factor``, and the most that ``token_budget`` allows.
    """
    found, length = set(), SHORTEST_ROW
    while True:
        most = max(1, min(token_budget // length, max_rows) // row_multiple)
        counts = {most} | {row_factor**k for k in range(16) if row_factor**k <= most}
        found |= {Bucket(row_multiple * n, length, length // TOKENS_PER_SEGMENT) for n in counts}
        if length >= max_length:
            return tuple(sorted(found))
        length *= 2


def ahead_grid(max_length: int, token_budget: int, *, row_multiple: int = 1) -> tuple[Bucket, ...]:
    """The shapes to compile where everything is compiled ahead and texts are packed: few, sorted.

    The packed ones, and for texts that come alone padded rows of lengths between. For ``max_length=512,
    token_budget=16384`` there are 21.
    """
    packed = packed_grid(max_length, token_budget, row_multiple=row_multiple)
    alone = grid(max_length, max_length, max_rows=1, row_multiple=row_multiple, per_octave=2)
    lengths = {bucket.length for bucket in packed}
    return tuple(sorted({*(bucket for bucket in alone if bucket.length not in lengths), *packed}))


def pays(packed: Sequence[Bucket], padded: Sequence[Bucket], cost: CostModel) -> bool:
    """Whether to compile one menu ahead rather than the other, by what they cost for a usual mix of lengths.

    The mix is lognormal, about 80 tokens on average, cut at the longest length.
    """
    normal, longest = NormalDist(np.log(60), 0.8), max(bucket.length for bucket in padded)
    mix = np.exp([normal.inv_cdf((i + 0.5) / 1024) for i in range(1024)]).round().clip(1, longest).astype(np.int64)

    def seconds(menu: Sequence[Bucket]) -> float:
        return sum(cost.seconds(batch.bucket) for batch in plan(mix, menu, cost, menu, sealed=True))

    return seconds(packed) <= (1 + FEWER_PROGRAMS) * seconds(padded)


def fits(lengths: Sequence[int], bucket: Bucket, places: np.ndarray | None = None) -> bool:
    """Whether texts of these lengths, at least one, fit into the bucket as ``places`` says."""
    if not lengths or max(lengths) > bucket.length:
        return False
    if places is None:
        return len(lengths) <= bucket.rows
    if len(places) != len(lengths) or min(places) < 0 or max(places) >= bucket.rows:
        return False
    tokens, texts = np.bincount(places, weights=lengths), np.bincount(places)
    return bool(tokens.max() <= bucket.length and texts.max() <= bucket.segments)


def doubtful(values: np.ndarray | Sequence[np.ndarray], places: np.ndarray | None) -> np.ndarray:
    """Which texts of a batch must be computed once more, each in a row of its own: int64 indices.

    Those that share a row with one whose result is not finite: attention multiplies what may not be seen by zero, and
    zero times infinity is not zero.
    """
    if places is None:
        return np.empty(0, np.int64)
    if isinstance(values, np.ndarray):
        finite = np.isfinite(values).all(axis=1)
    else:
        finite = np.array([np.isfinite(value).all() for value in values])
    if finite.all():
        return np.empty(0, np.int64)
    bad = places[~finite]
    shared = np.flatnonzero(np.bincount(places) > 1)
    return np.flatnonzero(np.isin(places, np.intersect1d(bad, shared)))


class Rows:
    """Rows being filled, each text into the fullest row that has room for it.

    Args:
        length: tokens of a row.
        segments: most texts of a row.
        most: most rows; None for no limit.
    """

    def __init__(self, length: int, segments: int, most: int | None = None) -> None:
        self.length, self.segments, self.most = length, segments, most
        self.count = 0
        self._texts: list[int] = []  # per row
        self._by_room: dict[int, list[int]] = {}  # tokens free -> rows
        self._rooms = 0  # bit i: some row has i tokens free

    def add(self, tokens: int) -> int | None:
        """The row that a text of so many tokens went to, or None if there is no room for it."""
        above = self._rooms >> tokens
        if above:
            room = tokens + (above & -above).bit_length() - 1
            rows = self._by_room[room]
            row = rows.pop()
            if not rows:
                self._rooms &= ~(1 << room)
        elif self.count == self.most or tokens > self.length:
            return None
        else:
            row, room = self.count, self.length
            self._texts.append(0)
            self.count += 1
        self._texts[row] += 1
        if self._texts[row] < self.segments and room > tokens:
            self._by_room.setdefault(room - tokens, []).append(row)
            self._rooms |= 1 << (room - tokens)
        return row


def rows_needed(lengths: Iterable[tuple[int, int]], length: int) -> int:
    """Rows of ``length`` tokens that ``Rows`` fills with texts given as ``(tokens, how many)``, longest first.

    Counts rows by their room and not by themselves: what a plan would cost is known before any text is placed. How
    many texts a row may hold is left out.
    """
    rooms: Counter[int] = Counter()  # tokens free -> rows
    count = 0
    for tokens, left in lengths:
        for room in sorted(room for room in rooms if room >= tokens):
            # A row that took one is the fullest with room for the next: it takes as many as it can.
            left = _take(rooms, room, tokens, left)
            if not left:
                break
        opened = -(-left // (length // tokens))
        count += opened
        rooms[length] += opened
        _take(rooms, length, tokens, left)
        rooms = +rooms
    return count


def _take(rooms: Counter[int], room: int, tokens: int, left: int) -> int:
    """Puts ``left`` texts into the rows with so much room, each as full as can be; returns how many are left over."""
    each = room // tokens
    full = min(rooms[room], left // each)
    rooms[room] -= full
    rooms[room - each * tokens] += full
    left -= full * each
    if left and rooms[room]:
        rooms[room] -= 1
        rooms[room - left * tokens] += 1
        return 0
    return left


def plan(
    lengths: np.ndarray | Sequence[int],
    buckets: Sequence[Bucket],
    cost: CostModel,
    compiled: Collection[Bucket] = (),
    sealed: bool = False,
) -> list[Batch]:
    """Cut texts into batches of least predicted cost, padded or packed; arguments and errors as `buckets.plan`.

    Texts up to some length are packed, each into rows of the shortest length in use that holds it; longer ones, or all,
    are padded. Every set of row lengths is priced, the simpler being preferred where little is gained.
    """
    sizes, compiled = np.asarray(lengths, dtype=np.int64), frozenset(compiled)
    padded = [b for b in buckets if b.segments == 1]
    packed = [b for b in buckets if b.segments > 1 and (not sealed or b in compiled)]
    if not packed or not sizes.size or sizes.min() < 1:
        return plan_padded(sizes, buckets if not packed else padded, cost, compiled, sealed)
    menu: dict[int, Column] = {}
    for length in sorted({b.length for b in packed}):
        menu[length] = Column([b for b in sorted(packed) if b.length == length], cost, compiled)
    chosen = _choose(sizes, menu, padded, cost, compiled, sealed)
    longest = max(chosen, default=0)
    longer = np.flatnonzero(sizes > longest)
    batches = [
        Batch(batch.bucket, longer[batch.rows]) for batch in plan_padded(sizes[longer], padded, cost, compiled, sealed)
    ]
    of_length: list[list[Batch]] = []
    carried = np.empty(0, np.int64)
    for i, length in enumerate(chosen):
        fresh = np.flatnonzero((sizes > (chosen[i - 1] if i else 0)) & (sizes <= length))
        texts = np.concatenate([fresh, carried])
        order = texts[np.argsort(-sizes[texts], kind="stable")]
        row_of = place(sizes[order], menu[length])
        if i + 1 < len(chosen):
            kept = _well_filled(sizes[order], row_of, length, chosen[i + 1], cost)
            carried, order, row_of = order[~kept], order[kept], row_of[kept]
            row_of = np.unique(row_of, return_inverse=True)[1]
        of_length.append(_batches(order, row_of, menu[length]))
    batches += [batch for some in reversed(of_length) for batch in some]
    full = any(
        batch.places is not None and np.bincount(batch.places).max() == batch.bucket.segments for batch in batches
    )
    if full and sizes.max() <= max((b.length for b in padded if not sealed or b in compiled), default=0):
        # Rows ran out of places before they ran out of tokens: that was not priced.
        other = plan_padded(sizes, padded, cost, compiled, sealed)
        return min(other, batches, key=lambda one: seconds(one, cost, compiled))
    return batches


def _choose(
    sizes: np.ndarray,
    menu: dict[int, Column],
    padded: Sequence[Bucket],
    cost: CostModel,
    compiled: frozenset[Bucket],
    sealed: bool,
) -> tuple[int, ...]:
    """The lengths of packed rows to use, ascending; empty to pad everything."""
    counts = np.bincount(sizes)
    shapes = [b for b in padded if not sealed or b in compiled]
    holds = max((b.length for b in shapes), default=0)

    @cache
    def packing(below: int, length: int) -> float:
        """Seconds of packing texts longer than ``below`` into rows of ``length``."""
        present = np.flatnonzero(counts[below + 1 : length + 1]) + below + 1
        needed = rows_needed([(int(n), int(counts[n])) for n in present[::-1]], length)
        places = menu[length].shapes[0].segments
        return _cover(menu[length], max(needed, -(-int(counts[present].sum()) // places)))[0]

    @cache
    def padding(above: int) -> float:
        """Seconds of padding texts longer than ``above``."""
        longer = sizes[sizes > above]
        if not longer.size:
            return 0.0
        if longer.max() > holds:
            return float("inf")
        return seconds(plan_padded(longer, padded, cost, compiled, sealed), cost, compiled)

    @cache
    def least(above: int) -> float:
        """Seconds that texts longer than ``above`` cost without any padding: no plan can be cheaper."""
        longer = sizes[sizes > above].astype(np.float64)
        pairs = cost.flops_per_token_pair * (longer**2).sum()
        return float((cost.flops_per_token * longer.sum() + pairs) / cost.flops_per_second)

    best: tuple[float, tuple[int, ...]] = (float("inf"), ())
    too_short = [length for length in menu if length < sizes.max()]
    for longest in reversed([*menu][: len(too_short) + 1]):
        shorter = [length for length in menu if length < longest]
        sets = [(*some, longest) for size in range(len(shorter) + 1) for some in combinations(shorter, size)]
        for packed, used in sorted((sum(map(packing, (0, *used), used)), used) for used in sets):
            worth = 1 + WORTH * len(used)
            if (packed + least(longest)) * worth < best[0]:
                best = min(best, ((packed + padding(longest)) * worth, used))
    if least(0) < best[0]:
        best = min(best, (padding(0), ()))
    if best[0] == float("inf"):
        raise ValueError(f"a text of {sizes.max()} tokens is longer than the longest bucket")
    return best[1]


def seconds(batches: Sequence[Batch], cost: CostModel, compiled: frozenset[Bucket]) -> float:
    """What a plan costs, with its compiles."""
    new = {batch.bucket for batch in batches} - compiled
    return sum(cost.seconds(batch.bucket) for batch in batches) + sum(map(cost.charge, new))


def _cover(column: Column, needed: int) -> tuple[float, int]:
    """Seconds of the cheapest batches with at least ``needed`` rows, and how many rows they have."""
    counts = np.array([bucket.rows for bucket in column.shapes])
    slots = np.append(-(-needed // counts) * counts, needed)  # a few empty rows may spare a program
    seconds = column.price(slots)
    best = int(seconds.argmin())
    return float(seconds[best]), int(slots[best])


def place(lengths: np.ndarray, column: Column) -> np.ndarray:
    """The row of each text, longest first: int64."""
    rows = Rows(column.length, column.shapes[0].segments)
    return np.fromiter((rows.add(n) for n in lengths.tolist()), np.int64, len(lengths))


def _well_filled(lengths: np.ndarray, row_of: np.ndarray, length: int, longer: int, cost: CostModel) -> np.ndarray:
    """Bool: texts whose row costs less than what they would add to rows of the ``longer`` length."""
    if not lengths.size:
        return np.empty(0, np.bool_)
    here, there = (cost.flops_per_token + n * cost.flops_per_token_pair for n in (length, longer))
    return (np.bincount(row_of, weights=lengths) * there >= length * here)[row_of]


def _batches(texts: np.ndarray, row_of: np.ndarray, column: Column) -> list[Batch]:
    """Batches of texts that have their rows, which are numbered from 0 on."""
    if not texts.size:
        return []
    by_row = np.argsort(row_of, kind="stable")
    texts, row_of = texts[by_row], row_of[by_row]
    batches, start = [], 0
    for bucket, count in column.decompose(_cover(column, int(row_of[-1]) + 1)[1]):
        for _ in range(count):
            low, high = np.searchsorted(row_of, (start, start + bucket.rows))
            if low < high:
                batches.append(Batch(bucket, texts[low:high], row_of[low:high] - start))
            start += bucket.rows
    return batches
