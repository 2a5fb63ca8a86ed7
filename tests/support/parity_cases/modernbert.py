"""ModernBERT and its decoder: windows, two rotary bases, biases, heads."""

from __future__ import annotations

from typing import Any

MODERN = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
          "intermediate_size": 56, "max_position_embeddings": 64, "local_attention": 10, "pad_token_id": 0,
          "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("modernbert", MODERN | {"num_labels": 2}),
    "modernbert-mean-biases": ("modernbert", MODERN | {
        "num_labels": 7, "classifier_pooling": "mean", "attention_bias": True, "mlp_bias": True, "norm_bias": True,
        "classifier_bias": True, "classifier_activation": "silu", "hidden_activation": "gelu_new", "norm_eps": 1e-3}),
    "modernbert-windows-everywhere": ("modernbert", MODERN | {
        "num_labels": 1, "num_hidden_layers": 2, "local_attention": 7, "layer_types": ["sliding_attention"] * 2}),
    "modernbert-one-layer-odd": ("modernbert", MODERN | {
        "num_labels": 5, "num_hidden_layers": 1, "num_attention_heads": 3, "hidden_size": 30,
        "problem_type": "multi_label_classification"}),
    "modernbert-ropes": ("modernbert", MODERN | {
        "num_labels": 3, "num_hidden_layers": 5,
        "rope_parameters": {"full_attention": LINEAR,
                            "sliding_attention": {"rope_type": "default", "rope_theta": 33.0}}}),
    "modernbert-decoder": ("modernbert-decoder", MODERN | {"num_labels": 2}),
    "modernbert-decoder-biases": ("modernbert-decoder", MODERN | {
        "num_labels": 7, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
        "num_hidden_layers": 6, "local_attention": 6}),
}  # fmt: skip
