"""RoBERTa, DistilBERT, ELECTRA, ALBERT, MPNet and other encoders that are settings of BERT's."""

from __future__ import annotations

from typing import Any

from parity_cases.first import BERT

ROBERTA = BERT | {"pad_token_id": 1, "type_vocab_size": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("roberta", ROBERTA | {"num_labels": 2}),
    "roberta-pad-9-types": ("roberta", ROBERTA | {"num_labels": 7, "pad_token_id": 9, "type_vocab_size": 3,
                                                  "hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "roberta-1-label-odd": ("roberta", ROBERTA | {"num_labels": 1, "hidden_size": 33, "num_attention_heads": 3,
                                                  "pad_token_id": 0, "problem_type": "regression"}),
    "xlm-roberta": ("xlm-roberta", ROBERTA | {"num_labels": 3}),
    "xlm-roberta-multi-label": ("xlm-roberta", ROBERTA | {"num_labels": 4, "hidden_act": "gelu_new",
                                                          "problem_type": "multi_label_classification"}),
    "camembert": ("camembert", ROBERTA | {"num_labels": 2}),
    "camembert-7-labels": ("camembert", ROBERTA | {"num_labels": 7, "type_vocab_size": 2, "num_hidden_layers": 1}),
    "data2vec-text": ("data2vec-text", ROBERTA | {"num_labels": 1}),
    "data2vec-text-silu": ("data2vec-text", ROBERTA | {"num_labels": 2, "hidden_act": "silu"}),
}  # fmt: skip
