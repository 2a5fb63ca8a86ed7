"""Adapters of every kind: base (a case of ``parity_cases``) and settings of PEFT's ``LoraConfig``, several a base."""

from __future__ import annotations

from typing import Any

ALL_LINEAR = {"target_modules": "all-linear", "r": 4, "lora_alpha": 9}

SERVED: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "bert": (
        "bert",
        (
            ALL_LINEAR | {"num_labels": 5},
            {
                "target_modules": ["query", "word_embeddings", "dense"],
                "r": 4,
                "use_rslora": True,
                "use_dora": True,
                "rank_pattern": {r"layer\.1\.output\.dense": 2},
                "alpha_pattern": {"query": 3},
            },
        ),
    ),
    "gpt2": ("gpt2", ({"target_modules": ["c_attn", "c_proj", "c_fc", "wte"], "r": 4, "fan_in_fan_out": True},)),
    "llama": (
        "llama-mqa-biases-tied",
        (ALL_LINEAR | {"lora_bias": True}, {"target_modules": ["q_proj", "score"], "r": 2, "modules_to_save": []}),
    ),
    "qwen2": ("qwen2", ({"target_modules": ["q_proj", "v_proj", "down_proj", "embed_tokens"], "use_dora": True},)),
    "mixtral": ("mixtral", ({"target_modules": ["q_proj", "v_proj", "gate"], "r": 3},)),
    "jamba": (
        "jamba-remainder-biases",
        ({"target_modules": ["in_proj", "x_proj", "out_proj", "q_proj", "gate_proj"], "r": 3},),
    ),
    "roberta": ("roberta", ({"target_modules": ["query", "value", "dense"], "r": 3, "num_labels": 3},)),
    "distilbert": (
        "distilbert",
        (
            {"target_modules": ["q_lin", "lin1"], "r": 3, "modules_to_save": ["pre_classifier", "classifier"],
             "num_labels": 4},
            {"target_modules": ["q_lin"], "bias": "lora_only", "modules_to_save": ["classifier"]},
        ),
    ),
    "modernbert": ("modernbert", ({"target_modules": ["Wqkv", "Wi", "Wo", "dense"], "r": 3},)),
}  # fmt: skip
"""What can be served beside the weights."""

MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "all biases": ("bert", {"target_modules": ["query"], "bias": "all"}),
    "Jamba's experts": (
        "jamba",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "r": 3},
    ),
    "Mixtral's experts, of two ranks": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "r": 3,
            "rank_pattern": {r"experts\.down_proj": 5},
        },
    ),
}
"""What can only be merged."""
