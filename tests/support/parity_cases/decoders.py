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
LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
GEMMA3 = SMALL | {"head_dim": 10, "query_pre_attn_scalar": 12, "sliding_window": 5, "num_hidden_layers": 4,
                  "layer_types": LAYERS}  # fmt: skip
LLAMA4 = SMALL | {"head_dim": 8, "num_hidden_layers": 4, "moe_layers": [], "intermediate_size_mlp": 60,
                  "floor_scale": 8, "attn_scale": 0.7, "attention_chunk_size": 64}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-dynamic": ("llama", SMALL | {"num_labels": 2, "max_position_embeddings": 16, "rope_parameters": DYNAMIC}),
    "llama-bidirectional": ("llama", SMALL | {"num_labels": 2, "is_causal": False}),
    "mistral-bidirectional-window": ("mistral", SMALL | {"num_labels": 2, "is_causal": False, "sliding_window": 5}),
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
    "gemma3-text-part-bias": ("gemma3", {"vocab_size": 103, "num_labels": 1, "vision_config": VISION,
                              "text_config": GEMMA3 | {"attention_bias": True, "num_key_value_heads": 6},
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
    "gpt_neox": ("gpt_neox", HEADS | {"num_labels": 2}),
    "gpt_neox-serial-no-bias": ("gpt_neox", HEADS | {"num_labels": 7, "use_parallel_residual": False,
                                "attention_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3,
                                "rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}),
    "persimmon": ("persimmon", HEADS | {"num_labels": 2}),
    "persimmon-no-norm": ("persimmon", HEADS | {"num_labels": 1, "qk_layernorm": False, "hidden_act": "gelu"}),
    "stablelm": ("stablelm", SMALL | {"num_labels": 2, "num_key_value_heads": 6}),
    "stablelm-parallel-norm-bias": ("stablelm", SMALL | {"num_labels": 3, "use_parallel_residual": True,
                                    "qk_layernorm": True, "use_qkv_bias": True}),
    "starcoder2": ("starcoder2", SMALL | {"num_labels": 2}),
    "starcoder2-window-no-bias": ("starcoder2", SMALL | {"num_labels": 1, "sliding_window": 5, "use_bias": False}),
    "nemotron": ("nemotron", SMALL | {"num_labels": 2, "head_dim": 12}),
    "nemotron-biases": ("nemotron", SMALL | {"num_labels": 7, "head_dim": 8, "attention_bias": True, "mlp_bias": True,
                                             "hidden_act": "gelu", "norm_eps": 1e-3}),
    "cohere": ("cohere", SMALL | {"num_labels": 2}),
    "cohere-norm-bias": ("cohere", SMALL | {"num_labels": 3, "use_qk_norm": True, "attention_bias": True}),
    "cohere2": ("cohere2", SMALL | {"num_labels": 2, "num_hidden_layers": 5, "sliding_window": 5}),
    "cohere2-bias": ("cohere2", SMALL | {"num_labels": 1, "sliding_window": 9, "attention_bias": True, "layer_types": [
        "full_attention", "sliding_attention", "full_attention"]}),
    "glm": ("glm", SMALL | {"num_labels": 2, "head_dim": 8}),
    "glm-no-bias": ("glm", SMALL | {"num_labels": 7, "head_dim": 12, "attention_bias": False, "rms_norm_eps": 1e-4}),
    "glm4": ("glm4", SMALL | {"num_labels": 2, "head_dim": 8}),
    "glm4-no-bias-gelu": ("glm4", SMALL | {"num_labels": 1, "head_dim": 16, "attention_bias": False,
                                           "hidden_act": "gelu"}),
    "helium": ("helium", SMALL | {"num_labels": 2, "head_dim": 8}),
    "helium-biases": ("helium", SMALL | {"num_labels": 3, "head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    "ernie4_5": ("ernie4_5", SMALL | {"num_labels": 2, "head_dim": 10}),
    "ernie4_5-biases": ("ernie4_5", SMALL | {"num_labels": 1, "head_dim": 8, "use_bias": True}),
    "ministral": ("ministral", SMALL | {"num_labels": 2, "head_dim": 8, "sliding_window": 5}),
    "ministral-mixed": ("ministral", SMALL | {"num_labels": 3, "sliding_window": 6, "head_dim": 10, "layer_types": [
        "full_attention", "sliding_attention", "full_attention"]}),
    "ministral3": ("ministral3", SMALL | {"num_labels": 2, "head_dim": 8, "rope_parameters": YARN | {
        "llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "ministral3-window": ("ministral3", SMALL | {"num_labels": 7, "head_dim": 12, "sliding_window": 7,
                          "rope_parameters": YARN | {"llama_4_scaling_beta": 0.1, "beta_fast": 16.0}}),
    "smollm3": ("smollm3", SMALL | {"num_labels": 2, "num_hidden_layers": 4}),
    "smollm3-windows-biases": ("smollm3", SMALL | {"num_labels": 3, "use_sliding_window": True, "sliding_window": 6,
                               "no_rope_layers": [0, 1, 0], "attention_bias": True, "mlp_bias": True}),
    "llama4": ("llama4_text", LLAMA4 | {"num_labels": 2}),
    "llama4-plain-queries": ("llama4_text", LLAMA4 | {"num_labels": 3, "use_qk_norm": False, "attention_bias": True,
                             "attn_temperature_tuning": False, "no_rope_layers": [1, 0, 0, 1],
                             "rope_parameters": LLAMA3}),
    "granite": ("granite", SMALL | {"num_labels": 2, "attention_multiplier": 0.2, "embedding_multiplier": 3.0,
                                    "residual_multiplier": 0.4, "logits_scaling": 7.0}),
    "granite-biases": ("granite", SMALL | {"num_labels": 1, "attention_bias": True, "mlp_bias": True}),
    "seed_oss": ("seed_oss", SMALL | {"num_labels": 2, "head_dim": 10}),
    "seed_oss-out-bias": ("seed_oss", SMALL | {"num_labels": 7, "head_dim": 8, "attention_bias": False,
                                               "attention_out_bias": True, "mlp_bias": True}),
    "arcee": ("arcee", SMALL | {"num_labels": 2, "head_dim": 8}),
    "arcee-biases-yarn": ("arcee", SMALL | {"num_labels": 1, "head_dim": 8, "attention_bias": True, "mlp_bias": True,
                                            "rope_parameters": YARN}),
    "hunyuan": ("hunyuan_v1_dense", SMALL | {"num_labels": 2, "head_dim": 8}),
    "hunyuan-alpha-bias": ("hunyuan_v1_dense", SMALL | {"num_labels": 3, "head_dim": 10, "attention_bias": True,
                           "rope_parameters": DYNAMIC | {"alpha": 50.0}}),
    "exaone4": ("exaone4", SMALL | {"num_labels": 2, "num_hidden_layers": 4, "sliding_window": 5}),
    "exaone4-no-window": ("exaone4", SMALL | {"num_labels": 7, "sliding_window": None,
                                                    "layer_types": ["full_attention"] * 3}),
    "apertus": ("apertus", SMALL | {"num_labels": 2}),
    "apertus-relu2-bias": ("apertus", SMALL | {"num_labels": 1, "hidden_act": "relu2", "attention_bias": True,
                                               "rope_parameters": LLAMA3}),
}  # fmt: skip
