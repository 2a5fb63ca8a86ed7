"""Funnel Transformer: blocks, repeats, ways to pool, with and without a separate first token.

``relative_shift`` computes what ``factorized`` does, but transformers fails at it for texts of a few tokens;
``test_funnel.py`` compares it with longer ones.
"""

from __future__ import annotations

from typing import Any

FUNNEL = {"vocab_size": 101, "block_sizes": [2, 2, 2], "d_model": 48, "n_head": 4, "d_head": 10, "d_inner": 56,
          "attention_type": "factorized"}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "funnel": ("funnel", FUNNEL | {"num_labels": 2}),
    "funnel-all-tokens-uneven-repeats": ("funnel", FUNNEL | {
        "num_labels": 7, "block_sizes": [1, 2, 1], "block_repeats": [2, 1, 3], "truncate_seq": False,
        "hidden_act": "relu"}),
    "funnel-max-pooled-keys": ("funnel", FUNNEL | {
        "num_labels": 1, "pooling_type": "max", "pool_q_only": False, "block_sizes": [1, 1, 1, 2]}),
    "funnel-pooled-first": ("funnel", FUNNEL | {"num_labels": 5, "separate_cls": False, "block_sizes": [2, 1]}),
}  # fmt: skip
