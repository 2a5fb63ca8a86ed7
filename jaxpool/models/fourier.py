"""Mixing without weights: FNet's Fourier transform in place of attention (Lee-Thorp et al. 2021, arXiv:2105.03824).

Shape letters as in ``layers.py``; a and b real and imaginary parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.attention import Rotation
from jaxpool.ops.attention import Bias
from jaxpool.ops.kernels import Implementation
from jaxpool.ops.layout import Layout


@dataclass(frozen=True, slots=True)
class FourierConfig:
    """What ``BertConfig.mixer`` needs to know; there is nothing to choose."""

    head_size: int

    def make(self, dtype: jnp.dtype, implementation: Implementation) -> Fourier:
        """The module."""
        return Fourier()


class Fourier(nnx.Module):
    """The real part of the discrete Fourier transform over tokens and width."""

    def __call__(
        self, x_BTD: jax.Array, layout: Layout, rotation: Rotation | None = None, bias_HTS: Bias = None
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; without rotation or bias.

        Each text is transformed at its own length, as if it were alone and without padding: transformers mixes padding
        in, so that its answers depend on the longest text of the batch.
        """
        y_BTD = jnp.fft.fft(x_BTD.astype(jnp.float32), axis=-1)
        length_BT1 = jnp.maximum(layout.spread(layout.lengths_BM), 1)[:, :, None]
        position = layout.position
        # Whole turns are taken off in integers: float32 would lose the rest of a large product.
        turns_BTS = (position[..., :, None] * position[..., None, :]) % length_BT1 / length_BT1
        angle_BTS = 2 * jnp.pi * turns_BTS.astype(jnp.float32)
        seen_BTS = layout.seen()
        cos_BTS, sin_BTS = (jnp.where(seen_BTS, wave, 0.0) for wave in (jnp.cos(angle_BTS), jnp.sin(angle_BTS)))
        with jax.default_matmul_precision("float32"):
            a_BTD = jnp.einsum("bts,bsd->btd", cos_BTS, y_BTD.real) + jnp.einsum("bts,bsd->btd", sin_BTS, y_BTD.imag)
        return a_BTD.astype(x_BTD.dtype)
