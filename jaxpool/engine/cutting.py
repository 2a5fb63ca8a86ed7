"""Where a row of layers is cut into stages: contiguous parts, the dearest as cheap as can be. Plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate


def cut(
    seconds: Sequence[float],
    stages: int,
    *,
    before: float = 0.0,
    after: float = 0.0,
    sizes: Sequence[float] = (),
    size_before: float = 0.0,
    size_after: float = 0.0,
    slack: float = 0.02,
) -> tuple[int, ...]:
    """Cuts units (layers, or periods of layers) into contiguous stages of at least one unit each.

    In a full pipeline every batch waits for the slowest stage, so its cost is the least possible; of the cuts that cost
    no more than ``slack`` above that, the one whose largest stage is smallest is taken.

    Args:
        seconds: cost of each unit, at least 0.
        stages: how many.
        before, after: cost of what precedes the first unit (embedding) and follows the last (head).
        sizes, size_before, size_after: bytes of the same; empty for none.
        slack: what more a batch may take where that saves memory, as a share.

    Returns:
        The first unit of each stage, and the number of units: ``stages + 1`` ascending numbers.

    Raises:
        ValueError: there are fewer units than stages, or no stages.
    """
    if not 1 <= stages <= len(seconds):
        raise ValueError(f"{len(seconds)} units cannot be cut into {stages} stages")
    sizes = sizes or [0.0] * len(seconds)
    time, size = _of_parts(seconds, before, after), _of_parts(sizes, size_before, size_after)
    least, at = _smallest_maximum(len(seconds), stages, time)
    limit = least * (1 + slack)
    lightest = _smallest_maximum(len(seconds), stages, lambda i, j: size(i, j) if time(i, j) <= limit else float("inf"))
    return lightest[1] if any(sizes) else at


def _of_parts(units: Sequence[float], before: float, after: float) -> Callable[[int, int], float]:
    """What units ``i`` up to ``j`` sum to, with what stands before the first and after the last."""
    sums = [0.0, *accumulate(units)]

    def of(i: int, j: int) -> float:
        return sums[j] - sums[i] + (before if i == 0 else 0.0) + (after if j == len(units) else 0.0)

    return of


def _smallest_maximum(units: int, stages: int, of: Callable[[int, int], float]) -> tuple[float, tuple[int, ...]]:
    """The contiguous cut whose largest part is smallest, by dynamic programming: that part, and the boundaries."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}  # units done -> largest part so far, boundaries
    for stage in range(1, stages + 1):
        left = stages - stage
        ends = range(stage, units - left + 1) if left else (units,)
        best = {
            end: min((max(most, of(start, end)), (*at, end)) for start, (most, at) in best.items() if start < end)
            for end in ends
        }
    return best[units]
