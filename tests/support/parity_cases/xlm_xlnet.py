"""XLM and FlauBERT: norms on sums or before, causal, languages; XLNet: both directions or one, clamped distances."""

from __future__ import annotations

from typing import Any

XLM = {"vocab_size": 101, "emb_dim": 48, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
       "bos_token_id": 1, "eos_token_id": 2, "sinusoidal_embeddings": False}  # fmt: skip
XLNET = {"vocab_size": 101, "d_model": 48, "n_layer": 3, "n_head": 4, "d_inner": 56, "pad_token_id": 0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "xlm": ("xlm", XLM | {"num_labels": 2}),
    "xlm-languages-relu": ("xlm", XLM | {"num_labels": 7, "n_langs": 3, "gelu_activation": False, "asm": True}),
    "xlm-causal-sinusoids": ("xlm", XLM | {
        "num_labels": 1, "causal": True, "sinusoidal_embeddings": True, "layer_norm_eps": 1e-5}),
    "flaubert": ("flaubert", XLM | {"num_labels": 3}),
    "flaubert-norms-first": ("flaubert", XLM | {
        "num_labels": 7, "pre_norm": True, "layerdrop": 0.2, "gelu_activation": False, "layer_norm_eps": 1e-5}),
    "xlnet": ("xlnet", XLNET | {"num_labels": 2}),
    "xlnet-one-way-relu": ("xlnet", XLNET | {
        "num_labels": 7, "attn_type": "uni", "ff_activation": "relu", "layer_norm_eps": 1e-5}),
    "xlnet-clamped-first": ("xlnet", XLNET | {"num_labels": 1, "clamp_len": 5, "summary_type": "first"}),
    "xlnet-mean": ("xlnet", XLNET | {"num_labels": 3, "summary_type": "mean", "same_length": True}),
}  # fmt: skip
