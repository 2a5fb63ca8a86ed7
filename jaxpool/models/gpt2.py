"""GPT-2 (Radford et al. 2019): pre-norm causal decoder with learned positions.

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
class Gpt2Config:
    """Shape of one GPT-2 backbone, in our words; made from a Hugging Face config by ``families/gpt2.py``."""

    vocab: int
    positions: int
    width: int
    layers: int
    heads: int
    mlp: int
    activation: str
    norm_eps: float
    scale_attention: bool

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
            scale=self.head_size**-0.5 if self.scale_attention else 1.0,
            causal=True,
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
    """Normalise, attend, add; normalise, MLP, add."""

    def __init__(self, config: Gpt2Config, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.attention_norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.attention = SelfAttention(config.attention, dtype, implementation)
        self.mlp_norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.up = Linear(config.width, config.mlp, ("embed", "mlp"), bias=True, dtype=dtype)
        self.down = Linear(config.mlp, config.width, ("mlp", "embed"), bias=True, dtype=dtype)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), lengths_B)
        h_BTF = ACTIVATIONS[self.activation](self.up(self.mlp_norm(x_BTD)))
        return x_BTD + self.down(h_BTF)


class Gpt2(nnx.Module):
    """Embeddings, stacked layers, final norm."""

    def __init__(self, config: Gpt2Config, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.tokens = Embedding(config.vocab, config.width, dtype, axis="vocab")
        self.positions = Embedding(config.positions, config.width, dtype)
        self.layers = stacked(lambda: Layer(config, dtype, implementation), config.layers)
        self.norm = LayerNorm(config.width, config.norm_eps, dtype)

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, lengths_B: jax.Array) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids, rows right-padded to T; ``types_BT`` is not used."""
        x_BTD = self.tokens(ids_BT) + self.positions(jnp.arange(ids_BT.shape[1]))
        return self.norm(scan_layers(self.layers, x_BTD, lambda layer, x, _: layer(x, lengths_B)))
