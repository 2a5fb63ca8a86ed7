"""How good a classifier is: accuracy, macro-F1, recall by label, and how far to trust an accuracy. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Scores:
    """Agreement of predictions with the truth.

    Attributes:
        count: number of texts.
        accuracy: share of texts whose predicted label is the true one.
        macro_f1: unweighted mean of the labels' F1; a label neither present nor predicted is left out of the mean.
        recall: per label, share of its texts that were found; NaN for a label without texts.
    """

    count: int
    accuracy: float
    macro_f1: float
    recall: tuple[float, ...]

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the labels present: accuracy as it would be if all labels were equally frequent."""
        return float(np.nanmean(self.recall))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson(round(self.accuracy * self.count), self.count)


def score(truth: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, labels: int) -> Scores:
    """Compares predicted label indices with true ones.

    Args:
        truth: true label of each text, ``0 .. labels - 1``.
        predicted: predicted label of each text, equally long.
        labels: number of labels.

    Raises:
        ValueError: no texts, or different lengths.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.size == 0:
        raise ValueError(f"{truth.size} true and {predicted.size} predicted labels cannot be compared")
    confusion = np.zeros((labels, labels), np.int64)  # [true, predicted]
    np.add.at(confusion, (truth, predicted), 1)
    hits, present, claimed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hits / (present + claimed)
        recall = hits / present
    return Scores(
        count=truth.size,
        accuracy=float(hits.sum() / truth.size),
        macro_f1=float(np.nanmean(f1)),
        recall=tuple(recall.tolist()),
    )


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share from ``hits`` of ``count`` (Wilson 1927); ``z`` 1.96 is 95 %."""
    share, scale = hits / count, z * z / count
    centre = (share + scale / 2) / (1 + scale)
    half = z / (1 + scale) * math.sqrt(share * (1 - share) / count + scale / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)
