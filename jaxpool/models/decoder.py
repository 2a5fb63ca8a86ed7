"""Decoders: one module with switches; every dense decoder of ``families/`` is a setting of it.

A layer is an attention and an MLP, each a kind of its own (``AttentionKind``, ``MlpKind``), with norms placed as
``norms`` says. Where layers differ (in MLP, window or rotary positions), the scan goes over the repeating period.
Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import Rotation
from jaxpool.models.groups import grouped, scan_groups
from jaxpool.models.layers import Embedding, Linear
from jaxpool.models.norms import Norm, NormConfig
from jaxpool.ops.alibi import Alibi, biases
from jaxpool.ops.attention import Bias
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.rope import Rope, angles, sinusoids


class AttentionKind(Protocol):
    """What an attention config must offer; ``AttentionConfig`` is one."""

    @property
    def heads(self) -> int: ...  # noqa: D102 - as in DecoderConfig, of one layer
    @property
    def head_size(self) -> int: ...  # noqa: D102
    @property
    def causal(self) -> bool: ...  # noqa: D102
    @property
    def flops_per_token(self) -> float: ...  # noqa: D102
    @property
    def flops_per_pair(self) -> float: ...  # noqa: D102
    def make(self, dtype: jnp.dtype, implementation: Implementation) -> Any: ...  # noqa: D102


class MlpKind(Protocol):
    """What an MLP config must offer; ``MlpConfig`` is one. Modules take ``(x_BTD, real_BT)``."""

    def __hash__(self) -> int: ...
    @property
    def flops_per_token(self) -> float: ...  # noqa: D102
    def make(self, dtype: jnp.dtype) -> Any: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ from layer to layer.

    Attributes:
        mlp: its MLP.
        window: how many positions back a token sees (itself included); None sees everything.
        rope: its rotary positions, or None for none.
        bare: whether its attention reads the input without a norm.
    """

    mlp: MlpKind
    window: int | None
    rope: Rope | None
    bare: bool


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape and switches of one decoder, in our words; made from a Hugging Face config by ``families/``.

    Attributes:
        attention: of every layer.
        mlp: of every layer; or a tuple, where layers differ.
        norm: kind of the layers' norms.
        norms: where they stand: ``before`` the attention and the MLP, ``after`` them, on ``both`` sides, or on the
            ``sum`` with the residual.
        first_bare: whether the first layer has no norm before its attention (ModernBERT normalises the embedding).
        parallel: None: the MLP reads what the attention has added to. ``one``: both read the same normed input;
            ``two``: each has a norm of its own on the same input.
        residual_from_norm: the residual is the normed input, not the input (Bloom's option).
        final_norm: kind of the norm after the last layer, or None for none.
        ropes: rotary tables in use.
        layer_ropes: per layer, which of ``ropes``; None rotates nothing. Empty: the first (if any), everywhere.
        windows: per layer, how many positions back a token sees (itself included); None sees everything. Empty:
            everything, everywhere.
        positions: usable learned positions, or None.
        position_offset: rows of the position table before that of position 0.
        sinusoids: whether positions are fixed sines and cosines, added to the embedding.
        alibi: biases on the scores, or None.
        types: number of segment types, 0 for none.
        embedding_width: of the token embedding where it differs from ``width``; then projected in, and out.
        embedding_norm: kind of a norm on the embedding, or None.
        embedding_scale, residual_scale: factors on the embedding, and on what a layer adds.
    """

    vocab: int
    width: int
    layers: int
    attention: AttentionKind
    mlp: MlpKind | tuple[MlpKind, ...]
    norm: NormConfig
    norms: Literal["before", "after", "both", "sum"] = "before"
    first_bare: bool = False
    parallel: Literal["one", "two"] | None = None
    residual_from_norm: bool = False
    final_norm: NormConfig | None = None
    ropes: tuple[Rope, ...] = ()
    layer_ropes: tuple[int | None, ...] = ()
    windows: tuple[int | None, ...] = ()
    positions: int | None = None
    position_offset: int = 0
    sinusoids: bool = False
    alibi: Alibi | None = None
    types: int = 0
    embedding_width: int | None = None
    embedding_norm: NormConfig | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0

    @property
    def pooled_width(self) -> int:
        """Width of the hidden states that leave the decoder."""
        return self.embedding_width or self.width

    @property
    def heads(self) -> int:
        """Query heads."""
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
    def kinds(self) -> tuple[LayerKind, ...]:
        """What may differ by layer, of each layer."""
        mlps = self.mlp if isinstance(self.mlp, tuple) else (self.mlp,) * self.layers
        which = self.layer_ropes or (0 if self.ropes else None,) * self.layers
        ropes = (None if i is None else self.ropes[i] for i in which)
        bare = (self.first_bare and depth == 0 for depth in range(self.layers))
        return tuple(map(LayerKind, mlps, self.windows or (None,) * self.layers, ropes, bare))

    def continues(self, max_length: int) -> bool:
        """Whether texts of at most so many tokens can go on from what was computed of their beginning alone.

        Not where rotary positions are scaled by a text's whole length.
        """
        by_length = [rope for rope in self.ropes if rope.kind in ("dynamic", "longrope")]
        return self.causal and all(max_length <= rope.original_length for rope in by_length)

    @property
    def layer_flops(self) -> tuple[float, ...]:
        """Matrix-multiplication FLOPs of one token through each layer, without attention scores."""
        return tuple(self.attention.flops_per_token + kind.mlp.flops_per_token for kind in self.kinds)

    @property
    def flops_per_token(self) -> float:
        """Those of all layers."""
        return sum(self.layer_flops)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers: scores and weighted sum."""
        return self.layers * self.attention.flops_per_pair


@dataclass(frozen=True, slots=True)
class Context:
    """What all layers know of the batch.

    Attributes:
        layout: where the texts lie.
        rotations: cosines and sines of each rotary table.
        bias_HTS: added to the scores, or None.
    """

    layout: Layout
    rotations: dict[Rope, Rotation]
    bias_HTS: Bias  # noqa: N815 - shape letters


class Layer(nnx.Module):
    """Attention and MLP with their residuals and norms."""

    def __init__(
        self, config: DecoderConfig, kind: LayerKind, dtype: jnp.dtype, implementation: Implementation
    ) -> None:
        c = config

        def norm(wanted: bool) -> Norm | None:
            return Norm(c.norm, (c.width,), dtype) if wanted else None

        before, after = c.norms in ("before", "both", "sum"), c.norms in ("after", "both")
        self.attention_norm = norm(before and not kind.bare)
        self.attention = c.attention.make(dtype, implementation)
        self.attention_out_norm = norm(after)
        self.mlp_norm = norm(before and c.parallel != "one")
        self.mlp = kind.mlp.make(dtype)
        self.mlp_out_norm = norm(after)
        self.config, self.kind = config, kind

    def __call__(self, x_BTD: jax.Array, context: Context, at: jax.Array | None = None) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; of the tokens at ``at`` only, int32 ``[B, M]``: ``-> [B, M, D]``."""
        c, layout = self.config, context.layout
        h_BTD = x_BTD if c.norms == "sum" else _normed(self.attention_norm, x_BTD)
        y_BTD = self._attend(h_BTD, context, at)
        real_BT = layout.real_BT
        if at is not None:
            x_BTD, h_BTD, real_BT = layout.at(x_BTD, at), layout.at(h_BTD, at), layout.lengths_BM > 0
        if c.norms == "sum":
            x_BTD = _normed(self.attention_norm, x_BTD + y_BTD)
            return _normed(self.mlp_norm, x_BTD + self._mlp(x_BTD, real_BT))
        if c.parallel is not None:
            h_BTD = h_BTD if c.parallel == "one" else _normed(self.mlp_norm, x_BTD)
            return x_BTD + y_BTD + self._mlp(h_BTD, real_BT)
        x_BTD = (h_BTD if c.residual_from_norm else x_BTD) + y_BTD
        h_BTD = _normed(self.mlp_norm, x_BTD)
        return (h_BTD if c.residual_from_norm else x_BTD) + self._mlp(h_BTD, real_BT)

    def _attend(self, x_BTD: jax.Array, context: Context, at: jax.Array | None) -> jax.Array:
        window, rope, n_tokens = self.kind.window, self.kind.rope, context.layout.reach + x_BTD.shape[1]
        y_BTD = self.attention(
            x_BTD,
            context.layout,
            None if rope is None else context.rotations[rope],
            # One at least as long as every text hides nothing.
            window if window is not None and window < n_tokens else None,
            context.bias_HTS,
            at,
        )
        return _normed(self.attention_out_norm, y_BTD) * self.config.residual_scale

    def _mlp(self, x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
        return _normed(self.mlp_out_norm, self.mlp(x_BTD, real_BT)) * self.config.residual_scale


def _normed(norm: Norm | None, x_BTD: jax.Array) -> jax.Array:
    return x_BTD if norm is None else norm(x_BTD)


class Decoder(nnx.Module):
    """Token embedding, stacked layers, final norm."""

    picks = True

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c, width = config, config.embedding_width or config.width
        self.tokens = Embedding(c.vocab, width, dtype, axis="vocab")
        self.positions = Embedding(c.positions + c.position_offset, c.width, dtype) if c.positions else None
        self.types = Embedding(c.types, c.width, dtype) if c.types else None
        projected = width != c.width
        self.project_in = Linear(width, c.width, (None, "embed"), bias=False, dtype=dtype) if projected else None
        self.project_out = Linear(c.width, width, ("embed", None), bias=False, dtype=dtype) if projected else None
        self.embedding_norm = Norm(c.embedding_norm, (c.width,), dtype) if c.embedding_norm else None
        self.layers = grouped(lambda kind: Layer(c, kind, dtype, implementation), c.kinds)
        self.norm = Norm(c.final_norm, (c.width,), dtype) if c.final_norm else None
        self.config = config

    def __call__(
        self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout, at: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids, and of segment types, if it has them.

        With ``at``, int32 ``[B, M]``, those of the tokens at these places of their rows only, ``[B, M, D]``: the last
        layer computes nothing else.
        """
        c = self.config
        context = Context(
            layout,
            {rope: angles(rope, layout) for rope in c.ropes},
            None if c.alibi is None else biases(c.alibi, layout),
        )
        x_BTD = scan_groups(
            self.layers,
            self._embed(ids_BT, types_BT, layout),
            layout,
            lambda layer, x, own: layer(x, replace(context, layout=own)),
            last=None if at is None else lambda layer, x, own: layer(x, replace(context, layout=own), at),
        )
        x_BTD = _normed(self.norm, x_BTD)
        return x_BTD if self.project_out is None else self.project_out(x_BTD)

    def _embed(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        c, x_BTD = self.config, self.tokens(ids_BT)
        if self.project_in is not None:
            x_BTD = self.project_in(x_BTD)
        # The factor is rounded to the model dtype first, as transformers does.
        x_BTD = x_BTD * jnp.asarray(c.embedding_scale, x_BTD.dtype)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(layout.position + c.position_offset)
        if c.sinusoids:
            x_BTD = x_BTD + sinusoids(layout.position, c.width).astype(x_BTD.dtype)
        if self.types is not None and types_BT is not None:
            x_BTD = x_BTD + self.types(types_BT)
        return _normed(self.embedding_norm, x_BTD)
