"""Attention beside which something convolves, and linear layers in groups: ConvBERT, Nyströmformer, SqueezeBERT.

Shape letters as in ``layers.py``; W taps of a convolution, A all heads of an attention, side by side, U groups, I and O
inputs and outputs of one group.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import Rotation
from jaxpool.models.layers import Linear, param
from jaxpool.ops.attention import Bias, attend
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout


class GroupedLinear(nnx.Module):
    """A linear layer in ``groups`` separate blocks: output block i reads input block i alone."""

    def __init__(self, d_in: int, d_out: int, groups: int, *, pointwise: bool, dtype: jnp.dtype) -> None:
        inputs, outputs = d_in // groups, d_out // groups
        # As the checkpoints have it: one matrix per group (ConvBERT), or a convolution of width one (SqueezeBERT).
        shape = (d_out, inputs, 1) if pointwise else (groups, inputs, outputs)
        self.kernels = param(shape, (None, None, None), dtype)
        self.bias = param((d_out,), (None,), dtype)
        self.groups, self.pointwise = groups, pointwise

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., in] -> [..., out]``."""
        blocks = x.reshape(*x.shape[:-1], self.groups, -1)
        kernels = self.kernels[...]
        if self.pointwise:
            y = jnp.einsum("...ui,uoi->...uo", blocks, kernels.reshape(self.groups, -1, kernels.shape[1]))
        else:
            y = jnp.einsum("...ui,uio->...uo", blocks, kernels)
        return y.reshape(*x.shape[:-1], -1) + self.bias[...]


@dataclass(frozen=True, slots=True)
class GroupedAttentionConfig:
    """Self-attention whose projections are pointwise convolutions in groups (Iandola et al. 2020, arXiv:2006.11316)."""

    width: int
    heads: int
    query_groups: int
    key_groups: int
    value_groups: int
    out_groups: int

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> GroupedAttention:
        """The module."""
        return GroupedAttention(self, dtype, implementation)


