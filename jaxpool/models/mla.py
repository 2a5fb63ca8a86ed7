"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values from one narrow vector per token.

Part of every key is rotated by position and shared by all heads; the rest, and the values, are expanded from the latent
vector. Shape letters as in ``layers.py``; v size of one value head.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import Rotation, grown, per_query
from jaxpool.models.layers import Linear, RMSNorm
from jaxpool.ops.attention import Bias, Window, attend
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.rope import rotate


@dataclass(frozen=True, slots=True)
class LatentAttentionConfig:
    """Shape and switches of one latent attention layer.

    Attributes:
        width: of the hidden states.
        heads: of queries, keys and values.
        query_rank: size of the latent query vector, or None where queries are projected directly.
        rank: size of the latent key and value vector.
        plain, rotated: the two parts of a query or key head.
        value: width of one value head.
        scale: factor on the scores.
        causal: whether a token sees only itself and what precedes it.
        bias: whether the projections into latent vectors, and the one out, carry a bias.
        norm_eps: of the norms on latent vectors.
        interleaved: whether rotation pairs neighbours ``(2i, 2i + 1)`` or halves ``(i, i + R)``.
        query_growth: as in ``AttentionConfig``.
    """

    width: int
    heads: int
    query_rank: int | None
    rank: int
    plain: int
    rotated: int
    value: int
    scale: float
    causal: bool
    bias: bool
    norm_eps: float
    interleaved: bool
    query_growth: tuple[float, int] | None = None

    @property
    def head_size(self) -> int:
        """Width of one query or key head."""
        return self.plain + self.rotated

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token, without scores."""
        queries = self.heads * self.head_size
        query = self.width * queries
        if self.query_rank is not None:
            query = self.query_rank * (self.width + queries)
        latent = self.width * (self.rank + self.rotated) + self.rank * self.heads * (self.plain + self.value)
        return 2.0 * (query + latent + self.heads * self.value * self.width)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair: scores and weighted sum."""
        return 2.0 * self.heads * (self.head_size + self.value)

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> LatentAttention:
        """The module."""
        return LatentAttention(self, dtype, implementation)


class LatentAttention(nnx.Module):
    """Projects to latent vectors and from there to heads, attends, projects back."""

    def __init__(self, config: LatentAttentionConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        queries, latent = c.heads * c.head_size, c.query_rank
        if latent is None:
            self.query = Linear(c.width, queries, ("embed", "heads"), bias=False, dtype=dtype, units=c.heads)
        else:
            self.query_in = Linear(c.width, latent, ("embed", None), bias=c.bias, dtype=dtype)
            self.query_norm = RMSNorm(latent, c.norm_eps, dtype, axis=None)
            self.query_out = Linear(latent, queries, (None, "heads"), bias=False, dtype=dtype, units=c.heads)
        self.latent_in = Linear(c.width, c.rank + c.rotated, ("embed", None), bias=c.bias, dtype=dtype)
        self.latent_norm = RMSNorm(c.rank, c.norm_eps, dtype, axis=None)
        expanded = c.heads * (c.plain + c.value)
        self.expand = Linear(c.rank, expanded, (None, "heads"), bias=False, dtype=dtype, units=c.heads)
        self.out = Linear(c.heads * c.value, c.width, ("heads", "embed"), bias=c.bias, dtype=dtype, units=c.heads)
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
        """``[B, T, D] -> [B, T, D]``; arguments as in ``SelfAttention``, of which ``rotation`` is needed."""
        assert rotation is not None, "a decoder with latent attention has rotary positions"
        c, (n_rows, n_tokens, _) = self.config, x_BTD.shape
        asking = x_BTD if queries is None else layout.at(x_BTD, queries)
        q_BTX = self.query(asking) if c.query_rank is None else self.query_out(self.query_norm(self.query_in(asking)))
        q_BTHh = q_BTX.reshape(n_rows, -1, c.heads, c.head_size)
        latent_BTX, shared_BTh = jnp.split(self.latent_in(x_BTD), (c.rank,), axis=-1)
        kv_BTHh = self.expand(self.latent_norm(latent_BTX)).reshape(n_rows, n_tokens, c.heads, c.plain + c.value)
        k_BTHh, v_BTHv = jnp.split(kv_BTHh, (c.plain,), axis=-1)
        shared_BT1h = rotate(shared_BTh[:, :, None], *rotation, interleaved=c.interleaved)
        own = (per_query(y, layout, queries) for y in rotation)
        rotated_BTHh = rotate(q_BTHh[..., c.plain :], *own, interleaved=c.interleaved)
        y_BTHv = attend(
            grown(jnp.concatenate([q_BTHh[..., : c.plain], rotated_BTHh], axis=-1), c.query_growth, layout, queries),
            jnp.concatenate([k_BTHh, jnp.broadcast_to(shared_BT1h, (*k_BTHh.shape[:3], c.rotated))], axis=-1),
            v_BTHv,
            layout=layout,
            causal=c.causal,
            scale=c.scale,
            window=window,
            bias_HTS=bias_HTS,
            queries=queries,
            implementation=self.implementation,
        )
        return self.out(y_BTHv.reshape(*y_BTHv.shape[:2], -1))
