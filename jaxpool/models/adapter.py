"""Language adapters (X-MOD, Pfeiffer et al. 2022, arXiv:2205.06266): a narrow MLP at the end of every layer.

Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, LayerNorm, Linear


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Shape and switches of an adapter.

    Attributes:
        language: whose adapter it is, as the checkpoint names it.
        narrow: width inside.
        norm: what normalises its input: a norm of its ``own``, the ``layer``'s last norm, or nothing.
        norm_eps: epsilon of its own norm.
        add_normed: whether its input is added to its output after that norm, or as it was before.
    """

    language: str
    width: int
    narrow: int
    activation: str
    norm: Literal["own", "layer", "none"]
    norm_eps: float
    add_normed: bool


class Adapter(nnx.Module):
    """Normalise, down, activation, up, add."""

    def __init__(self, config: AdapterConfig, dtype: jnp.dtype) -> None:
        c = config
        self.norm = LayerNorm(c.width, c.norm_eps, dtype) if c.norm == "own" else None
        self.down = Linear(c.width, c.narrow, ("embed", None), bias=True, dtype=dtype)
        self.up = Linear(c.narrow, c.width, (None, "embed"), bias=True, dtype=dtype)
        self.config = c

    def __call__(self, x_BTD: jax.Array, layer_norm: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``layer_norm`` is the last norm of the layer it stands in."""
        normed_BTD = x_BTD
        if self.norm is not None:
            normed_BTD = self.norm(x_BTD)
        elif self.config.norm == "layer":
            normed_BTD = layer_norm(x_BTD)
        y_BTD = self.up(ACTIVATIONS[self.config.activation](self.down(normed_BTD)))
        return y_BTD + (normed_BTD if self.config.add_normed else x_BTD)
