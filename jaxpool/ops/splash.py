"""Splash attention, the TPU kernel that JAX brings, over rows of a mesh.

Shape letters as in ``attention.py``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from jaxpool.ops.layout import Layout

LARGEST_TILE = 512


def splash(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    *,
    layout: Layout,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    sinks_H: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """As ``attention.attend``, for rows of a multiple of 128 tokens.

    Padding is a segment of its own: a query that sees nothing is undefined in this kernel.
    """
    segment_BT = layout.segment_BT if layout.is_packed else layout.real_BT
    # The kernel has no scale; a power of two in bfloat16 loses nothing, others round once more.
    q_BTHh = q_BTHh * jnp.asarray(scale, q_BTHh.dtype)
    q_BHTh, k_BKTh, v_BKTh = (y.transpose(0, 2, 1, 3) for y in (q_BTHh, k_BTKh, v_BTKh))
    run = partial(_rows, causal=causal, window=window, softcap=softcap, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes))
    if sizes.get("model", 1) * sizes.get("data", 1) > 1:
        if k_BKTh.shape[1] % sizes["model"]:  # key heads that do not divide are copied to each of their query heads
            group = q_BHTh.shape[1] // k_BKTh.shape[1]
            k_BKTh, v_BKTh = (jnp.repeat(y, group, axis=1) for y in (k_BKTh, v_BKTh))
        heads, rows, per_head = PartitionSpec("data", "model"), PartitionSpec("data"), PartitionSpec("model")
        run = jax.shard_map(
            run,
            in_specs=(heads, heads, heads, rows, None if sinks_H is None else per_head),
            out_specs=heads,
            check_vma=False,
        )
    y_BHTh = run(q_BHTh, k_BKTh, v_BKTh, segment_BT.astype(jnp.int32), sinks_H)
    return y_BHTh.transpose(0, 2, 1, 3)


def _rows(
    q_BHTh: jax.Array,
    k_BKTh: jax.Array,
    v_BKTh: jax.Array,
    segment_BT: jax.Array,
    sinks_H: jax.Array | None,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> jax.Array:
    """What one device computes. The kernel is made here, inside the trace, for the heads that are here."""
    n_heads, n_tokens = q_BHTh.shape[1:3]
    shape = (n_tokens, n_tokens)
    mask: masks.Mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    if window is not None:
        mask = masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
    tile = next(size for size in (LARGEST_TILE, 256, 128) if n_tokens % size == 0)
    made = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * n_heads),
        block_sizes=kernel.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_kv_compute=tile,
            q_layout=kernel.QKVLayout.SEQ_MINOR,
            k_layout=kernel.QKVLayout.SEQ_MINOR,
            v_layout=kernel.QKVLayout.SEQ_MINOR,
        ),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, segment: made(q, k, v, kernel.SegmentIds(segment, segment), sinks=sinks_H))(
        q_BHTh, k_BKTh, v_BKTh, segment_BT
    )
