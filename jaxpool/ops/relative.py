"""Relative positions: additive biases on attention scores (Raffel et al. 2019, arXiv:1910.10683), scores by distance.

Shape letters: T queries, S keys (= T), N distances (2 T - 1), H heads.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.ops.attention import Bias, ByDistance
from jaxpool.ops.kernels import QUERY_BLOCK


def buckets(length: int, count: int, *, max_distance: int = 128, two_sided: bool = True) -> np.ndarray:
    """Bucket of every distance ``key - query`` from ``1 - length`` to ``length - 1``: int32 ``[N]``.

    Near distances have a bucket each, farther ones share buckets that widen logarithmically up to ``max_distance``.
    Two-sided: the upper half of the buckets is for keys that follow the query; else those are in bucket 0.
    """
    distance_N = np.arange(1 - length, length)
    if two_sided:
        count //= 2
        offset_N, far_N = np.where(distance_N > 0, count, 0), np.abs(distance_N)
    else:
        offset_N, far_N = np.zeros_like(distance_N), np.maximum(-distance_N, 0)
    exact = count // 2
    # float32 step by step as transformers computes it: bucket edges fall on exact numbers, and rounding decides them.
    ratio_N = np.log(np.maximum(far_N, 1).astype(np.float32) / np.float32(exact))
    wide_N = ratio_N / np.float32(math.log(max_distance / exact)) * np.float32(count - exact)
    wide_N = np.minimum(exact + wide_N.astype(np.int32), count - 1)
    return (offset_N + np.where(far_N < exact, far_N, wide_N)).astype(np.int32)


def bias_by_distance(table: jax.Array, bucket_N: np.ndarray) -> Bias:
    """Bias on every score, from a table ``[buckets, H]`` and the bucket of each distance.

    float32 ``[H, T, S]``, made once for all layers; of long texts by distance, and spread where it is needed.
    """
    bias = ByDistance(table.astype(jnp.float32)[bucket_N].T)
    every = jnp.arange((len(bucket_N) + 1) // 2)
    return bias if len(every) > 2 * QUERY_BLOCK else bias.of(every, every)


def skew(scores_BHTN: jax.Array) -> jax.Array:
    """From scores by distance to scores by position: ``[..., t, s - t + T - 1] -> [..., t, s]``, without a gather."""
    *rows, n_tokens, n_distances = scores_BHTN.shape
    padded = jnp.pad(scores_BHTN, [(0, 0)] * (len(rows) + 1) + [(0, 1)]).reshape(*rows, -1)
    moved = padded[..., n_tokens - 1 : n_tokens - 1 + n_tokens * n_distances]
    return moved.reshape(*rows, n_tokens, n_distances)[..., :n_tokens]
