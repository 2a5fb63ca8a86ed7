"""XLNet (Yang et al. 2019, arXiv:1906.08237), one stream of it: scores from content, distance and segments.

A score adds to query times key the query times a key made from the distance, and the query times one of two vectors,
for keys of its own segment and for others; each product has a learned bias on the query. Positions are sines and
cosines of the distance, projected in every layer. Shape letters as in ``layers.py``; N distances (2 T - 1), C the two
kinds of segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, param, scan_layers, stacked
from jaxpool.ops.attention import NEVER, visible
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.relative import skew


@dataclass(frozen=True, slots=True)
class XLNetConfig:
    """Shape and switches of one XLNet, in our words; made from a Hugging Face config by ``families``.

    Attributes:
        causal: whether a token sees only itself and what precedes it.
        clamp: distances beyond it count as it; None for no limit.
        types: how many segment types the tokenizer tells apart; scores know only whether two tokens' are the same.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    head_size: int
    mlp: int
    activation: str
    norm_eps: float
    causal: bool = False
    clamp: int | None = None
    types: int = 3

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        return 2.0 * self.layers * self.width * (4 * self.heads * self.head_size + 2 * self.mlp)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers; distances cost twice what content costs."""
        return 8.0 * self.layers * self.heads * self.head_size


def distances(config: XLNetConfig, length: int) -> np.ndarray:
    """Sines, then cosines, of every distance ``query - key`` from ``length - 1`` down: float32 ``[N, D]``."""
    distance_N = np.arange(length - 1, -length, -1, dtype=np.float32)
    if config.clamp is not None:
        distance_N = np.clip(distance_N, -config.clamp, config.clamp)
    frequency = 1 / np.power(np.float32(10000), np.arange(0, config.width, 2, dtype=np.float32) / config.width)
    angle = distance_N[:, None] * frequency.astype(np.float32)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


class RelativeAttention(nnx.Module):
    """Self-attention over content, distances and segments; kernels are ``[D, H, h]``, as checkpoints have them."""

    def __init__(self, config: XLNetConfig, dtype: jnp.dtype) -> None:
        c = config
        kernel = (c.width, c.heads, c.head_size), ("embed", "heads", None)
        self.query, self.key, self.value, self.out, self.distance = (param(*kernel, dtype) for _ in range(5))
        bias = (c.heads, c.head_size), ("heads", None)
        self.content_bias, self.distance_bias, self.segment_bias = (param(*bias, dtype) for _ in range(3))
        self.segments = param((2, c.heads, c.head_size), (None, "heads", None), dtype)
        self.config = c

    def __call__(
        self, x_BTD: jax.Array, layout: Layout, distance_ND: jax.Array, other_BTS: jax.Array | None
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``other_BTS`` says which keys are of another segment than the query."""
        q, k, v = (jnp.einsum("btd,dhi->bthi", x_BTD, kernel[...]) for kernel in (self.query, self.key, self.value))
        far = jnp.einsum("nd,dhi->nhi", distance_ND, self.distance[...])
        exact = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("bthi,bshi->bhts", q + self.content_bias[...], k, **exact)
        scores += skew(jnp.einsum("bthi,nhi->bhtn", q + self.distance_bias[...], far, **exact))
        if other_BTS is not None:
            kinds = jnp.einsum("bthi,chi->cbht", q + self.segment_bias[...], self.segments[...], **exact)
            scores += jnp.where(other_BTS[:, None], kinds[1][..., None], kinds[0][..., None])
        seen_BTS = visible(layout, None, causal=self.config.causal)
        scores = jnp.where(seen_BTS[:, None], scores * self.config.head_size**-0.5, NEVER)
        weights = jax.nn.softmax(scores, axis=-1).astype(x_BTD.dtype)
        return jnp.einsum("bhts,bshi,dhi->btd", weights, v, self.out[...])


class Layer(nnx.Module):
    """Attention, then MLP, each added to what entered it and normalised."""

    def __init__(self, config: XLNetConfig, dtype: jnp.dtype) -> None:
        c = config
        self.attention = RelativeAttention(c, dtype)
        self.attention_norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.up = Linear(c.width, c.mlp, ("embed", "mlp"), bias=True, dtype=dtype)
        self.down = Linear(c.mlp, c.width, ("mlp", "embed"), bias=True, dtype=dtype)
        self.mlp_norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.activation = c.activation

    def __call__(
        self, x_BTD: jax.Array, layout: Layout, distance_ND: jax.Array, other_BTS: jax.Array | None
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, layout, distance_ND, other_BTS))
        return self.mlp_norm(x_BTD + self.down(ACTIVATIONS[self.activation](self.up(x_BTD))))


class XLNet(nnx.Module):
    """Token embedding and stacked layers; the summary's projection belongs to the head."""

    def __init__(self, config: XLNetConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        del implementation  # no fused attention knows scores like these
        self.tokens = Embedding(config.vocab, config.width, dtype, axis="vocab")
        self.layers = stacked(lambda: Layer(config, dtype), config.layers)
        self.config = config

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids and segment types."""
        x_BTD = self.tokens(ids_BT)
        distance_ND = jnp.asarray(distances(self.config, ids_BT.shape[1])).astype(x_BTD.dtype)
        other_BTS = None if types_BT is None else types_BT[:, :, None] != types_BT[:, None, :]
        return scan_layers(self.layers, x_BTD, lambda layer, x, _: layer(x, layout, distance_ND, other_BTS))
