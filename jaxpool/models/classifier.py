"""A backbone with its classification head: the module that a program runs.

Shape letters as in ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.layers import ACTIVATIONS, LayerNorm, Linear, stacked
from jaxpool.models.low_rank import AdapterSizes, sized
from jaxpool.ops.kernels import ANYWHERE, Implementation
from jaxpool.ops.pooling import Activation, activate

Backbone = Callable[[Any, jnp.dtype, Implementation], nnx.Module]
"""Builds a backbone from its config, the compute dtype and the attention implementation."""


@dataclass(frozen=True, slots=True)
class ProjectionConfig:
    """A linear layer of ``width`` outputs on an embedding, with what follows it."""

    width: int
    bias: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """What maps one pooled vector to logits.

    Attributes:
        width: size of the pooled vector.
        labels: number of logits; 0 for a model that embeds: its head has no layers but ``projections``.
        bias: whether the last linear layer has a bias.
        dense: activation of a dense layer before it (``tanh`` for BERT), or None for no such layer.
        dense_bias: whether the dense layer has a bias.
        norm_eps: epsilon of a LayerNorm after that activation (ModernBERT), or None for no norm.
        norm_bias: whether that norm has a bias.
        dtype: dtype of its weights and maths; float32 unless asked otherwise.
        projections: layers of a model that embeds, in order.
    """

    width: int
    labels: int
    bias: bool
    dense: str | None = None
    dense_bias: bool = True
    norm_eps: float | None = None
    norm_bias: bool = True
    dtype: str = "float32"
    projections: tuple[ProjectionConfig, ...] = ()

    @property
    def size(self) -> int:
        """How many numbers leave: logits, or those of an embedding."""
        return self.labels or (self.projections[-1].width if self.projections else self.width)


class Head(nnx.Module):
    """Optional dense layer with activation and norm, then a linear layer; or the projections of embeddings."""

    def __init__(self, config: HeadConfig) -> None:
        c, dtype = config, jnp.dtype(config.dtype)
        self.dense = Linear(c.width, c.width, (None, None), bias=c.dense_bias, dtype=dtype) if c.dense else None
        self.norm = LayerNorm(c.width, c.norm_eps, dtype, bias=c.norm_bias) if c.norm_eps is not None else None
        self.out = Linear(c.width, c.labels, (None, None), bias=c.bias, dtype=dtype) if c.labels else None
        width = c.width
        for depth, layer in enumerate(c.projections):
            setattr(self, f"project{depth}", Linear(width, layer.width, (None, None), bias=layer.bias, dtype=dtype))
            width = layer.width
        self.config = config

    def __call__(self, pooled_BD: jax.Array, *, last_only: bool = False) -> jax.Array:
        """Logits, float32 ``[B, C]``, of vectors ``[B, D]`` of any dtype; ``[B, T, C]`` of one vector per token.

        ``last_only`` skips what stands before the last linear layer.
        """
        x_BD = self.features(pooled_BD, last_only=last_only)
        with jax.default_matmul_precision("float32"):
            return (x_BD if self.out is None else self.out(x_BD)).astype(jnp.float32)

    def features(self, pooled_BD: jax.Array, *, last_only: bool = False) -> jax.Array:
        """What the last linear layer reads, ``[B, D]``; embeddings where there is none."""
        x_BD = pooled_BD.astype(self.config.dtype)
        # A float32 head must not be rounded to bfloat16 passes, which is the accelerators' default.
        with jax.default_matmul_precision("float32"):
            if self.dense is not None and self.config.dense is not None and not last_only:
                x_BD = ACTIVATIONS[self.config.dense](self.dense(x_BD))
            if self.norm is not None and not last_only:
                x_BD = self.norm(x_BD)
            for depth, layer in enumerate(self.config.projections):
                x_BD = activate(getattr(self, f"project{depth}")(x_BD), layer.activation)
        return x_BD


class Classifier(nnx.Module):
    """Backbone and head; pooling between them is the program's (``pooling.py``)."""

    def __init__(
        self,
        backbone: Backbone,
        config: Any,
        head: HeadConfig,
        dtype: jnp.dtype,
        implementation: Implementation = ANYWHERE,
        adapters: AdapterSizes | None = None,
    ) -> None:
        with sized(adapters):
            self.backbone = backbone(config, dtype, implementation)
        # With adapters every one has a head of its own, behind the model's; with as many labels as the most.
        self.head = Head(head) if adapters is None else stacked(lambda: Head(head), 1 + adapters.slots)
        self.adapters = adapters

    def answered(self, x: jax.Array, slots: jax.Array | None, **how: bool) -> jax.Array:
        """Logits by each vector's own head, ``[…, C]`` of ``[…, D]``.

        Args:
            x: as for ``Head``.
            slots: int32, the adapter of each vector, from 1, 0 for the model's own head; None where there are none.
            **how: as for ``Head``.
        """
        if slots is None or not jax.tree.leaves(self.head):
            return self.head(x, **how)
        all_heads = jax.vmap(lambda head: head(x, **how))(self.head)
        return jnp.take_along_axis(all_heads, slots[None, ..., None], axis=0)[0]
