"""Longformer, BigBird, FNet: windows shorter than texts, biases, odd sizes."""

from __future__ import annotations

from typing import Any

from parity_cases.first import BERT

LONGFORMER = BERT | {"pad_token_id": 1, "attention_window": 8}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "longformer": ("longformer", LONGFORMER | {"num_labels": 2}),
    "longformer-narrow": ("longformer", LONGFORMER | {
        "num_labels": 7, "attention_window": [4, 4, 4], "type_vocab_size": 1, "hidden_act": "relu"}),
    "longformer-mixed": ("longformer", LONGFORMER | {"num_labels": 2, "attention_window": [4, 16, 8]}),
    "longformer-wide-odd": ("longformer", LONGFORMER | {
        "num_labels": 1, "attention_window": 64, "hidden_size": 33, "num_attention_heads": 3}),
    "big_bird": ("big_bird", BERT | {"num_labels": 2}),
    "big_bird-full-no-biases": ("big_bird", BERT | {
        "num_labels": 7, "attention_type": "original_full", "use_bias": False, "hidden_act": "relu"}),
    "fnet": ("fnet", BERT | {"num_labels": 2}),
    "fnet-odd": ("fnet", BERT | {"num_labels": 5, "hidden_size": 33, "hidden_act": "relu", "type_vocab_size": 2}),
}  # fmt: skip
