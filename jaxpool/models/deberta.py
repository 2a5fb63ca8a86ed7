"""DeBERTa (He et al. 2020, arXiv:2006.03654; v3: He et al. 2021, arXiv:2111.09543): scores from content and distance.

A score adds to query times key the query times a key made from the distance (content to position) and the key times a
query made from it (position to content). Distances have one row each in a table, or share rows that widen
logarithmically. Shape letters as in ``layers.py``; N distances (2 T - 1), R rows of the table, W taps, U groups and I,
O inputs and outputs of one group of a convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, param, scan_layers, stacked
from jaxpool.ops.attention import NEVER
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.relative import skew


@dataclass(frozen=True, slots=True)
class Convolution:
    """What follows the first layer, on the embeddings: its ``taps`` (odd), groups, and activation."""

    taps: int
    groups: int
    activation: str


@dataclass(frozen=True, slots=True)
class DebertaConfig:
    """Shape and switches of one DeBERTa, in our words; made from a Hugging Face config by ``families``.

    Attributes:
        positions: learned absolute positions, or None.
        types: number of segment types, 0 for none.
        embed_width: width of the embeddings if they are projected to ``width`` afterwards, or None.
        scale: factor on the whole score.
        span: distances from ``-span`` to ``span - 1`` have rows, farther ones the nearest of these; 0 for none.
        buckets: rows to either side if distances share them, 0 if each has its own; then ``span`` equals it.
        furthest: distance at which the last bucket begins.
        from_content, from_position: which terms a score has: query times distance, distance times key.
        shared: distances are projected as tokens are, not by layers of their own.
        key_bias: whether keys, of tokens and of distances, have a bias.
        norm_relative: whether the table of distances is normalised.
        conv: the convolution, or None.
    """

    vocab: int
    positions: int | None
    types: int
    width: int
    layers: int
    heads: int
    mlp: int
    activation: str
    norm_eps: float
    embed_width: int | None
    scale: float
    span: int
    buckets: int
    furthest: int
    from_content: bool
    from_position: bool
    shared: bool
    key_bias: bool
    norm_relative: bool
    conv: Convolution | None

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        return 2.0 * self.layers * self.width * (4 * self.width + 2 * self.mlp)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers; a term from distances costs twice what content costs."""
        return self.layers * self.width * (4.0 + 4.0 * self.from_content + 4.0 * self.from_position)


def table_rows(config: DebertaConfig, length: int) -> np.ndarray:
    """Row of the table for every distance ``query - key`` from ``1 - length`` to ``length - 1``: int ``[N]``."""
    distance_N = np.arange(1 - length, length)
    if config.buckets:
        middle = config.buckets // 2
        # float32 step by step as transformers computes it: bucket edges fall on exact numbers, rounding decides them.
        far_N = np.where(np.abs(distance_N) < middle, middle - 1, np.abs(distance_N)).astype(np.float32)
        ratio_N = np.log(far_N / np.float32(middle)) / np.log(np.float32((config.furthest - 1) / middle))
        wide_N = np.ceil(ratio_N * np.float32(middle - 1)) + middle
        distance_N = np.where(far_N <= middle, distance_N, np.sign(distance_N) * wide_N).astype(np.int64)
    return np.clip(distance_N + config.span, 0, 2 * config.span - 1)


