"""How good a model is: accuracy, macro-F1, figures by label, errors of numbers, and how far to trust an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxpool.checkpoints.labels import Problem


@dataclass(frozen=True, slots=True)
class Scores:
    """Agreement of predicted labels with the true ones.

    Attributes:
        count: number of texts.
        accuracy: share of texts whose predicted label is the true one; of texts of several labels, the share whose
            labels are all as they should be.
        macro_f1: unweighted mean of the labels' F1; a label neither present nor predicted is left out of the mean.
        recall: per label, share of its texts that were found; NaN for a label without texts.
        precision: per label, share of the texts given to it that are its own; NaN for a label never predicted.
        f1: per label, the harmonic mean of both; NaN for a label neither present nor predicted.
        support: per label, how many texts have it.
        confusion: texts by true (row) and predicted label; empty where a text may have several labels.
    """

    count: int
    accuracy: float
    macro_f1: float
    recall: tuple[float, ...]
    precision: tuple[float, ...] = ()
    f1: tuple[float, ...] = ()
    support: tuple[int, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the labels present: accuracy as it would be if all labels were equally frequent."""
        return float(np.nanmean(self.recall))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson(round(self.accuracy * self.count), self.count)

    @property
    def merit(self) -> float:
        """What grows when a model gets better."""
        return self.macro_f1

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}"


@dataclass(frozen=True, slots=True)
class Errors:
    """Distance of predicted numbers from the true ones.

    Attributes:
        count: number of texts.
        r2: share of the variance that the predictions explain; 0 is what the mean would reach.
        mean_absolute: mean distance.
        root_mean_square: root of the mean squared distance.
    """

    count: int
    r2: float
    mean_absolute: float
    root_mean_square: float

    @property
    def merit(self) -> float:
        """What grows when a model gets better."""
        return self.r2

    def __str__(self) -> str:
        return f"R² {self.r2:.4f}, mean absolute error {self.mean_absolute:.4g}"


def measure(targets: np.ndarray, logits_NC: np.ndarray, problem: Problem) -> Scores | Errors:
    """Figures of a model's logits ``[N, labels]`` against ``Labelled.targets``.

    Raises:
        ValueError: as ``score``.
    """
    if problem == "regression":
        off = np.asarray(logits_NC - targets, np.float64)
        spread = float(((targets - targets.mean()) ** 2).mean())
        square = float((off**2).mean())
        r2 = 1 - square / spread if spread else float(square == 0)
        return Errors(len(targets), r2, float(abs(off).mean()), math.sqrt(square))
    if problem == "multi":
        return score_several(targets > 0.5, logits_NC > 0)
    return score(targets, logits_NC.argmax(-1), logits_NC.shape[-1])


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
    return _scores(truth.size, hits.sum() / truth.size, hits, present, claimed, confusion)


def score_several(truth_NC: np.ndarray, predicted_NC: np.ndarray) -> Scores:
    """Compares sets of labels, bool ``[N, labels]``. ValueError as ``score``."""
    if truth_NC.shape != predicted_NC.shape or truth_NC.size == 0:
        raise ValueError(f"{len(truth_NC)} true and {len(predicted_NC)} predicted sets of labels cannot be compared")
    hits, present, claimed = (truth_NC & predicted_NC).sum(0), truth_NC.sum(0), predicted_NC.sum(0)
    exact = (truth_NC == predicted_NC).all(-1).mean()
    return _scores(len(truth_NC), exact, hits, present, claimed, np.zeros((0, 0), np.int64))


def _scores(
    count: int, accuracy: float, hits: np.ndarray, present: np.ndarray, claimed: np.ndarray, confusion: np.ndarray
) -> Scores:
    with np.errstate(invalid="ignore", divide="ignore"):
        f1, recall, precision = 2 * hits / (present + claimed), hits / present, hits / claimed
    known = f1[~np.isnan(f1)]
    return Scores(
        count=count,
        accuracy=float(accuracy),
        macro_f1=float(known.mean()) if len(known) else 0.0,
        recall=tuple(recall.tolist()),
        precision=tuple(precision.tolist()),
        f1=tuple(f1.tolist()),
        support=tuple(present.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share from ``hits`` of ``count`` (Wilson 1927); ``z`` 1.96 is 95 %."""
    share, scale = hits / count, z * z / count
    centre = (share + scale / 2) / (1 + scale)
    half = z / (1 + scale) * math.sqrt(share * (1 - share) / count + scale / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def calibration_error(probabilities_NC: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence from accuracy, over bins of equal width (Guo et al. 2017,
    arXiv:1706.04599).

    Args:
        probabilities_NC: ``[N, labels]``.
        truth: true label of each text.
        bins: their number.
    """
    confidence, right = probabilities_NC.max(-1), probabilities_NC.argmax(-1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == i].mean() - right[place == i].mean()) * np.mean(place == i) for i in set(place)]
    return float(sum(gaps))
