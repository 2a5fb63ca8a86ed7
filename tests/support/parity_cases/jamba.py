"""Jamba: periods and offsets, experts, sizes of the state space, biases."""

from __future__ import annotations

from typing import Any

JAMBA = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2,
         "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
         "mamba_d_state": 8, "mamba_dt_rank": 5, "max_position_embeddings": 64,
         # What transformers would rather use, where it is installed, computes the same.
         "use_mamba_kernels": False}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": ("jamba", JAMBA | {"num_labels": 2}),
    "jamba-2-periods-odd-taps": ("jamba", JAMBA | {
        "num_labels": 7, "num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 0,
        "expert_layer_period": 3, "expert_layer_offset": 2, "mamba_d_conv": 3, "mamba_d_state": 5,
        "num_experts_per_tok": 1, "tie_word_embeddings": True}),
    "jamba-remainder-biases": ("jamba", JAMBA | {
        "num_labels": 1, "num_hidden_layers": 7, "mamba_proj_bias": True, "mamba_conv_bias": False,
        "mamba_expand": 3, "mamba_dt_rank": "auto", "num_key_value_heads": 1, "hidden_act": "gelu",
        "rms_norm_eps": 1e-3}),
    "jamba-no-experts": ("jamba", JAMBA | {"num_labels": 3, "num_experts": 1, "num_experts_per_tok": 1}),
    "jamba-all-experts-attention": ("jamba", JAMBA | {
        "num_labels": 2, "num_hidden_layers": 2, "expert_layer_period": 1, "expert_layer_offset": 0, "num_experts": 3,
        "num_experts_per_tok": 3, "attn_layer_period": 1, "attn_layer_offset": 0,
        "problem_type": "multi_label_classification"}),
    "jamba-one-attention": ("jamba", JAMBA | {
        "num_labels": 2, "num_hidden_layers": 3, "attn_layer_period": 8, "attn_layer_offset": 1, "mamba_d_conv": 1,
        "mamba_expand": 1}),
}  # fmt: skip