class Disentangled(nnx.Module):
    """Self-attention over content and distances."""

    def __init__(self, config: DebertaConfig, dtype: jnp.dtype) -> None:
        c = config

        def linear(*, bias: bool = True) -> Linear:
            return Linear(c.width, c.width, ("embed", "heads"), bias=bias, dtype=dtype, units=c.heads)

        self.query, self.key, self.value = linear(), linear(bias=c.key_bias), linear()
        own = c.span > 0 and not c.shared
        self.distance_key = linear(bias=c.key_bias) if own and c.from_content else None
        self.distance_query = linear() if own and c.from_position else None
        self.out = Linear(c.width, c.width, ("heads", "embed"), bias=True, dtype=dtype, units=c.heads)
        self.config = c

    def __call__(self, x_BTD: jax.Array, layout: Layout, table_RD: jax.Array | None) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``table_RD`` are the distances."""
        c, (n_rows, n_tokens, _) = self.config, x_BTD.shape
        q, k, v = (y(x_BTD).reshape(n_rows, n_tokens, c.heads, -1) for y in (self.query, self.key, self.value))
        scores_BHTS = jnp.einsum("bthi,bshi->bhts", q, k, preferred_element_type=jnp.float32)
        if table_RD is not None:
            scores_BHTS += self._from_distances(q, k, table_RD)
        scores_BHTS = jnp.where(layout.seen()[:, None], scores_BHTS * c.scale, NEVER)
        weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(x_BTD.dtype)
        return self.out(jnp.einsum("bhts,bshi->bthi", weights_BHTS, v).reshape(x_BTD.shape))

    def _from_distances(self, q_BTHh: jax.Array, k_BSHh: jax.Array, table_RD: jax.Array) -> jax.Array:
        c, scores = self.config, jnp.zeros((), jnp.float32)
        rows_N = table_rows(c, q_BTHh.shape[1])

        def projected(linear: Linear | None, tokens: Linear) -> jax.Array:
            return (linear or tokens)(table_RD).reshape(len(table_RD), c.heads, -1)

        if c.from_content:  # as skew wants it, by key - query
            key_NHh = projected(self.distance_key, self.key)[rows_N[::-1]]
            scores += skew(jnp.einsum("bthi,nhi->bhtn", q_BTHh, key_NHh, preferred_element_type=jnp.float32))
        if c.from_position:  # rows are keys here
            query_NHh = projected(self.distance_query, self.query)[rows_N]
            by_key = skew(jnp.einsum("bshi,nhi->bhsn", k_BSHh, query_NHh, preferred_element_type=jnp.float32))
            scores += by_key.swapaxes(-1, -2)
        return scores


class Layer(nnx.Module):
    """Attention, then MLP, each added to what entered it and normalised."""

    def __init__(self, config: DebertaConfig, dtype: jnp.dtype) -> None:
        c = config
        self.attention = Disentangled(c, dtype)
        self.attention_norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.up = Linear(c.width, c.mlp, ("embed", "mlp"), bias=True, dtype=dtype)
        self.down = Linear(c.mlp, c.width, ("mlp", "embed"), bias=True, dtype=dtype)
        self.mlp_norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.activation = c.activation

    def __call__(self, x_BTD: jax.Array, layout: Layout, table_RD: jax.Array | None) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, layout, table_RD))
        return self.mlp_norm(x_BTD + self.down(ACTIVATIONS[self.activation](self.up(x_BTD))))


class Convolved(nnx.Module):
    """What the first layer gives plus the convolved embeddings, normalised."""

    def __init__(self, config: Convolution, width: int, norm_eps: float, dtype: jnp.dtype) -> None:
        self.kernel = param((width, width // config.groups, config.taps), (None, None, None), dtype)
        self.bias = param((width,), (None,), dtype)
        self.norm = LayerNorm(width, norm_eps, dtype)
        self.config = config

    def __call__(self, x_BTD: jax.Array, embedded_BTD: jax.Array, layout: Layout) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        c = self.config
        around_BTWD = layout.neighbours(embedded_BTD, c.taps)
        around = around_BTWD.reshape(*around_BTWD.shape[:3], c.groups, -1)
        kernel = self.kernel[...].reshape(c.groups, -1, around.shape[-1], c.taps)
        y_BTD = jnp.einsum("btwui,uoiw->btuo", around, kernel).reshape(x_BTD.shape) + self.bias[...]
        return self.norm(x_BTD + ACTIVATIONS[c.activation](y_BTD))


class Deberta(nnx.Module):
    """Embeddings, table of distances and stacked layers; the context pooler belongs to the head."""

    def __init__(self, config: DebertaConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        del implementation  # no fused attention knows scores like these
        c, narrow = config, config.embed_width or config.width
        self.tokens = Embedding(c.vocab, narrow, dtype, axis="vocab")
        self.positions = None if c.positions is None else Embedding(c.positions, narrow, dtype)
        self.types = Embedding(c.types, narrow, dtype) if c.types else None
        self.project = Linear(narrow, c.width, (None, "embed"), bias=False, dtype=dtype) if c.embed_width else None
        self.norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.relative = Embedding(2 * c.span, c.width, dtype) if c.span else None
        self.relative_norm = LayerNorm(c.width, c.norm_eps, dtype) if c.norm_relative else None
        self.layers = stacked(lambda: Layer(c, dtype), c.layers)
        self.conv = None if c.conv is None else Convolved(c.conv, c.width, c.norm_eps, dtype)
        self.config = c

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids and segment types."""
        table_RD = None if self.relative is None else self.relative.table[...]
        if table_RD is not None and self.relative_norm is not None:
            table_RD = self.relative_norm(table_RD)
        embedded_BTD = self._embed(ids_BT, types_BT, layout)

        def run(layer: Layer, x_BTD: jax.Array, depth: jax.Array) -> jax.Array:
            x_BTD, conv = layer(x_BTD, layout, table_RD), self.conv
            if conv is None:
                return x_BTD
            return jax.lax.cond(depth == 0, lambda x: conv(x, embedded_BTD, layout), lambda x: x, x_BTD)

        return scan_layers(self.layers, embedded_BTD, run, jnp.arange(self.config.layers))

    def _embed(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        x_BTE = self.tokens(ids_BT)
        if self.positions is not None:
            x_BTE = x_BTE + self.positions(layout.position)
        if self.types is not None and types_BT is not None:
            x_BTE = x_BTE + self.types(types_BT)
        return self.norm(x_BTE if self.project is None else self.project(x_BTE))


def scale(head_size: int, terms: int) -> float:
    """The factor on scores that are a sum of so many ``terms``."""
    return 1 / math.sqrt(head_size * terms)
