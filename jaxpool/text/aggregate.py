"""Scores of the windows of texts put together again, one result a text; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpool.text.windows import Windowed


def of_texts(
    values: Any,
    texts: Sequence[Windowed],
    how: str,
    *,
    per_token: bool = False,
    length_one: bool = False,
) -> Any:
    """Results of texts, of those of all their windows in a row.

    Args:
        values: float32 ``[windows, C]``: probabilities, logits or embeddings; ``per_token`` a list of ``[tokens, C]``;
            a list, too, where C differs from text to text.
        texts: what the windows belong to.
        how: "mean", "max" (each column's highest) or "first"; without effect where each token has its own.
        per_token: whether each token has its own scores: those of the window that it is farthest inside of.
        length_one: scale means to length one, as embeddings are; a mean of such vectors is shorter.

    Returns:
        float32 ``[texts, C]``, or a list where ``values`` is one.
    """
    found, done = [], 0
    for text in texts:
        own = values[done : done + len(text.windows)]
        done += len(text.windows)
        if len(own) == 1:
            found.append(own[0])
        elif per_token:
            found.append(_tokens(own, text))
        else:
            vector = _together(np.asarray(own), text.weights(), how)
            found.append((vector / max(float(np.linalg.norm(vector)), 1e-12)) if length_one else vector)
    return found if isinstance(values, list) else np.stack(found)


def _together(scores_wc: np.ndarray, weights_w: np.ndarray, how: str) -> np.ndarray:
    if how == "first":
        return scores_wc[0]
    if how == "max":
        return np.asarray(scores_wc.max(0))
    return (weights_w @ scores_wc.astype(np.float64)).astype(np.float32)


def _tokens(scores: Sequence[np.ndarray], text: Windowed) -> np.ndarray:
    parts = []
    for values, (begin, end), start in zip(scores, text.owned(), text.starts):
        inside = start - text.cut[0]  # positions of the text minus those of the window
        parts.append(values[begin - inside : end - inside])
    return np.concatenate(parts)
