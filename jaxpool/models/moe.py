"""The mixture-of-experts MLP: a router, its experts, and perhaps a shared expert that every token asks.

Shape letters as in ``layers.py``; N tokens of all rows, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Linear, param
from jaxpool.models.mlp import MlpConfig
from jaxpool.ops.moe import Experts, Projection, Router, ask, route


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Shape and switches of one mixture.

    Attributes:
        width: of the hidden states.
        inner: between the projections of one expert.
        activation: name in ``ACTIVATIONS``.
        router: who is asked.
        router_bias: whether the router carries a bias.
        correction: whether a stored bias corrects which experts are chosen (DeepSeek-V3).
        bias: whether the experts' projections carry biases.
        limit: gate and up projections alternate in one projection and are cut there; the gate acts as
            ``gate * sigmoid(sharpness * gate)`` on ``up + 1`` (gpt-oss). None for two projections and the ordinary
            ``activation(gate) * up``.
        sharpness: see ``limit``.
        gated: whether experts gate; else they are ``down(activation(up(x)))``.
        out_bias: whether a bias is added to the sum of the answers (Nomic).
        shared: inner width of the shared expert, 0 for none.
        shared_gate: whether a learned sigmoid weighs it.
    """

    width: int
    inner: int
    activation: str
    router: Router
    router_bias: bool = False
    correction: bool = False
    bias: bool = False
    limit: float | None = None
    sharpness: float = 1.0
    shared: int = 0
    shared_gate: bool = False
    gated: bool = True
    out_bias: bool = False

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token, of the experts it asks."""
        inner = self.inner * self.router.per_token + self.shared
        return 2.0 * self.width * ((3 if self.gated else 2) * inner + self.router.experts)

    def make(self, dtype: jnp.dtype) -> Moe:
        """The module."""
        return Moe(self, dtype)


class ExpertLinear(nnx.Module):
    """One linear layer of every expert: kernel ``[E, in, out]``, bias ``[E, out]``."""

    def __init__(
        self, config: MoeConfig, d_in: int, d_out: int, axes: tuple[str, str], dtype: jnp.dtype, units: int
    ) -> None:
        n_experts = config.router.experts
        self.kernel = param((n_experts, d_in, d_out), ("expert", *axes), dtype, units=units)
        self.bias = param((n_experts, d_out), ("expert", axes[1]), dtype, units=units) if config.bias else None

    @property
    def values(self) -> Projection:
        """The arrays."""
        return Projection(self.kernel[...], None if self.bias is None else self.bias[...])


class ExpertMlp(nnx.Module):
    """The experts: one gated MLP each."""

    def __init__(self, config: MoeConfig, dtype: jnp.dtype) -> None:
        c, into, fused = config, ("embed", "mlp"), config.limit is not None
        self.gate = None if fused or not c.gated else ExpertLinear(c, c.width, c.inner, into, dtype, c.inner)
        self.up = ExpertLinear(c, c.width, c.inner * (2 if fused else 1), into, dtype, c.inner)
        self.down = ExpertLinear(c, c.inner, c.width, ("mlp", "embed"), dtype, c.inner)

    @property
    def values(self) -> Experts:
        """The arrays."""
        enter = (self.up,) if self.gate is None else (self.gate, self.up)
        return Experts(tuple(layer.values for layer in enter), self.down.values)


class Moe(nnx.Module):
    """Routes, asks, sums."""

    def __init__(self, config: MoeConfig, dtype: jnp.dtype) -> None:
        c = config
        self.router = Linear(c.width, c.router.experts, ("embed", None), bias=c.router_bias, dtype=dtype)
        # Small differences between biases decide; they stay in float32 whatever the model's dtype.
        self.correction = param((c.router.experts,), (None,), jnp.dtype(jnp.float32)) if c.correction else None
        self.experts = ExpertMlp(c, dtype)
        self.shared = MlpConfig(c.width, c.shared, c.activation).make(dtype) if c.shared else None
        self.shared_gate = Linear(c.width, 1, ("embed", None), bias=False, dtype=dtype) if c.shared_gate else None
        self.bias = param((c.width,), ("embed",), dtype) if c.out_bias else None
        self.config = config

    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; tokens that are not ``real_BT`` ask no expert."""
        weights_NK, index_NK = route(
            self._scores(x_BTD), self.config.router, None if self.correction is None else self.correction[...]
        )
        y_BTD = ask(
            x_BTD,
            weights_NK,
            index_NK,
            real_BT,
            self.experts.values,
            self._combine,
        )
        if self.bias is not None:
            y_BTD = y_BTD + self.bias[...]
        if self.shared is None:
            return y_BTD
        shared_BTD = self.shared(x_BTD, real_BT)
        if self.shared_gate is not None:
            shared_BTD = jax.nn.sigmoid(self.shared_gate(x_BTD)) * shared_BTD
        return y_BTD + shared_BTD

    def _scores(self, x_BTD: jax.Array) -> jax.Array:
        """Router logits in float32: rounding them could choose other experts."""
        logits_BTE = jnp.matmul(x_BTD, self.router.kernel[...], preferred_element_type=jnp.float32)
        logits_BTE = self.router.added(x_BTD, logits_BTE)
        return logits_BTE.reshape(-1, logits_BTE.shape[-1])

    def _combine(self, *entered: jax.Array) -> jax.Array:
        c = self.config
        if c.limit is None:
            activated = ACTIVATIONS[c.activation](entered[0])
            return activated * entered[1] if c.gated else activated
        # Pairs in the last axis, not strided slices: the axis before it may be split over devices.
        pairs = entered[0].reshape(*entered[0].shape[:-1], c.inner, 2)
        gate, up = jnp.minimum(pairs[..., 0], c.limit), jnp.clip(pairs[..., 1], -c.limit, c.limit)
        return gate * jax.nn.sigmoid(c.sharpness * gate) * (up + 1)
