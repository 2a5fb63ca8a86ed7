"""Dense decoders with names of their own: learned positions, ALiBi, fused projections."""

from __future__ import annotations

from typing import Any

BLOOM = {"vocab_size": 101, "hidden_size": 48, "n_layer": 3, "n_head": 4}
MPT = {"vocab_size": 101, "d_model": 48, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}
FALCON = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
          "ffn_hidden_size": 68, "max_position_embeddings": 64, "num_kv_heads": 6}  # fmt: skip
OPT = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 60,
       "max_position_embeddings": 64, "word_embed_proj_dim": 48}  # fmt: skip
GPTJ = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
GPT_NEO = {"vocab_size": 97, "hidden_size": 48, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 64,
           "attention_types": [[["global", "local"], 2]], "window_size": 5}  # fmt: skip
BIOGPT = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 60, "max_position_embeddings": 64}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", BLOOM | {"num_labels": 2}),
    "bloom-six-heads-residual": ("bloom", BLOOM | {"num_labels": 7, "n_head": 6,
                                                   "apply_residual_connection_post_layernorm": True}),
    "mpt": ("mpt", MPT | {"num_labels": 2}),
    "mpt-six-heads-clip-scale": ("mpt", MPT | {"num_labels": 1, "n_heads": 6,
                                 "attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.5}}),
    "falcon": ("falcon", FALCON | {"num_labels": 2}),
    "falcon-serial-biases": ("falcon", FALCON | {"num_labels": 7, "multi_query": False, "parallel_attn": False,
                                                 "bias": True}),
    "falcon-alibi": ("falcon", FALCON | {"num_labels": 2, "alibi": True, "multi_query": False, "bias": True}),
    "falcon-new": ("falcon", FALCON | {"num_labels": 3, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-new-one-norm": ("falcon", FALCON | {"num_labels": 2, "new_decoder_architecture": True, "num_kv_heads": 3,
                                                "num_ln_in_parallel_attn": 1}),
    "opt": ("opt", OPT | {"num_labels": 2}),
    "opt-after-projected": ("opt", OPT | {"num_labels": 3, "do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "opt-no-bias-no-affine-gelu": ("opt", OPT | {"num_labels": 1, "enable_bias": False, "activation_function": "gelu",
                                                 "layer_norm_elementwise_affine": False}),
    "opt-no-final-norm": ("opt", OPT | {"num_labels": 2, "_remove_final_layer_norm": True}),
    "gptj": ("gptj", GPTJ | {"num_labels": 2, "rotary_dim": 8}),
    "gptj-whole-inner": ("gptj", GPTJ | {"num_labels": 7, "rotary_dim": 12, "n_inner": 37}),
    "gpt_neo": ("gpt_neo", GPT_NEO | {"num_labels": 2}),
    "gpt_neo-inner-relu": ("gpt_neo", GPT_NEO | {"num_labels": 1, "intermediate_size": 37, "window_size": 9,
                                                 "activation_function": "relu"}),
    "gpt_bigcode": ("gpt_bigcode", GPTJ | {"num_labels": 2}),
    "gpt_bigcode-many-keys": ("gpt_bigcode", GPTJ | {"num_labels": 3, "multi_query": False, "n_inner": 50,
                                                     "scale_attn_weights": False}),
    "openai-gpt": ("openai-gpt", GPTJ | {"num_labels": 2}),
    "openai-gpt-relu": ("openai-gpt", GPTJ | {"num_labels": 1, "afn": "relu", "layer_norm_epsilon": 1e-3}),
    "biogpt": ("biogpt", BIOGPT | {"num_labels": 2}),
    "biogpt-unscaled-relu": ("biogpt", BIOGPT | {"num_labels": 7, "scale_embedding": False, "hidden_act": "relu"}),
    "ctrl": ("ctrl", GPTJ | {"num_labels": 2, "dff": 60}),
    "ctrl-eps": ("ctrl", GPTJ | {"num_labels": 1, "dff": 33, "layer_norm_epsilon": 1e-2}),
}  # fmt: skip
