"""Mixtures of experts and latent attention: routers, shared experts, sinks, layers of several kinds."""

from __future__ import annotations

from typing import Any

MOE = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
       "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64,
       "num_experts_per_tok": 2}  # fmt: skip
LOCAL = MOE | {"num_local_experts": 5}
QWEN = MOE | {"num_experts": 5, "moe_intermediate_size": 12}
HUNYUAN = {name: value for name, value in MOE.items() if name != "num_experts_per_tok"} | {"num_experts": 5}
LATENT = MOE | {"num_key_value_heads": 4, "kv_lora_rank": 10, "q_lora_rank": 14, "qk_nope_head_dim": 6,
                "qk_rope_head_dim": 4, "v_head_dim": 5}  # fmt: skip
DEEPSEEK = LATENT | {"n_routed_experts": 8, "moe_intermediate_size": 12, "first_k_dense_replace": 1}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
GROWING = YARN | {"llama_4_scaling_beta": 0.3}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, "factor": 2.0,
            "short_factor": [1.1, 1.3, 1.7, 2.0], "long_factor": [2.0, 3.0, 5.0, 7.0], "short_mscale": 1.2,
            "long_mscale": 1.2}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", LOCAL | {"num_labels": 2}),
    "mixtral-window-top-1": ("mixtral", LOCAL | {
        "num_labels": 7, "sliding_window": 5, "num_experts_per_tok": 1, "head_dim": 6, "num_key_value_heads": 1}),
    "mixtral-gelu-all": ("mixtral", LOCAL | {
        "num_labels": 1, "num_local_experts": 3, "num_experts_per_tok": 3, "hidden_act": "gelu"}),
    "qwen2-moe": ("qwen2_moe", QWEN | {"num_labels": 2, "shared_expert_intermediate_size": 20}),
    "qwen2-moe-periods-windows": ("qwen2_moe", QWEN | {
        "num_labels": 3, "shared_expert_intermediate_size": 9, "norm_topk_prob": True, "decoder_sparse_step": 2,
        "num_hidden_layers": 5, "qkv_bias": False, "use_sliding_window": True, "sliding_window": 4,
        "max_window_layers": 3}),
    "qwen3-moe": ("qwen3_moe", QWEN | {"num_labels": 2, "head_dim": 10}),
    "qwen3-moe-some-dense": ("qwen3_moe", QWEN | {
        "num_labels": 1, "head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [1], "num_hidden_layers": 5,
        "attention_bias": True, "use_sliding_window": True, "sliding_window": 6}),
    "phimoe": ("phimoe", LOCAL | {"num_labels": 2, "router_jitter_noise": 0.4}),
    "phimoe-longrope-bias": ("phimoe", LOCAL | {
        "num_labels": 3, "attention_bias": True, "sliding_window": 7, "rope_parameters": LONGROPE}),
    "granitemoe": ("granitemoe", LOCAL | {
        "num_labels": 2, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.2,
        "logits_scaling": 4.0}),
    "granitemoe-bias-top-1": ("granitemoe", LOCAL | {
        "num_labels": 1, "attention_bias": True, "num_experts_per_tok": 1, "num_key_value_heads": 1}),
    "hunyuan-moe": ("hunyuan_v1_moe", HUNYUAN | {"num_labels": 2, "moe_topk": 2, "head_dim": 8}),
    "hunyuan-moe-top-k-by-layer-bias": ("hunyuan_v1_moe", HUNYUAN | {
        "num_labels": 3, "head_dim": 10, "attention_bias": True, "moe_topk": [1, 3, 1], "rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 1000.0, "factor": 3.0, "alpha": 50.0}}),
    "gpt-oss": ("gpt_oss", LOCAL | {
        "num_labels": 2, "head_dim": 8, "sliding_window": 5, "swiglu_limit": 0.5}),
    "gpt-oss-no-bias-top-3": ("gpt_oss", LOCAL | {
        "num_labels": 1, "head_dim": 10, "attention_bias": False, "num_experts_per_tok": 3, "swiglu_alpha": 1.1,
        "rope_parameters": YARN, "layer_types": ["full_attention"] * 3, "num_key_value_heads": 1}),
    "deepseek-v2": ("deepseek_v2", DEEPSEEK | {"num_labels": 2, "n_shared_experts": 1}),
    "deepseek-v2-groups-yarn": ("deepseek_v2", DEEPSEEK | {
        "num_labels": 3, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "attention_bias": True,
        "routed_scaling_factor": 1.7, "first_k_dense_replace": 0,
        "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}}),
    "deepseek-v2-direct-queries": ("deepseek_v2", DEEPSEEK | {
        "num_labels": 1, "q_lora_rank": None, "first_k_dense_replace": 2, "num_experts_per_tok": 3}),
    "deepseek-v3": ("deepseek_v3", DEEPSEEK | {"num_labels": 2, "n_group": 2, "topk_group": 1}),
    "deepseek-v3-halves-yarn": ("deepseek_v3", DEEPSEEK | {
        "num_labels": 3, "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "rope_interleave": False,
        "attention_bias": True, "n_shared_experts": 2, "q_lora_rank": None,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
    "mistral4": ("mistral4", DEEPSEEK | {"num_labels": 2, "n_group": 2, "topk_group": 1, "rope_parameters": GROWING}),
    "mistral4-halves-dense-first-bias": ("mistral4", DEEPSEEK | {
        "num_labels": 3, "n_group": 4, "topk_group": 2, "rope_interleave": False, "attention_bias": True,
        "q_lora_rank": None, "first_k_dense_replace": 2, "norm_topk_prob": False, "routed_scaling_factor": 1.7,
        "rope_parameters": GROWING | {"mscale": 0.7, "mscale_all_dim": 0.9}}),
    "minicpm3": ("minicpm3", LATENT | {"num_labels": 2}),
    "minicpm3-direct-bias": ("minicpm3", LATENT | {
        "num_labels": 7, "q_lora_rank": None, "attention_bias": True, "mlp_bias": True, "scale_emb": 3,
        "scale_depth": 0.6, "qk_rope_head_dim": 6, "v_head_dim": None}),
}  # fmt: skip
