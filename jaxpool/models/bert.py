"""BERT (Devlin et al. 2018, arXiv:1810.04805): post-norm encoder with learned positions and segment types.

Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import AttentionConfig, SelfAttention
from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, scan_layers, stacked
from jaxpool.ops.attention import Implementation


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Shape of one BERT backbone, in our words; made from a Hugging Face config by ``families/bert.py``."""

    vocab: int
    positions: int
    types: int
    width: int
    layers: int
    heads: int
    mlp: int
    activation: str
    norm_eps: float

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def attention(self) -> AttentionConfig:
        """The attention of every layer."""
        return AttentionConfig(
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_size=self.head_size,
            scale=self.head_size**-0.5,
            causal=False,
            qkv_bias=True,
            out_bias=True,
        )

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        return 2.0 * self.layers * self.width * (4 * self.width + 2 * self.mlp)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return 4.0 * self.layers * self.width


class Layer(nnx.Module):
    """Attention, then MLP, each followed by residual addition and normalisation."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.attention = SelfAttention(config.attention, dtype, implementation)
        self.attention_norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.up = Linear(config.width, config.mlp, ("embed", "mlp"), bias=True, dtype=dtype)
        self.down = Linear(config.mlp, config.width, ("mlp", "embed"), bias=True, dtype=dtype)
        self.mlp_norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, lengths_B))
        h_BTF = ACTIVATIONS[self.activation](self.up(x_BTD))
        return self.mlp_norm(x_BTD + self.down(h_BTF))


class Bert(nnx.Module):
    """Embeddings and stacked layers; the tanh pooler belongs to the head."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.tokens = Embedding(config.vocab, config.width, dtype, axis="vocab")
        self.positions = Embedding(config.positions, config.width, dtype)
        self.types = Embedding(config.types, config.width, dtype)
        self.norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.layers = stacked(lambda: Layer(config, dtype, implementation), config.layers)

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids and segment types, rows right-padded to T."""
        x_BTD = self.tokens(ids_BT) + self.types(types_BT) + self.positions(jnp.arange(ids_BT.shape[1]))
        return scan_layers(self.layers, self.norm(x_BTD), lambda layer, x, _: layer(x, lengths_B))
