"""ESM C: without biases and with them."""

from __future__ import annotations

from typing import Any

ESMC = {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56,
        "max_position_embeddings": 64}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "esmc": ("esmc", ESMC | {"num_labels": 3}),
    "esmc-biases-gelu": ("esmc", ESMC | {
        "num_labels": 1, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "num_attention_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
}  # fmt: skip
