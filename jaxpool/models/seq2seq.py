"""Encoder-decoders as classifiers: BART (Lewis et al. 2019, arXiv:1910.13461) and T5 (Raffel et al. 2019, 1910.10683).

The encoder reads the text; the decoder reads it once more, shifted by one token, looking back at itself and at all that
the encoder made. Its hidden state at the end-of-text token is what the head classifies (``pooling.py``, EOS). BART and
its relatives learn positions; T5 learns a bias by distance, mT5 is a T5, and umT5 learns that bias in every layer.
Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import AttentionConfig
from jaxpool.models.layers import Embedding, Linear, scan_layers, stacked
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.norms import Norm, NormConfig
from jaxpool.ops.attention import Bias, attend
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.relative import bias_by_distance, buckets


@dataclass(frozen=True, slots=True)
class Side:
    """The layers of the encoder, or of the decoder, which are those whose attention is causal."""

    layers: int
    attention: AttentionConfig
    mlp: MlpConfig

    @property
    def attentions(self) -> int:
        """Attentions per layer: in the decoder a second one, to the encoder."""
        return 2 if self.attention.causal else 1


@dataclass(frozen=True, slots=True)
class Relative:
    """A bias by distance: its buckets, where the last begins, and whether every layer has its own."""

    buckets: int
    furthest: int
    per_layer: bool


@dataclass(frozen=True, slots=True)
class Seq2SeqConfig:
    """Shape and switches of one encoder-decoder, in our words; made from a Hugging Face config by ``families``.

    Attributes:
        decoder: its layers; None for an encoder alone, whose own hidden states are read then.
        norm: kind of every norm.
        pre_norm: whether layers normalise what enters their parts, or what leaves.
        embedding_norm, final_norm: whether either side normalises its embeddings, and at its end.
        embedding_scale: factor on token embeddings.
        positions: usable learned positions, or None.
        position_offset: rows of the position table before that of position 0.
        relative: bias by distance, or None.
        start: token that the decoder reads first; None: the last of the text that is not ``padding_id``.
    """

    vocab: int
    width: int
    encoder: Side
    decoder: Side | None
    norm: NormConfig
    pre_norm: bool
    embedding_norm: bool
    final_norm: bool
    embedding_scale: float = 1.0
    positions: int | None = None
    position_offset: int = 0
    relative: Relative | None = None
    start: int | None = None
    padding_id: int | None = None

    @property
    def heads(self) -> int:
        """Attention heads of the encoder."""
        return self.encoder.attention.heads

    @property
    def head_size(self) -> int:
        """Width of one head of the encoder."""
        return self.encoder.attention.head_size

    @property
    def sides(self) -> tuple[Side, ...]:
        """The encoder, and the decoder if there is one."""
        return (self.encoder,) if self.decoder is None else (self.encoder, self.decoder)

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all sides, without attention scores."""
        return sum(s.layers * (s.attentions * s.attention.flops_per_token + s.mlp.flops_per_token) for s in self.sides)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all sides: scores and weighted sum."""
        return sum(s.layers * s.attentions * s.attention.flops_per_pair for s in self.sides)


class CrossAttention(nnx.Module):
    """Attention from the decoder to the encoder: queries from one, keys and values from the other."""

    def __init__(self, config: AttentionConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c, inner = config, config.heads * config.head_size

        def linear() -> Linear:
            return Linear(c.width, inner, ("embed", "heads"), bias=c.qkv_bias, dtype=dtype, units=c.heads)

        self.query, self.key, self.value = linear(), linear(), linear()
        self.out = Linear(inner, c.width, ("heads", "embed"), bias=c.out_bias, dtype=dtype, units=c.heads)
        self.config, self.implementation = c, implementation

    def __call__(self, x_BTD: jax.Array, memory_BSD: jax.Array, layout: Layout) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``memory_BSD`` is what the encoder made of the same texts."""
        shape = (*x_BTD.shape[:2], self.config.heads, self.config.head_size)
        y_BTHh = attend(
            self.query(x_BTD).reshape(shape),
            self.key(memory_BSD).reshape(shape),
            self.value(memory_BSD).reshape(shape),
            layout=layout,
            causal=False,
            scale=self.config.scale,
            implementation=self.implementation,
        )
        return self.out(y_BTHh.reshape(*shape[:2], -1))


