"""Attention with linear biases: a key's score grows with its position (Press et al. 2021, arXiv:2108.12409)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxpool.ops.attention import Bias
from jaxpool.ops.layout import Layout
from jaxpool.ops.relative import bias_by_distance


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


def biases(alibi: Alibi, layout: Layout) -> jax.Array:
    """What is added to the score of each key: float32 ``[H, 1, S]``, ``[B, H, 1, S]`` where packed.

    It counts positions from the text's first key, not from the query: a softmax does not see the difference. Behind a
    shared beginning its P keys are the first of the S.
    """
    slopes = np.asarray(alibi.slopes, np.float32)
    if alibi.bfloat16:
        slopes = slopes.astype(ml_dtypes.bfloat16).astype(np.float32)
    bias_HS = slopes[:, None] * np.arange(layout.reach + layout.width, dtype=np.float32)
    if alibi.bfloat16:
        bias_HS = bias_HS.astype(ml_dtypes.bfloat16).astype(np.float32)
    bias = jnp.asarray(bias_HS * np.float32(alibi.scale))
    if layout.position_BT is None and not layout.reach:
        return bias[:, None]
    own, past = bias[:, layout.position], bias[:, : layout.reach]
    if layout.position_BT is None:
        return jnp.concatenate([past, own], axis=-1)[:, None]
    own = jnp.moveaxis(own, 0, 1)
    return jnp.concatenate([jnp.broadcast_to(past, (*own.shape[:2], layout.reach)), own], axis=-1)[:, :, None]


def both_ways(slopes: tuple[float, ...], length: int) -> Bias:
    """What is added to the score of each pair of tokens of an encoder: a slope times their distance, from 0 down."""
    distance_N = np.abs(np.arange(1 - length, length))
    return bias_by_distance(-jnp.arange(length)[:, None] * jnp.asarray(slopes, jnp.float32), distance_N)


def slopes(heads: int) -> tuple[float, ...]:
    """Powers of one base; heads beyond a power of two take every other one of the next finer base."""
    whole = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 / whole * i) for i in range(1, whole + 1)]
    return tuple(first + [2.0 ** (-4 / whole * i) for i in range(1, 2 * (heads - whole), 2)])
