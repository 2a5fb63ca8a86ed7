"""How fast the device computes when there is much to do, from what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket, CostModel

DECAY = 0.9
"""Weight of all earlier batches against the latest one."""

FULL = 0.5
"""A batch is full if its bucket has this share of the largest one's tokens, and this share of its rows is real."""


class Throughput:
    """Tokens per second of full batches.

    A batch of one text says little about how long a full queue takes: most of its time is the same for any number of
    texts. So only full batches count. Until one has come back, the cost model says what one would take, corrected
    by how slow the batches so far were against its prediction.

    Args:
        buckets: the shapes that may be computed.
        cost: their prices.
    """

    def __init__(self, buckets: Sequence[Bucket], cost: CostModel) -> None:
        self._cost = cost
        self._largest = max(bucket.rows * bucket.length for bucket in buckets)
        self._predicted = max(bucket.rows * bucket.length / cost.seconds(bucket) for bucket in buckets)
        self._full_tokens = self._full_seconds = 0.0
        self._measured_seconds = self._predicted_seconds = 0.0
        self._landed = 0.0

    def landed(self, bucket: Bucket, rows: int, tokens: int, sent: float, now: float) -> None:
        """A batch of so many rows and tokens (without padding), sent at ``sent``, has come back ``now``."""
        # two batches are under way at a time: the seconds in which both were are counted once
        seconds = now - max(sent, self._landed)
        self._landed = now
        if bucket.rows * bucket.length >= FULL * self._largest and _filled(bucket, rows, tokens) >= FULL:
            self._full_tokens = self._full_tokens * DECAY + tokens
            self._full_seconds = self._full_seconds * DECAY + seconds
        else:
            self._measured_seconds = self._measured_seconds * DECAY + seconds
            self._predicted_seconds = self._predicted_seconds * DECAY + self._cost.seconds(bucket)

    @property
    def tokens_per_second(self) -> float:
        """Of full batches, without their padding; 0 before any batch has come back."""
        if self._full_seconds:
            return self._full_tokens / self._full_seconds
        if self._measured_seconds:
            return self._predicted * self._predicted_seconds / self._measured_seconds
        return 0.0


def _filled(bucket: Bucket, rows: int, tokens: int) -> float:
    """Share of a batch that texts take: of its rows where each has its own, of its tokens where they are packed."""
    return rows / bucket.rows if bucket.segments == 1 else tokens / bucket.tokens
