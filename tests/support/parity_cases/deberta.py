"""DeBERTa, versions 1 to 3: terms of the score, buckets, spans shorter than texts, convolution."""

from __future__ import annotations

from typing import Any

from parity_cases.first import BERT

BOTH = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
V3 = BERT | BOTH | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deberta-v3": ("deberta-v2", V3 | {"num_labels": 2}),
    "deberta-v3-real-buckets": ("deberta-v2", V3 | {
        "num_labels": 3, "position_buckets": 16, "max_relative_positions": 33, "type_vocab_size": 2}),
    "deberta-v2-conv": ("deberta-v2", V3 | {
        "num_labels": 7, "conv_kernel_size": 3, "conv_act": "gelu", "pooler_hidden_act": "tanh", "hidden_act": "relu"}),
    "deberta-v2-conv-groups-own-projections": ("deberta-v2", BERT | BOTH | {
        "num_labels": 1, "conv_kernel_size": 5, "conv_groups": 4, "max_relative_positions": 9,
        "position_biased_input": True, "layer_norm_eps": 1e-5}),
    "deberta-v2-content-only": ("deberta-v2", BERT | BOTH | {"num_labels": 2, "pos_att_type": "c2p"}),
    "deberta-v2-absolute": ("deberta-v2", BERT | {
        "num_labels": 4, "embedding_size": 20, "problem_type": "multi_label_classification"}),
    "deberta": ("deberta", BERT | BOTH | {"num_labels": 3}),
    "deberta-span-types": ("deberta", BERT | BOTH | {
        "num_labels": 7, "max_relative_positions": 5, "type_vocab_size": 2, "position_biased_input": True,
        "pooler_hidden_act": "relu"}),
    "deberta-position-only-odd": ("deberta", BERT | BOTH | {
        "num_labels": 1, "pos_att_type": ["p2c"], "hidden_size": 33, "num_attention_heads": 3}),
    "deberta-absolute": ("deberta", BERT | {"num_labels": 2, "hidden_act": "gelu_new"}),
}  # fmt: skip