class Layer(nnx.Module):
    """Attention, in the decoder attention to the encoder, then MLP; each added to what entered it."""

    def __init__(self, config: Seq2SeqConfig, side: Side, dtype: jnp.dtype, implementation: Implementation) -> None:
        def norm() -> Norm:
            return Norm(config.norm, (config.width,), dtype)

        crossed, relative = side.attention.causal, config.relative
        self.attention_norm = norm()
        self.attention = side.attention.make(dtype, implementation)
        self.cross_norm = norm() if crossed else None
        self.cross = CrossAttention(side.attention, dtype, implementation) if crossed else None
        self.mlp_norm = norm()
        self.mlp = side.mlp.make(dtype)
        own = relative is not None and relative.per_layer
        self.relative = Embedding(relative.buckets, side.attention.heads, dtype) if own and relative else None
        self.pre_norm = config.pre_norm

    def __call__(
        self,
        x_BTD: jax.Array,
        layout: Layout,
        memory_BTD: jax.Array | None,
        bias: Callable[[Embedding], Bias],
        bias_HTS: Bias,
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``bias`` turns a table of this layer into a bias, in place of ``bias_HTS``."""
        bias_HTS = bias_HTS if self.relative is None else bias(self.relative)
        x_BTD = self._add(x_BTD, self.attention_norm, lambda x: self.attention(x, layout, bias_HTS=bias_HTS))
        if self.cross is not None and self.cross_norm is not None and memory_BTD is not None:
            cross = self.cross
            x_BTD = self._add(x_BTD, self.cross_norm, lambda x: cross(x, memory_BTD, layout))
        return self._add(x_BTD, self.mlp_norm, lambda x: self.mlp(x, layout.real_BT))

    def _add(self, x_BTD: jax.Array, norm: Norm, run: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return x_BTD + run(norm(x_BTD)) if self.pre_norm else norm(x_BTD + run(x_BTD))


class Stack(nnx.Module):
    """One side: positions, norms, layers."""

    def __init__(self, config: Seq2SeqConfig, side: Side, dtype: jnp.dtype, implementation: Implementation) -> None:
        c, relative = config, config.relative
        self.positions = Embedding(c.positions + c.position_offset, c.width, dtype) if c.positions else None
        self.embedding_norm = Norm(c.norm, (c.width,), dtype) if c.embedding_norm else None
        one = relative is not None and not relative.per_layer
        self.relative = Embedding(relative.buckets, side.attention.heads, dtype) if one and relative else None
        self.layers = stacked(lambda: Layer(c, side, dtype, implementation), side.layers)
        self.norm = Norm(c.norm, (c.width,), dtype) if c.final_norm else None
        self.config, self.two_sided = c, not side.attention.causal

    def __call__(self, x_BTD: jax.Array, layout: Layout, memory_BTD: jax.Array | None = None) -> jax.Array:
        """Hidden states ``[B, T, D]`` from token embeddings, and for the decoder from what the encoder made."""
        c, n_tokens = self.config, x_BTD.shape[1]
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(layout.position + c.position_offset)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)

        def bias(table: Embedding) -> Bias:
            assert c.relative is not None
            bucket_N = buckets(n_tokens, c.relative.buckets, max_distance=c.relative.furthest, two_sided=self.two_sided)
            return bias_by_distance(table.table[...], bucket_N)

        bias_HTS = None if self.relative is None else bias(self.relative)
        x_BTD = scan_layers(self.layers, x_BTD, lambda layer, x, _: layer(x, layout, memory_BTD, bias, bias_HTS))
        return x_BTD if self.norm is None else self.norm(x_BTD)


class Seq2Seq(nnx.Module):
    """Token embedding, encoder, decoder."""

    def __init__(self, config: Seq2SeqConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.tokens = Embedding(config.vocab, config.width, dtype, axis="vocab")
        self.encoder = Stack(config, config.encoder, dtype, implementation)
        self.decoder = None if config.decoder is None else Stack(config, config.decoder, dtype, implementation)
        self.config = config

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        """The last side's hidden states ``[B, T, D]`` of int32 token ids; ``types_BT`` is not used."""
        scale = self.config.embedding_scale
        memory_BTD = self.encoder(self.tokens(ids_BT) * scale, layout)
        if self.decoder is None:
            return memory_BTD
        return self.decoder(self.tokens(shifted(ids_BT, layout, self.config)) * scale, layout, memory_BTD)


def shifted(ids_BT: jax.Array, layout: Layout, config: Seq2SeqConfig) -> jax.Array:
    """What the decoder reads: the text one token later, behind its first token as ``Seq2SeqConfig.start`` says."""
    if config.start is not None:
        first_BM = jnp.full_like(layout.lengths_BM, config.start)
    else:
        # The count of tokens that are not padding, less one: as transformers finds it, wherever padding tokens stand.
        padding = -1 if config.padding_id is None else config.padding_id
        counted_BM = layout.total(jnp.not_equal(ids_BT, padding)).astype(jnp.int32)
        first_BM = layout.at(ids_BT, layout.first_BM + jnp.maximum(counted_BM - 1, 0))
    return layout.delayed(ids_BT, first_BM)
