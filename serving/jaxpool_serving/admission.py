"""The bound on what is admitted and not yet answered, and when there will be room again."""

from __future__ import annotations

import math
import time

MAX_WAIT = 600
"""Seconds; nobody is told to come back later than that."""

DECAY = 0.9
"""Weight of all earlier batches against the latest one in the measured rate."""


class QueueFullError(Exception):
    """There is no room for a request; what is queued now should be answered after ``retry_after`` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The server is busy; try again in {retry_after} s.")
        self.retry_after = retry_after


class Admission:
    """Counts texts and tokens from admission to answer.

    Args:
        max_texts: most texts at a time.
        max_tokens: most tokens at a time.

    Attributes:
        texts: admitted and not yet answered.
        tokens: of those texts; an estimate for a request that is not tokenised yet.
    """

    def __init__(self, max_texts: int, max_tokens: int) -> None:
        self.max_texts, self.max_tokens = max_texts, max_tokens
        self.texts = self.tokens = 0
        self._rate_tokens = self._rate_seconds = 0.0
        self._landed = 0.0

    def room(self, texts: int, tokens: int) -> Room:
        """Room for a request, a context manager that gives it back.

        Raises:
            QueueFullError: there is not enough.
        """
        if self.texts + texts > self.max_texts or (self.texts and self.tokens + tokens > self.max_tokens):
            raise QueueFullError(self.seconds_to_drain())
        return Room(self, texts, tokens)

    def landed(self, tokens: int, since: float) -> None:
        """A batch of ``tokens`` (without padding), sent at ``since`` on the monotonic clock, has come back now."""
        now = time.monotonic()
        # two batches are under way at a time: the seconds in which both were are counted once
        self._rate_seconds = self._rate_seconds * DECAY + now - max(since, self._landed)
        self._rate_tokens = self._rate_tokens * DECAY + tokens
        self._landed = now

    def seconds_to_drain(self) -> int:
        """What is queued now divided by the measured rate, in whole seconds; 1 before any measure."""
        seconds = self.tokens * self._rate_seconds / self._rate_tokens if self._rate_tokens else 1.0
        return min(max(math.ceil(seconds), 1), MAX_WAIT)


class Room:
    """What one request holds of an `Admission`; leaving the context gives it back."""

    __slots__ = ("_admission", "_texts", "_tokens")

    def __init__(self, admission: Admission, texts: int, tokens: int) -> None:
        self._admission, self._texts, self._tokens = admission, texts, tokens

    def __enter__(self) -> Room:
        self._admission.texts += self._texts
        self._admission.tokens += self._tokens
        return self

    def __exit__(self, *_error: object) -> None:
        self._admission.texts -= self._texts
        self._admission.tokens -= self._tokens

    def holds(self, tokens: int) -> None:
        """The number of tokens is known now."""
        self._admission.tokens += tokens - self._tokens
        self._tokens = tokens
