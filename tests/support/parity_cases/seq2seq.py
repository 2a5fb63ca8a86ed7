"""Encoder-decoders: unequal sides, starts, scaled embeddings, biases by distance, plain and gated MLPs."""

from __future__ import annotations

from typing import Any

BART = {"vocab_size": 101, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 56, "decoder_ffn_dim": 56, "max_position_embeddings": 64,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
T5 = {"vocab_size": 101, "d_model": 48, "d_kv": 10, "d_ff": 56, "num_layers": 2, "num_heads": 4,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
      "eos_token_id": 1}  # fmt: skip
UNEVEN = {"encoder_layers": 3, "decoder_layers": 1, "decoder_attention_heads": 6, "encoder_attention_heads": 3,
          "encoder_ffn_dim": 40, "decoder_ffn_dim": 30}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("bart", BART | {"num_labels": 3}),
    "bart-uneven-scaled": ("bart", BART | UNEVEN | {
        "num_labels": 1, "scale_embedding": True, "activation_function": "relu", "decoder_start_token_id": 7}),
    "bart-multi-label": ("bart", BART | {
        "num_labels": 7, "problem_type": "multi_label_classification", "pad_token_id": 5, "eos_token_id": 60}),
    "mbart": ("mbart", BART | {"num_labels": 2}),
    "mbart-uneven-scaled": ("mbart", BART | UNEVEN | {"num_labels": 7, "scale_embedding": True, "pad_token_id": 9}),
    "plbart": ("plbart", BART | {"num_labels": 2}),
    "plbart-relu": ("plbart", BART | UNEVEN | {
        "num_labels": 5, "activation_function": "relu", "scale_embedding": False}),
    "mvp": ("mvp", BART | {"num_labels": 3}),
    "mvp-uneven-scaled": ("mvp", BART | UNEVEN | {"num_labels": 1, "scale_embedding": True}),
    "t5": ("t5", T5 | {"num_labels": 2}),
    "t5-gated-uneven": ("t5", T5 | {
        "num_labels": 7, "num_decoder_layers": 3, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-3}),
    "mt5": ("mt5", T5 | {"num_labels": 3}),
    "mt5-silu": ("mt5", T5 | {
        "num_labels": 1, "feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "decoder_start_token_id": 5}),
    "umt5": ("umt5", T5 | {"num_labels": 2}),
    "umt5-relu-uneven": ("umt5", T5 | {
        "num_labels": 5, "num_decoder_layers": 1, "feed_forward_proj": "relu", "num_heads": 3, "d_model": 33}),
}  # fmt: skip
