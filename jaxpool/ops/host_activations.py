"""The activations of ``pooling.activate`` on the host, for those who want logits and scores of one computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxpool.ops.pooling import Activation


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))  # overflows nowhere, and keeps its digits near 0


_ELEMENTWISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "classify": _sigmoid,  # of a single label
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (0.5 + 0.5 * np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "identity": lambda x: x,
}


def activate(logits: np.ndarray, kind: Activation) -> np.ndarray:
    """Scores from logits, float32 ``[…, labels]``; equal to the device's to float32 rounding.

    Computed in float64, so that only the last step rounds.
    """
    x = np.asarray(logits, np.float64)
    if kind == "normalize":
        y = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    elif kind == "softmax" or (kind == "classify" and x.shape[-1] > 1):
        y = np.exp(x - x.max(-1, keepdims=True))
        y /= y.sum(-1, keepdims=True)
    else:
        y = _ELEMENTWISE[kind](x)
    return np.asarray(y, np.float32)
