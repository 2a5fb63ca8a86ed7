"""The dense MLPs of the decoders: gated or plain.

Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, Linear


@dataclass(frozen=True, slots=True)
class MlpConfig:
    """Shape and switches of one MLP.

    Attributes:
        width: of the hidden states.
        inner: between the projections.
        activation: name in ``ACTIVATIONS``.
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
        self.activation = c.activation

    def __call__(self, x_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``lengths_B`` is for mixtures of experts, which leave padding out."""
        act = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(act(self.up(x_BTD)))
        return self.down(act(self.gate(x_BTD)) * self.up(x_BTD))
