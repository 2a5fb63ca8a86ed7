"""Which of the waiting rows share the next device batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket, CostModel


class BatchSelection:
    """Chooses a bucket, and rows for it, by what they cost.

    Args:
        buckets: the shapes that are compiled.
        cost: their prices.
    """

    def __init__(self, buckets: Sequence[Bucket], cost: CostModel) -> None:
        self.buckets, self.cost = buckets, cost
        self.most_rows = max(bucket.rows for bucket in buckets)
        self._rows = np.array([bucket.rows for bucket in buckets])
        self._lengths = np.array([bucket.length for bucket in buckets])
        self._seconds = np.array([cost.seconds(bucket) for bucket in buckets])

    def best(self, lengths: np.ndarray) -> tuple[np.ndarray, Bucket]:
        """The bucket that does most real work per second, and the rows to put into it; row 0 is among them.

        The offline planner is better by a few percent and tens of times slower: here the next choice comes
        with the next free slot, and knows who arrived meanwhile.

        Args:
            lengths: int ``[waiting]``, tokens of each row, in the order of their turns.

        Returns:
            int ``[rows]`` indices into ``lengths``, and the bucket.
        """
        order = np.argsort(-lengths, kind="stable")  # longest first: those that fit a bucket are a suffix
        sizes = lengths[order]
        work = sizes * self.cost.flops_per_token + sizes**2 * self.cost.flops_per_token_pair
        until = np.concatenate([[0.0], np.cumsum(work)])
        first = int(np.flatnonzero(order == 0)[0])
        start = np.searchsorted(-sizes, -self._lengths)
        stop = np.minimum(start + self._rows, len(sizes))
        done = until[stop] - until[start] + np.where(first < stop, 0.0, work[first] - work[stop - 1])
        rate = np.where(self._lengths >= lengths[0], done / self._seconds, -1.0)
        best = int(rate.argmax())
        rows = order[start[best] : stop[best]]
        if first >= stop[best]:
            rows[-1] = 0
        return rows, self.buckets[best]

    def smallest(self, lengths: Sequence[int]) -> Bucket:
        """The cheapest bucket that holds all of these rows."""
        longest = max(lengths)
        fitting = [b for b in self.buckets if b.rows >= len(lengths) and b.length >= longest]
        return min(fitting, key=self.cost.seconds)
