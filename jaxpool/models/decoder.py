"""Llama-like decoders: one module with switches; Llama, Mistral, Qwen2 and Qwen3 are settings of it.

Pre-norm layers (RMSNorm), rotary positions, grouped key/value heads, gated MLP (Touvron et al. 2023, arXiv:2302.13971;
Jiang et al. 2023, arXiv:2310.06825; Yang et al. 2024, arXiv:2407.10671). Shape letters as in ``layers.py``; R = h / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import AttentionConfig, SelfAttention, Turn
from jaxpool.models.layers import ACTIVATIONS, Embedding, Linear, RMSNorm, scan_layers, stacked
from jaxpool.ops.attention import Implementation, Window
from jaxpool.ops.rope import Rope, angles


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape and switches of one decoder, in our words; made from a Hugging Face config by ``families/decoder.py``.

    Attributes:
        qkv_bias, out_bias, mlp_bias: which projections carry a bias.
        qk_norm: RMSNorm on every query and key head before rotation.
        windows: per layer, how many positions back a token sees (itself included); None sees everything.
        causal: False turns the decoder into a bidirectional encoder (``is_causal: false``).
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    activation: str
    norm_eps: float
    rope: Rope
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    causal: bool = True

    @property
    def attention(self) -> AttentionConfig:
        """The attention of every layer; windows are given when it runs."""
        return AttentionConfig(
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            scale=self.head_size**-0.5,
            causal=self.causal,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            norm_eps=self.norm_eps if self.qk_norm else None,
        )

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        attention = self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return 2.0 * self.layers * self.width * (attention + 3 * self.mlp)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return 4.0 * self.layers * self.heads * self.head_size


class Layer(nnx.Module):
    """Normalise, attend, add; normalise, gated MLP, add."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.attention_norm = RMSNorm(config.width, config.norm_eps, dtype)
        self.attention = SelfAttention(config.attention, dtype, implementation)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps, dtype)
        self.gate = Linear(config.width, config.mlp, ("embed", "mlp"), bias=config.mlp_bias, dtype=dtype)
        self.up = Linear(config.width, config.mlp, ("embed", "mlp"), bias=config.mlp_bias, dtype=dtype)
        self.down = Linear(config.mlp, config.width, ("mlp", "embed"), bias=config.mlp_bias, dtype=dtype)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array, lengths_B: jax.Array, turn: Turn, window: Window) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), lengths_B, turn, window)
        h_BTD = self.mlp_norm(x_BTD)
        h_BTF = ACTIVATIONS[self.activation](self.gate(h_BTD)) * self.up(h_BTD)
        return x_BTD + self.down(h_BTF)


class Decoder(nnx.Module):
    """Token embedding, stacked layers, final norm."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.tokens = Embedding(config.vocab, config.width, dtype, axis="vocab")
        self.layers = stacked(lambda: Layer(config, dtype, implementation), config.layers)
        self.norm = RMSNorm(config.width, config.norm_eps, dtype)
        self.config = config

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, lengths_B: jax.Array) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids, rows right-padded to T; ``types_BT`` is not used."""
        n_tokens = ids_BT.shape[1]
        turn = angles(self.config.rope, self.config.head_size, n_tokens)
        # Windows at least as long as the row hide nothing; equal windows need not be traced.
        windows = {w if w is not None and w < n_tokens else None for w in self.config.windows or (None,)}
        if len(windows) == 1:
            window = windows.pop()
            return self.norm(
                scan_layers(self.layers, self.tokens(ids_BT), lambda layer, x, _: layer(x, lengths_B, turn, window))
            )
        per_layer = jnp.array([n_tokens if w is None else w for w in self.config.windows])
        return self.norm(
            scan_layers(self.layers, self.tokens(ids_BT), lambda layer, x, w: layer(x, lengths_B, turn, w), per_layer)
        )
