"""Funnel Transformer (Dai et al. 2020, arXiv:2006.03236): each block of layers reads half as many tokens as the last.

Scores are the sum of content, distance (fixed sines and cosines of it, projected) and whether two tokens are of one
segment. Shape letters as in ``layers.py``; S tokens that were pooled, t tokens that attend, s those they see, W half of
the sines and cosines.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, param, scan_layers, stacked
from jaxpool.ops.attention import NEVER
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout

CLS_TYPE = 2
"""Segment type of a token that belongs to all segments."""


@dataclass(frozen=True, slots=True)
class FunnelConfig:
    """Shape and switches of one Funnel Transformer, in our words; made from a Hugging Face config by ``families``.

    Attributes:
        blocks: layers of each block, and how often each runs.
        pooling: how two tokens become one.
        separate_cls: whether the first token is never pooled, and has neither distance nor segment.
        truncate: whether the last token is dropped where ``separate_cls`` would leave an odd one.
        query_only: whether the first layer of a block still sees the tokens before they were pooled.
    """

    types: ClassVar[int] = CLS_TYPE + 1
    """Segment types that may be named; whether two tokens are of one is all that counts."""

    vocab: int
    width: int
    blocks: tuple[tuple[int, int], ...]
    heads: int
    head_size: int
    mlp: int
    activation: str
    norm_eps: float
    pooling: Literal["mean", "max"]
    separate_cls: bool
    truncate: bool
    query_only: bool

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        layer = 2.0 * self.width * (4 * self.heads * self.head_size + 2 * self.mlp + self.heads * self.head_size)
        return layer * sum(prod(block) / 2**depth for depth, block in enumerate(self.blocks))

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: content, distances, weighted sum."""
        layer = 2.0 * self.heads * (2 * self.head_size + self.width)
        return layer * sum(prod(block) / 4**depth for depth, block in enumerate(self.blocks))


class Tokens(NamedTuple):
    """What there is to know of tokens besides their states.

    Attributes:
        positions: float32 ``[T]``, where they stand.
        types: int32 ``[B, T]``, their segments.
        lengths: int32 ``[B]``, how many are real.
    """

    positions: jax.Array
    types: jax.Array
    lengths: jax.Array


def pooled_tokens(tokens: Tokens, config: FunnelConfig) -> Tokens:
    """The tokens of the next block: every second one, behind the first if that is separate."""
    first = 1 if config.separate_cls else 0

    def every_second(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x[..., :first], x[..., first::2]], axis=-1)

    kept_B = _kept(tokens.lengths, config)
    return Tokens(every_second(tokens.positions), every_second(tokens.types), first + (kept_B - first + 1) // 2)


def pool_states(x_BTD: jax.Array, lengths_B: jax.Array, config: FunnelConfig) -> jax.Array:
    """``[B, T, D] -> [B, S, D]``: pairs of states become one, of the real ones among them."""
    first = 1 if config.separate_cls else 0
    kept_BT = jnp.arange(x_BTD.shape[1])[None, :] < _kept(lengths_B, config)[:, None]
    odd = (x_BTD.shape[1] - first) % 2
    pairs = jnp.pad(x_BTD[:, first:], ((0, 0), (0, odd), (0, 0))).reshape(len(x_BTD), -1, 2, x_BTD.shape[2])
    kept = jnp.pad(kept_BT[:, first:], ((0, 0), (0, odd))).reshape(len(x_BTD), -1, 2, 1)
    if config.pooling == "max":
        y_BSD = jnp.where(kept, pairs, NEVER).max(2).astype(x_BTD.dtype)
    else:
        total_BSD = jnp.where(kept, pairs, 0).astype(jnp.float32).sum(2)
        y_BSD = (total_BSD / jnp.maximum(kept.sum(2), 1)).astype(x_BTD.dtype)
    return jnp.concatenate([x_BTD[:, :first], y_BSD], axis=1)


def _kept(lengths_B: jax.Array, config: FunnelConfig) -> jax.Array:
    """How many tokens of each row are pooled; rows of two tokens and fewer stay as they are."""
    if not (config.separate_cls and config.truncate):
        return lengths_B
    return jnp.where(lengths_B > 2, lengths_B - 1, lengths_B)


class Attention(nnx.Module):
    """Attention over content, distance and segment."""

    def __init__(self, config: FunnelConfig, dtype: jnp.dtype) -> None:
        c, inner = config, config.heads * config.head_size

        def linear(*, bias: bool = True) -> Linear:
            return Linear(c.width, inner, ("embed", "heads"), bias=bias, dtype=dtype, units=c.heads)

        def vector() -> nnx.Param:
            return param((c.heads, c.head_size), ("heads", None), dtype)

        self.query, self.key, self.value = linear(bias=False), linear(), linear()
        self.content_bias, self.distance_bias, self.segment_bias = vector(), vector(), vector()
        self.distance = param((c.width, c.heads, c.head_size), (None, "heads", None), dtype)
        self.segment = param((2, c.heads, c.head_size), (None, "heads", None), dtype)
        self.out = Linear(inner, c.width, ("heads", "embed"), bias=True, dtype=dtype, units=c.heads)
        self.config = c

    def __call__(self, x_BtD: jax.Array, seen_BsD: jax.Array, tokens: Tokens, seen: Tokens) -> jax.Array:
        """``[B, t, D] -> [B, t, D]``: ``tokens`` attend to ``seen``."""
        c = self.config

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], c.heads, c.head_size)

        # Queries are scaled, and so are the biases added to them.
        scale = c.head_size**-0.5
        q = heads(self.query(x_BtD)) * scale
        k, v = heads(self.key(seen_BsD)), heads(self.value(seen_BsD))
        content = jnp.einsum("bthi,bshi->bhts", q + self.content_bias[...] * scale, k).astype(jnp.float32)
        beside = self._distances(q + self.distance_bias[...] * scale, tokens.positions, seen.positions)
        beside += self._segments(q + self.segment_bias[...] * scale, tokens.types, seen.types)
        if c.separate_cls:
            others_ts = (jnp.arange(x_BtD.shape[1])[:, None] > 0) & (jnp.arange(seen_BsD.shape[1])[None, :] > 0)
            beside = jnp.where(others_ts, beside, 0.0)
        real_Bs = jnp.arange(seen_BsD.shape[1])[None, :] < seen.lengths[:, None]
        scores = jnp.where(real_Bs[:, None, None], content + beside, NEVER)
        weights_BHts = jax.nn.softmax(scores, axis=-1).astype(x_BtD.dtype)
        return self.out(jnp.einsum("bhts,bshi->bthi", weights_BHts, v).reshape(*x_BtD.shape[:2], -1))

    def _distances(self, q_BtHh: jax.Array, position_t: jax.Array, position_s: jax.Array) -> jax.Array:
        """``[B, H, t, s]``; by the sum formulas of sine and cosine, which need no table of distances."""
        half = self.config.width // 2
        frequency_W = 1 / (10000 ** (jnp.arange(half, dtype=jnp.float32) / half))
        (sin_tW, cos_tW), (sin_sW, cos_sW) = (
            (jnp.sin(position[:, None] * frequency_W), jnp.cos(position[:, None] * frequency_W))
            for position in (position_t, position_s)
        )
        u_BHtD = jnp.einsum("bthi,dhi->bhtd", q_BtHh, self.distance[...]).astype(jnp.float32)
        u_sin, u_cos = u_BHtD[..., :half], u_BHtD[..., half:]
        by_cos = jnp.einsum("bhtw,sw->bhts", u_sin * sin_tW + u_cos * cos_tW, cos_sW)
        return by_cos + jnp.einsum("bhtw,sw->bhts", u_cos * sin_tW - u_sin * cos_tW, sin_sW)

    def _segments(self, q_BtHh: jax.Array, types_Bt: jax.Array, types_Bs: jax.Array) -> jax.Array:
        """``[B, H, t, s]``."""
        different_2 = jnp.einsum("bthi,nhi->nbht", q_BtHh, self.segment[...]).astype(jnp.float32)[..., None]
        every_Bt, every_Bs = types_Bt == CLS_TYPE, types_Bs == CLS_TYPE
        same_Bts = (types_Bt[:, :, None] == types_Bs[:, None, :]) | every_Bt[:, :, None] | every_Bs[:, None, :]
        return jnp.where(same_Bts[:, None], different_2[1], different_2[0])


