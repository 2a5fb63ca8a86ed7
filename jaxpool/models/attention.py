"""Multi-head self-attention with the switches that distinguish the families.

Shape letters as in ``layers.py``; R = half of the rotated part of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import Linear, param
from jaxpool.models.norms import Norm, NormConfig
from jaxpool.ops.attention import Bias, Window, attend
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.rope import rotate

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines of the positions, two float32 ``[T, R]``, or ``[B, T, R]``: see ``ops.rope.angles``."""


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
        norm: norm of queries and keys, or None.
        norm_over: what it normalises: every ``head`` with one scale for all, all ``heads`` each with a scale of its
            own, or the whole ``width`` of the projection at once.
        norm_rotated: whether it follows the rotation or precedes it.
        interleaved: whether rotation pairs neighbours ``(2i, 2i + 1)`` or halves ``(i, i + R)``.
        softcap: scores become ``softcap * tanh(score / softcap)``; None for no cap.
        clip: queries, keys and values are cut to ``[-clip, clip]``; None for no limit.
        query_growth: ``(beta, length)``: queries grow by ``1 + beta * log(1 + position // length)``; None: they do not.
        growth_from: added to the position there.
        either_or: whether queries and keys are normed only where they are rotated, and queries grow only where they are
            not (Llama 4).
        sinks: whether each head has a learned score for attending to nothing (gpt-oss).
    """

    width: int
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    causal: bool
    qkv_bias: bool
    out_bias: bool
    norm: NormConfig | None = None
    norm_over: Literal["head", "heads", "width"] = "head"
    norm_rotated: bool = False
    interleaved: bool = False
    softcap: float | None = None
    clip: float | None = None
    query_growth: tuple[float, int] | None = None
    growth_from: int = 0
    either_or: bool = False
    sinks: bool = False

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token, without scores."""
        return 2.0 * self.width * self.head_size * (2 * self.heads + 2 * self.kv_heads)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair: scores and weighted sum."""
        return 4.0 * self.heads * self.head_size

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> SelfAttention:
        """The module."""
        return SelfAttention(self, dtype, implementation)

    def _norm(self, heads: int, dtype: jnp.dtype) -> Norm | None:
        shapes = {"head": (self.head_size,), "heads": (heads, self.head_size), "width": (heads * self.head_size,)}
        return None if self.norm is None else Norm(self.norm, shapes[self.norm_over], dtype)


class SelfAttention(nnx.Module):
    """Projects to heads, attends, projects back."""

    def __init__(self, config: AttentionConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        q_width, kv_width = c.heads * c.head_size, c.kv_heads * c.head_size
        self.query = Linear(c.width, q_width, ("embed", "heads"), bias=c.qkv_bias, dtype=dtype, units=c.heads)
        self.key = Linear(c.width, kv_width, ("embed", "kv_heads"), bias=c.qkv_bias, dtype=dtype, units=c.kv_heads)
        self.value = Linear(c.width, kv_width, ("embed", "kv_heads"), bias=c.qkv_bias, dtype=dtype, units=c.kv_heads)
        self.out = Linear(q_width, c.width, ("heads", "embed"), bias=c.out_bias, dtype=dtype, units=c.heads)
        self.query_norm, self.key_norm = c._norm(c.heads, dtype), c._norm(c.kv_heads, dtype)
        self.sinks = param((c.heads,), ("heads",), dtype) if c.sinks else None
        self.config, self.implementation = config, implementation

    def __call__(
        self,
        x_BTD: jax.Array,
        layout: Layout,
        rotation: Rotation | None = None,
        window: Window = None,
        bias_HTS: Bias = None,
        queries: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``rotation`` rotates queries and keys, ``window`` limits how far a token sees,
        ``bias_HTS`` is added to the scores.

        Where only a few tokens ask, ``queries`` is their index in their rows, int32 ``[B, M]``: ``-> [B, M, D]``.
        """
        c, (n_rows, n_tokens, _) = self.config, x_BTD.shape
        asking_BTD = x_BTD if queries is None else layout.at(x_BTD, queries)
        q_BTX, k_BTX, v_BTX = self.query(asking_BTD), self.key(x_BTD), self.value(x_BTD)
        if c.clip is not None:
            q_BTX, k_BTX, v_BTX = (jnp.clip(y, -c.clip, c.clip) for y in (q_BTX, k_BTX, v_BTX))
        if c.norm_over == "width":
            q_BTX, k_BTX = self._normalise(q_BTX, k_BTX)
        q_BTHh = q_BTX.reshape(n_rows, -1, c.heads, c.head_size)
        k_BTKh = k_BTX.reshape(n_rows, n_tokens, c.kv_heads, c.head_size)
        v_BTKh = v_BTX.reshape(n_rows, n_tokens, c.kv_heads, c.head_size)
        if c.norm_over != "width" and not c.norm_rotated and not (c.either_or and rotation is None):
            q_BTHh, k_BTKh = self._normalise(q_BTHh, k_BTKh)
        if rotation is not None:
            q_BTHh = rotate(q_BTHh, *(per_query(y, layout, queries) for y in rotation), interleaved=c.interleaved)
            k_BTKh = rotate(k_BTKh, *rotation, interleaved=c.interleaved)
        if c.norm_over != "width" and c.norm_rotated:
            q_BTHh, k_BTKh = self._normalise(q_BTHh, k_BTKh)
        if rotation is None or not c.either_or:
            q_BTHh = grown(q_BTHh, c.query_growth, layout, queries, c.growth_from)
        y_BTHh = attend(
            q_BTHh,
            k_BTKh,
            v_BTKh,
            layout=layout,
            causal=c.causal,
            scale=c.scale,
            window=window,
            bias_HTS=bias_HTS,
            softcap=c.softcap,
            sinks_H=None if self.sinks is None else self.sinks[...],
            queries=queries,
            implementation=self.implementation,
        )
        return self.out(y_BTHh.reshape(*y_BTHh.shape[:2], -1))

    def _normalise(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.query_norm is None or self.key_norm is None:
            return q, k
        return self.query_norm(q), self.key_norm(k)


def per_query(x: jax.Array, layout: Layout, queries: jax.Array | None) -> jax.Array:
    """What the queries have of float numbers ``[T, R]`` or ``[B, T, R]``: the same for None, else ``[B, M, R]``."""
    if queries is None:
        return x
    return x[queries] if x.ndim == 2 else layout.at(x, queries)


def grown(
    q_BTHh: jax.Array,
    growth: tuple[float, int] | None,
    layout: Layout,
    queries: jax.Array | None = None,
    first: int = 0,
) -> jax.Array:
    """Queries that grow with their position, as ``AttentionConfig.query_growth`` says."""
    if growth is None:
        return q_BTHh
    beta, length = growth
    growth_BT1 = 1 + beta * jnp.log1p((layout.position + first) // length)[..., None]
    return q_BTHh * per_query(growth_BT1, layout, queries)[..., None].astype(q_BTHh.dtype)
