"""Attention within a window, except at the first token, which sees all and is seen by all: Longformer.

Beltagy et al. 2020 (arXiv:2004.05150); its sequence classifier has this one global token, its other models have none.
Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import Rotation
from jaxpool.models.layers import Linear
from jaxpool.ops.attention import Bias, Window, attend
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout


@dataclass(frozen=True, slots=True)
class LandmarkConfig:
    """Shape of the attention.

    Attributes:
        window: a token sees tokens less than so many positions away.
        first: whether the first token is global.
    """

    width: int
    heads: int
    window: int
    first: bool

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> Landmark:
        """The module; no fused attention knows such a mask."""
        return Landmark(self, dtype)


class Landmark(nnx.Module):
    """One set of projections for all tokens, another for what the first token sees."""

    def __init__(self, config: LandmarkConfig, dtype: jnp.dtype) -> None:
        c = config

        def linear() -> Linear:
            return Linear(c.width, c.width, ("embed", "heads"), bias=True, dtype=dtype, units=c.heads)

        self.query, self.key, self.value = linear(), linear(), linear()
        if c.first:
            self.first_query, self.first_key, self.first_value = linear(), linear(), linear()
        self.out = Linear(c.width, c.width, ("heads", "embed"), bias=True, dtype=dtype, units=c.heads)
        self.config = c

    def __call__(
        self,
        x_BTD: jax.Array,
        layout: Layout,
        rotation: Rotation | None = None,
        bias_HTS: Bias = None,
        window: Window = None,
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; without rotation or bias. ``window`` goes before the config's."""
        c = self.config
        window = c.window if window is None else window

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], c.heads, c.head_size)

        def sees(
            query: Linear, key: Linear, value: Linear, x_BtD: jax.Array, window: Window, queries: jax.Array | None
        ) -> jax.Array:
            return attend(
                heads(query(x_BtD)),
                heads(key(x_BTD)),
                heads(value(x_BTD)),
                layout=layout,
                causal=False,
                scale=c.head_size**-0.5,
                window=window,
                landmarks=int(c.first),
                queries=queries,
            )

        y_BTHh = sees(self.query, self.key, self.value, x_BTD, window, None)
        if not c.first:
            return self.out(y_BTHh.reshape(x_BTD.shape))
        first_BM = layout.first_BM
        first_BMHh = sees(
            self.first_query, self.first_key, self.first_value, layout.at(x_BTD, first_BM), None, first_BM
        )
        is_first = (layout.position == 0)[..., None, None]
        return self.out(jnp.where(is_first, layout.spread(first_BMHh), y_BTHh).reshape(x_BTD.shape))
