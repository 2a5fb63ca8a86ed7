"""Attention behind one function; ``kernels.py`` says which kernel computes it.

Shape letters: B rows, T queries, S keys (= T unless queries are picked), H query heads, K key/value heads, G = H / K,
h size of one head, N distances, P keys of a shared beginning.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpool.ops.devices import per_query_head
from jaxpool.ops.kernels import ANYWHERE, QUERY_BLOCK, Call, Implementation, choose
from jaxpool.ops.layout import Layout

Window = int | jax.Array | None

NEVER = -1e30
"""Score of a key that must not be seen. Finite, so that a row that sees nothing yields numbers, not NaN."""


class ByDistance(NamedTuple):
    """A bias that depends on how far a key is from its query, before it is spread to all pairs.

    Attributes:
        bias_HN: float32, for every distance ``key - query`` from ``1 - S`` to ``S - 1``.
    """

    bias_HN: jax.Array  # noqa: N815 - shape letters

    def of(self, query_T: jax.Array, key_S: jax.Array) -> jax.Array:
        """``[H, T, S]``, of tokens at these places of their row; ``[B, H, T, S]`` of queries ``[B, T]``."""
        middle = (self.bias_HN.shape[1] - 1) // 2
        distance = key_S - query_T[..., :, None] + middle
        bias = self.bias_HN[:, jnp.clip(distance, 0, 2 * middle)]
        return bias if query_T.ndim == 1 else jnp.moveaxis(bias, 0, 1)


Bias = jax.Array | ByDistance | None
"""What is added to scores: float32 ``[H, T, S]`` or ``[B, H, T, S]``, T perhaps 1; or by distance."""


class Past(NamedTuple):
    """Keys and values of a beginning that all texts of a batch share: no row has a copy (arXiv:2402.05099).

    Attributes:
        k, v: ``[P, K, h]``.
        seen: bool ``[1, T, P]`` or ``[B, T, P]``, T perhaps 1.
        bias: as ``Bias``, of these keys; None for none.
    """

    k: jax.Array
    v: jax.Array
    seen: jax.Array
    bias: jax.Array | None


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
    bias_HTS: Bias = None,
    softcap: float | None = None,
    sinks_H: jax.Array | None = None,
    queries: jax.Array | None = None,
    implementation: Implementation = ANYWHERE,
) -> jax.Array:
    """Scaled dot-product attention within each text, with grouped key/value heads.

    Where texts have a shared beginning that is not in their rows, what ``layout.past`` holds of it is seen as well.
    Where ``layout.notes`` asks for it, keys and values of the first row are left there.

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
        bias_HTS: added to the scores after scaling (relative positions, ALiBi), see ``Bias``; behind a shared beginning
            its P keys come first.
        softcap: scores become ``softcap * tanh(score / softcap)`` before the bias; None for no cap.
        sinks_H: per head, the score of a key without value: attention that goes nowhere (gpt-oss).
        queries: index in its row of each query, int32 ``[B, T]``, if they are a few of the row's tokens; None: all.
        implementation: where this runs; see ``kernels.choose``.

    Returns:
        ``[B, T, H, h]``, h that of the values, in the dtype of the queries.
    """
    k_BSKh, v_BSKh = (per_query_head(y, q_BTHh.shape[2]) for y in (k_BSKh, v_BSKh))
    if layout.notes is not None:
        layout.notes.update(keys=k_BSKh[0], values=v_BSKh[0])
    call = Call(
        queries=q_BTHh.shape[1],
        keys=k_BSKh.shape[1],
        picked=queries is not None,
        head_size=q_BTHh.shape[3],
        value_size=v_BSKh.shape[3],
        bits=8 * q_BTHh.dtype.itemsize,
        packed=layout.is_packed,
        branched=layout.until_BT is not None,
        past=layout.reach,
        causal=causal,
        window=window if window is None or isinstance(window, int) else 0,
        plain=bias_HTS is None and not landmarks,
        sinks=sinks_H is not None,
        softcap=softcap is not None,
    )
    kernel = choose(call, implementation)
    match kernel:
        case "splash":
            from jaxpool.ops.splash import splash  # Pallas takes a while to import

            assert window is None or isinstance(window, int)
            extra: dict[str, Any] = {"softcap": softcap, "sinks_H": sinks_H, "interpret": implementation.interpreted}
            return splash(q_BTHh, k_BSKh, v_BSKh, layout=layout, causal=causal, window=window, scale=scale, **extra)
        case "cudnn":
            assert window is None or isinstance(window, int)
            return _cudnn(q_BTHh, k_BSKh, v_BSKh, layout, causal=causal, window=window, scale=scale)
    seen = partial(visible, layout, causal=causal, window=window, landmarks=landmarks)
    score = partial(_dense, scale=scale, softcap=softcap, sinks_H=sinks_H)
    past_bias = None
    if layout.reach and isinstance(bias_HTS, jax.Array):
        past_bias, bias_HTS = jnp.split(bias_HTS, (layout.reach,), axis=-1)
    past = partial(_past, layout, window, past_bias) if layout.reach else lambda _: None
    if kernel == "dense":
        if isinstance(bias_HTS, ByDistance):
            bias_HTS = bias_HTS.of(jnp.arange(call.keys) if queries is None else queries, jnp.arange(call.keys))
        elif bias_HTS is not None and queries is not None and bias_HTS.shape[-2] > 1:
            bias_HTS = jnp.moveaxis(bias_HTS[:, queries], 0, 1)
        return score(q_BTHh, k_BSKh, v_BSKh, seen(queries), bias_HTS, past(queries))
    reach = (window - 1, 0 if causal else window - 1) if isinstance(window, int) and not landmarks else None
    return _blocks(q_BTHh, k_BSKh, v_BSKh, reach, seen, bias_HTS, past, score)


def _cudnn(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    layout: Layout,
    *,
    causal: bool,
    window: int | None,
    scale: float,
) -> jax.Array:
    compute = partial(jax.nn.dot_product_attention, q_BTHh, k_BSKh, v_BSKh, scale=scale, implementation="cudnn")
    if layout.is_packed or (window is not None and not causal):
        seen_BTS = visible(layout, None, causal=causal, window=window)
        shape = (q_BTHh.shape[0], 1, q_BTHh.shape[1], k_BSKh.shape[1])  # a mask of fewer queries is refused
        return compute(mask=jnp.broadcast_to(seen_BTS[:, None], shape))
    return compute(
        is_causal=causal,
        key_value_seq_lengths=layout.lengths_B,
        query_seq_lengths=layout.lengths_B,
        local_window_size=None if window is None else (window - 1, 0),
    )


def _blocks(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    reach: tuple[int, int] | None,
    seen: Any,
    bias_HTS: Bias,
    past: Any,
    score: Any,
) -> jax.Array:
    """One block of queries after another, each with the keys between ``reach`` tokens before and after it."""
    n_tokens = k_BSKh.shape[1]
    size = QUERY_BLOCK
    if reach is not None:
        size = min(QUERY_BLOCK, max(128, 1 << (reach[0] - 1).bit_length()))
    n_blocks = -(-n_tokens // size)
    q_BTHh = jnp.pad(q_BTHh, ((0, 0), (0, n_blocks * size - n_tokens), (0, 0), (0, 0)))
    n_keys = n_tokens if reach is None else min(n_tokens, size + sum(reach))

    def block(number: jax.Array) -> jax.Array:
        start = number * size
        first = jnp.zeros_like(start) if reach is None else jnp.clip(start - reach[0], 0, n_tokens - n_keys)
        query_t = jnp.minimum(start + jnp.arange(size), n_tokens - 1)  # the last block's padding asks as the last does
        key_s = first + jnp.arange(n_keys)
        k, v = (jax.lax.dynamic_slice_in_dim(y, first, n_keys, axis=1) for y in (k_BSKh, v_BSKh))
        bias = bias_HTS
        if isinstance(bias, ByDistance):
            bias = bias.of(query_t, key_s)
        elif bias is not None:
            bias = jax.lax.dynamic_slice_in_dim(bias, first, n_keys, axis=bias.ndim - 1)
            bias = bias[..., query_t, :] if bias.shape[-2] > 1 else bias
        q = jax.lax.dynamic_slice_in_dim(q_BTHh, start, size, axis=1)
        return score(q, k, v, seen(query_t, keys=key_s), bias, past(query_t))

    blocks_NBtHh = jax.lax.map(block, jnp.arange(n_blocks))
    return jnp.moveaxis(blocks_NBtHh, 0, 1).reshape(*q_BTHh.shape[:-1], v_BSKh.shape[-1])[:, :n_tokens]


def _dense(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    seen_BTS: jax.Array,
    bias: jax.Array | None,
    past: Past | None,
    *,
    scale: float,
    softcap: float | None,
    sinks_H: jax.Array | None,
) -> jax.Array:
    n_rows, n_queries, n_heads, size = q_BTHh.shape
    n_kv = k_BSKh.shape[2]
    # Groups of query heads keep an axis of their own (``[B, K, G, T, S]``): merging it costs XLA on TPUs a relaid mask
    # in every layer, 2.4 times of Qwen2.5-0.5B at 512 tokens. Without groups that axis costs a third: it is left out.
    heads = (n_heads,) if n_kv == n_heads else (n_kv, n_heads // n_kv)
    # Heads before tokens: plain batched matrices. XLA's CPU code for the same contraction with tokens before heads
    # takes two to three times as long at 300 tokens and more.
    q = q_BTHh.transpose(0, 2, 1, 3).reshape(n_rows, *heads, n_queries, size)
    k_BKSh, v_BKSh = (y.transpose(0, 2, 1, 3) for y in (k_BSKh, v_BSKh))
    g = "g" * (len(heads) - 1)

    def scored(keys: str, k: jax.Array, bias: jax.Array | None, seen_BTS: jax.Array) -> jax.Array:
        scores = jnp.einsum(f"bk{g}th,{keys}->bk{g}ts", q, k, preferred_element_type=jnp.float32) * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        if bias is not None:
            scores += bias.reshape(*bias.shape[:-3], *heads, *bias.shape[-2:])
        return jnp.where(seen_BTS.reshape(len(seen_BTS), *(1,) * len(heads), *seen_BTS.shape[1:]), scores, NEVER)

    scores = scored("bksh", k_BKSh, bias, seen_BTS)
    if past is not None:  # one product for the queries of all rows, and one softmax over both
        scores = jnp.concatenate([scored("skh", past.k, past.bias, past.seen), scores], axis=-1)
    if sinks_H is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        sinks = sinks_H.astype(jnp.float32).reshape(*heads, 1, 1)
        best = jnp.maximum(scores.max(-1, keepdims=True), sinks)
        weights = jnp.exp(scores - best)
        weights /= weights.sum(-1, keepdims=True) + jnp.exp(sinks - best)
    weights = weights.astype(q_BTHh.dtype)
    n_past = 0 if past is None else len(past.v)
    y = jnp.einsum(f"bk{g}ts,bksh->bk{g}th", weights[..., n_past:], v_BKSh)
    if past is not None:
        y += jnp.einsum(f"bk{g}ts,skh->bk{g}th", weights[..., :n_past], past.v)
    return y.reshape(n_rows, n_heads, n_queries, -1).transpose(0, 2, 1, 3)


def _past(layout: Layout, window: Window, bias: jax.Array | None, queries: jax.Array | None) -> Past:
    """What queries, at ``[T]`` or ``[B, T]`` of their rows, see of the texts' shared beginning."""
    key_P, position = jnp.arange(layout.reach), layout.position
    seen_P = key_P < layout.before
    if window is None:
        seen_BTP = seen_P[None, None, :]
    else:
        if queries is not None:
            each = queries.ndim == position.ndim == 2
            position = layout.at(position, queries) if each else position[..., queries]
        seen_BTP = seen_P & (position[..., :, None] - key_P < window)
        seen_BTP = seen_BTP if seen_BTP.ndim == 3 else seen_BTP[None]
    return Past(layout.past["keys"], layout.past["values"], seen_BTP, bias)


