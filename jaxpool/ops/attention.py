"""Attention behind one function, with the backends it may use.

Shape letters: B rows, T queries, S keys (= T here), H query heads, K key/value heads, G = H / K, h size of one head,
X = G * T.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxpool.ops.layout import Layout

Implementation = Literal["xla", "cudnn"]
Window = int | jax.Array | None

logger = logging.getLogger(__name__)

QUERY_BLOCK = 512
"""Texts longer than two blocks are attended one block of queries at a time: memory is O(block * T), not O(T * T)."""

NEVER = -1e30
"""Score of a key that must not be seen. Finite, so that a row that sees nothing yields numbers, not NaN."""


def choose(platform: str, dtype: jnp.dtype, head_size: int, *, two_sided_window: bool) -> Implementation:
    """The implementation for a platform (``cpu``, ``gpu``, ``tpu``), decided once, when a model is built.

    cuDNN needs 16-bit inputs, a head size that is a multiple of 8 and at most 128, and has no two-sided window.
    """
    fits = dtype.itemsize == 2 and head_size % 8 == 0 and head_size <= 128 and not two_sided_window
    choice: Implementation = "cudnn" if platform in ("gpu", "cuda") and fits else "xla"
    _log_choice(platform, str(dtype), head_size, choice)
    return choice


@cache
def _log_choice(platform: str, dtype: str, head_size: int, choice: str) -> None:
    logger.info("attention on %s, %s, heads of %d: %s", platform, dtype, head_size, choice)


def attend(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    *,
    layout: Layout,
    causal: bool,
    scale: float,
    window: Window = None,
    landmarks: int = 0,
    bias_HTS: jax.Array | None = None,
    softcap: float | None = None,
    sinks_H: jax.Array | None = None,
    queries: jax.Array | None = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Scaled dot-product attention within each text, with grouped key/value heads.

    Args:
        q_BTHh: queries; H must be a multiple of K.
        k_BSKh: keys.
        v_BSKh: values; their heads may be of another size.
        layout: where the texts lie. A query sees keys of its own text only; queries of padding yield finite numbers
            of no meaning.
        causal: a query sees only keys at or before its own position.
        scale: factor on the scores.
        window: a query sees keys less than this many positions away (before, and after unless causal); None for
            no limit. May be a traced scalar, so that layers of different windows share one program.
        landmarks: so many first keys of a text are seen whatever the window.
        bias_HTS: added to the scores after scaling (relative positions, ALiBi), float32, perhaps with rows in front,
            ``[B, H, T, S]``; T may be 1 if it is the same for every query.
        softcap: scores become ``softcap * tanh(score / softcap)`` before the bias; None for no cap.
        sinks_H: per head, the score of a key without value: attention that goes nowhere (gpt-oss).
        queries: index in its row of each query, int32 ``[B, T]``, if they are a few of the row's tokens; None: all.
        implementation: see ``choose``.

    Returns:
        ``[B, T, H, h]``, h that of the values, in the dtype of the queries.
    """
    plain = bias_HTS is None and softcap is None and sinks_H is None and v_BSKh.shape == k_BSKh.shape and not landmarks
    plain = plain and queries is None and layout.position_BT is None
    if implementation == "cudnn" and plain and (window is None or isinstance(window, int)):
        return jax.nn.dot_product_attention(
            q_BTHh,
            k_BSKh,
            v_BSKh,
            scale=scale,
            is_causal=causal,
            key_value_seq_lengths=layout.lengths_B,
            query_seq_lengths=layout.lengths_B,
            local_window_size=None if window is None else (window - 1, 0 if causal else window - 1),
            implementation="cudnn",
        )
    n_tokens = q_BTHh.shape[1]
    dense = partial(
        _dense,
        layout=layout,
        causal=causal,
        window=window,
        landmarks=landmarks,
        scale=scale,
        softcap=softcap,
        sinks_H=sinks_H,
    )
    if queries is not None or n_tokens <= 2 * QUERY_BLOCK or n_tokens % QUERY_BLOCK:
        return dense(q_BTHh, k_BSKh, v_BSKh, queries, bias_HTS)
    starts = jnp.arange(0, n_tokens, QUERY_BLOCK)

    def block(start: jax.Array) -> jax.Array:
        q_BtHh = jax.lax.dynamic_slice_in_dim(q_BTHh, start, QUERY_BLOCK, axis=1)
        bias_HtS = bias_HTS
        if bias_HTS is not None and bias_HTS.shape[-2] > 1:
            bias_HtS = jax.lax.dynamic_slice_in_dim(bias_HTS, start, QUERY_BLOCK, axis=bias_HTS.ndim - 2)
        return dense(q_BtHh, k_BSKh, v_BSKh, start + jnp.arange(QUERY_BLOCK), bias_HtS)

    blocks_NBtHh = jax.lax.map(block, starts)
    return jnp.moveaxis(blocks_NBtHh, 0, 1).reshape(*q_BTHh.shape[:-1], v_BSKh.shape[-1])


