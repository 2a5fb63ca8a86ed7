"""An adapter put into the weights once and for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.errors import WeightsError
from jaxpool_conversions.low_rank import Factors, changes
from jaxpool_conversions.peft_folder import PeftAdapter
from jaxpool_conversions.rules import Table


def merged(leaves: Mapping[str, jax.Array], adapter: PeftAdapter, table: Table) -> dict[str, jax.Array]:
    """Parameters with an adapter's updates in them, in their own dtypes; summed in float32.

    Args:
        leaves: every parameter, by dotted path; those that the adapter replaces are its own already.
        adapter: as read.
        table: the family's rules.

    Raises:
        WeightsError: the adapter does not fit the model.
    """
    found = changes(replace(adapter, replaced={}), table, {path: leaf.shape for path, leaf in leaves.items()})
    out = dict(leaves)
    for path, factors in found.factors.items():
        out[path] = _as(updated(out[path], factors), out[path])
    for module, bias in found.biases.items():
        path = f"{module}.bias"
        if path not in out:
            raise WeightsError(
                f"the adapter {adapter.folder} has biases for {module}, which has none to add them to; serve it beside "
                "the model instead (enable_lora)"
            )
        out[path] = _as(out[path].astype(jnp.float32) + bias, out[path])
    return out


def updated(kernel: jax.Array, factors: Factors) -> jax.Array:
    """A kernel ``[…, in, out]`` with its update, float32."""
    product = jnp.matmul(factors.left, factors.right, precision=jax.lax.Precision.HIGHEST)
    whole = kernel.astype(jnp.float32) + product
    if factors.magnitude is None:
        return whole
    return whole * (1 + stretch(kernel, factors))[..., None, :]


def stretch(kernel: jax.Array, factors: Factors) -> jax.Array:
    """DoRA's factor on each output less one, float32 ``[…, out]``: 0 where an update has no magnitude."""
    if factors.magnitude is None:
        return jnp.zeros((*kernel.shape[:-2], kernel.shape[-1]), jnp.float32)
    product = jnp.matmul(factors.left, factors.right, precision=jax.lax.Precision.HIGHEST)
    length = jnp.linalg.norm(kernel.astype(jnp.float32) + product, axis=-2)
    return jnp.where(np.isnan(factors.magnitude), 0.0, factors.magnitude / length - 1)


def _as(value: jax.Array, like: jax.Array) -> jax.Array:
    return jax.device_put(value.astype(like.dtype), like.sharding)
