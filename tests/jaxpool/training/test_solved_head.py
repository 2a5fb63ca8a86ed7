"""Solved heads against scikit-learn's, and against what a least loss must satisfy."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpool.errors import EngineError
from jaxpool.training.solved_head import PENALTIES, cross_validate, log_likelihood, solve

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(0, 3, (90, 6)) + 5
CLASSES = (FEATURES[:, :3] + RNG.normal(0, 2, (90, 3))).argmax(-1).astype(np.int32)
ONES = np.ones(90, np.float32)


def test_logistic_regression_is_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    centred = FEATURES - FEATURES.mean(0)
    scaled = centred / np.sqrt((centred**2).mean())
    weights = RNG.uniform(0.5, 2, 90)
    layer = solve(FEATURES, CLASSES, np.ones(90), "single", 3, 2.0)
    theirs = linear_model.LogisticRegression(C=1 / 2.0, tol=1e-8, max_iter=5000).fit(scaled, CLASSES)
    np.testing.assert_allclose(log_softmax(layer(FEATURES)), theirs.predict_log_proba(scaled), atol=2e-3)
    weighed = solve(FEATURES, CLASSES, weights, "single", 3, 2.0)
    assert np.abs(log_softmax(weighed(FEATURES)) - log_softmax(layer(FEATURES))).max() > 0.01


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


@pytest.mark.parametrize("count", [4, 90])
def test_ridge_regression_is_scikit_learns(count: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, target = FEATURES[:count], FEATURES[:count, :1] * 2 - 3 + RNG.normal(0, 1, (count, 1))
    centred = features - features.mean(0)
    scaled = centred / np.sqrt((centred**2).mean())
    layer = solve(features, target, ONES[:count], "regression", 1, 3.0)
    theirs = linear_model.Ridge(alpha=3.0).fit(scaled, target).predict(scaled).reshape(count, 1)
    np.testing.assert_allclose(layer(features), theirs, atol=1e-6)


def test_without_a_bias_there_is_none() -> None:
    layer = solve(FEATURES, CLASSES, ONES, "single", 3, 1.0, bias=False)
    assert not layer.bias.any()
    several = np.eye(3, dtype=np.float32)[CLASSES]
    assert not solve(FEATURES, several, ONES, "multi", 3, 1.0, bias=False).bias.any()
    assert not solve(FEATURES, several[:, :1], ONES, "regression", 1, 1.0, bias=False).bias.any()


def test_a_good_head_is_hardly_changed_and_a_bad_one_is() -> None:
    good = solve(FEATURES, CLASSES, ONES, "single", 3, 1.0)(FEATURES)
    stiff = solve(FEATURES, CLASSES, ONES, "single", 3, PENALTIES[0], offset_NC=good)
    assert np.abs(stiff(FEATURES)).max() < 0.5
    turned = solve(FEATURES, CLASSES, ONES, "single", 3, 1.0, offset_NC=-good)
    total = turned(FEATURES) - good
    right = (total.argmax(-1) == CLASSES).mean()
    assert right > (good.argmax(-1) == CLASSES).mean() - 0.05 > 0.6 > ((-good).argmax(-1) == CLASSES).mean()


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_the_penalty_chosen_is_the_best_on_held_out_texts(problem: str) -> None:
    targets = {
        "single": CLASSES,
        "multi": np.eye(3, dtype=np.float32)[CLASSES],
        "regression": FEATURES[:, :3].astype(np.float32),
    }[problem]
    parts = [np.arange(start, 90, 3) for start in range(3)]
    penalty, held, loss = cross_validate(FEATURES, targets, ONES, problem, 3, parts)  # type: ignore[arg-type]
    assert held.shape == (90, 3)
    assert loss == pytest.approx(-log_likelihood(held, targets, problem).mean())  # type: ignore[arg-type]
    for other in (PENALTIES[0], PENALTIES[-1]):
        again = np.zeros_like(held)
        for rows in parts:
            rest = np.setdiff1d(np.arange(90), rows)
            layer = solve(FEATURES[rest], targets[rest], ONES[rest], problem, 3, other)  # type: ignore[arg-type]
            again[rows] = layer(FEATURES[rows])
        assert loss <= -log_likelihood(again, targets, problem).mean() + 1e-4  # type: ignore[arg-type]
    assert penalty in PENALTIES


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EngineError, match="not finite"):
        solve(np.array([[np.nan], [1.0]]), np.array([0, 1]), np.ones(2), "single", 2, 1.0)
