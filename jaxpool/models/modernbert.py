"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): layers that see far and near in turn, each with its rotary base.

Layers normalise what enters their halves, except that the first attention reads the embeddings as they were
normalised. The decoder of the same name (Weller et al. 2025, arXiv:2507.11412) is causal and otherwise equal. Shape
letters as in ``layers.py``; L layers, N rotary tables, R half of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import AttentionConfig, Turn
from jaxpool.models.groups import grouped, scan_groups
from jaxpool.models.layers import Embedding
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.norms import Norm, NormConfig
from jaxpool.ops.attention import Implementation
from jaxpool.ops.rope import Rope, angles


@dataclass(frozen=True, slots=True)
class ModernBertConfig:
    """Shape of one ModernBERT, in our words; made from a Hugging Face config by ``families``.

    Attributes:
        attention, mlp: of every layer.
        norm: kind of every norm.
        ropes: rotary tables in use.
        layer_ropes: per layer, which of ``ropes``.
        windows: per layer, a token sees tokens less than so many positions away; None: all.
    """

    vocab: int
    width: int
    layers: int
    attention: AttentionConfig
    mlp: MlpConfig
    norm: NormConfig
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]
    windows: tuple[int | None, ...]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.attention.heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.attention.head_size

    @property
    def causal(self) -> bool:
        """Whether a token sees only itself and what precedes it."""
        return self.attention.causal

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        return self.layers * (self.attention.flops_per_token + self.mlp.flops_per_token)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return self.layers * self.attention.flops_per_pair


class Layer(nnx.Module):
    """Attention and MLP, each added to what entered it; the ``first`` has no norm before its attention."""

    def __init__(
        self, config: ModernBertConfig, dtype: jnp.dtype, implementation: Implementation, *, first: bool
    ) -> None:
        self.attention_norm = None if first else Norm(config.norm, (config.width,), dtype)
        self.attention = config.attention.make(dtype, implementation)
        self.mlp_norm = Norm(config.norm, (config.width,), dtype)
        self.mlp = config.mlp.make(dtype)

    def __call__(self, x_BTD: jax.Array, lengths_B: jax.Array, turn: Turn, window: jax.Array) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``turn`` and ``window`` as for ``SelfAttention``."""
        h_BTD = x_BTD if self.attention_norm is None else self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.attention(h_BTD, lengths_B, turn, window)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD), lengths_B)


class ModernBert(nnx.Module):
    """Normalised token embedding, layers, final norm."""

    def __init__(self, config: ModernBertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        self.tokens = Embedding(c.vocab, c.width, dtype, axis="vocab")
        self.embedding_norm = Norm(c.norm, (c.width,), dtype)
        kinds = tuple(depth == 0 for depth in range(c.layers))
        self.layers = grouped(lambda first: Layer(c, dtype, implementation, first=first), kinds)
        self.norm = Norm(c.norm, (c.width,), dtype)
        self.config = c

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, lengths_B: jax.Array) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids, rows right-padded to T; ``types_BT`` is not used."""
        c, n_tokens = self.config, ids_BT.shape[1]
        tables = zip(*(angles(rope, n_tokens, lengths_B) for rope in c.ropes))
        cosines_N, sines_N = (jnp.stack(jnp.broadcast_arrays(*table)) for table in tables)
        windows = (n_tokens if window is None else window for window in c.windows)

        def run(layer: Layer, x_BTD: jax.Array, own: jax.Array) -> jax.Array:
            which, window = own
            return layer(x_BTD, lengths_B, (cosines_N[which], sines_N[which]), window)

        per_layer_L2 = jnp.array(list(zip(c.layer_ropes, windows)))
        return self.norm(scan_groups(self.layers, self.embedding_norm(self.tokens(ids_BT)), run, per_layer_L2))
