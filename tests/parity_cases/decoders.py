"""Dense decoders with Llama's names."""

from __future__ import annotations

from typing import Any

SMALL = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "intermediate_size": 68, "max_position_embeddings": 64}  # fmt: skip
HEADS = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 3.0}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 32,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 2.0],
        "long_factor": [1.5, 2.0, 4.0, 9.0]}  # fmt: skip
GEMMA3 = SMALL | {"head_dim": 10, "query_pre_attn_scalar": 12, "sliding_window": 5, "num_hidden_layers": 4,
                  "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-dynamic": ("llama", SMALL | {"num_labels": 2, "max_position_embeddings": 16, "rope_parameters": DYNAMIC}),
    "llama-bidirectional": ("llama", SMALL | {"num_labels": 2, "is_causal": False}),
    "gemma": ("gemma", SMALL | {"num_labels": 2, "head_dim": 12, "attention_bias": True}),
    "gemma-mqa-linear": ("gemma", SMALL | {"num_labels": 7, "head_dim": 6, "num_key_value_heads": 1,
                                           "hidden_act": "gelu", "rope_parameters": LINEAR}),
    "gemma2": ("gemma2", SMALL | {"num_labels": 2, "head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20,
                                  "attn_logit_softcapping": 3.0}),
    "gemma2-no-cap-relu": ("gemma2", SMALL | {"num_labels": 1, "head_dim": 8, "sliding_window": 30,
                                              "hidden_activation": "relu", "attn_logit_softcapping": None,
                                              "attention_bias": True}),
    "gemma3": ("gemma3_text", GEMMA3 | {"num_labels": 2}),
    "gemma3-scaled-bias": ("gemma3_text", GEMMA3 | {"num_labels": 7, "attention_bias": True,
                           "rope_parameters": {
                               "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                               "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}}),
    "gemma3-bidirectional": ("gemma3_text", GEMMA3 | {"num_labels": 2, "use_bidirectional_attention": True}),
    "gemma3-text-part": ("gemma3", {"vocab_size": 103, "num_labels": 3, "text_config": GEMMA3, "vision_config": VISION,
                                    "mm_tokens_per_image": 4, "image_token_index": 102, "boi_token_index": 101,
                                    "eoi_token_index": 100}),
    "phi": ("phi", HEADS | {"num_labels": 2}),
    "phi-gqa-norm": ("phi", SMALL | {"num_labels": 3, "qk_layernorm": True, "hidden_act": "gelu", "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25}}),
    "phi3": ("phi3", SMALL | {"num_labels": 2}),
    "phi3-window": ("phi3", SMALL | {"num_labels": 7, "sliding_window": 5, "rms_norm_eps": 1e-3}),
    "phi3-longrope": ("phi3", SMALL | {"num_labels": 2, "original_max_position_embeddings": 16,
                                       "rope_parameters": LONG}),
    "phi3-longrope-partial": ("phi3", HEADS | {"num_labels": 2, "original_max_position_embeddings": 16,
                              "rope_parameters": LONG | {"partial_rotary_factor": 0.75, "short_factor": [1.0, 1.2, 1.4],
                                                         "long_factor": [2.0, 3.0, 5.0]}}),
    "olmo": ("olmo", HEADS | {"num_labels": 2}),
    "olmo-clip-bias": ("olmo", SMALL | {"num_labels": 7, "clip_qkv": 0.4, "attention_bias": True}),
    "olmo2": ("olmo2", SMALL | {"num_labels": 2}),
    "olmo2-bias-llama3": ("olmo2", HEADS | {"num_labels": 3, "attention_bias": True, "rope_parameters": LLAMA3}),
    "olmo3": ("olmo3", SMALL | {"num_labels": 2, "num_hidden_layers": 4, "sliding_window": 5}),
    "olmo3-yarn": ("olmo3", SMALL | {"num_labels": 2, "num_hidden_layers": 5, "sliding_window": 6, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": YARN}}),
}  # fmt: skip
