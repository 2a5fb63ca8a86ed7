"""Selective state spaces (Mamba-1; Gu and Dao 2023, arXiv:2312.00752) and the short convolution before them.

Shape letters: B rows, T tokens, I inner channels, N state size per channel, L convolution taps, C chunks, Q tokens
of a chunk. Everything is causal, so right padding needs no mask: it cannot reach a real token. Where rows hold several
texts, the state is forgotten at the beginning of each; behind a beginning computed before, it goes on from there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpool.ops.layout import Layout

UNROLL = 8
"""Tokens per step of the loop on TPUs."""

CHUNK = 16
"""Tokens per step of the chunked form: enough work to fill a device, little enough memory (see ``_chunked``)."""


class Steps(NamedTuple):
    """What the recurrence reads of each token; float32, tokens in front.

    Attributes:
        x: inputs, ``[T, B, I]``.
        dt: step sizes, not negative, ``[T, B, I]``.
        b: what of the input enters each state, ``[T, B, N]``.
        c: what of each state is read, ``[T, B, N]``.
        begins: bool, where the state before is forgotten, ``[T, B, 1]``; None: nowhere.
    """

    x: jax.Array
    dt: jax.Array
    b: jax.Array
    c: jax.Array
    begins: jax.Array | None = None


def selective_scan(
    x_BTI: jax.Array, dt_BTI: jax.Array, a_NI: jax.Array, b_BTN: jax.Array, c_BTN: jax.Array, layout: Layout
) -> jax.Array:
    """``h_t = exp(dt_t a) h_(t-1) + dt_t b_t x_t``, ``y_t = c_t h_t``, from ``h = 0`` where a text begins.

    Behind a beginning computed before, from the state that it left.

    One token after another on the CPU, where the state stays in the cache, and on TPUs, several to a step of the loop,
    where it stays in vector registers (a layer of 4,096 channels and 16,384 tokens: 19 ms on a v5e by its compiler,
    199 in chunks, whose states go through memory). In chunks on GPUs, where a step of one token is too small to fill
    the device. All compute in float32 and agree to rounding.

    Args:
        x_BTI: inputs, any float dtype.
        dt_BTI: step sizes (after softplus), not negative.
        a_NI: decay rates, negative. A state of size N for every channel; channels last, since they are many.
        b_BTN: input weights.
        c_BTN: output weights.
        layout: where texts begin.

    Returns:
        float32 ``[B, T, I]``.
    """
    begins_BT = layout.begins_BT
    if layout.notes is not None:  # padding must leave the state alone
        dt_BTI = jnp.where(layout.real_BT[:, :, None], dt_BTI, 0)
    x, dt, b, c = (jnp.moveaxis(v, 1, 0).astype(jnp.float32) for v in (x_BTI, dt_BTI, b_BTN, c_BTN))
    steps = Steps(x, dt, b, c, None if begins_BT is None else begins_BT.T[:, :, None])
    first_NI = None if layout.past is None else layout.past["state"]
    y_TBI, last_BNI = jax.lax.platform_dependent(
        steps, a_NI.astype(jnp.float32), first_NI, cpu=serial, tpu=unrolled, default=chunked
    )
    if layout.notes is not None:
        layout.notes["state"] = last_BNI[0]
    return jnp.moveaxis(y_TBI, 0, 1)


def serial(
    steps: Steps, a_NI: jax.Array, first_NI: jax.Array | None = None, unroll: int = 1
) -> tuple[jax.Array, jax.Array]:
    """One token per step, from ``first_NI`` on (None: zero): ``[T, B, I]``, and the last state ``[B, N, I]``.

    Holds one state and nothing of the others.
    """

    def step(h_BNI: jax.Array, token: Steps) -> tuple[jax.Array, jax.Array]:
        h_BNI = _decay(token, a_NI) * h_BNI + _entry(token, a_NI, first_NI)
        return h_BNI, _read(h_BNI, token)

    last_BNI, y_TBI = jax.lax.scan(step, _first(steps, a_NI, first_NI), steps, unroll=unroll)
    return y_TBI, last_BNI


def unrolled(steps: Steps, a_NI: jax.Array, first_NI: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """As ``serial``, ``UNROLL`` tokens per step of the loop."""
    return serial(steps, a_NI, first_NI, UNROLL)


def chunked(steps: Steps, a_NI: jax.Array, first_NI: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """As ``serial``, ``CHUNK`` tokens per step, a parallel prefix inside. Holds ``CHUNK`` states."""
    n_tokens = steps.x.shape[0]
    pad = -n_tokens % CHUNK
    # Zeros take no step: dt = 0 decays nothing and lets nothing in.
    chunks = jax.tree.map(
        lambda v: jnp.pad(v, ((0, pad), (0, 0), (0, 0))).reshape(-1, CHUNK, *v.shape[1:]),
        steps,
    )

    def step(h_BNI: jax.Array, chunk: Steps) -> tuple[jax.Array, jax.Array]:
        def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return left[0] * right[0], right[0] * left[1] + right[1]

        decay_QBNI, entered_QBNI = jax.lax.associative_scan(join, (_decay(chunk, a_NI), _entry(chunk, a_NI, first_NI)))
        h_QBNI = decay_QBNI * h_BNI + entered_QBNI
        return h_QBNI[-1], _read(h_QBNI, chunk)

    last_BNI, y_CQBI = jax.lax.scan(step, _first(steps, a_NI, first_NI), chunks)
    return y_CQBI.reshape(-1, *y_CQBI.shape[2:])[:n_tokens], last_BNI


def _first(steps: Steps, a_NI: jax.Array, first_NI: jax.Array | None) -> jax.Array:
    first_NI = jnp.zeros(a_NI.shape, jnp.float32) if first_NI is None else first_NI
    return jnp.broadcast_to(first_NI, (steps.x.shape[1], *a_NI.shape))


def _decay(token: Steps, a_NI: jax.Array) -> jax.Array:
    decay = jnp.exp(token.dt[..., None, :] * a_NI)
    return decay if token.begins is None else jnp.where(token.begins[..., None], 0.0, decay)


def _entry(token: Steps, a_NI: jax.Array, first_NI: jax.Array | None) -> jax.Array:
    entry = (token.dt * token.x)[..., None, :] * token.b[..., :, None]
    if token.begins is None or first_NI is None:
        return entry
    # What was before is forgotten where a text begins, but for what all texts of the batch go on from.
    return entry + jnp.where(token.begins[..., None], jnp.exp(token.dt[..., None, :] * a_NI) * first_NI, 0.0)


def _read(h: jax.Array, token: Steps) -> jax.Array:
    return jnp.sum(h * token.c[..., :, None], axis=-2)


def causal_conv(x_BTI: jax.Array, kernel_LI: jax.Array, bias_I: jax.Array | None, layout: Layout) -> jax.Array:
    """Each channel's own convolution over a text's last L tokens: ``[B, T, I]`` in the dtype of ``x_BTI``."""
    first_BTI, *others = layout.trail(x_BTI, kernel_LI.shape[0])
    y_BTI = first_BTI * kernel_LI[0]
    for tap_BTI, kernel_I in zip(others, kernel_LI[1:]):
        y_BTI = y_BTI + tap_BTI * kernel_I
    return y_BTI if bias_I is None else y_BTI + bias_I
