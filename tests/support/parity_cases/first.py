"""BERT, GPT-2, Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from typing import Any

BERT = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56,
        "max_position_embeddings": 64}  # fmt: skip
GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 3, "n_positions": 64}
LLAMA = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "intermediate_size": 68, "max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 32,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", BERT | {"num_labels": 2}),
    "bert-relu-7-labels": ("bert", BERT | {"hidden_act": "relu", "num_labels": 7, "layer_norm_eps": 1e-5}),
    "bert-1-label": ("bert", BERT | {"num_labels": 1, "type_vocab_size": 1}),
    "bert-multi-label-odd": ("bert", BERT | {"num_labels": 5, "problem_type": "multi_label_classification",
                                             "hidden_size": 33, "num_attention_heads": 3}),
    "gpt2": ("gpt2", GPT2 | {"num_labels": 3}),
    "gpt2-inner-relu": ("gpt2", GPT2 | {"num_labels": 2, "n_inner": 37, "activation_function": "relu"}),
    "gpt2-unscaled": ("gpt2", GPT2 | {"num_labels": 1, "scale_attn_weights": False, "layer_norm_epsilon": 1e-3}),
    "llama-gqa": ("llama", LLAMA | {"num_labels": 2}),
    "llama-mqa-biases-tied": ("llama", LLAMA | {"num_labels": 7, "num_key_value_heads": 1, "attention_bias": True,
                                                "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-head-dim-llama3": ("llama", LLAMA | {"num_labels": 1, "head_dim": 10, "rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", LLAMA | {"num_labels": 2, "rope_parameters": YARN}),
    "llama-yarn-scales": ("llama", LLAMA | {"num_labels": 2, "rope_parameters": YARN | {
        "beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False}}),
    "llama-linear-gelu": ("llama", LLAMA | {"num_labels": 2, "hidden_act": "gelu", "rms_norm_eps": 1e-3,
                                            "rope_parameters": LINEAR}),
    "mistral-window": ("mistral", LLAMA | {"num_labels": 3, "sliding_window": 5}),
    "mistral-no-window": ("mistral", LLAMA | {"num_labels": 2, "sliding_window": None, "head_dim": 6}),
    "qwen2": ("qwen2", LLAMA | {"num_labels": 2, "tie_word_embeddings": True}),
    "qwen2-mixed-windows": ("qwen2", LLAMA | {"num_labels": 2, "use_sliding_window": True, "sliding_window": 4,
                                              "max_window_layers": 2}),
    "qwen3": ("qwen3", LLAMA | {"num_labels": 7, "head_dim": 8}),
    "qwen3-bias-windows": ("qwen3", LLAMA | {"num_labels": 2, "head_dim": 12, "attention_bias": True,
                                             "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
}  # fmt: skip
