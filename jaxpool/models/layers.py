"""What the families share: parameters with logical axes, linear layers, norms, embeddings, stacked layers.

Shape letters, here and in every family: B rows, T tokens, S keys, D width, H query heads, K key/value heads,
G query heads per key/value head, h size of one head, F inner width of the MLP, V vocabulary, P positions, C labels.

Parameters carry the names of their logical axes (``vocab embed heads kv_heads mlp``); ``sharding.py`` maps those
to mesh axes. Layers of one kind are built once under ``jax.vmap`` and run with ``jax.lax.scan``: compile time then does
not grow with depth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.models.low_rank import room
from jaxpool.models.parts import enter, leave
from jaxpool.ops.devices import whole_vectors
from jaxpool.ops.pooling import gelu

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}
"""Hugging Face activation names (``hidden_act``, ``activation_function``) that every family accepts."""

Module = TypeVar("Module", bound=nnx.Module)


def param(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: jnp.dtype,
    *,
    units: int | None = None,
    fill: float = 0.0,
) -> nnx.Param:
    """A parameter of constant value ``fill``; real values come from a checkpoint.

    Args:
        shape: its shape.
        axes: logical name of each dimension, None where it is never sharded.
        dtype: storage and compute dtype.
        units: indivisible units along the sharded dimension (heads in a fused ``heads * head_size`` dimension); it
            is sharded only if this number divides. None: the dimension itself.
        fill: the constant.
    """
    return nnx.Param(jnp.full(shape, fill, dtype), axes=axes, units=units)


class Linear(nnx.Module):
    """``y = x @ kernel + bias`` with kernel ``[in, out]``."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str | None, str | None],
        *,
        bias: bool,
        dtype: jnp.dtype,
        units: int | None = None,
    ) -> None:
        self.kernel = param((d_in, d_out), axes, dtype, units=units)
        # A bias lies along the output; its units matter only when the output is the sharded side.
        self.bias = param((d_out,), axes[1:], dtype, units=units) if bias else None
        self.low_rank = room((d_in, d_out), axes, dtype, units)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., in] -> [..., out]`` in the dtype of ``x``."""
        return self.added(x, x @ self.kernel[...])

    def added(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """What is added to ``y = x @ kernel``: the bias, and each text's adapter."""
        bias = None if self.bias is None else self.bias[...]
        if self.low_rank is not None:
            return self.low_rank(x, y, bias)
        return y if bias is None else y + bias


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32 (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, eps: float, dtype: jnp.dtype, *, bias: bool = True) -> None:
        self.scale = param((width,), ("embed",), dtype, fill=1.0)
        self.bias = param((width,), ("embed",), dtype) if bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., width] -> [..., width]`` in the dtype of ``x``."""
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, -1, keepdims=True)
        variance = jnp.mean(jnp.square(x32 - mean), -1, keepdims=True)
        y = (x32 - mean) * jax.lax.rsqrt(variance + self.eps)
        y = y * self.scale[...].astype(jnp.float32)
        return (y if self.bias is None else y + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root mean square normalisation over the last axis, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float, dtype: jnp.dtype, *, axis: str | None = "embed") -> None:
        self.scale = param((width,), (axis,), dtype, fill=1.0)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., width] -> [..., width]`` in the dtype of ``x``."""
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        # transformers rounds to the model dtype before it scales; doing the same keeps bfloat16 answers alike.
        return self.scale[...] * y.astype(x.dtype)


class Embedding(nnx.Module):
    """A table of ``rows`` vectors, looked up by index."""

    def __init__(self, rows: int, width: int, dtype: jnp.dtype, *, axis: str | None = None) -> None:
        self.table, self.axis = param((rows, width), (axis, "embed"), dtype), axis
        # Adapters know no embeddings but those of tokens.
        self.low_rank = room((rows, width), (axis, "embed"), dtype) if axis == "vocab" else None

    def __call__(self, index: jax.Array) -> jax.Array:
        """Integer ``[...] -> [..., width]``; indices are checked on the host, before they get here."""
        x = jnp.take(self.table[...], index, axis=0, mode="clip")
        x = whole_vectors(x, len(self.table)) if self.axis else x
        return x if self.low_rank is None else self.low_rank.of_table(index, x)


def stacked(build: Callable[[], Module], count: int) -> Module:
    """``count`` equal modules as one whose parameters have a leading layer axis."""
    return jax.vmap(lambda _: build())(jnp.arange(count))


def scan_layers(
    layers: nnx.Module,
    x: jax.Array,
    run: Callable[..., jax.Array],
    per_layer: jax.Array | None = None,
    order: tuple[int, ...] | None = None,
    last: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """Runs stacked layers one after another: ``x = run(layer, x, per_layer[i])``.

    Args:
        layers: from ``stacked``.
        x: the hidden states that enter the first layer.
        run: one layer's computation; its third argument is None when ``per_layer`` is.
        per_layer: values that differ by layer, arrays (or a tree of them) whose leading axis is the layer (attention
            windows, say).
        order: which of ``layers`` runs at each depth, where depths share weights (ALBERT); None: each once, in turn.
        last: the last layer's computation where it differs from ``run``: it may return another shape.

    Under a ``parts.Part`` only its layers run, ``layers`` (unless depths share them) holding no others.
    """
    depth = len(order) if order else len(jax.tree.leaves(layers)[0])
    part, x = enter(layers, depth, x, shared=order is not None)
    last = last if part.end is None else None
    return leave(part, _scan(layers, x, run, part.of(per_layer), part.of(order), last))


def _scan(
    layers: nnx.Module,
    x: jax.Array,
    run: Callable[..., jax.Array],
    per_layer: jax.Array | None,
    order: tuple[int, ...] | None,
    last: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    if last is not None:
        order = order or tuple(range(len(jax.tree.leaves(layers)[0])))
        *firsts, final = order
        if firsts:
            rest = jax.tree.map(lambda v: v[:-1], per_layer)
            # By index: a stack cut short would be copied.
            x = _scan(layers, x, run, rest, tuple(firsts))
        values = jax.tree.map(lambda v: v[-1], per_layer)
        return last(jax.tree.map(lambda leaf: leaf[final], layers), x, values)
    if order is not None:

        def shared(carry: jax.Array, step: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, None]:
            return run(jax.tree.map(lambda leaf: leaf[step[0]], layers), carry, step[1]), None

        return jax.lax.scan(shared, x, (jnp.array(order), per_layer))[0]

    def body(carry: jax.Array, layer: tuple[nnx.Module, Any]) -> tuple[jax.Array, None]:
        return run(layer[0], carry, layer[1]), None

    return jax.lax.scan(body, x, (layers, per_layer))[0]
