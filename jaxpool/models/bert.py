"""BERT and its relatives: one encoder whose switches are data.

BERT (Devlin et al. 2018, arXiv:1810.04805) normalises after each residual addition and adds learned positions and
segment types. RoBERTa (Liu et al. 2019, arXiv:1907.11692) counts positions differently; ELECTRA and ALBERT (Lan et al.
2019, arXiv:1909.11942) have narrow embeddings, ALBERT shares layers; MPNet adds a relative bias; Megatron normalises
before. Shape letters as in ``layers.py``; E width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import AttentionConfig, SelfAttention, Turn
from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, scan_layers, stacked
from jaxpool.ops.attention import Implementation
from jaxpool.ops.relative import bias_by_distance, buckets


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Shape and switches of one BERT-like backbone, in our words; made from a Hugging Face config by ``families``.

    Attributes:
        positions: longest text, in tokens, that has a learned position each; None for no learned positions.
        types: number of segment types, 0 for none.
        padding_id: None: positions count 0, 1, 2, …. Else they count the tokens that are not this one, starting at
            ``padding_id + 1``; tokens that are it, wherever they stand, have position ``padding_id``.
        embed_width: width of the embeddings if they are projected to ``width`` afterwards, or None.
        embed_norm: whether embeddings are normalised.
        extra: rows of a further embedding whose row 0 is added to every token (ERNIE's task types), 0 for none.
        pre_norm: whether layers normalise what enters their halves, with one more norm at the end, or what leaves.
        shared: how many distinct layers there are if equal runs of layers share weights, or None.
        relative: buckets of a relative position bias, one table for all layers (MPNet), 0 for none.
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
    padding_id: int | None = None
    embed_width: int | None = None
    embed_norm: bool = True
    extra: int = 0
    pre_norm: bool = False
    shared: int | None = None
    relative: int = 0

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
    def order(self) -> tuple[int, ...] | None:
        """Which stored layer runs at each depth if layers share weights, or None."""
        if self.shared is None:
            return None
        # As transformers rounds it, for depths that the number of groups does not divide.
        return tuple(int(depth / (self.layers / self.shared)) for depth in range(self.layers))

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        return 2.0 * self.layers * self.width * (4 * self.width + 2 * self.mlp)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return 4.0 * self.layers * self.width


class Layer(nnx.Module):
    """Attention, then MLP, each added to what entered it; normalised before or after."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.attention = SelfAttention(config.attention, dtype, implementation)
        self.attention_norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.up = Linear(config.width, config.mlp, ("embed", "mlp"), bias=True, dtype=dtype)
        self.down = Linear(config.mlp, config.width, ("mlp", "embed"), bias=True, dtype=dtype)
        self.mlp_norm = LayerNorm(config.width, config.norm_eps, dtype)
        self.config = config

    def __call__(
        self,
        x_BTD: jax.Array,
        lengths_B: jax.Array,
        turn: Turn | None = None,
        bias_HTS: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``turn`` and ``bias_HTS`` as for ``SelfAttention``."""
        if self.config.pre_norm:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), lengths_B, turn, bias_HTS=bias_HTS)
            return x_BTD + self.mlp(self.mlp_norm(x_BTD))
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, lengths_B, turn, bias_HTS=bias_HTS))
        return self.mlp_norm(x_BTD + self.mlp(x_BTD))

    def mlp(self, x_BTD: jax.Array) -> jax.Array:
        """Two linear layers with the activation between them."""
        return self.down(ACTIVATIONS[self.config.activation](self.up(x_BTD)))


class Bert(nnx.Module):
    """Embeddings and stacked layers; the tanh pooler belongs to the head."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c, narrow = config, config.embed_width or config.width
        self.tokens = Embedding(c.vocab, narrow, dtype, axis="vocab")
        first = 0 if c.padding_id is None else c.padding_id + 1
        self.positions = None if c.positions is None else Embedding(first + c.positions, narrow, dtype)
        self.types = Embedding(c.types, narrow, dtype) if c.types else None
        self.extra = Embedding(c.extra, narrow, dtype) if c.extra else None
        self.norm = LayerNorm(narrow, c.norm_eps, dtype) if c.embed_norm else None
        self.project = Linear(narrow, c.width, (None, "embed"), bias=True, dtype=dtype) if c.embed_width else None
        self.relative = Embedding(c.relative, c.heads, dtype) if c.relative else None
        self.layers = stacked(lambda: Layer(c, dtype, implementation), c.shared or c.layers)
        self.final_norm = LayerNorm(c.width, c.norm_eps, dtype) if c.pre_norm else None
        self.config = config

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, lengths_B: jax.Array) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids and segment types, rows right-padded to T."""
        c, bias_HTS = self.config, None
        if self.relative is not None:
            bias_HTS = bias_by_distance(self.relative.table[...], buckets(ids_BT.shape[1], c.relative))
        x_BTD = scan_layers(
            self.layers,
            self.embed(ids_BT, types_BT),
            lambda layer, x, _: layer(x, lengths_B, bias_HTS=bias_HTS),
            order=c.order,
        )
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)

    def embed(self, ids_BT: jax.Array, types_BT: jax.Array | None) -> jax.Array:
        """What enters the first layer, ``[B, T, D]``."""
        x_BTE = self.tokens(ids_BT)
        if self.types is not None and types_BT is not None:
            x_BTE = x_BTE + self.types(types_BT)
        if self.positions is not None:
            x_BTE = x_BTE + self.positions(positions(ids_BT, self.config.padding_id))
        if self.extra is not None:
            x_BTE = x_BTE + self.extra(jnp.array(0))
        if self.norm is not None:
            x_BTE = self.norm(x_BTE)
        return x_BTE if self.project is None else self.project(x_BTE)


def positions(ids_BT: jax.Array, padding_id: int | None) -> jax.Array:
    """Position of every token, as ``BertConfig.padding_id`` says: int32 ``[T]``, or ``[B, T]`` if tokens decide."""
    if padding_id is None:
        return jnp.arange(ids_BT.shape[1])
    counted_BT = (ids_BT != padding_id).astype(jnp.int32)
    return jnp.cumsum(counted_BT, axis=1) * counted_BT + padding_id
