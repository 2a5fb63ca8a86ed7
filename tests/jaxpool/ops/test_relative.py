"""Relative position biases: the buckets transformers computes, and attention in blocks with a bias."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from jaxpool.ops.attention import attend
from jaxpool.ops.layout import Layout
from jaxpool.ops.relative import bias_by_distance, buckets


@pytest.mark.parametrize("length", [1, 2, 17, 700])
def test_buckets_are_those_of_transformers(length: int) -> None:
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    ours = np.arange(length)[None, :] - np.arange(length)[:, None] + length - 1
    np.testing.assert_array_equal(
        buckets(length, 32)[ours], MPNetEncoder.relative_position_bucket(distance, num_buckets=32).numpy()
    )
    for two_sided in (True, False):
        theirs = T5Attention._relative_position_bucket(distance, two_sided, num_buckets=20, max_distance=77)
        np.testing.assert_array_equal(
            buckets(length, 20, max_distance=77, two_sided=two_sided)[ours], theirs.numpy(), str(two_sided)
        )


def test_bias_by_distance_is_the_table_at_each_bucket() -> None:
    table = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    bucket = buckets(5, 8)
    bias = np.asarray(bias_by_distance(jnp.asarray(table), bucket))
    for query in range(5):
        for key in range(5):
            np.testing.assert_array_equal(bias[:, query, key], table[bucket[key - query + 4]])


@pytest.mark.parametrize("queries", [1, 1536])
def test_attention_in_blocks_adds_each_query_its_own_bias(queries: int) -> None:
    """1,536 tokens are attended 512 queries at a time; the bias is cut along with them."""
    rng = np.random.default_rng(0)
    length, heads, size = 1536, 2, 4
    q, k, v = (rng.normal(size=(1, length, heads, size)).astype(np.float32) for _ in range(3))
    bias = rng.normal(size=(heads, queries, length)).astype(np.float32)
    ours = attend(
        q, k, v, layout=Layout.padded(jnp.array([1500]), length), causal=False, scale=0.5, bias_HTS=jnp.asarray(bias)
    )
    scores = np.einsum("bthi,bshi->bhts", q, k) * 0.5 + bias[None]
    scores[..., 1500:] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    theirs = np.einsum("bhts,bshi->bthi", weights, v)
    np.testing.assert_allclose(np.asarray(ours)[:, :1500], theirs[:, :1500], atol=1e-5)
