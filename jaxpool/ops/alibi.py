"""Attention with linear biases: a key's score grows with its position (Press et al. 2021, arXiv:2108.12409)."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class Alibi:
    """The biases of one model.

    Attributes:
        slopes: per head, what a score gains per position.
        scale: factor on the biases.
        bfloat16: whether slope times position is rounded to bfloat16 before it is scaled, as Falcon was trained.
    """

    slopes: tuple[float, ...]
    scale: float = 1.0
    bfloat16: bool = False


def biases(alibi: Alibi, length: int) -> np.ndarray:
    """What is added to the score of each key: float32 ``[H, 1, S]``.

    It counts positions from the first key, not from the query: a softmax does not see the difference.
    """
    slopes = np.asarray(alibi.slopes, np.float32)
    if alibi.bfloat16:
        slopes = slopes.astype(ml_dtypes.bfloat16).astype(np.float32)
    bias_HS = slopes[:, None] * np.arange(length, dtype=np.float32)
    if alibi.bfloat16:
        bias_HS = bias_HS.astype(ml_dtypes.bfloat16).astype(np.float32)
    return (bias_HS * np.float32(alibi.scale))[:, None]
