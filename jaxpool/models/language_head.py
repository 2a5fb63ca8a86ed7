"""The head of a language model: from hidden states to logits of tokens, only where they are asked for.

Shape letters as in ``layers.py``; V vocabulary, R hidden states that are read of a row, E answers of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

CHUNK = 64
"""Hidden states whose logits of the whole vocabulary are in memory at once."""


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """How hidden states become logits.

    Attributes:
        tied: whether its rows are those of the token embedding; else they are the classifier's head.
        scale: factor on the logits (Cohere, Granite, MiniCPM).
        softcap: they become ``softcap * tanh(logit / softcap)`` after that (Gemma 2); None for no cap.
    """

    tied: bool
    scale: float = 1.0
    softcap: float | None = None


def answer_logits(
    model: Any,
    head: LanguageHead,
    hidden_BRD: jax.Array,
    which_BE: jax.Array,
    tokens_BE: jax.Array,
    *,
    absolute: bool,
) -> jax.Array:
    """What each answer scores: float32 ``[B, E]``.

    Args:
        model: a ``Classifier``: its backbone's embedding, or its head, has a row per token.
        head: how its logits are made.
        hidden_BRD: hidden states that predict answers.
        which_BE: int32, index in its row's ``R`` of the one that predicts an answer.
        tokens_BE: int32, the answer.
        absolute: log-probabilities in the whole vocabulary; else logits, whose differences within one hidden state are
            the same, for the few rows of the vocabulary that are answers.
    """
    hidden_BED = jnp.take_along_axis(hidden_BRD, which_BE[:, :, None], axis=1)
    if head.tied:
        rows_BED = jnp.take(model.backbone.tokens.table[...], tokens_BE, axis=0, mode="clip")
        bias = None
    else:
        rows_BED = jnp.moveaxis(jnp.take(model.head.out.kernel[...], tokens_BE, axis=1, mode="clip"), 0, -1)
        bias = model.head.out.bias
    logits_BE = jnp.einsum("bed,bed->be", hidden_BED, rows_BED, preferred_element_type=jnp.float32)
    if bias is not None:
        logits_BE += jnp.take(bias[...], tokens_BE, mode="clip").astype(jnp.float32)
    logits_BE = _shaped(head, logits_BE)
    if not absolute:
        return logits_BE
    normaliser_BR = _normalisers(model, head, hidden_BRD)
    return logits_BE - jnp.take_along_axis(normaliser_BR, which_BE, axis=1)


def _shaped(head: LanguageHead, logits: jax.Array) -> jax.Array:
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * jnp.tanh(logits / head.softcap)


def _normalisers(model: Any, head: LanguageHead, hidden_BRD: jax.Array) -> jax.Array:
    """Log of the sum of exponentials over the vocabulary: float32 ``[B, R]``."""

    def one(hidden_D: jax.Array) -> jax.Array:
        if head.tied:
            logits_V = jnp.einsum(
                "d,vd->v", hidden_D, model.backbone.tokens.table[...], preferred_element_type=jnp.float32
            )
        else:
            kernel, bias = model.head.out.kernel, model.head.out.bias
            logits_V = jnp.einsum("d,dv->v", hidden_D, kernel[...], preferred_element_type=jnp.float32)
            logits_V = logits_V if bias is None else logits_V + bias[...].astype(jnp.float32)
        return jax.nn.logsumexp(_shaped(head, logits_V))

    flat = hidden_BRD.reshape(-1, hidden_BRD.shape[-1])
    found = jax.vmap(one)(flat) if len(flat) <= CHUNK else jax.lax.map(one, flat, batch_size=CHUNK)
    return found.reshape(hidden_BRD.shape[:2])