def _dense(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    queries: jax.Array | None,
    bias_HTS: jax.Array | None,
    *,
    layout: Layout,
    causal: bool,
    window: Window,
    landmarks: int,
    scale: float,
    softcap: float | None,
    sinks_H: jax.Array | None,
) -> jax.Array:
    n_rows, n_queries, n_heads, size = q_BTHh.shape
    n_kv = k_BSKh.shape[2]
    # Heads before tokens, query heads of one group below each other: plain batched matrices. XLA's CPU code for the
    # same contraction with tokens before heads takes two to three times as long at 300 tokens and more.
    q_BHTh, k_BKSh, v_BKSh = (y.transpose(0, 2, 1, 3) for y in (q_BTHh, k_BSKh, v_BSKh))
    q_BKXh = q_BHTh.reshape(n_rows, n_kv, -1, size)
    scores_BKXS = jnp.einsum("bkxh,bksh->bkxs", q_BKXh, k_BKSh, preferred_element_type=jnp.float32) * scale
    scores_BHTS = scores_BKXS.reshape(n_rows, n_heads, n_queries, -1)
    if softcap is not None:
        scores_BHTS = softcap * jnp.tanh(scores_BHTS / softcap)
    if bias_HTS is not None:
        scores_BHTS += bias_HTS
    seen_BTS = visible(layout, queries, causal=causal, window=window, landmarks=landmarks)
    scores_BHTS = jnp.where(seen_BTS[:, None], scores_BHTS, NEVER)
    if sinks_H is None:
        weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
    else:
        sink_H11 = sinks_H.astype(jnp.float32)[:, None, None]
        best_BHT1 = jnp.maximum(scores_BHTS.max(-1, keepdims=True), sink_H11)
        weights_BHTS = jnp.exp(scores_BHTS - best_BHT1)
        weights_BHTS /= weights_BHTS.sum(-1, keepdims=True) + jnp.exp(sink_H11 - best_BHT1)
    weights_BKXS = weights_BHTS.reshape(scores_BKXS.shape).astype(q_BTHh.dtype)
    y_BKXh = jnp.einsum("bkxs,bksh->bkxh", weights_BKXS, v_BKSh)
    return y_BKXh.reshape(n_rows, n_heads, n_queries, -1).transpose(0, 2, 1, 3)


def visible(
    layout: Layout, queries: jax.Array | None, *, causal: bool, window: Window = None, landmarks: int = 0
) -> jax.Array:
    """Bool ``[B, T, S]``, or ``[B, 1, S]``, as ``attend`` says; queries ``[T]`` or ``[B, T]``, or None for all."""
    seen_BTS = layout.seen(queries)
    if not causal and window is None:
        return seen_BTS
    key_S = jnp.arange(layout.width)
    query_T = key_S if queries is None else queries
    # Two tokens of one text are as far apart as their places in the row.
    ahead_TS = query_T[..., :, None] - key_S
    if causal:
        seen_BTS = seen_BTS & (ahead_TS >= 0)
    if layout.until_BT is not None:
        seen_BTS = seen_BTS & (query_T[..., :, None] < layout.until_BT[:, None, :])
        # But for those of a branch, whose positions go on from the text.
        position_BT = layout.position_BT
        own_BT = position_BT[:, query_T] if query_T.ndim == 1 else layout.at(position_BT, query_T)
        ahead_TS = own_BT[:, :, None] - position_BT[:, None, :]
    if window is not None:
        near_TS = (ahead_TS if causal else jnp.abs(ahead_TS)) < window
        if landmarks:
            near_TS = near_TS | (layout.position < landmarks)[..., None, :]
        seen_BTS = seen_BTS & near_TS
    return seen_BTS
