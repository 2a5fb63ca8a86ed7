"""From hidden states to probabilities: poolers, calibration, activation. Pure functions, inside the program.

Shape letters: B rows, T tokens, D width, C labels.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Pooling = Literal["CLS", "LAST", "MEAN", "EOS", "NOT_PAD"]
Activation = Literal[
    "classify", "normalize", "sigmoid", "softmax", "identity", "tanh", "relu", "gelu", "silu", "softplus", "elu"
]

_ELEMENTWISE = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "identity": lambda x: x,
}


def pool(hidden_BTD: jax.Array, lengths_B: jax.Array, kind: Pooling, marks_BT: jax.Array | None = None) -> jax.Array:
    """One vector per row, ``[B, D]``.

    Args:
        hidden_BTD: one vector per token.
        lengths_B: real tokens per row.
        kind: its first token (CLS), its last real token (LAST), the float32 mean of its real tokens (MEAN), or the
            last of its real tokens that ``marks_BT`` marks (EOS, NOT_PAD). A row without such a token yields its last
            real one under EOS (transformers raises there, but one text must not fail its neighbours), and its first
            one under NOT_PAD, as in transformers.
        marks_BT: bool, which tokens are the end of a text (EOS), or are not the padding token (NOT_PAD).
    """
    if kind == "CLS":
        return hidden_BTD[:, 0]
    if kind in ("EOS", "NOT_PAD"):
        if marks_BT is None:
            raise ValueError(f"{kind} pooling needs marks_BT")
        index_T = jnp.arange(hidden_BTD.shape[1])
        last_B = jnp.where(marks_BT & (index_T < lengths_B[:, None]), index_T, -1).max(1)
        lengths_B, kind = jnp.where(last_B < 0, lengths_B if kind == "EOS" else 1, last_B + 1), "LAST"
    if kind == "LAST":
        return jnp.take_along_axis(hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    real_BT = jnp.arange(hidden_BTD.shape[1])[None, :] < lengths_B[:, None]
    # where, not a product: padding may hold anything, and 0 * inf is not 0.
    total_BD = jnp.where(real_BT[:, :, None], hidden_BTD.astype(jnp.float32), 0.0).sum(1)
    return total_BD / lengths_B[:, None]


def calibrate(logits_BC: jax.Array, mean: float | None, sigma: float | None) -> jax.Array:
    """``(logits - mean) / sigma``, each only if set; applied whether or not an activation follows."""
    if mean is not None:
        logits_BC = logits_BC - mean
    return logits_BC if sigma is None else logits_BC / sigma


def activate(logits_BC: jax.Array, kind: Activation) -> jax.Array:
    """Scores from logits, or embeddings from hidden states; the last axis is that of labels.

    ``classify`` is softmax over the labels, or a sigmoid if there is only one; ``normalize`` scales to length one.
    """
    if kind == "normalize":
        return logits_BC / jnp.maximum(jnp.linalg.norm(logits_BC, axis=-1, keepdims=True), 1e-12)
    if kind == "softmax" or (kind == "classify" and logits_BC.shape[-1] > 1):
        return jax.nn.softmax(logits_BC, axis=-1)
    return _ELEMENTWISE["sigmoid" if kind == "classify" else kind](logits_BC)
