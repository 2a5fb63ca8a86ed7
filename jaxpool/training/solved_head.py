"""The last layer of a head, solved instead of descended to: penalised regression on features that stay as they are.

Logistic regression for labels, ridge regression for numbers. Both are convex, so there is one answer and no learning
rate, and with few texts it is the better start of training too (Kumar et al. 2022, arXiv:2202.10054). Shape letters:
N texts, D features, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxpool.errors import EngineError

if TYPE_CHECKING:
    from jaxpool.checkpoints.labels import Problem

PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Weights of the squared norm of the kernel against the sum over texts, from stiff to loose."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer on features: ``features @ kernel + bias``, float64 ``[D, C]`` and ``[C]``."""

    kernel: np.ndarray
    bias: np.ndarray

    def __call__(self, features_ND: np.ndarray) -> np.ndarray:
        """Logits, float64 ``[N, C]``."""
        return np.asarray(features_ND @ self.kernel + self.bias)


def log_likelihood(logits_NC: np.ndarray, targets: np.ndarray, problem: Problem) -> np.ndarray:
    """How well logits tell each text's target, float64 ``[N]``: log probability, or minus half the squared error."""
    if problem == "regression":
        return np.asarray(-0.5 * ((logits_NC - targets) ** 2).sum(-1))
    if problem == "multi":
        return np.asarray(-np.logaddexp(0, np.where(targets > 0.5, -logits_NC, logits_NC)).sum(-1))
    shifted = logits_NC - logits_NC.max(-1, keepdims=True)
    return np.asarray(shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(-1)))


def solve(
    features_ND: np.ndarray,
    targets: np.ndarray,
    weights_N: np.ndarray,
    problem: Problem,
    labels: int,
    penalty: float,
    *,
    bias: bool = True,
    offset_NC: np.ndarray | None = None,
    start: Linear | None = None,
) -> Linear:
    """The layer with the least weighted loss plus penalty. The bias is not penalised.

    Args:
        features_ND: what the layer reads.
        targets: as ``Labelled.targets`` gives them.
        weights_N: of the texts.
        problem: what the labels mean.
        labels: C.
        penalty: of ``PENALTIES``; applies to features scaled to a variance of one on average.
        bias: whether the layer has one.
        offset_NC: logits that the layer adds to (those of a head there is already), or None.
        start: a solution nearby, for speed.

    Raises:
        EngineError: the features are not finite.
    """
    from scipy.optimize import minimize

    mean_D = np.average(features_ND, axis=0, weights=weights_N) if bias else np.zeros(features_ND.shape[1])
    base_NC = np.zeros((len(features_ND), labels)) if offset_NC is None else offset_NC
    centred_ND = np.asarray(features_ND - mean_D, np.float64)
    scale = float(np.sqrt(np.average(centred_ND**2, axis=0, weights=weights_N).mean())) or 1.0
    x_ND = centred_ND / scale
    if not np.isfinite(x_ND).all():
        raise EngineError(
            "The features of the texts are not finite: the weights are damaged, or too large for float32."
        )
    width = x_ND.shape[1]
    if problem == "regression":
        rest_NC = targets - base_NC
        centre_C = np.average(rest_NC, axis=0, weights=weights_N) if bias else np.zeros(labels)
        root_N = np.sqrt(weights_N)[:, None]
        kernel_DC = _ridge(root_N * x_ND, root_N * (rest_NC - centre_C), penalty)
        return _unscaled(kernel_DC, centre_C, mean_D, scale)
    target_NC = targets if problem == "multi" else np.eye(labels)[targets]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel_DC, bias_C = flat[: width * labels].reshape(width, labels), flat[width * labels :]
        logits_NC = x_ND @ kernel_DC + bias_C + base_NC
        value = penalty / 2 * float((kernel_DC**2).sum())
        value -= float(weights_N @ log_likelihood(logits_NC, targets, problem))
        error_NC = weights_N[:, None] * (_probabilities(logits_NC, problem) - target_NC)
        bias_gradient_C = error_NC.sum(0) if bias else np.zeros(labels)
        gradient = np.concatenate([(x_ND.T @ error_NC + penalty * kernel_DC).ravel(), bias_gradient_C])
        return value / len(x_ND), gradient / len(x_ND)

    first = np.zeros((width + 1) * labels)
    if start is not None and bias:
        first[: width * labels] = (start.kernel * scale).ravel()
        first[width * labels :] = start.bias + mean_D @ start.kernel
    best = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 300, "ftol": 1e-9, "gtol": 1e-6}).x
    return _unscaled(best[: width * labels].reshape(width, labels), best[width * labels :], mean_D, scale)


def cross_validate(
    features_ND: np.ndarray,
    targets: np.ndarray,
    weights_N: np.ndarray,
    problem: Problem,
    labels: int,
    parts: Sequence[np.ndarray],
    *,
    bias: bool = True,
    offset_NC: np.ndarray | None = None,
) -> tuple[float, np.ndarray, float]:
    """Chooses the penalty by texts that were not fitted.

    Args:
        features_ND, targets, weights_N, problem, labels, bias, offset_NC: as for ``solve``.
        parts: rows held out, fold by fold.

    Returns:
        The penalty, the logits ``[N, C]`` of every text by the layer that has not seen it, their mean weighted loss.
    """
    held_NC = np.zeros((len(PENALTIES), len(features_ND), labels))
    for rows in parts:
        rest = np.setdiff1d(np.arange(len(features_ND)), rows)
        layer = None
        rest_NC, rows_NC = (None, 0.0) if offset_NC is None else (offset_NC[rest], offset_NC[rows])
        for i, penalty in enumerate(PENALTIES):
            layer = solve(
                *(features_ND[rest], targets[rest], weights_N[rest], problem, labels, penalty),
                bias=bias,
                offset_NC=rest_NC,
                start=layer,
            )
            held_NC[i, rows] = layer(features_ND[rows]) + rows_NC
    seen = np.concatenate(list(parts))
    losses = [
        -float(np.average(log_likelihood(logits_NC, targets, problem)[seen], weights=weights_N[seen]))
        for logits_NC in held_NC
    ]
    best = int(np.argmin(losses))
    return PENALTIES[best], held_NC[best], losses[best]


def _ridge(x_ND: np.ndarray, y_NC: np.ndarray, penalty: float) -> np.ndarray:
    if len(x_ND) < x_ND.shape[1]:  # the smaller of the two equivalent systems
        return np.asarray(x_ND.T @ np.linalg.solve(x_ND @ x_ND.T + penalty * np.eye(len(x_ND)), y_NC))
    return np.linalg.solve(x_ND.T @ x_ND + penalty * np.eye(x_ND.shape[1]), x_ND.T @ y_NC)


def _unscaled(kernel_DC: np.ndarray, bias_C: np.ndarray, mean_D: np.ndarray, scale: float) -> Linear:
    kernel_DC = kernel_DC / scale
    return Linear(kernel_DC, bias_C - mean_D @ kernel_DC)


def _probabilities(logits_NC: np.ndarray, problem: Problem) -> np.ndarray:
    if problem == "multi":
        return np.asarray(1 / (1 + np.exp(-np.clip(logits_NC, -500, 500))))
    shifted = np.exp(logits_NC - logits_NC.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))
