"""Buckets (padded shapes) and the planner that turns many text lengths into batches of least predicted cost.

A program is compiled for one shape only, so every batch is padded to a bucket of ``rows`` x ``length``. Three
costs pull against each other: padding (few buckets), calls (small buckets) and compiles (many buckets).
`plan` weighs them in one currency, seconds. Nothing here knows about JAX, tokenizers or models: numpy in,
numpy out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_FRONTIER = 16  # partial plans kept per length: within 1 % of keeping all, at a third of the time


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The shape of a batch: ``rows`` of ``length`` tokens each, with up to ``segments`` texts in a row.

    With one text per row it is padded, with several packed: texts follow one another. With none it computes what texts
    begin with, for others that have places for a ``prefix`` of so many tokens, which all their texts share and their
    rows do not hold.
    """

    rows: int
    length: int
    segments: int = 1
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """Tokens computed by one batch, padding included."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class CostModel:
    """Predicts seconds: ``seconds_per_call + flops(rows, length) / flops_per_second``, or what is known better.

    Attributes:
        flops_per_token: matmul FLOPs of one token through the backbone.
        flops_per_token_pair: attention FLOPs per (query, key) pair, summed over layers, at their own price.
        flops_per_second: sustained speed of the device (or of the whole mesh).
        seconds_per_call: constant of one dispatched batch: the call itself, and reading the weights.
        seconds_per_compile: time to compile one program.
        plans_per_program: how many plans a program is expected to serve. Programs outlive the plan that
            compiled them (in memory, and in the persistent cache), so a plan pays this fraction of the
            compile: it accepts a slightly slower first run for less padding in all later ones. 1 charges the
            whole compile.
        fast_tokens: most tokens of a batch whose activations stay in memory beside the cores.
        spill: how many times as long a token takes in larger batches.
        known: seconds of buckets that were measured, or are foretold from such: they stand in for the formula.
        seconds_per_load: time to take one program from the disk.
        on_disk: buckets whose program lies there.
    """

    flops_per_token: float
    flops_per_token_pair: float
    flops_per_second: float
    seconds_per_call: float
    seconds_per_compile: float
    plans_per_program: float = 3.0
    fast_tokens: float = float("inf")
    spill: float = 1.0
    known: Mapping[Bucket, float] = field(default_factory=dict, hash=False)
    seconds_per_load: float = 0.0
    on_disk: frozenset[Bucket] = frozenset()

    def seconds(self, bucket: Bucket) -> float:
        """Predicted seconds of one batch, its program being compiled already."""
        found = self.known.get(bucket)
        return self.formula(bucket) if found is None else found

    def formula(self, bucket: Bucket) -> float:
        """What ``seconds`` is before anything is known."""
        pairs = bucket.length * (bucket.prefix + bucket.length)
        per_row = bucket.length * self.flops_per_token + pairs * self.flops_per_token_pair
        slower = self.spill if bucket.tokens > self.fast_tokens else 1.0
        return self.seconds_per_call + slower * bucket.rows * per_row / self.flops_per_second

    def charge(self, bucket: Bucket) -> float:
        """What a plan pays for a program that is not there yet."""
        whole = self.seconds_per_load if bucket in self.on_disk else self.seconds_per_compile
        return whole / self.plans_per_program


@dataclass(frozen=True, slots=True)
class Batch:
    """One call: the texts ``rows`` (int64 indices into the caller's list).

    ``places`` are their rows in a packed bucket, int64; None: each text has a row of its own, in this order.
    ``beginning`` is what they share and their rows do not hold; None for nothing.
    """

    bucket: Bucket
    rows: np.ndarray
    places: np.ndarray | None = None
    beginning: Any = None


def grid(
    max_length: int,
    token_budget: int,
    *,
    max_rows: int = 1024,
    row_multiple: int = 1,
    per_octave: int = 16,
    row_factor: int = 2,
) -> tuple[Bucket, ...]:
    """Candidate buckets for texts of at most ``max_length`` tokens, sorted by rows, then length.

    Lengths are multiples of 8, from 16, ``per_octave`` of them from one power of two to the next, so that the finest
    padding is a near-constant share; ``max_length`` itself is always one of them. Row counts are ``row_multiple`` times
    powers of ``row_factor``, and the largest power of two that ``token_budget // length`` allows (never fewer than
    ``row_multiple``).

    The default is a menu for on-demand compilation: the planner opens only the shapes that pay. Where everything is
    compiled ahead, fewer per octave and a larger factor make fewer programs. For ``max_length=512,
    token_budget=4096`` there are 245 candidates by default, 111 with 8 and 4, 43 with 2 and 4.

    Args:
        max_length: longest text in tokens.
        token_budget: most tokens of one batch, padding included; bounds memory and tail latency.
        max_rows: most rows of a bucket.
        row_multiple: size of the mesh axis the rows are spread over.
        per_octave: lengths from one power of two to the next; a power of two.
        row_factor: from one row count to the next; a power of two, at least 2.

    Raises:
        ValueError: an argument is not positive.
    """
    for name, value in (
        ("max_length", max_length),
        ("token_budget", token_budget),
        ("max_rows", max_rows),
        ("row_multiple", row_multiple),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    buckets = []
    for length in _lengths(max_length, per_octave):
        largest = max(1, min(token_budget // length, max_rows) // row_multiple)
        powers = [2**k for k in range(largest.bit_length())]
        powers = sorted({*powers[:: row_factor.bit_length() - 1], powers[-1]})
        buckets += [Bucket(row_multiple * power, length) for power in powers]
    return tuple(sorted(buckets))


def _lengths(max_length: int, per_octave: int) -> list[int]:
    lengths, length = [], 16
    while length < max_length:
        lengths.append(length)
        octave = 1 << (length.bit_length() - 1)
        length += max(8, octave // per_octave)
    return [*lengths, max_length]


def on_demand(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """A menu to compile from when a shape is asked for: fewest rows come in powers of two only.

    So a text that arrives alone runs in one row of about its length, and none pays a compile for its exact length.
    """
    fewest, longest = min(b.rows for b in buckets), max(b.length for b in buckets)
    return tuple(b for b in buckets if b.rows > fewest or b.length == longest or b.length & (b.length - 1) == 0)


def essential(buckets: Collection[Bucket]) -> tuple[Bucket, ...]:
    """The few buckets that any text fits into with at most about half of it padding.

    From the longest length down, each time the next of at most half the length, with its fewest and its most rows:
    what a server needs before it can do without the others.
    """
    found: set[Bucket] = set()
    limit = max(bucket.length for bucket in buckets)
    while fitting := [bucket for bucket in buckets if bucket.length <= limit]:
        length = max(bucket.length for bucket in fitting)
        same = [bucket for bucket in fitting if bucket.length == length]
        found |= {min(same), max(same)}
        limit = length // 2
    return tuple(sorted(found))


def plan(
    lengths: np.ndarray | Sequence[int],
    buckets: Sequence[Bucket],
    cost: CostModel,
    compiled: Collection[Bucket] = (),
    sealed: bool = False,
) -> list[Batch]:
    """Cut texts into batches of least predicted cost; every index once, in a bucket that holds it.

    Texts are taken longest first: batches are contiguous in that order, so the empty rows of one bucket are
    filled with the next shorter texts, and a memory shortage or a long compile shows at once, not in the last
    minute. A dynamic programme over the bucket lengths, from long to short, chooses which lengths to use and
    with which row counts; its state is how many of the shorter texts were already absorbed by such empty
    rows. Where the row counts of a length divide one another, as those of `grid` do, the result equals
    brute force in every small case of the tests.

    Args:
        lengths: tokens of each text.
        buckets: the shapes to choose from.
        cost: the prices.
        compiled: buckets whose program exists; only the others are charged for a compile.
        sealed: use nothing but ``compiled``.

    Raises:
        ValueError: no bucket, a length below 1, or a text longer than the longest bucket.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    compiled = frozenset(compiled)
    menu = sorted({b for b in buckets if not sealed or b in compiled}, key=lambda b: (b.length, b.rows))
    if sizes.size == 0:
        return []
    if not menu:
        raise ValueError("no bucket to plan with" + (": none of them is compiled" if sealed else ""))
    longest = int(sizes.max())
    if sizes.min() < 1:
        raise ValueError(f"a text of {sizes.min()} tokens cannot be planned; every text needs at least one token")
    if longest > menu[-1].length:
        raise ValueError(f"a text of {longest} tokens is longer than the longest bucket ({menu[-1].length} tokens)")

    fitting = np.cumsum(np.bincount(sizes, minlength=menu[-1].length + 1))  # [length] -> texts it can hold
    columns: list[Column] = []
    for length in sorted({b.length for b in menu}):
        shapes = [b for b in menu if b.length == length]
        # A length that no text calls for only adds padding, unless it offers a row count that the length
        # below lacks, or a program that is there already.
        below = columns[-1] if columns else None
        called_for = fitting[length] > (fitting[below.length] if below else 0)
        new_rows = below and {b.rows for b in shapes} - {b.rows for b in below.shapes}
        if called_for or new_rows or not compiled.isdisjoint(shapes):
            columns.append(Column(shapes, cost, compiled))

    # Longest first; a 16-bit stable sort is a radix sort, five times faster than the general one.
    keys = sizes.astype(np.uint16) if longest < 2**16 else sizes
    order = np.argsort(keys, kind="stable")[::-1].astype(np.int64, copy=False)
    batches, start = [], 0
    for column, slots in _choose(columns, fitting[[c.length for c in columns]]):
        for bucket, count in column.decompose(slots):
            for _ in range(count):
                rows = order[start : start + bucket.rows]
                if rows.size:
                    batches.append(Batch(bucket, rows))
                start += bucket.rows
    return batches


