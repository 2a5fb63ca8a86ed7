"""Multi-head self-attention with the switches that distinguish the families.

Shape letters as in ``layers.py``; R = half of the rotated part of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import Linear, RMSNorm
from jaxpool.ops.attention import Implementation, Window, attend
from jaxpool.ops.rope import rotate

Turn = tuple[jax.Array, jax.Array]
"""Cosines and sines of the positions, two float32 ``[T, R]``."""


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Shape and switches of one attention layer.

    Attributes:
        width: of the hidden states.
        heads, kv_heads: query heads, and key/value heads they share.
        head_size: width of one head.
        scale: factor on the scores.
        causal: whether a token sees only itself and what precedes it.
        qkv_bias, out_bias: which projections carry a bias.
        norm_eps: epsilon of an RMSNorm on every query and key head, or None for no such norm.
    """

    width: int
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    causal: bool
    qkv_bias: bool
    out_bias: bool
    norm_eps: float | None = None


class SelfAttention(nnx.Module):
    """Projects to heads, attends, projects back."""

    def __init__(self, config: AttentionConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        q_width, kv_width = c.heads * c.head_size, c.kv_heads * c.head_size
        self.query = Linear(c.width, q_width, ("embed", "heads"), bias=c.qkv_bias, dtype=dtype, units=c.heads)
        self.key = Linear(c.width, kv_width, ("embed", "kv_heads"), bias=c.qkv_bias, dtype=dtype, units=c.kv_heads)
        self.value = Linear(c.width, kv_width, ("embed", "kv_heads"), bias=c.qkv_bias, dtype=dtype, units=c.kv_heads)
        self.out = Linear(q_width, c.width, ("heads", "embed"), bias=c.out_bias, dtype=dtype, units=c.heads)
        self.query_norm = None if c.norm_eps is None else RMSNorm(c.head_size, c.norm_eps, dtype, axis=None)
        self.key_norm = None if c.norm_eps is None else RMSNorm(c.head_size, c.norm_eps, dtype, axis=None)
        self.config, self.implementation = config, implementation

    def __call__(
        self,
        x_BTD: jax.Array,
        lengths_B: jax.Array,
        turn: Turn | None = None,
        window: Window = None,
        bias_HTS: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``turn`` rotates queries and keys, ``window`` limits how far a token sees,
        ``bias_HTS`` is added to the scores.
        """
        c, (n_rows, n_tokens, _) = self.config, x_BTD.shape
        q_BTHh = self.query(x_BTD).reshape(n_rows, n_tokens, c.heads, c.head_size)
        k_BTKh = self.key(x_BTD).reshape(n_rows, n_tokens, c.kv_heads, c.head_size)
        v_BTKh = self.value(x_BTD).reshape(n_rows, n_tokens, c.kv_heads, c.head_size)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHh, k_BTKh = self.query_norm(q_BTHh), self.key_norm(k_BTKh)
        if turn is not None:
            q_BTHh, k_BTKh = rotate(q_BTHh, *turn), rotate(k_BTKh, *turn)
        y_BTHh = attend(
            q_BTHh,
            k_BTKh,
            v_BTKh,
            lengths_B=lengths_B,
            causal=c.causal,
            scale=c.scale,
            window=window,
            bias_HTS=bias_HTS,
            implementation=self.implementation,
        )
        return self.out(y_BTHh.reshape(n_rows, n_tokens, -1))
