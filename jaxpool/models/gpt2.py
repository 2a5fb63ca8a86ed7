"""GPT-2 (Radford et al. 2019): pre-norm causal decoder with learned positions.

Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, scan_layers, stacked
from jaxpool.ops.attention import Implementation, attend


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
    def kv_heads(self) -> int:
        """Key/value heads; GPT-2 has one for each query head."""
        return self.heads

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
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return 4.0 * self.layers * self.width


class Attention(nnx.Module):
    """Causal self-attention with biases; the checkpoint's fused ``c_attn`` is split into three on loading."""

    def __init__(self, config: Gpt2Config, dtype: jnp.dtype, implementation: Implementation) -> None:
        inner = {"bias": True, "dtype": dtype, "units": config.heads}
        self.query = Linear(config.width, config.width, ("embed", "heads"), **inner)
        self.key = Linear(config.width, config.width, ("embed", "kv_heads"), **inner)
        self.value = Linear(config.width, config.width, ("embed", "kv_heads"), **inner)
        self.out = Linear(config.width, config.width, ("heads", "embed"), **inner)
        self.config, self.implementation = config, implementation

    def __call__(self, x_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        heads = (*x_BTD.shape[:2], self.config.heads, self.config.head_size)
        y_BTHh = attend(
            self.query(x_BTD).reshape(heads),
            self.key(x_BTD).reshape(heads),
            self.value(x_BTD).reshape(heads),
            lengths_B=lengths_B,
            causal=True,
            scale=self.config.head_size**-0.5 if self.config.scale_attention else 1.0,
            implementation=self.implementation,
        )
        return self.out(y_BTHh.reshape(x_BTD.shape))


class Layer(nnx.Module):
    """Normalise, attend, add; normalise, MLP, add."""

    def __init__(self, config: Gpt2Config, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.attention_norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.attention = Attention(config, dtype, implementation)
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
