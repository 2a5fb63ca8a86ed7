"""Metrics against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpool.training.metrics import calibration_error, measure, score, score_several, wilson


def test_scores_of_a_small_confusion_matrix() -> None:
    # label 0: 3 of 4 found, 1 foreign; label 1: 1 of 2 found, 1 foreign; label 2: neither present nor predicted
    scores = score([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], 3)
    assert scores.count == 6
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.macro_f1 == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert scores.recall[:2] == pytest.approx((0.75, 0.5))
    assert np.isnan(scores.recall[2])
    assert scores.balanced_accuracy == pytest.approx(0.625)


def test_interval_matches_published_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 10)[0] == 0.0


def test_empty_or_uneven_input_is_refused() -> None:
    with pytest.raises(ValueError, match="0 true"):
        score([], [], 2)
    with pytest.raises(ValueError, match="cannot be compared"):
        score([0], [0, 1], 2)


def test_scores_of_several_labels() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0]], bool)
    scores = score_several(truth, np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0]], bool))
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.f1[0] == 1
    assert np.isnan(scores.f1[1])
    assert scores.f1[2] == pytest.approx(2 / 3)
    assert scores.macro_f1 == pytest.approx(5 / 6)
    assert scores.support == (1, 0, 2)


def test_errors_of_numbers() -> None:
    errors = measure(np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [4.0]]), "regression")
    assert errors.r2 == pytest.approx(1 - 1 / 8)  # type: ignore[union-attr]
    assert errors.mean_absolute == pytest.approx(1 / 3)  # type: ignore[union-attr]


def test_calibration_error() -> None:
    sure, truth = np.array([[0.9, 0.1]] * 10), np.array([0] * 9 + [1])
    assert calibration_error(sure, truth) == pytest.approx(0)
    assert calibration_error(sure, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)