def waste(batches: Sequence[Batch], lengths: np.ndarray | Sequence[int]) -> float:
    """Share of the computed tokens that are padding, empty rows included: 0 is none."""
    computed = sum(batch.bucket.tokens for batch in batches)
    return 1.0 - float(np.sum(lengths)) / computed if computed else 0.0


class Column:
    """All buckets of one length: the least cost of covering any number of rows with them.

    ``tail[x]`` is the least cost of at least ``x`` rows, for ``x`` up to the largest bucket; ``first[x]`` and
    ``count[x]`` say which bucket starts that cover and how often it is used, the remainder being a smaller
    tail.
    """

    def __init__(self, shapes: Sequence[Bucket], cost: CostModel, compiled: Collection[Bucket]) -> None:
        self.shapes = shapes  # rows ascending
        self.length = shapes[0].length
        self.seconds = [cost.seconds(b) for b in shapes]
        self.charges = [0.0 if b in compiled else cost.charge(b) for b in shapes]
        x = np.arange(shapes[-1].rows + 1)
        self.tail = np.where(x > 0, np.inf, 0.0)
        self.first = np.zeros(x.size, np.int64)
        self.count = np.zeros(x.size, np.int64)
        for i, bucket in enumerate(shapes):
            full, rest = np.divmod(x, bucket.rows)
            # Once this size is used for a part, the rest is covered by one more of it or by smaller ones.
            smaller = self.charges[i] + full * self.seconds[i] + np.where(full > 0, self.tail[rest], np.inf)
            whole = self.charges[i] + (full + (rest > 0)) * self.seconds[i]
            for count, total in ((full, smaller), (full + (rest > 0), whole)):
                better = total < self.tail
                self.tail = np.where(better, total, self.tail)
                self.first[better], self.count[better] = i, count[better]

    def price(self, slots: np.ndarray) -> np.ndarray:
        """Least cost of exactly-or-more ``slots`` rows, elementwise."""
        largest = self.tail.size - 1
        best = np.where(slots <= largest, self.tail[np.minimum(slots, largest)], np.inf)
        for i, bucket in enumerate(self.shapes):
            full, rest = np.divmod(slots, bucket.rows)
            total = self.charges[i] + full * self.seconds[i] + self.tail[rest]
            np.minimum(best, total, out=best, where=full > 0)
        return best

    def decompose(self, slots: int) -> list[tuple[Bucket, int]]:
        """The cover that `price` priced: buckets with their counts, largest first."""
        parts = []
        if slots >= self.tail.size:
            totals = [
                self.charges[i] + slots // b.rows * self.seconds[i] + self.tail[slots % b.rows]
                for i, b in enumerate(self.shapes)
            ]
            main = self.shapes[int(np.argmin(totals))]
            parts.append((main, slots // main.rows))
            slots %= main.rows
        while slots > 0:
            bucket, count = self.shapes[self.first[slots]], int(self.count[slots])
            parts.append((bucket, count))
            slots -= count * bucket.rows
        return parts


def _choose(columns: Sequence[Column], fitting: np.ndarray) -> list[tuple[Column, int]]:
    """The cheapest lengths to use, long first, with the rows to provide at each.

    ``fitting[j]`` is the number of texts that column ``j`` can hold. Node ``j`` means: every text too long
    for column ``j`` is done, and column ``j`` is used next; node -1 is the end. A state of a node is how many
    more texts (``ahead``) are done besides. Of two states the one with more done at less cost wins, so a node
    keeps a short frontier only.
    """
    texts = int(fitting[-1])
    fitting = np.append(fitting, 0)  # index -1: the end
    arrivals: list[list[tuple[np.ndarray, ...]]] = [[] for _ in fitting]
    states: list[tuple[np.ndarray, ...] | None] = [None] * len(fitting)
    for node in range(len(columns) - 1, -2, -1):
        if fitting[node] == texts:  # a plan may start here
            zero = np.zeros(1, np.int64)
            arrivals[node].append((np.zeros(1), zero, zero - 2, zero, zero))
        cost, ahead, *origin = (np.concatenate(parts) for parts in zip(*arrivals[node]))
        by_cost = np.argsort(cost, kind="stable")
        most = np.maximum.accumulate(ahead[by_cost])
        keep = by_cost[np.concatenate([[True], most[1:] > most[:-1]])][:_FRONTIER]
        cost, ahead = cost[keep], ahead[keep]
        states[node] = (cost, ahead, *(part[keep] for part in origin))
        if node == -1:
            break
        column = columns[node]
        targets = np.arange(-1, node)
        left = fitting[node] - ahead[:, None] - fitting[targets]  # [states, targets] texts still to cover
        rows = np.array([b.rows for b in column.shapes])
        slots = -(-np.maximum(left, 0)[..., None] // rows) * rows  # [states, targets, sizes]
        slots = np.concatenate([slots, slots + rows], axis=-1)  # one more may spare a program further down
        totals = cost[:, None, None] + column.price(slots)
        beyond = slots - left[..., None]
        source = np.broadcast_to(np.arange(cost.size)[:, None, None], slots.shape)
        for t, target in enumerate(targets):
            flat = [part[:, t].ravel() for part in (totals, beyond, source, slots)]
            arrivals[target].append((flat[0], flat[1], np.full(flat[0].size, node), flat[2], flat[3]))

    path: list[tuple[Column, int]] = []
    node, state = -1, 0
    while True:
        entry = states[node]
        assert entry is not None
        _, _, origin_node, origin_state, slots = (part[state] for part in entry)
        if origin_node == -2:
            return path[::-1]
        if slots:
            path.append((columns[origin_node], int(slots)))
        node, state = int(origin_node), int(origin_state)
