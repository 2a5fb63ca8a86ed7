"""The norms of the decoders as data: root mean square or mean and variance, with the details checkpoints differ in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import param


@dataclass(frozen=True, slots=True)
class NormConfig:
    """One kind of norm.

    Attributes:
        kind: ``rms`` (Zhang and Sennrich 2019, arXiv:1910.07467) or ``layer`` (Ba et al. 2016, arXiv:1607.06450).
        eps: added to the mean square or the variance.
        scale: whether it has a learned scale.
        bias: whether it has a learned bias.
        offset: added to the stored scale: 1 where checkpoints store the difference to 1 (Gemma, Nemotron).
        scale_in_float32: whether the scale is applied before the result is rounded to the model dtype, or after.
    """

    kind: Literal["rms", "layer"]
    eps: float
    scale: bool = True
    bias: bool = False
    offset: float = 0.0
    scale_in_float32: bool = True


class Norm(nnx.Module):
    """Normalises over the last axis, in float32.

    Args:
        config: the kind.
        shape: of the scale; ``(width,)``, or ``(heads, head_size)`` for heads with a scale of their own.
        dtype: of the parameters.
    """

    def __init__(self, config: NormConfig, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        axes = (None,) * len(shape)
        self.scale = param(shape, axes, dtype, fill=1.0 - config.offset) if config.scale else None
        self.bias = param(shape, axes, dtype) if config.bias else None
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., *shape] -> [..., *shape]`` in the dtype of ``x``."""
        c = self.config
        y = x.astype(jnp.float32)
        if c.kind == "layer":
            y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + c.eps)
        # Rounded where transformers rounds: bfloat16 answers then stay alike.
        y = y if c.scale_in_float32 else y.astype(x.dtype)
        if self.scale is not None:
            y = y * (self.scale[...].astype(y.dtype) + c.offset)
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)
        return y.astype(x.dtype)
