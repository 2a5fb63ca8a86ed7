"""BERT and its relatives: one encoder whose switches are data.

BERT (Devlin et al. 2018, arXiv:1810.04805) normalises after each residual addition and adds learned positions and
segment types. RoBERTa (Liu et al. 2019, arXiv:1907.11692) counts positions differently; ELECTRA and ALBERT (Lan et al.
2019, arXiv:1909.11942) have narrow embeddings, ALBERT shares layers; MPNet adds a relative bias; Megatron normalises
before; RoFormer and ESM-2 rotate; X-MOD adapts to a language; JinaBERT gates, and
biases scores by distance. Shape letters as in ``layers.py``; E width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.adapter import Adapter, AdapterConfig
from jaxpool.models.attention import AttentionConfig, Rotation
from jaxpool.models.convolution import GroupedLinear
from jaxpool.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, scan_layers, stacked
from jaxpool.ops.alibi import both_ways
from jaxpool.ops.attention import Bias
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.relative import bias_by_distance, buckets
from jaxpool.ops.rope import Rope, angles


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Shape and switches of one BERT-like backbone, in our words; made from a Hugging Face config by ``families``.

    Attributes:
        positions: longest text, in tokens, that has a learned position each; None for no learned positions.
        types: number of segment types, 0 for none.
        first_position: position of the first token.
        padding_id: None: positions count all tokens. Else they count the tokens that are not this one, starting at
            ``padding_id + 1``; tokens that are it, wherever they stand, have position ``padding_id``.
        embed_width: width of the embeddings if they are projected to ``width`` afterwards, or None.
        embed_norm: whether embeddings are normalised.
        embed_eps: epsilon of that norm where it is not ``norm_eps``.
        extra: rows of a further embedding whose row 0 is added to every token (ERNIE's task types), 0 for none.
        pre_norm: whether layers normalise what enters their halves, with one more norm at the end, or what leaves.
        shared: how many groups of distinct layers there are if equal runs of layers share weights, or None.
        inner: layers of a group, which run one after the other at each depth.
        windows: per layer, what a mixer that has windows takes for its own; empty: what it says itself.
        relative: buckets of a relative position bias, one table for all layers (MPNet), 0 for none.
        rope: rotary positions, or None.
        rotations: rows of a stored table of sines, then cosines, that rotates neighbours (RoFormer), 0 for none.
        mask_id: token whose embedding counts as zero, the others being scaled up for it (ESM), or None.
        adapter: what follows the MLP in every layer (X-MOD), or None.
        mixer: attention other than ``SelfAttention``, a config with ``make``, or None.
        groups: groups of the two linear layers of the MLP, each a matrix of its own; ``(1, 1)`` for plain layers.
        limit: longest text in tokens, where something other than ``positions`` bounds it, or None.
        alibi: per head, what a score loses per token of distance (JinaBERT), or None.
        gated: whether the MLP is ``down(activation(gate(x)) * up(x))``, only the last layer with a bias.
        pointwise: whether those are stored as convolutions of width one (SqueezeBERT).
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
    first_position: int = 0
    padding_id: int | None = None
    embed_width: int | None = None
    embed_norm: bool = True
    embed_eps: float | None = None
    extra: int = 0
    pre_norm: bool = False
    shared: int | None = None
    inner: int = 1
    windows: tuple[int, ...] = ()
    relative: int = 0
    rope: Rope | None = None
    rotations: int = 0
    mask_id: int | None = None
    adapter: AdapterConfig | None = None
    mixer: Any = None
    groups: tuple[int, int] = (1, 1)
    pointwise: bool = False
    limit: int | None = None
    alibi: tuple[float, ...] | None = None
    gated: bool = False

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads if self.mixer is None else self.mixer.head_size

    @property
    def attention(self) -> Any:
        """The attention of every layer, a config with ``make``."""
        return self.mixer or AttentionConfig(
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_size=self.head_size,
            scale=self.head_size**-0.5,
            causal=False,
            qkv_bias=True,
            out_bias=True,
            interleaved=bool(self.rotations),
        )

    @property
    def order(self) -> tuple[int, ...] | None:
        """Which stored layer runs at each depth if layers share weights, or None."""
        if self.shared is None:
            return None
        # As transformers rounds it, for depths that the number of groups does not divide.
        groups = (int(depth / (self.layers / self.shared)) for depth in range(self.layers))
        return tuple(group * self.inner + i for group in groups for i in range(self.inner))

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token through all layers, without attention scores."""
        return 2.0 * self.layers * self.inner * self.width * (4 * self.width + (3 if self.gated else 2) * self.mlp)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return 4.0 * self.layers * self.inner * self.width