def visible(
    layout: Layout,
    queries: jax.Array | None,
    *,
    causal: bool,
    window: Window = None,
    landmarks: int = 0,
    keys: jax.Array | None = None,
) -> jax.Array:
    """Bool ``[B, T, S]``, or ``[B, 1, S]``, as ``attend`` says; queries ``[T]`` or ``[B, T]``, keys ``[S]``."""
    seen_BTS = layout.seen(queries, keys)
    if not causal and window is None:
        return seen_BTS
    every_S = jnp.arange(layout.width)
    key_S = every_S if keys is None else keys
    query_T = every_S if queries is None else queries
    # Two tokens of one text are as far apart as their places in the row.
    ahead_TS = query_T[..., :, None] - key_S
    if causal:
        seen_BTS = seen_BTS & (ahead_TS >= 0)
    if layout.until_BT is not None:
        seen_BTS = seen_BTS & (query_T[..., :, None] < layout.until_BT[:, None, key_S])
        # But for those of a branch, whose positions go on from the text.
        position_BT = layout.position_BT
        own_BT = position_BT[:, query_T] if query_T.ndim == 1 else layout.at(position_BT, query_T)
        ahead_TS = own_BT[:, :, None] - position_BT[:, None, key_S]
    if window is not None:
        near_TS = (ahead_TS if causal else jnp.abs(ahead_TS)) < window
        if landmarks:
            first = layout.position < landmarks
            near_TS = near_TS | (first if keys is None else first[..., keys])[..., None, :]
        seen_BTS = seen_BTS & near_TS
    return seen_BTS
