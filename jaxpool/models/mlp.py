"""The dense MLPs of the decoders: gated or plain.

Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Linear, param


@dataclass(frozen=True, slots=True)
class MlpConfig:
    """Shape and switches of one MLP.

    Attributes:
        width: of the hidden states.
        inner: between the projections.
        activation: name in ``ACTIVATIONS``, or ``xielu``.
        gated: ``down(activation(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202) instead of
            ``down(activation(up(x)))``.
        bias: whether all projections carry a bias.
        down_bias: whether the last one does, where that differs; None: as ``bias`` says.
    """

    width: int
    inner: int
    activation: str
    gated: bool = True
    bias: bool = False
    down_bias: bool | None = None

    @property
    def flops_per_token(self) -> float:
        """Matrix-multiplication FLOPs of one token."""
        return 2.0 * self.width * self.inner * (3 if self.gated else 2)

    def make(self, dtype: jnp.dtype) -> Mlp:
        """The module."""
        return Mlp(self, dtype)


class Mlp(nnx.Module):
    """Two or three projections around an activation."""

    def __init__(self, config: MlpConfig, dtype: jnp.dtype) -> None:
        c = config
        self.gate = Linear(c.width, c.inner, ("embed", "mlp"), bias=c.bias, dtype=dtype) if c.gated else None
        self.up = Linear(c.width, c.inner, ("embed", "mlp"), bias=c.bias, dtype=dtype)
        down_bias = c.bias if c.down_bias is None else c.down_bias
        self.down = Linear(c.inner, c.width, ("mlp", "embed"), bias=down_bias, dtype=dtype)
        self.activation = Xielu(dtype) if c.activation == "xielu" else ACTIVATIONS[c.activation]

    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``real_BT`` is for mixtures of experts, which leave padding out."""
        if self.gate is None:
            return self.down(self.activation(self.up(x_BTD)))
        return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))


class Xielu(nnx.Module):
    """An activation with two learned slopes and two stored constants (Huang and Schlag 2024, arXiv:2411.13010)."""

    def __init__(self, dtype: jnp.dtype) -> None:
        self.alpha_p, self.alpha_n = param((1,), (None,), dtype), param((1,), (None,), dtype)
        self.beta, self.eps = param((), (), dtype), param((), (), dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[...] -> [...]``; float32 inside."""
        y, beta, eps = (v.astype(jnp.float32) for v in (x, self.beta[...], self.eps[...]))
        alpha_p = jax.nn.softplus(self.alpha_p[...].astype(jnp.float32))
        alpha_n = beta + jax.nn.softplus(self.alpha_n[...].astype(jnp.float32))
        above = alpha_p * y * y + beta * y
        below = (jnp.expm1(jnp.minimum(y, eps)) - y) * alpha_n + beta * y
        return jnp.where(y > 0, above, below).astype(x.dtype)
