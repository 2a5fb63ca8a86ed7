"""Which of the waiting rows share the next device batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpool.engine.packing import Rows

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket, CostModel


class Chosen(NamedTuple):
    """A batch: indices of its rows, its bucket, and the bucket's row that each goes to (None: its own)."""

    rows: np.ndarray
    bucket: Bucket
    places: np.ndarray | None


class BatchSelection:
    """Chooses a bucket, and rows for it, by what they cost.

    Args:
        buckets: the shapes that are compiled.
        cost: their prices.
    """

    def __init__(self, buckets: Sequence[Bucket], cost: CostModel) -> None:
        self.buckets, self.cost = buckets, cost
        self.most_rows = max(bucket.rows for bucket in buckets)
        self._padded = [bucket for bucket in buckets if bucket.segments == 1]
        self._packed = [bucket for bucket in buckets if bucket.segments > 1]
        self._rows = np.array([bucket.rows for bucket in self._padded], np.int64)
        self._lengths = np.array([bucket.length for bucket in self._padded], np.int64)
        self._seconds = np.array([cost.seconds(bucket) for bucket in self._padded])

    def best(self, lengths: np.ndarray) -> Chosen:
        """The bucket that does most real work per second, and the rows to put into it; row 0 is among them.

        The offline planner is better by a few percent and tens of times slower: here the next choice comes
        with the next free slot, and knows who arrived meanwhile.

        Args:
            lengths: int ``[waiting]``, tokens of each row, in the order of their turns.

        Returns:
            the rows as indices into ``lengths``, the bucket, and where packed their places in it.
        """
        rate, rows, bucket = self._best_padded(lengths) if self._padded else (-1.0, np.zeros(1, np.int64), None)
        work = self._work(lengths)
        for other in self._packed:
            if other.length < lengths[0]:
                continue
            # Who comes first goes first. That all of them fit is a hope: rows fill to a percent or two.
            fitting = np.flatnonzero(lengths <= other.length)[: other.rows * other.segments]
            fitting = fitting[: np.searchsorted(np.cumsum(lengths[fitting]), other.tokens, side="right")]
            if (hoped := work[fitting].sum() / self.cost.seconds(other)) > rate:
                rate, bucket = hoped, other
        assert bucket is not None, "a row that no bucket holds is never admitted"
        if bucket.segments == 1:
            return Chosen(rows, bucket, None)
        rows, places = packed(lengths, bucket)
        return Chosen(rows, bucket, places)

    def _work(self, sizes: np.ndarray) -> np.ndarray:
        return sizes * self.cost.flops_per_token + sizes**2 * self.cost.flops_per_token_pair

    def _best_padded(self, lengths: np.ndarray) -> tuple[float, np.ndarray, Bucket]:
        order = np.argsort(-lengths, kind="stable")  # longest first: those that fit a bucket are a suffix
        sizes = lengths[order]
        work = self._work(sizes)
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
        return float(rate[best]), rows, self._padded[best]

    def smallest(self, lengths: Sequence[int]) -> Bucket:
        """The cheapest bucket in which all of these have a row of their own."""
        longest = max(lengths)
        fitting = [b for b in self.buckets if b.rows >= len(lengths) and b.length >= longest]
        return min(fitting, key=self.cost.seconds)


def packed(lengths: np.ndarray, bucket: Bucket) -> tuple[np.ndarray, np.ndarray]:
    """Which of the waiting rows go into a packed bucket, and their places: row 0, then whoever fits, in turn.

    Those whose turns come first and who fill it by their numbers are placed longest first, since the short ones fill
    what the long ones leave; then others take what room is left.
    """
    fitting = np.flatnonzero(lengths <= bucket.length)
    early = int(np.searchsorted(np.cumsum(lengths[fitting]), bucket.tokens, side="right"))
    first, later = fitting[:early], fitting[early:]
    first = first[np.argsort(-lengths[first], kind="stable")]
    rows, found, places = Rows(bucket.length, bucket.segments, bucket.rows), [], []
    for index in [0, *first[first > 0].tolist(), *later.tolist()]:
        place = rows.add(int(lengths[index]))
        if place is not None:
            found.append(index)
            places.append(place)
    return np.array(found), np.array(places)
