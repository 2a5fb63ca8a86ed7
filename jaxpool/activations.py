"""The activations of ``pooling.activate`` on the host, for those who want logits and scores of one computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxpool.pooling import Activation


def activate(logits: np.ndarray, kind: Activation) -> np.ndarray:
    """Scores from logits, float32 ``[…, labels]``; equal to the device's to float32 rounding.

    Computed in float64, so that only the last step rounds.
    """
    from scipy import special  # a third of a second to import, which a starting server has better use for

    x = np.asarray(logits, np.float64)
    if kind == "normalize":
        y = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    elif kind == "softmax" or (kind == "classify" and x.shape[-1] > 1):
        y = special.softmax(x, axis=-1)
    else:
        elementwise = {
            "classify": special.expit,
            "sigmoid": special.expit,
            "tanh": np.tanh,
            "relu": lambda x: np.maximum(x, 0),
            "gelu": lambda x: x * special.ndtr(x),
            "silu": lambda x: x * special.expit(x),
            "softplus": lambda x: np.logaddexp(x, 0),
            "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
            "identity": lambda x: x,
        }
        y = elementwise[kind](x)
    return np.asarray(y, np.float32)
