"""Jamba (Lieber et al. 2024, arXiv:2403.19887): Mamba-1 layers, some attention layers, some mixtures of experts.

Pre-norm layers; attention has no positions, the state spaces know the order. Shape letters as in ``layers.py`` and
``ops/ssm.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import AttentionConfig, SelfAttention
from jaxpool.models.groups import grouped, scan_groups
from jaxpool.models.layers import ACTIVATIONS, Embedding, Linear, RMSNorm, param
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.moe import MoeConfig
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.ssm import causal_conv, selective_scan


@dataclass(frozen=True, slots=True)
class MambaConfig:
    """Shape and switches of one Mamba-1 mixer.

    Attributes:
        width: of the hidden states.
        inner: channels, each with states of its own.
        states: per channel.
        taps: of the convolution.
        step_rank: rank of the projection that makes step sizes.
        activation: after the convolution.
        conv_bias, bias: whether the convolution, and the projections in and out, carry a bias.
        norm_eps: of the norms on step sizes and on input and output weights.
    """

    width: int
    inner: int
    states: int
    taps: int
    step_rank: int
    activation: str
    conv_bias: bool
    bias: bool
    norm_eps: float

    @property
    def flops_per_token(self) -> float:
        """FLOPs of one token: projections, convolution and recurrence."""
        projections = 3 * self.width + 2 * self.step_rank + 2 * self.states
        return 2.0 * self.inner * (projections + self.taps + 3 * self.states)

    flops_per_pair = 0.0

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> Mamba:
        """The module; ``implementation`` concerns attention only."""
        return Mamba(self, dtype)


class Mamba(nnx.Module):
    """Gated selective state space behind a short convolution."""

    def __init__(self, config: MambaConfig, dtype: jnp.dtype) -> None:
        c, f32 = config, jnp.dtype(jnp.float32)
        self.input = Linear(c.width, c.inner, ("embed", "mlp"), bias=c.bias, dtype=dtype)
        self.gate = Linear(c.width, c.inner, ("embed", "mlp"), bias=c.bias, dtype=dtype)
        self.conv = param((c.inner, 1, c.taps), ("mlp", None, None), dtype)
        self.conv_bias = param((c.inner,), ("mlp",), dtype) if c.conv_bias else None
        self.select = Linear(c.inner, c.step_rank + 2 * c.states, ("mlp", None), bias=False, dtype=dtype)
        self.step_norm = RMSNorm(c.step_rank, c.norm_eps, dtype, axis=None)
        self.in_norm = RMSNorm(c.states, c.norm_eps, dtype, axis=None)
        self.out_norm = RMSNorm(c.states, c.norm_eps, dtype, axis=None)
        self.step = Linear(c.step_rank, c.inner, (None, "mlp"), bias=True, dtype=dtype)
        # Decay rates act over the whole text, as exponents: bfloat16 would not keep long memories apart.
        self.log_decay = param((c.states, c.inner), (None, "mlp"), f32)
        self.skip = param((c.inner,), ("mlp",), f32)
        self.out = Linear(c.inner, c.width, ("mlp", "embed"), bias=c.bias, dtype=dtype)
        self.config = config

    def __call__(self, x_BTD: jax.Array, layout: Layout) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; causal, so padding behind a text reaches nothing and needs no mask."""
        c, gate_BTI = self.config, self.gate(x_BTD)
        x_BTI = causal_conv(
            self.input(x_BTD), self.conv[...][:, 0].T, None if self.conv_bias is None else self.conv_bias[...], layout
        )
        x_BTI = ACTIVATIONS[c.activation](x_BTI)
        step_BTR, b_BTN, c_BTN = jnp.split(self.select(x_BTI), (c.step_rank, c.step_rank + c.states), axis=-1)
        dt_BTI = jax.nn.softplus(self.step(self.step_norm(step_BTR)).astype(jnp.float32))
        b_BTN, c_BTN = self.in_norm(b_BTN), self.out_norm(c_BTN)
        y_BTI = selective_scan(x_BTI, dt_BTI, -jnp.exp(self.log_decay[...]), b_BTN, c_BTN, layout)
        y_BTI = (y_BTI + self.skip[...] * x_BTI) * jax.nn.silu(gate_BTI.astype(jnp.float32))
        return self.out(y_BTI.astype(x_BTD.dtype))


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One kind of layer: what mixes tokens, and what follows."""

    mixer: MambaConfig | AttentionConfig
    mlp: MlpConfig | MoeConfig


@dataclass(frozen=True, slots=True)
class JambaConfig:
    """Shape of one Jamba backbone, in our words; made from a Hugging Face config by ``families/jamba.py``.

    Attributes:
        kinds: the layers, in order.
    """

    vocab: int
    width: int
    heads: int
    head_size: int
    norm_eps: float
    kinds: tuple[LayerConfig, ...]

    def continues(self, max_length: int) -> bool:
        """As that of `DecoderConfig`: always."""
        return True

    @property
    def layer_flops(self) -> tuple[float, ...]:
        """FLOPs of one token through each layer, without attention scores."""
        return tuple(kind.mixer.flops_per_token + kind.mlp.flops_per_token for kind in self.kinds)

    @property
    def flops_per_token(self) -> float:
        """Those of all layers."""
        return sum(self.layer_flops)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs per (query, key) pair over all layers."""
        return sum(kind.mixer.flops_per_pair for kind in self.kinds)


class Layer(nnx.Module):
    """Normalise, mix tokens, add; normalise, MLP, add."""

    def __init__(self, config: LayerConfig, norm_eps: float, dtype: jnp.dtype, implementation: Implementation) -> None:
        width = config.mlp.width
        self.mixer_norm = RMSNorm(width, norm_eps, dtype)
        mixer = config.mixer.make(dtype, implementation)
        self.mamba = mixer if isinstance(mixer, Mamba) else None
        self.attention = mixer if isinstance(mixer, SelfAttention) else None
        self.mlp_norm = RMSNorm(width, norm_eps, dtype)
        self.mlp = config.mlp.make(dtype)

    def __call__(self, x_BTD: jax.Array, layout: Layout) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``."""
        mixer = self.attention if self.mamba is None else self.mamba
        assert mixer is not None, "one of the two was made"
        x_BTD = x_BTD + mixer(self.mixer_norm(x_BTD), layout)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD), layout.real_BT)


class Jamba(nnx.Module):
    """Token embedding, layers, final norm."""

    def __init__(self, config: JambaConfig, dtype: jnp.dtype, implementation: Implementation) -> None:
        self.tokens = Embedding(config.vocab, config.width, dtype, axis="vocab")
        self.layers = grouped(lambda kind: Layer(kind, config.norm_eps, dtype, implementation), config.kinds)
        self.norm = RMSNorm(config.width, config.norm_eps, dtype)

    def __call__(self, ids_BT: jax.Array, types_BT: jax.Array | None, layout: Layout) -> jax.Array:
        """Hidden states ``[B, T, D]`` of int32 token ids; ``types_BT`` is not used."""
        x_BTD = scan_groups(self.layers, self.tokens(ids_BT), layout, lambda layer, x, own: layer(x, own))
        return self.norm(x_BTD)