class Layer(nnx.Module):
    """Attention, then MLP, each added to what entered it and normalised."""

    def __init__(self, config: FunnelConfig, dtype: jnp.dtype) -> None:
        c = config
        self.attention = Attention(c, dtype)
        self.attention_norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.up = Linear(c.width, c.mlp, ("embed", "mlp"), bias=True, dtype=dtype)
        self.down = Linear(c.mlp, c.width, ("mlp", "embed"), bias=True, dtype=dtype)
        self.mlp_norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.activation = c.activation

    def __call__(self, x_BtD: jax.Array, seen_BsD: jax.Array, tokens: Tokens, seen: Tokens) -> jax.Array:
        """``[B, t, D] -> [B, t, D]``: ``tokens`` attend to ``seen``."""
        x_BtD = self.attention_norm(x_BtD + self.attention(x_BtD, seen_BsD, tokens, seen))
        return self.mlp_norm(x_BtD + self.down(ACTIVATIONS[self.activation](self.up(x_BtD))))


class Funnel(nnx.Module):
    """Normalised token embedding and blocks of stacked layers, ``block0``, ``block1`` and so on."""

    def __init__(self, config: FunnelConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        del implementation  # no fused attention knows scores like these
        self.tokens = Embedding(config.vocab, config.width, dtype, axis="vocab")
        self.norm = LayerNorm(config.width, config.norm_eps, dtype)
        for depth, (layers, _) in enumerate(config.blocks):
            setattr(self, f"block{depth}", stacked(lambda: Layer(config, dtype), layers))
        self.config = config

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids and segment types of padded rows.

        Every token has the state of the token that it was pooled into.
        """
        c, x_BTD = self.config, self.norm(self.tokens(ids_BT))
        types_BT = jnp.zeros_like(ids_BT) if types_BT is None else types_BT
        tokens = Tokens(jnp.arange(ids_BT.shape[1], dtype=jnp.float32), types_BT, layout.lengths_B)
        place_T = jnp.arange(ids_BT.shape[1])
        for depth, (layers, repeats) in enumerate(c.blocks):
            block: Layer = getattr(self, f"block{depth}")
            order = [layer for layer in range(layers) for _ in range(repeats)]
            if depth > 0:
                seen_BsD, seen = x_BTD, tokens
                x_BTD, tokens = pool_states(x_BTD, tokens.lengths, c), pooled_tokens(tokens, c)
                if not c.query_only:
                    seen_BsD, seen = x_BTD, tokens
                order.pop(0)
                first = jax.tree.map(lambda leaf: leaf[0], block)
                x_BTD = first(x_BTD, seen_BsD, tokens, seen)
                place_T = (place_T + 1) // 2 if c.separate_cls else place_T // 2
            if order:
                here = tokens
                x_BTD = scan_layers(
                    block, x_BTD, lambda layer, x, _, here=here: layer(x, x, here, here), order=tuple(order)
                )
        return jnp.take(x_BTD, place_T, axis=1)