class Layer(nnx.Module):
    """Attention, then MLP, each added to what entered it; normalised before or after."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        self.attention = c.attention.make(dtype, implementation)
        self.attention_norm = LayerNorm(c.width, c.norm_eps, dtype)
        if c.pointwise or c.groups != (1, 1):
            self.up = GroupedLinear(c.width, c.mlp, c.groups[0], pointwise=c.pointwise, dtype=dtype)
            self.down = GroupedLinear(c.mlp, c.width, c.groups[1], pointwise=c.pointwise, dtype=dtype)
        else:
            self.up = Linear(c.width, c.mlp, ("embed", "mlp"), bias=not c.gated, dtype=dtype)
            self.down = Linear(c.mlp, c.width, ("mlp", "embed"), bias=True, dtype=dtype)
        self.gate = Linear(c.width, c.mlp, ("embed", "mlp"), bias=False, dtype=dtype) if c.gated else None
        self.mlp_norm = LayerNorm(c.width, c.norm_eps, dtype)
        self.adapter = None if c.adapter is None else Adapter(c.adapter, dtype)
        self.config = c

    def __call__(
        self,
        x_BTD: jax.Array,
        layout: Layout,
        rotation: Rotation | None = None,
        bias_HTS: Bias = None,
        queries: jax.Array | None = None,
        window: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``rotation``, ``bias_HTS``, ``queries``, ``window`` as for the attention."""
        asking: dict[str, Any] = {} if queries is None else {"queries": queries}  # other mixers know all tokens only
        asking |= {} if window is None else {"window": window}
        h_BTD = self.attention_norm(x_BTD) if self.config.pre_norm else x_BTD
        y_BTD = self.attention(h_BTD, layout, rotation, bias_HTS=bias_HTS, **asking)
        x_BTD = y_BTD + (x_BTD if queries is None else layout.at(x_BTD, queries))
        if self.config.pre_norm:
            return self.adapt(x_BTD + self.mlp(self.mlp_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD)
        return self.mlp_norm(self.adapt(x_BTD + self.mlp(x_BTD)))

    def mlp(self, x_BTD: jax.Array) -> jax.Array:
        """Two linear layers with the activation between them, or three of which one gates."""
        activation = ACTIVATIONS[self.config.activation]
        return self.down(
            activation(self.up(x_BTD)) if self.gate is None else activation(self.gate(x_BTD)) * self.up(x_BTD)
        )

    def adapt(self, x_BTD: jax.Array) -> jax.Array:
        """Through the adapter, if there is one."""
        return x_BTD if self.adapter is None else self.adapter(x_BTD, self.mlp_norm)


class Bert(nnx.Module):
    """Embeddings and stacked layers; the tanh pooler belongs to the head."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c, narrow = config, config.embed_width or config.width
        self.tokens = Embedding(c.vocab, narrow, dtype, axis="vocab")
        first = c.first_position if c.padding_id is None else c.padding_id + 1
        self.positions = None if c.positions is None else Embedding(first + c.positions, narrow, dtype)
        self.types = Embedding(c.types, narrow, dtype) if c.types else None
        self.extra = Embedding(c.extra, narrow, dtype) if c.extra else None
        self.norm = LayerNorm(narrow, c.embed_eps or c.norm_eps, dtype) if c.embed_norm else None
        self.project = Linear(narrow, c.width, (None, "embed"), bias=True, dtype=dtype) if c.embed_width else None
        self.relative = Embedding(c.relative, c.heads, dtype) if c.relative else None
        # Angles need more than eight bits of precision: the table stays float32 in every dtype.
        self.rotations = Embedding(c.rotations, c.head_size, jnp.dtype("float32")) if c.rotations else None
        self.layers = stacked(lambda: Layer(c, dtype, implementation), c.shared * c.inner if c.shared else c.layers)
        self.final_norm = LayerNorm(c.width, c.norm_eps, dtype) if c.pre_norm else None
        self.config, self.picks = config, config.mixer is None

    def __call__(
        self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout, at: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids and segment types; of those at ``at`` only, ``[B, M, D]``."""
        bias_HTS: Bias = None
        rotation = self.rotation(layout)
        if self.relative is not None:
            bias_HTS = bias_by_distance(self.relative.table[...], buckets(ids_BT.shape[1], self.config.relative))
        elif self.config.alibi is not None:
            bias_HTS = both_ways(self.config.alibi, ids_BT.shape[1])
        x_BTD = scan_layers(
            self.layers,
            self.embed(ids_BT, types_BT, layout),
            lambda layer, x, window: layer(x, layout, rotation, bias_HTS, window=window),
            jnp.array(self.config.windows) if self.config.windows else None,
            order=self.config.order,
            last=None if at is None else lambda layer, x, _: layer(x, layout, rotation, bias_HTS, at),
        )
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)

    def rotation(self, layout: Layout) -> Rotation | None:
        """Cosines and sines of rotary positions, if the model has them."""
        if self.rotations is not None:
            sin_TR, cos_TR = jnp.split(self.rotations(layout.position), 2, axis=-1)
            return cos_TR, sin_TR
        return None if self.config.rope is None else angles(self.config.rope, layout)

    def embed(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        """What enters the first layer, ``[B, T, D]``."""
        c, x_BTE = self.config, self.tokens(ids_BT)
        if c.mask_id is not None:
            x_BTE = _without_masks(x_BTE, ids_BT == c.mask_id, layout)
        if self.types is not None and types_BT is not None:
            x_BTE = x_BTE + self.types(types_BT)
        if self.positions is not None:
            x_BTE = x_BTE + self.positions(positions(ids_BT, layout, c.first_position, c.padding_id))
        if self.extra is not None:
            x_BTE = x_BTE + self.extra(jnp.array(0))
        if self.norm is not None:
            x_BTE = self.norm(x_BTE)
        return x_BTE if self.project is None else self.project(x_BTE)


def positions(ids_BT: jax.Array, layout: Layout, first: int, padding_id: int | None) -> jax.Array:
    """Position of every token, as ``BertConfig`` says: int32 ``[T]``, or ``[B, T]``."""
    if padding_id is None:
        return first + layout.position
    counts_BT = ids_BT != padding_id
    return layout.counted(counts_BT) * counts_BT + padding_id


def _without_masks(x_BTE: jax.Array, masked_BT: jax.Array, layout: Layout) -> jax.Array:
    """Mask tokens become zero, the rest is scaled to what training saw: 12 % of all tokens were masks (ESM)."""
    share_BM = layout.total(masked_BT) / jnp.maximum(layout.lengths_BM, 1)
    scaled_BTE = x_BTE.astype(jnp.float32) * layout.spread((1 - 0.15 * 0.8) / (1 - share_BM))[:, :, None]
    return jnp.where(masked_BT[:, :, None], 0.0, scaled_BTE).astype(x_BTE.dtype)