class GroupedAttention(nnx.Module):
    """Projects in groups, attends, projects back in groups."""

    def __init__(self, config: GroupedAttentionConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        self.query = GroupedLinear(c.width, c.width, c.query_groups, pointwise=True, dtype=dtype)
        self.key = GroupedLinear(c.width, c.width, c.key_groups, pointwise=True, dtype=dtype)
        self.value = GroupedLinear(c.width, c.width, c.value_groups, pointwise=True, dtype=dtype)
        self.out = GroupedLinear(c.width, c.width, c.out_groups, pointwise=True, dtype=dtype)
        self.config, self.implementation = c, implementation

    def __call__(
        self, x_BTD: jax.Array, layout: Layout, rotation: Rotation | None = None, bias_HTS: Bias = None
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; without rotation or bias."""
        c = self.config
        q, k, v = (y(x_BTD).reshape(*x_BTD.shape[:2], c.heads, c.head_size) for y in (self.query, self.key, self.value))
        y_BTHh = attend(
            q, k, v, layout=layout, causal=False, scale=c.head_size**-0.5, implementation=self.implementation
        )
        return self.out(y_BTHh.reshape(x_BTD.shape))


@dataclass(frozen=True, slots=True)
class ValueConvolutionConfig:
    """Self-attention plus a convolution of the values, one filter per head (Xiong et al. 2021, arXiv:2102.03902).

    Attributes:
        taps: width of the filters, odd; None for no convolution.
    """

    width: int
    heads: int
    taps: int | None

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> ValueConvolution:
        """The module."""
        return ValueConvolution(self, dtype, implementation)


class ValueConvolution(nnx.Module):
    """Projects, attends, adds the convolved values, projects back."""

    def __init__(self, config: ValueConvolutionConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c = config
        self.query = Linear(c.width, c.width, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.key = Linear(c.width, c.width, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.value = Linear(c.width, c.width, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.out = Linear(c.width, c.width, ("heads", "embed"), bias=True, dtype=dtype, units=c.heads)
        # The checkpoint's layout, a two-dimensional convolution of height W and width one.
        self.filters = None if c.taps is None else param((c.heads, 1, c.taps, 1), (None,) * 4, dtype)
        self.config, self.implementation = c, implementation

    def __call__(
        self, x_BTD: jax.Array, layout: Layout, rotation: Rotation | None = None, bias_HTS: Bias = None
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; without rotation or bias."""
        c, v_BTD = self.config, self.value(x_BTD)
        shape = (*x_BTD.shape[:2], c.heads, c.head_size)
        q, k, v = self.query(x_BTD).reshape(shape), self.key(x_BTD).reshape(shape), v_BTD.reshape(shape)
        y_BTHh = attend(
            q, k, v, layout=layout, causal=False, scale=c.head_size**-0.5, implementation=self.implementation
        )
        if self.filters is not None and c.taps is not None:
            filters_DW = jnp.repeat(self.filters[..., 0, :, 0], c.head_size, axis=0)
            around_BTWD = layout.neighbours(v_BTD, c.taps)
            y_BTHh = y_BTHh + jnp.einsum("btwd,dw->btd", around_BTWD, filters_DW).reshape(y_BTHh.shape)
        return self.out(y_BTHh.reshape(x_BTD.shape))


@dataclass(frozen=True, slots=True)
class MixedAttentionConfig:
    """Half self-attention, half convolution with filters made from the text (Jiang et al. 2020, arXiv:2008.02496).

    Attributes:
        heads, head_size: of either half; together they fill ``width``.
        taps: width of the filters, odd.
    """

    width: int
    heads: int
    head_size: int
    taps: int

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> MixedAttention:
        """The module."""
        return MixedAttention(self, dtype, implementation)


class MixedAttention(nnx.Module):
    """Attention heads, then convolution heads, projected back together."""

    def __init__(self, config: MixedAttentionConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        c, all_heads = config, config.heads * config.head_size
        self.query = Linear(c.width, all_heads, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.key = Linear(c.width, all_heads, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        self.value = Linear(c.width, all_heads, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)
        # A separable convolution of the input: one filter per channel, then a mixing matrix, then a bias.
        self.depthwise = param((c.width, 1, c.taps), (None, None, None), dtype)
        self.pointwise = param((all_heads, c.width, 1), (None, None, None), dtype)
        self.shift = param((all_heads, 1), (None, None), dtype)
        self.filters = Linear(all_heads, c.heads * c.taps, (None, None), bias=True, dtype=dtype)
        self.convolved = Linear(c.width, all_heads, (None, None), bias=True, dtype=dtype)
        self.out = Linear(2 * all_heads, c.width, (None, "embed"), bias=True, dtype=dtype)
        self.config, self.implementation = c, implementation

    def __call__(
        self, x_BTD: jax.Array, layout: Layout, rotation: Rotation | None = None, bias_HTS: Bias = None
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; without rotation or bias."""
        c, shape = self.config, (*x_BTD.shape[:2], self.config.heads, self.config.head_size)
        q_BTA = self.query(x_BTD)
        attended_BTHh = attend(
            q_BTA.reshape(shape),
            self.key(x_BTD).reshape(shape),
            self.value(x_BTD).reshape(shape),
            layout=layout,
            causal=False,
            scale=c.head_size**-0.5,
            implementation=self.implementation,
        )
        # Only padding of the input is zeroed here, and of the convolved values below: biases come after.
        mixed_BTD = jnp.einsum("btwd,dw->btd", layout.neighbours(x_BTD, c.taps), self.depthwise[..., 0, :])
        key_BTA = mixed_BTD @ self.pointwise[..., 0].T + self.shift[..., 0]
        logits_BTHW = self.filters(key_BTA * q_BTA).reshape(*shape[:3], c.taps)
        filters_BTHW = jax.nn.softmax(logits_BTHW.astype(jnp.float32), axis=-1).astype(x_BTD.dtype)
        around_BTWA = layout.neighbours(self.convolved(x_BTD), c.taps)
        around_BTWHh = around_BTWA.reshape(*around_BTWA.shape[:3], *shape[2:])
        convolved_BTHh = jnp.einsum("btwhi,bthw->bthi", around_BTWHh, filters_BTHW)
        return self.out(jnp.concatenate([attended_BTHh, convolved_BTHh], axis=2).reshape(*shape[:2], -1))
