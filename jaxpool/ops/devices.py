"""What devices that share weights are told where the partitioner's own choice would cost them.

They ask for the mesh that a program is traced under, ``data`` and ``model``; without one, nothing is said.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def per_query_head(y_BSKh: jax.Array, heads: int) -> jax.Array:
    """Keys or values; once for each query head where devices that share query heads cannot share these alike.

    Left in their groups, three key/value heads of twelve query heads would have four devices gather all queries, and
    each compute everything. Two of them divide four: their groups do then.
    """
    kv_heads, devices = y_BSKh.shape[2], _sharing()
    if heads % devices or kv_heads % devices == 0 or devices % kv_heads == 0:
        return y_BSKh
    return jnp.repeat(y_BSKh, heads // kv_heads, axis=2)


def whole_vectors(x_BTD: jax.Array, rows: int) -> jax.Array:
    """Vectors looked up in a table of so many rows; gathered at once where the table is split by columns.

    It is where its rows do not divide (``engine/sharding.py``). The split would otherwise go on into the layers, whose
    every norm and residual then has to be summed and gathered.
    """
    devices = _sharing()
    if rows % devices == 0 or x_BTD.shape[-1] % devices:
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, PartitionSpec("data"))


def _sharing() -> int:
    """Devices that share weights."""
    return int(jax.sharding.get_abstract_mesh().shape.get("model", 1))
