"""MobileBERT (Sun et al. 2020, arXiv:2004.02984): deep, with layers that work in a narrow space of their own.

Shape letters as in ``layers.py``; E width of the embeddings, N width inside a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, param, scan_layers, stacked
from jaxpool.ops.attention import attend
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout

TORCH_EPS = 1e-5
"""Epsilon of the norms that transformers makes without passing the config's on."""


@dataclass(frozen=True, slots=True)
class MobileBertConfig:
    """Shape and switches of one MobileBERT backbone.

    Attributes:
        embed_width: width of the token embeddings.
        width: of the hidden states between layers.
        inner: width inside a layer; ``width`` if there are no bottlenecks.
        trigram: whether a token is embedded together with its two neighbours.
        bottleneck: whether layers project to ``inner`` and back.
        query_bottleneck: what queries and keys are made of: a second projection, shared by both, or what enters.
        value_bottleneck: whether queries, keys and values are all made of the first projection.
        norm: ``none`` for a learned scale and shift alone.
        mlps: MLPs per layer.
    """

    vocab: int
    positions: int
    types: int
    embed_width: int
    width: int
    inner: int
    layers: int
    heads: int
    mlp: int
    mlps: int
    activation: str
    trigram: bool
    bottleneck: bool
    query_bottleneck: bool
    value_bottleneck: bool
    norm: Literal["none", "layer"]
    norm_eps: float

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.inner // self.heads

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        bottlenecks = 3 * self.width * self.inner if self.bottleneck else 0
        return 2.0 * self.layers * (bottlenecks + self.inner * (4 * self.inner + 2 * self.mlps * self.mlp))

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return 4.0 * self.layers * self.inner


class ScaleShift(nnx.Module):
    """A norm without normalising: a learned scale and shift."""

    def __init__(self, width: int, dtype: jnp.dtype) -> None:
        self.scale = param((width,), ("embed",), dtype, fill=1.0)
        self.bias = param((width,), ("embed",), dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., width] -> [..., width]``."""
        return x * self.scale[...] + self.bias[...]


def _norm(config: MobileBertConfig, width: int, eps: float, dtype: jnp.dtype) -> ScaleShift | LayerNorm:
    return ScaleShift(width, dtype) if config.norm == "none" else LayerNorm(width, eps, dtype)


class Projection(nnx.Module):
    """A linear layer with a norm after it, and after what is added to it."""

    def __init__(self, d_in: int, d_out: int, config: MobileBertConfig, dtype: jnp.dtype, eps: float) -> None:
        self.dense = Linear(d_in, d_out, (None, "embed"), bias=True, dtype=dtype)
        self.norm = _norm(config, d_out, eps, dtype)

    def __call__(self, x: jax.Array, residual: jax.Array | float = 0.0) -> jax.Array:
        """``[..., in] -> [..., out]``."""
        return self.norm(self.dense(x) + residual)


class Mlp(nnx.Module):
    """Up, activation, down, add, norm."""

    def __init__(self, config: MobileBertConfig, dtype: jnp.dtype, eps: float) -> None:
        self.up = Linear(config.inner, config.mlp, ("embed", "mlp"), bias=True, dtype=dtype)
        self.down = Projection(config.mlp, config.inner, config, dtype, eps)
        self.activation = config.activation

    def __call__(self, x_BTN: jax.Array) -> jax.Array:
        """``[B, T, N] -> [B, T, N]``."""
        return self.down(ACTIVATIONS[self.activation](self.up(x_BTN)), x_BTN)


class Layer(nnx.Module):
    """Into the narrow space; attention and MLPs there; back."""

    def __init__(self, config: MobileBertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        wide = c.width if c.bottleneck and not c.value_bottleneck else c.inner
        self.enter = Projection(c.width, c.inner, c, dtype, c.norm_eps) if c.bottleneck else None
        self.enter_query = Projection(c.width, c.inner, c, dtype, c.norm_eps) if c.query_bottleneck else None
        self.query = Linear(c.inner, c.inner, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.key = Linear(c.inner, c.inner, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.value = Linear(wide, c.inner, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.out = Projection(c.inner, c.inner, c, dtype, c.norm_eps)
        for i in range(c.mlps - 1):  # named attributes, so that every parameter has a path
            setattr(self, f"mlp_{i}", Mlp(c, dtype, c.norm_eps))
        self.mlp = Mlp(c, dtype, TORCH_EPS)
        self.leave = Projection(c.inner, c.width, c, dtype, c.norm_eps) if c.bottleneck else None
        self.config, self.implementation = c, implementation

    def __call__(self, x_BTD: jax.Array, layout: Layout) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        c, shape = self.config, (*x_BTD.shape[:2], self.config.heads, self.config.head_size)
        narrow_BTN = x_BTD if self.enter is None else self.enter(x_BTD)
        for_value = narrow_BTN if c.value_bottleneck else x_BTD
        for_query = for_value if self.enter_query is None else self.enter_query(x_BTD)
        attended_BTHh = attend(
            self.query(for_query).reshape(shape),
            self.key(for_query).reshape(shape),
            self.value(for_value).reshape(shape),
            layout=layout,
            causal=False,
            scale=c.head_size**-0.5,
            implementation=self.implementation,
        )
        y_BTN = self.out(attended_BTHh.reshape(narrow_BTN.shape), narrow_BTN)
        for i in range(c.mlps - 1):
            y_BTN = getattr(self, f"mlp_{i}")(y_BTN)
        y_BTN = self.mlp(y_BTN)
        return y_BTN if self.leave is None else self.leave(y_BTN, x_BTD)


class MobileBert(nnx.Module):
    """Embeddings and stacked layers."""

    def __init__(self, config: MobileBertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        self.tokens = Embedding(c.vocab, c.embed_width, dtype, axis="vocab")
        self.positions = Embedding(c.positions, c.width, dtype)
        self.types = Embedding(c.types, c.width, dtype)
        inputs = (3 if c.trigram else 1) * c.embed_width
        projected = c.trigram or c.embed_width != c.width
        self.project = Linear(inputs, c.width, (None, "embed"), bias=True, dtype=dtype) if projected else None
        self.norm = _norm(c, c.width, TORCH_EPS, dtype)
        self.layers = stacked(lambda: Layer(c, dtype, implementation), c.layers)
        self.config = c

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array, layout: Layout) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids and segment types."""
        x_BTE = self.tokens(ids_BT)
        if self.config.trigram:
            # The next token, the token, the one before it; zeros beyond the ends.
            around_BTWE = layout.neighbours(x_BTE, 3)[:, :, ::-1]
            x_BTE = around_BTWE.reshape(*ids_BT.shape, -1)
        x_BTD = x_BTE if self.project is None else self.project(x_BTE)
        x_BTD = x_BTD + self.positions(layout.position) + self.types(types_BT)
        return scan_layers(self.layers, self.norm(x_BTD), lambda layer, x, _: layer(x, layout))
