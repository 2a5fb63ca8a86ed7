"""The bound on what is admitted and not yet answered, and when there will be room again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket, CostModel

MAX_WAIT = 600
"""Seconds; nobody is told to come back later than that."""


class QueueFullError(Exception):
    """There is no room for a request; what is queued now should be answered after ``retry_after`` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The server is busy; try again in {retry_after} s.")
        self.retry_after = retry_after


class Admission:
    """Counts texts and tokens from admission to answer.

    Args:
        max_texts: most texts at a time.
        max_tokens: most tokens at a time; a request that is alone may have more.
        tokens_per_second: asked for the speed of the device whenever somebody is refused; 0 if it is not known yet.

    Attributes:
        texts: admitted and not yet answered.
        tokens: of those texts; an estimate for a request that is not tokenised yet.
    """

    def __init__(self, max_texts: int, max_tokens: int, tokens_per_second: Callable[[], float]) -> None:
        self.max_texts, self.max_tokens = max_texts, max_tokens
        self.texts = self.tokens = 0
        self._tokens_per_second = tokens_per_second

    def room(self, texts: int, tokens: int) -> Room:
        """Room for a request, a context manager: entering it takes the room, leaving gives it back.

        Entering raises QueueFullError if there is not enough.
        """
        return Room(self, texts, tokens)

    def seconds_to_drain(self) -> int:
        """What is queued now divided by the speed of the device, in whole seconds; 1 before any measure."""
        speed = self._tokens_per_second()
        seconds = self.tokens / speed if speed else 1.0
        return min(max(math.ceil(seconds), 1), MAX_WAIT)


class Room:
    """What one request holds of an `Admission`."""

    __slots__ = ("_admission", "_held", "_texts", "_tokens")

    def __init__(self, admission: Admission, texts: int, tokens: int) -> None:
        self._admission, self._texts, self._tokens = admission, texts, tokens
        self._held = False

    def __enter__(self) -> Room:
        if self._held:
            raise RuntimeError("this room is taken already")
        admission = self._admission
        if admission.texts + self._texts > admission.max_texts:
            raise QueueFullError(admission.seconds_to_drain())
        self._check(admission.texts, admission.tokens + self._tokens)
        admission.texts += self._texts
        admission.tokens += self._tokens
        self._held = True
        return self

    def __exit__(self, *_error: object) -> None:
        if self._held:
            self._held = False
            self._admission.texts -= self._texts
            self._admission.tokens -= self._tokens

    def holds(self, tokens: int, texts: int) -> None:
        """The numbers of tokens, and of texts (each window of a long one counts), are known now.

        Raises:
            QueueFullError: they are more than was estimated, and more than there is room for.
        """
        if not self._held:
            raise RuntimeError("this room has been given back")
        admission = self._admission
        others = admission.texts - self._texts
        if tokens > self._tokens:
            self._check(others, admission.tokens - self._tokens + tokens)
        if texts > self._texts and others and others + texts > admission.max_texts:
            raise QueueFullError(admission.seconds_to_drain())
        admission.tokens += tokens - self._tokens
        admission.texts += texts - self._texts
        self._tokens, self._texts = tokens, texts

    def _check(self, other_texts: int, tokens: int) -> None:
        if other_texts and tokens > self._admission.max_tokens:
            raise QueueFullError(self._admission.seconds_to_drain())


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
